//! One run: a Redis of its own, the world, the workers, the feeder and the watch. What strikes them is the storm's.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use da_node_executor::domain::blob::BlobRef;
use tokio::sync::{Mutex, OwnedMutexGuard, mpsc};

use super::charges::{Books, Charges, Over, Pending, held};
use super::effects::World;
use super::evidence::Evidence;
use super::fleet::Fleet;
use super::harness::redis::RedisServer;
use super::items::{Entry, Stop, Work};
use super::leftovers::Expected;
use super::network::Network;
use super::redis_access::{Eyes, GROUP, STREAM};
use super::takeovers::Takeovers;

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
    /// Who had what when the server went away.
    before: Option<Pending>,
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
    pub charges: Charges,
    pub takeovers: Takeovers,
    pub decisions: usize,
    pub accidents: Vec<String>,
    /// Of the worker in the slot that is watched, and of the one before it that lived longest there.
    memory: Vec<u64>,
    memory_before: Vec<u64>,
    last_sample: Option<Instant>,
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
        let ports: Vec<u16> =
            (0..workers).map(|slot| if behind_the_wire(slot) { wire.port() } else { redis.port() }).collect();
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
            before: None,
        }
    }

    /// Makes the states that are there from the beginning.
    pub async fn prepare(&mut self, work: &Work) {
        for graph in &work.hashes {
            self.eyes.ask::<()>(&["HSET", &format!("dago:state:{graph}"), "status", "running"]).await;
        }
        for graph in &work.documents {
            let mut document = Work::document(graph);
            document["node_states"] = serde_json::json!({});
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
        self.struck(&id, Over::Taken).await;
        self.watch.takeovers.died(&id, Instant::now());
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

    /// A fault has met a worker.
    pub async fn struck(&mut self, id: &str, over: Over) {
        self.watch.charges.struck(id, over);
        self.count_struck().await;
    }

    /// A worker that stood still goes on.
    pub async fn recovered(&mut self, id: &str) {
        self.count_struck().await;
        self.watch.charges.over(Over::Recovered, |met| met == id);
    }

    /// The wire is as it is now: whoever is behind it may lose a lease as long as it is slow or frozen.
    pub async fn look_at_the_wire(&mut self) {
        if self.wire.troubled() {
            for slot in (0..self.fleet.len()).filter(|slot| behind_the_wire(*slot)) {
                let id = self.fleet.id(slot);
                if !self.watch.charges.is_struck(id, Over::Healed) {
                    self.watch.charges.struck(id, Over::Healed);
                }
            }
            self.count_struck().await;
        } else {
            self.watch.charges.over(Over::Healed, |_| true);
        }
    }

    async fn count_struck(&mut self) {
        if self.watch.charges.is_empty() {
            return;
        }
        let books = match self.redis.try_lock() {
            Ok(_present) => self.eyes.pending().await.map(Books::Now),
            Err(_) => self.before.clone().map(Books::Then),
        };
        if let Some(books) = books {
            let fleet = &self.fleet;
            self.watch.charges.count(&books, |process| fleet.is_leaving(process), |id| fleet.lives(id));
        }
    }

    /// The server, for whoever takes it away. As long as it is away nothing changes hands: what its books said last
    /// stays true.
    pub async fn take_redis(&mut self) -> OwnedMutexGuard<RedisServer> {
        let redis = Arc::clone(&self.redis).lock_owned().await;
        self.before = self.eyes.pending().await;
        redis
    }

    /// Looks around: accidents, takeovers, memory.
    pub async fn look(&mut self) {
        self.kill_poisoned().await;
        let accidents = self.fleet.accidents();
        self.watch.accidents.extend(accidents);
        self.give_orders().await;
        self.look_at_the_wire().await;
        self.count_struck().await;
        self.agree().await;
        self.look_for_takeovers().await;
        if self.watch.last_sample.is_none_or(|last| last.elapsed() >= Duration::from_millis(500)) {
            self.watch.last_sample = Some(Instant::now());
            self.watch.memory.extend(self.fleet.memory(WATCHED));
        }
    }

    async fn look_for_takeovers(&mut self) {
        let pending = match self.redis.try_lock() {
            Ok(_present) => self.eyes.pending().await,
            Err(_) => None,
        };
        let (takeovers, fleet) = (&mut self.watch.takeovers, &self.fleet);
        match pending {
            None => takeovers.away(),
            Some(pending) => {
                takeovers.answered(Instant::now(), |id| held(&pending, id) > 0, |id| fleet.lives(id));
            }
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
        let endings = self.eyes.endings().await;
        let outputs = endings.iter().filter_map(|ending| Some(BlobRef::of(&ending.result)?.key)).collect();
        let expected = Expected { graphs: &graphs, cancelled: &work.cancelled, outputs: &outputs };
        let leftovers = self.eyes.leftovers(&expected).await;
        let (states, members) = self.eyes.states(graphs.into_keys()).await;
        let mut begun: HashMap<String, HashSet<String>> = HashMap::new();
        for (run, by) in self.eyes.begun().await {
            begun.entry(run).or_default().insert(by);
        }
        Evidence {
            identities: work.identities.clone(),
            undecodable: work.undecodable.clone(),
            endings,
            states,
            members,
            written_by_others: work.written_by_others(),
            letters: self.eyes.letters().await,
            leftovers,
            effects: self.world.effects(),
            told: self.world.told(),
            completions_repeated: self.world.completions_repeated(),
            begun: begun.into_iter().map(|(run, by)| (run, by.len())).collect(),
            in_flight_at_faults: self.watch.charges.at_faults,
            in_flight_at_pauses: self.watch.charges.at_pauses,
            slowest_takeover: self.watch.takeovers.longest_served,
            memory: self.watch.longest_life().to_vec(),
        }
    }
}

/// Whether the worker in a slot reaches Redis through the wire that can fail; the others have a way of their own.
fn behind_the_wire(slot: usize) -> bool {
    slot % 2 == 1
}
