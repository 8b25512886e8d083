//! Builds the worker out of its parts, runs it, and stops it in the one order that loses nothing.

mod catalogue;
mod desk;
mod open_files;
pub mod wiring;

use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::{Duration, Instant};

use actix::Actor as _;
use actix_rt::{Arbiter, System};
use anyhow::Context as _;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use crate::actors::custody::InFlight;
use crate::actors::executor::{ExecutorDeps, NodeExecutor};
use crate::actors::handles::{Handles, JournalHandle, StoreHandle};
use crate::actors::janitor::{Janitor, JanitorDeps};
use crate::actors::kept::{Kept, Rollback};
use crate::actors::lease::{Gate, LeaseDeps, LeaseKeeper};
use crate::actors::mover::{Mover, MoverDeps};
use crate::actors::pace::Sharing;
use crate::actors::pool::ExecutorPool;
use crate::actors::progress::{ProgressLog, write_until_closed};
use crate::actors::publisher::{Publisher, PublisherDeps};
use crate::actors::reader::{ReaderDeps, StreamReader};
use crate::actors::registrar::Registrar;
use crate::actors::store::StateStore as StoreActor;
use crate::actors::supervise::supervise;
use crate::clients::redis::{
    Blobs, EventLog, JournalWriter, Keys, Leases, Link, ParkingLot, Permissions, RateLimits, RedisError, ServerFacts,
    Settler, StateStore, Upkeep, WaitingRoom, WorkStreams, WorkerRegistry, preflight,
};
use crate::config::Config;
use crate::domain::event::EventType;
use crate::health::Health;
use crate::http::health::{Facts, listen, serve};
use crate::metrics::Metrics;
use crate::modes::ModeSettings;
use crate::tools::Registry;

use catalogue::Catalogue;
use desk::Desk;
use wiring::{Running, start_on};

/// A refusal to start that a restart does not cure; see `sysexits.h`.
pub const EXIT_CONFIG: i32 = 78;
/// How long results may still be written after the grace time is over.
const LAST_RESULTS: Duration = Duration::from_secs(3);
/// How long running items have to be handed back after a second signal.
const LAST_WORDS: Duration = Duration::from_millis(500);
/// A signal that is repeated this soon is the same order: who signals a process and then its group sends two.
const SAME_ORDER: Duration = Duration::from_secs(1);
/// How long HTTP, tool servers and the registry may take to close.
const CLOSING: Duration = Duration::from_secs(2);
/// How often a server that does not answer yet is asked what it is; nothing is read from it before.
const LOOK_PAUSE: Duration = Duration::from_millis(250);

/// Settings with which nothing can be run, or a server that cannot keep work safe: a restart would not help.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct Refused(String);

/// Runs the worker until it is told to stop, with these functions beside the built-in ones. The answer is the process's exit code.
pub fn run(config: Config, functions: &Registry) -> anyhow::Result<i32> {
    open_files::make_room(config.pool.size.get());
    let system = System::new();
    let worker = system.block_on(Worker::start(config, functions))?;
    system.runtime().spawn(async move {
        let code = worker.until_signalled().await;
        System::current().stop_with_code(code);
    });
    Ok(system.run_with_code()?)
}

/// The running worker: what the stop order needs.
struct Worker {
    config: Config,
    health: Arc<Health>,
    in_flight: InFlight,
    permits: Arc<Semaphore>,
    leases: Leases,
    running: Running,
    http: actix_web::dev::ServerHandle,
    registrar: tokio::task::JoinHandle<()>,
    phases: Phases,
    signals: Signals,
}

/// One token a phase of the stop, so that each part ends in its turn.
#[derive(Clone, Default)]
struct Phases {
    /// No more reads and no more takeovers; deaths of actors are meant from here on.
    drain: CancellationToken,
    /// The reader's last read is answered.
    drained: CancellationToken,
    /// Results that Redis does not take are given up.
    give_up: CancellationToken,
    /// Leases end, the registry forgets us.
    end: CancellationToken,
}

struct Signals {
    term: Signal,
    interrupt: Signal,
}

