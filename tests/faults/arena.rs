//! One run: a Redis of its own, the world, the workers, the feeder and the watch. What strikes them is the storm's.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::sync::{Mutex, mpsc};

use super::effects::World;
use super::evidence::Evidence;
use super::fleet::{Fleet, POOL};
use super::harness::redis::RedisServer;
use super::items::{Entry, Stop, Work};
use super::network::Network;
use super::redis_access::{Eyes, GROUP, STREAM};

/// Entries that may wait in the stream before the feeder pauses.
const BACKLOG: usize = 400;
/// Entries of one submission.
const CHUNK: usize = 50;
/// The slot whose worker is struck by nothing but poison, so that its memory can be watched.
pub const WATCHED: usize = 0;
/// Without any progress for so long, what is missing is lost.
const STANDSTILL: Duration = Duration::from_secs(40);

/// Where everything happens.
pub struct Arena {
    /// Held by whoever needs the server to be there, and by whoever takes it away.
    pub redis: Arc<Mutex<RedisServer>>,
    pub eyes: Eyes,
    pub world: World,
    pub wire: Network,
    pub fleet: Fleet,
    /// Slots whose worker called the tool that kills.
    pub poisoned: mpsc::UnboundedReceiver<usize>,
    pub watch: Watch,
    /// Orders to stop something, each with the moment at which it is given.
    orders: Vec<(Instant, Stop)>,
    /// The last question that was answered.
    answered: String,
}

/// What is noted while a run goes on.
#[derive(Debug, Default)]
pub struct Watch {
    pub kills: usize,
    pub redis_faults: usize,
    pub pauses: usize,
    pub stops: usize,
    pub wire_faults: usize,
    /// Second workers of one name.
    pub twins: usize,
    pub in_flight_at_faults: usize,
    pub in_flight_at_pauses: usize,
    pub decisions: usize,
    pub longest_takeover: Duration,
    pub stalled: Option<String>,
    pub accidents: Vec<String>,
    /// Of the worker in the slot that is watched, and of the one before it that lived longest there.
    memory: Vec<u64>,
    memory_before: Vec<u64>,
    /// Names of killed workers that still have entries, and since when.
    dead: HashMap<String, Instant>,
    last_sample: Option<Instant>,
    /// Workers that a fault has met and that may still be given work by a read which was under way.
    struck: Vec<Struck>,
}

/// A worker that a fault has met, and how many entries at once it was seen to have since.
#[derive(Debug)]
struct Struck {
    id: String,
    over: Over,
    counted: usize,
}

/// When a fault is over for the worker that it met.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Over {
    /// When [`Arena::recovered`] says so.
    Recovered,
    /// When this process has ended, which was told to.
    Ended(u32),
}

impl Watch {
    /// The memory of the watched worker that lived longest.
    pub fn longest_life(&self) -> &[u64] {
        let (before, now) = (&self.memory_before, &self.memory);
        if before.len() > now.len() { before } else { now }
    }
}

impl Arena {
    /// `workers` processes; every other one reaches Redis through the wire that can fail.
    pub async fn build(workers: usize, redis_options: &[&str], env: &[(&str, &str)]) -> Self {
        let redis = RedisServer::start_with(redis_options);
        let wire = Network::to(redis.port()).await;
        let (world, poisoned) = World::start();
        let ports: Vec<u16> = (0..workers).map(|slot| if slot % 2 == 1 { wire.port() } else { redis.port() }).collect();
        let mut eyes = Eyes::at(&redis.url());
        // Present before the first worker, so that looking at the group never fails for its absence.
        eyes.ask::<()>(&["XGROUP", "CREATE", STREAM, GROUP, "0", "MKSTREAM"]).await;
        let fleet = Fleet::start(&ports, &world, env);
        Self {
            redis: Arc::new(Mutex::new(redis)),
            eyes,
            world,
            wire,
            fleet,
            poisoned,
            watch: Watch::default(),
            orders: Vec::new(),
            answered: String::from("0-0"),
        }
    }

    /// Makes the states that are there from the beginning.
    pub async fn prepare(&mut self, work: &Work) {
        for graph in &work.hashes {
            self.eyes.ask::<()>(&["HSET", &format!("dago:state:{graph}"), "status", "running"]).await;
        }
        for graph in &work.documents {
            let document = serde_json::json!({"graph_id": graph, "graph": {"nodes": {}}, "status": "running",
                "inputs": {}, "node_states": {}, "others": "keep this"});
            self.eyes.ask::<()>(&["SET", &format!("dago:state:{graph}"), &document.to_string(), "EX", "86400"]).await;
        }
    }