impl Signals {
    fn listen() -> std::io::Result<Self> {
        Ok(Self { term: signal(SignalKind::terminate())?, interrupt: signal(SignalKind::interrupt())? })
    }

    async fn next(&mut self) -> &'static str {
        tokio::select! {
            _ = self.term.recv() => "SIGTERM",
            _ = self.interrupt.recv() => "SIGINT",
        }
    }

    /// The first signal after this moment.
    async fn next_after(&mut self, moment: Instant) -> &'static str {
        loop {
            let name = self.next().await;
            if Instant::now() >= moment {
                return name;
            }
        }
    }
}

impl Worker {
    async fn start(config: Config, functions: &Registry) -> anyhow::Result<Self> {
        let signals = Signals::listen().context("listening for signals")?;
        let phases = Phases::default();
        let worker_id = config.worker.id.clone();
        let instance = uuid::Uuid::now_v7().simple().to_string();
        let consumer: Arc<str> = Arc::from(format!("{worker_id}:{instance}"));
        let metrics = Arc::new(Metrics::new(&worker_id));
        metrics.pool_size.set(i64::try_from(config.pool.size.get()).unwrap_or(i64::MAX));
        let health = Arc::new(Health::new(config.work.block + config.redis.command_timeout + Duration::from_secs(10)));
        let keys = Keys::new(&config.state.prefix);
        let streams: Vec<Arc<str>> = config.work.streams.iter().map(|stream| Arc::from(stream.as_str())).collect();
        let permits = Arc::new(Semaphore::new(config.pool.size.get()));
        let in_flight = InFlight::new(metrics.in_flight.clone());
        let gate = Arc::new(Gate::new(config.lease.duration));
        let link = Link::new(&config.redis)?;
        let leases = new_leases(&config, &link, &keys, &consumer);

        let (listener, address) = listen(&config.http).with_context(|| {
            format!("listening on {}:{} (http.bind, http.port)", config.http.bind, config.http.port)
        })?;
        let sharing = Sharing {
            // A connection of their own, on the thread of the models, which is made when the first limit is asked.
            limits: Some(Arc::new(RateLimits::new(Link::new(&config.redis)?, keys.clone()))),
            patience: Some(config.retry.park_after),
        };
        let running = Running::start(&config, functions, &health, &metrics, &sharing, &phases.drain, &phases.end)?;
        let waiting = WaitingRoom::new(link.clone(), keys.clone(), &config);
        let desk = Arc::new(Desk::new(waiting.clone(), Arc::clone(&metrics)));
        let facts = Facts { worker_id: worker_id.clone(), health: Arc::clone(&health), metrics: Arc::clone(&metrics) };
        let server = serve(listener, &config.http, facts, Arc::new(Catalogue::new(&running)), desk)?;
        let http = server.handle();
        actix_rt::spawn(server);
        tracing::info!(%address, worker.id = worker_id, consumer = %consumer, version = env!("CARGO_PKG_VERSION"),
            "worker started");

        let event_log = EventLog::new(link.clone(), keys.clone(), config.events.maxlen.get());
        let kinds =
            EventType::PROGRESS.into_iter().filter(|kind| config.events.progress.iter().any(|p| p == kind.as_str()));
        let (progress, queued) = ProgressLog::new(kinds, &worker_id, Arc::clone(&metrics));
        actix_rt::spawn(write_until_closed(queued, event_log.clone(), Arc::clone(&metrics)));

        let state =
            StateStore::new(link.clone(), keys.clone(), &config.state, streams.iter().cloned(), &config.work.group);
        let journal =
            JournalWriter::new(link.clone(), keys.clone(), &config.state, &config.work.group, config.lease.duration);
        let blobs = Blobs::new(link.clone(), keys.clone(), &config.state);
        let (fetched, asked) = (blobs.clone(), waiting.clone());
        let of_store = Arc::clone(&health);
        // What results pass through lives as long as results come: an actor that dies in the drain is rebuilt too.
        let store = supervise("store", Arc::clone(&metrics), phases.end.clone(), move |watch| {
            let (state, journal, health) = (state.clone(), journal.clone(), Arc::clone(&of_store));
            StoreActor::new(state, journal, asked.clone(), fetched.clone(), health, watch).start()
        });
        let settler =
            Settler::new(link.clone(), keys.clone(), &config.state, streams.iter().cloned(), &config.work.group);
        let parking =
            ParkingLot::new(link.clone(), keys.clone(), &config.state, streams.iter().cloned(), &config.work.group);
        let kept = Arc::new(Kept::default());
        let publisher_deps = Arc::new(PublisherDeps {
            settler: settler.clone(),
            kept: Arc::clone(&kept),
            blobs: blobs.clone(),
            inline_output: config.limits.inline_output.get(),
            parking: parking.clone(),
            waiting: waiting.clone(),
            leases: leases.clone(),
            keys: keys.clone(),
            worker_id: worker_id.clone(),
            health: Arc::clone(&health),
            metrics: Arc::clone(&metrics),
            give_up: phases.give_up.clone(),
        });
        let publisher = supervise("publisher", Arc::clone(&metrics), phases.end.clone(), move |watch| {
            Publisher::new(Arc::clone(&publisher_deps), watch).start()
        });
        let executor_deps = Arc::new(ExecutorDeps {
            handles: Handles {
                llm: running.llm.clone(),
                tools: running.tools.clone(),
                store: StoreHandle::new(store.clone(), in_flight.clone()),
                journal: JournalHandle::new(store, in_flight.clone(), keys.clone()),
                events: progress,
            },
            settings: ModeSettings::from(&config),
            publisher: publisher.clone(),
            health: Arc::clone(&health),
        });
        let executors = (0..config.pool.arbiters().get())
            .map(|_| {
                let (deps, arbiter) = (Arc::clone(&executor_deps), Arbiter::new());
                supervise("executor", Arc::clone(&metrics), phases.end.clone(), move |watch| {
                    let deps = Arc::clone(&deps);
                    start_on(&arbiter, move || NodeExecutor::new(deps, watch))
                })
            })
            .collect();

        let reader_deps = Arc::new(ReaderDeps {
            connect: {
                let (redis, work, keys) = (config.redis.clone(), config.work.clone(), keys.clone());
                let consumer = Arc::clone(&consumer);
                // The configuration was good enough for the first connection.
                Box::new(move || {
                    WorkStreams::new(&redis, &work, keys.clone(), Arc::clone(&consumer))
                        .expect("a checked configuration")
                })
            },
            leases: leases.clone(),
            rollback: Rollback::new(link.clone(), settler, kept),
            gate: Arc::clone(&gate),
            in_flight: in_flight.clone(),
            permits: Arc::clone(&permits),
            pool: ExecutorPool::new(executors),
            publisher,
            streams,
            max_item_bytes: config.limits.item.get(),
            max_crashes: config.work.max_crashes.get(),
            sweep: config.lease.sweep(),
            worker_id: worker_id.clone(),
            health: Arc::clone(&health),
            metrics: Arc::clone(&metrics),
            stop: phases.drain.clone(),
            stopped: phases.drained.clone(),
        });
        let mover_deps = Arc::new(MoverDeps {
            parking,
            waiting: waiting.clone(),
            streams: reader_deps.streams.clone(),
            park_after: config.retry.park_after,
            heartbeat: config.lease.renew(),
            link: link.clone(),
            keys: keys.clone(),
            metrics: Arc::clone(&metrics),
            stop: phases.drain.clone(),
        });
        let permissions = Permissions::new(link.clone(), keys.clone(), reader_deps.streams.clone());
        let janitor_deps = Arc::new(JanitorDeps {
            upkeep: Upkeep::new(link.clone(), keys.clone(), &config.work.group, Arc::clone(&consumer)),
            waiting,
            asked: AtomicU64::new(0),
            blobs,
            events: event_log,
            permissions: permissions.clone(),
            streams: reader_deps.streams.clone(),
            reap_after: config.work.reap_after.max(config.lease.duration.saturating_mul(3)),
            maxlen: config.events.maxlen.get(),
            hard_cap: config.events.hard_cap() as u64,
            health: Arc::clone(&health),
            stop: phases.drain.clone(),
        });
        inspect(link.clone(), permissions, &config.redis.url, &health).await?;
        supervise("janitor", Arc::clone(&metrics), phases.drain.clone(), move |watch| {
            Janitor::new(Arc::clone(&janitor_deps), watch).start()
        });
        supervise("mover", Arc::clone(&metrics), phases.drain.clone(), move |watch| {
            Mover::new(Arc::clone(&mover_deps), watch).start()
        });
        supervise("reader", Arc::clone(&metrics), phases.drain.clone(), move |watch| {
            StreamReader::new(Arc::clone(&reader_deps), watch).start()
        });

        let lease_deps = Arc::new(LeaseDeps {
            connect: {
                let (config, keys) = (config.clone(), keys.clone());
                Box::new(move || {
                    let link = Link::new(&config.redis).expect("a checked configuration");
                    new_leases(&config, &link, &keys, &consumer)
                })
            },
            in_flight: in_flight.clone(),
            gate,
            renew: config.lease.renew(),
            health: Arc::clone(&health),
            metrics: Arc::clone(&metrics),
            stop: phases.end.clone(),
        });
        let lease_arbiter = Arbiter::new();
        // Leases are kept through the drain, so a keeper that dies then is rebuilt too.
        supervise("lease keeper", metrics, phases.end.clone(), move |watch| {
            let deps = Arc::clone(&lease_deps);
            start_on(&lease_arbiter, move || LeaseKeeper::new(deps, watch))
        });

        let registrar = Registrar {
            registry: WorkerRegistry::new(link, &keys, &worker_id),
            worker_id,
            instance,
            pool_size: config.pool.size.get(),
            address: address.to_string(),
            tools: running.tool_names(),
            models: config.llm.providers.iter().map(|(name, provider)| format!("{name}/{}", provider.model)).collect(),
            in_flight: in_flight.clone(),
            health: Arc::clone(&health),
        };
        let registrar = actix_rt::spawn(registrar.announce_until(phases.end.clone()));
        Ok(Self { config, health, in_flight, permits, leases, running, http, registrar, phases, signals })
    }

    /// Waits for the signal, then stops in order: not ready, no more reads, running items finish, the rest is handed
    /// back, results are written, leases end, HTTP stops. A second signal hands everything back at once.
    async fn until_signalled(mut self) -> i32 {
        let name = self.signals.next().await;
        let told = Instant::now();
        tracing::info!(signal = name, in_flight = self.in_flight.len(), grace = ?self.config.shutdown.grace,
            "stopping: no more work is taken");
        let Self { config, health, in_flight, permits, leases, running, http, registrar, phases, mut signals } = self;
        let stop = async {
            health.drain();
            phases.drain.cancel();
            let deadline = Instant::now() + config.shutdown.grace;
            // The reader answers within its block; what its last read brought is executed like the rest.
            let _ = tokio::time::timeout(config.work.block + config.redis.command_timeout, phases.drained.cancelled())
                .await;
            if !idle_by(&permits, config.pool.size.get(), deadline).await {
                tracing::info!(in_flight = in_flight.len(), "the grace time is over, the rest is handed back");
                in_flight.stop_all();
                if !idle_by(&permits, config.pool.size.get(), Instant::now() + LAST_RESULTS).await {
                    phases.give_up.cancel();
                    idle_by(&permits, config.pool.size.get(), Instant::now() + Duration::from_millis(200)).await;
                    let held = in_flight.held();
                    tracing::warn!(held = held.len(), "redis did not take every result, those entries are handed back");
                    let _ = tokio::time::timeout(CLOSING, leases.hand_back(&held)).await;
                }
            }
            phases.end.cancel();
            let closing = async {
                let _ = registrar.await;
                running.close().await;
                http.stop(true).await;
            };
            let _ = tokio::time::timeout(CLOSING, closing).await;
        };
        tokio::select! {
            () = stop => {
                tracing::info!("stopped");
                0
            }
            name = signals.next_after(told + SAME_ORDER) => {
                tracing::warn!(signal = name, "a second signal: stopping at once, other workers take over what is left");
                phases.drain.cancel();
                in_flight.stop_all();
                idle_by(&permits, config.pool.size.get(), Instant::now() + LAST_WORDS).await;
                phases.end.cancel();
                130
            }
        }
    }
}