    /// Submits the next entries if there is room and Redis is there; gives how many.
    pub async fn feed(&mut self, entries: &[Entry]) -> usize {
        let Ok(_present) = self.redis.try_lock() else { return 0 };
        match self.eyes.progress().await {
            Some((waiting, _)) if waiting < BACKLOG => {}
            _ => return 0,
        }
        let count = entries.len().min(CHUNK);
        self.eyes.submit(&entries[..count]).await;
        let stops = entries[..count].iter().filter_map(|entry| entry.stop.clone());
        self.orders.extend(stops.map(|stop| (Instant::now() + stop.after, stop)));
        count
    }

    /// Takes everything away that Redis has, and the orders that are about it.
    pub async fn flush(&mut self) {
        self.orders.clear();
        self.eyes.ask::<()>(&["FLUSHALL"]).await;
    }

    /// Kills the worker in a slot and replaces it. Its entries count as in flight.
    pub async fn kill(&mut self, slot: usize) {
        self.fleet.kill(slot);
        self.bury(slot).await;
    }

    /// Replaces the worker in a slot, which has ended. Its entries count as in flight.
    pub async fn bury(&mut self, slot: usize) {
        let id = String::from(self.fleet.id(slot));
        self.watch.in_flight_at_faults += self.held_by(&id).await.unwrap_or(POOL);
        self.watch.dead.insert(id, Instant::now());
        self.watch.kills += 1;
        self.fleet.replace(slot);
        if slot == WATCHED {
            let memory = std::mem::take(&mut self.watch.memory);
            if memory.len() > self.watch.memory_before.len() {
                self.watch.memory_before = memory;
            }
        }
    }

    /// Kills the workers that called the tool that kills.
    pub async fn kill_poisoned(&mut self) {
        while let Ok(slot) = self.poisoned.try_recv() {
            self.kill(slot).await;
        }
    }

    /// A fault has met a worker that is not dead: what it holds from now on, until it is over, is what can be executed
    /// again for it. It was told to read no more, or cannot, but a read that waits in Redis may still bring it some.
    pub async fn struck(&mut self, id: &str, over: Over) {
        self.watch.struck.push(Struck { id: String::from(id), over, counted: 0 });
        self.count_struck().await;
    }

    /// What had met a worker is over.
    pub async fn recovered(&mut self, id: &str) {
        self.count_struck().await;
        self.watch.struck.retain(|struck| struck.over != Over::Recovered || struck.id != id);
    }

    async fn count_struck(&mut self) {
        if self.watch.struck.is_empty() {
            return;
        }
        let pending = match self.redis.try_lock() {
            Ok(_present) => self.eyes.pending().await,
            Err(_) => None,
        };
        let Watch { struck, in_flight_at_faults, in_flight_at_pauses, .. } = &mut self.watch;
        for Struck { id, over, counted } in struck.iter_mut() {
            // A server that is away tells nobody; the bound of one worker has to do then.
            let more = pending.as_ref().map_or(POOL, |pending| held(pending, id)).saturating_sub(*counted);
            *counted += more;
            *in_flight_at_faults += more;
            if *over == Over::Recovered {
                *in_flight_at_pauses += more;
            }
        }
        let fleet = &self.fleet;
        struck.retain(|struck| match struck.over {
            Over::Recovered => true,
            Over::Ended(process) => fleet.is_leaving(process),
        });
    }

    async fn held_by(&mut self, id: &str) -> Option<usize> {
        // A server that is paused answers nobody; the bound of one worker is good enough then.
        let Ok(_present) = self.redis.try_lock() else { return None };
        let pending = self.eyes.pending().await?;
        Some(held(&pending, id))
    }

    /// Looks around: accidents, takeovers, memory.
    pub async fn look(&mut self) {
        self.kill_poisoned().await;
        let accidents = self.fleet.accidents();
        self.watch.accidents.extend(accidents);
        self.give_orders().await;
        self.count_struck().await;
        self.agree().await;
        if let Ok(_present) = self.redis.try_lock()
            && !self.watch.dead.is_empty()
            && let Some(pending) = self.eyes.pending().await
        {
            let Watch { longest_takeover, stalled, dead, .. } = &mut self.watch;
            dead.retain(|id, since| {
                let has = held(&pending, id) > 0;
                if !has && since.elapsed() > *longest_takeover {
                    *longest_takeover = since.elapsed();
                    *stalled = Some(id.clone());
                }
                has
            });
        }
        if self.watch.last_sample.is_none_or(|last| last.elapsed() >= Duration::from_millis(500)) {
            self.watch.last_sample = Some(Instant::now());
            self.watch.memory.extend(self.fleet.memory(WATCHED));
        }
    }

    /// Plays the person whom nodes wait for.
    async fn agree(&mut self) {
        let Ok(_present) = self.redis.try_lock() else { return };
        let entries = self.eyes.agree(&mut self.answered).await;
        if !entries.is_empty() {
            self.watch.decisions += entries.len();
            self.eyes.submit(&entries).await;
        }
    }

    async fn give_orders(&mut self) {
        let Ok(_present) = self.redis.try_lock() else { return };
        let now = Instant::now();
        for at in (0..self.orders.len()).rev() {
            if self.orders[at].0 <= now {
                let (_, stop) = self.orders.swap_remove(at);
                self.eyes.stop(&stop).await;
            }
        }
    }

    /// Waits until nothing is left to do, or until nothing moves any more.
    pub async fn drain(&mut self) {
        let (mut moved, mut last) = (Instant::now(), (0, 0));
        loop {
            self.look().await;
            if let Some(progress) = self.eyes.progress().await {
                let pending = self.eyes.pending().await.unwrap_or_default();
                if progress.0 == 0 && pending.is_empty() && self.orders.is_empty() && self.fleet.leaving() == 0 {
                    return;
                }
                if progress != last {
                    (moved, last) = (Instant::now(), progress);
                }
            }
            if moved.elapsed() > STANDSTILL {
                return;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// Everything that can be known about this work.
    pub async fn evidence(&mut self, work: &Work) -> Evidence {
        // A state that was there before, without an expiry, keeps none.
        let graphs: HashMap<&str, bool> = work
            .identities
            .iter()
            .map(|identity| (identity.graph.as_str(), !work.hashes.contains(&identity.graph)))
            .collect();
        let leftovers = self.eyes.leftovers(&graphs, &work.cancelled).await;
        let states = self.eyes.states(graphs.into_keys()).await;
        let mut begun: HashMap<String, HashSet<String>> = HashMap::new();
        for (run, by) in self.eyes.begun().await {
            begun.entry(run).or_default().insert(by);
        }
        Evidence {
            identities: work.identities.clone(),
            undecodable: work.undecodable.clone(),
            endings: self.eyes.endings().await,
            states,
            letters: self.eyes.letters().await,
            leftovers,
            effects: self.world.effects(),
            told: self.world.told(),
            completions_repeated: self.world.completions_repeated(),
            begun: begun.into_iter().map(|(run, by)| (run, by.len())).collect(),
            in_flight_at_faults: self.watch.in_flight_at_faults,
            in_flight_at_pauses: self.watch.in_flight_at_pauses,
            memory: self.watch.longest_life().to_vec(),
        }
    }

    /// The server's process.
    pub async fn redis_pid(&mut self) -> Pid {
        let info: String = self.eyes.ask(&["INFO", "server"]).await;
        let pid = info.lines().find_map(|line| line.strip_prefix("process_id:")?.trim().parse().ok());
        Pid::from_raw(pid.expect("the server tells its process"))
    }
}

/// Stops Redis in the middle of whatever it does; goes on when it is dropped.
pub struct Paused(Pid);

impl Paused {
    /// Stops it.
    pub fn new(pid: Pid) -> Self {
        kill(pid, Signal::SIGSTOP).expect("the process is ours");
        Self(pid)
    }
}

impl Drop for Paused {
    fn drop(&mut self) {
        let _ = kill(self.0, Signal::SIGCONT);
    }
}

/// What all consumers of a worker have pending; one process is one consumer, twins are two.
fn held(pending: &HashMap<String, usize>, id: &str) -> usize {
    let own = |consumer: &str| consumer.strip_prefix(id).is_some_and(|rest| rest.starts_with(':'));
    pending.iter().filter(|(consumer, _)| own(consumer)).map(|(_, count)| count).sum()
}