/// Waits until every permit is back, which means that every item is settled or handed back.
async fn idle_by(permits: &Semaphore, size: usize, deadline: Instant) -> bool {
    let all = permits.acquire_many(u32::try_from(size).unwrap_or(u32::MAX));
    tokio::time::timeout_at(deadline.into(), all).await.is_ok()
}

/// Looks at the server once it answers. One that cannot be relied on is refused before any work is read from it.
async fn inspect(link: Link, permissions: Permissions, address: &str, health: &Arc<Health>) -> anyhow::Result<()> {
    // An unreachable server is no reason not to start; the look then follows as soon as it answers.
    let mut told = match facts(&link, &permissions).await {
        Ok((facts, missing)) => return Ok(check(&facts, &missing)?),
        Err(error) => error,
    };
    tell_wait(&told, address);
    health.unseen(true);
    let (address, health) = (String::from(address), Arc::clone(health));
    actix_rt::spawn(async move {
        loop {
            tokio::time::sleep(LOOK_PAUSE).await;
            match facts(&link, &permissions).await {
                Err(error) => {
                    // One line for each kind of trouble, not one a try.
                    if error.refuses_us() != told.refuses_us() {
                        tell_wait(&error, &address);
                        told = error;
                    }
                }
                Ok((facts, missing)) => {
                    if let Err(refused) = check(&facts, &missing) {
                        tracing::error!(%refused, "the worker stops");
                        System::current().stop_with_code(EXIT_CONFIG);
                        return;
                    }
                    health.unseen(false);
                    return;
                }
            }
        }
    });
    Ok(())
}

/// Says why the start has to wait for Redis. It may let us in later: passwords are changed on both sides in turn.
fn tell_wait(error: &RedisError, address: &str) {
    if error.refuses_us() {
        tracing::error!(%error, address, "redis refuses us, waiting for it; check REDIS_PASS (`redis.password`) and \
            REDIS_DB (`redis.db`)");
    } else {
        tracing::warn!(%error, address, "redis does not answer yet, waiting for it");
    }
}

async fn facts(link: &Link, permissions: &Permissions) -> Result<(ServerFacts, Vec<String>), RedisError> {
    Ok((preflight(link).await?, permissions.missing().await?))
}

fn check(facts: &ServerFacts, missing: &[String]) -> Result<(), Refused> {
    if let Some(version) = facts.too_old() {
        return Err(Refused(format!(
            "redis is version {version}, which lacks commands that results are written with; use 7.0 or newer"
        )));
    }
    if !missing.is_empty() {
        return Err(Refused(format!(
            "redis does not let its user run {}, and results would be lost on the way; permit it with ACL SETUSER",
            missing.join(", ")
        )));
    }
    if facts.evicts() {
        let policy = facts.maxmemory_policy.clone().unwrap_or_default();
        return Err(Refused(format!(
            "redis has maxmemory-policy {policy}, which deletes work under memory pressure; set it to noeviction"
        )));
    }
    if facts.aof == Some(false) {
        tracing::warn!(
            "redis runs without an append-only file: work and results are gone when it restarts; set appendonly yes"
        );
    }
    if facts.primary == Some(false) {
        tracing::warn!("this redis is a replica; work cannot be settled here");
    }
    Ok(())
}

fn new_leases(config: &Config, link: &Link, keys: &Keys, consumer: &Arc<str>) -> Leases {
    let streams = config.work.streams.iter().map(|stream| Arc::from(stream.as_str()));
    Leases::new(link.clone(), keys.clone(), &config.work.group, Arc::clone(consumer), config.lease.duration, streams)
}
