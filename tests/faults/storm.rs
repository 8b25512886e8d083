//! What strikes a run, drawn from its seed: each tick kills a worker, and now and then something else goes wrong as
//! well. The work is fed in step with the faults, so that there is always something to be struck.

use std::time::{Duration, Instant};

use fastrand::Rng;

use super::arena::{Arena, Over, Paused, WATCHED};
use super::fleet::{LEASE_MS, POOL, Process};
use super::items::Work;
use super::network::Wire;

/// How much of everything.
#[derive(Debug, Clone, Copy)]
pub struct Storm {
    pub seed: u64,
    pub items: usize,
    pub kills: usize,
    pub redis_faults: usize,
    /// How many of the Redis faults are a pause of [`LONG`].
    pub long_pauses: usize,
    pub workers: usize,
}

/// Between two kills.
const TICK_MS: std::ops::RangeInclusive<u64> = 250..=1000;
/// Ticks that the faults may be ahead of the work: Redis takes none while it is away, and workers die all the same.
const AHEAD: usize = 32;
/// Kills from which on every kind of fault happens; that one does not is drawn less than once in a thousand runs.
const MANY: usize = 120;
/// Longer than every lease, grace and deadline of a command.
const LONG: Duration = Duration::from_secs(30);

/// Something that ends later.
enum Ends {
    Thaw(usize, String),
    Heal,
    Twin(Process),
}

struct Weather<'a> {
    arena: &'a mut Arena,
    rng: Rng,
    ends: Vec<(Instant, Ends)>,
    redis: Option<tokio::task::JoinHandle<()>>,
    storm: Storm,
    ticks: usize,
}

/// Feeds the work and lets the faults loose, until all of both are over.
pub async fn rage(arena: &mut Arena, work: &Work, storm: Storm) {
    let rng = Rng::with_seed(storm.seed ^ 0x5707);
    let mut weather = Weather { arena, rng, ends: Vec::new(), redis: None, storm, ticks: 0 };
    let mut fed = 0;
    let ahead = work.entries.len() * AHEAD / storm.kills.max(1);
    let mut next = Instant::now() + Duration::from_millis(500);
    while fed < work.entries.len() || weather.ticks < storm.kills {
        // What is fed keeps in step with the faults, so that neither is over long before the other.
        let share = (weather.ticks + 1) as f64 / (storm.kills + 1) as f64;
        let due = ((work.entries.len() as f64 * share) as usize).min(work.entries.len());
        if fed < due {
            fed += weather.arena.feed(&work.entries[fed..due]).await;
        }
        weather.pass().await;
        // And the faults wait for it, or a machine with much else to do would meet half of the work without any.
        let in_step = fed + ahead >= due;
        if Instant::now() >= next && in_step && weather.ticks < storm.kills {
            weather.tick().await;
            next = Instant::now() + Duration::from_millis(weather.rng.u64(TICK_MS));
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    weather.calm().await;
}

/// What of a storm did not happen: a run that was met by less than it was meant to proves less.
pub fn lulls(arena: &Arena, storm: Storm) -> Vec<String> {
    let watch = &arena.watch;
    // In a short storm the dice may leave out any one kind of what is drawn.
    let drawn = usize::from(storm.kills >= MANY);
    let kinds = [
        // None is killed when all that come to mind are frozen.
        ("worker kills", watch.kills, storm.kills * 9 / 10),
        ("Redis faults", watch.redis_faults, storm.redis_faults),
        ("worker pauses", watch.pauses, drawn),
        ("workers told to stop", watch.stops, drawn),
        ("workers of one name", watch.twins, drawn),
        ("network faults", watch.wire_faults, drawn),
        ("lost answers of settlements", arena.wire.lost(), drawn),
    ];
    let few = kinds.into_iter().filter(|(_, happened, wanted)| happened < wanted);
    few.map(|(kind, happened, wanted)| format!("no storm: {happened} {kind}, {wanted} wanted")).collect()
}

impl Weather<'_> {
    async fn tick(&mut self) {
        self.ticks += 1;
        if let Some(slot) = self.other() {
            self.arena.kill(slot).await;
        }
        let Storm { kills, redis_faults, long_pauses, .. } = self.storm;
        // A fault that takes long delays the ones behind it; the last ticks make up for that.
        let due = redis_faults.min(self.ticks * (redis_faults + 2) / kills.max(1));
        if self.arena.watch.redis_faults < due {
            // The long ones are spread over the storm, away from its ends.
            let apart = (redis_faults / (long_pauses + 1)).max(1);
            let number = self.arena.watch.redis_faults + 1;
            let long = number.is_multiple_of(apart) && number / apart <= long_pauses;
            self.strike_redis(long).await;
        }
        match self.rng.u8(..16) {
            0 | 1 => self.freeze().await,
            2 | 3 => self.retire().await,
            4 => self.twin(),
            5..=8 => self.strike_wire().await,
            _ => {}
        }
    }

    fn later(&mut self, after: Duration, end: Ends) {
        self.ends.push((Instant::now() + after, end));
    }

    /// A worker that goes on, if there is one among the first few that come to mind.
    fn other(&mut self) -> Option<usize> {
        (0..8).find_map(|_| {
            let slot = self.rng.usize(WATCHED + 1..self.storm.workers);
            (!self.arena.fleet.frozen(slot)).then_some(slot)
        })
    }

    /// Longer than a lease: its work is taken over, and then it wakes up and goes on with it.
    async fn freeze(&mut self) {
        let Some(slot) = self.other() else { return };
        let id = String::from(self.arena.fleet.id(slot));
        self.arena.fleet.freeze(slot);
        self.arena.struck(&id, Over::Recovered).await;
        self.arena.watch.pauses += 1;
        let long = Duration::from_millis(LEASE_MS).mul_f64(1.2 + self.rng.f64());
        self.later(long, Ends::Thaw(slot, id));
    }

    async fn retire(&mut self) {
        let Some(slot) = self.other() else { return };
        let (id, process) = self.arena.fleet.retire(slot);
        self.arena.watch.stops += 1;
        self.arena.struck(&id, Over::Ended(process)).await;
    }

    fn twin(&mut self) {
        let Some(slot) = self.other() else { return };
        // Nothing is executed again because of a namesake; it counts when it is told to stop.
        let twin = self.arena.fleet.twin(slot);
        self.arena.watch.twins += 1;
        self.later(Duration::from_secs(2), Ends::Twin(twin));
    }

    async fn strike_wire(&mut self) {
        let wire = &self.arena.wire;
        let behind = self.storm.workers / 2;
        self.arena.watch.wire_faults += 1;
        self.arena.watch.in_flight_at_faults += POOL * behind;
        match self.rng.u8(..6) {
            0 => wire.cut(),
            1 => {
                wire.set(Wire::Slow(Duration::from_millis(self.rng.u64(20..200))));
                self.later(Duration::from_millis(1500), Ends::Heal);
            }
            2 => {
                wire.set(Wire::Frozen);
                let long = Duration::from_millis(self.rng.u64(200..3000));
                self.later(long, Ends::Heal);
            }
            // Most of all the moment that is hardest: it is done, and nobody was told.
            _ => wire.lose_settlements(self.rng.usize(1..4)),
        }
    }

    /// Takes the server away and brings it back, in the background, for the kills go on meanwhile.
    async fn strike_redis(&mut self, long: bool) {
        let away = if long { LONG } else { Duration::from_millis(self.rng.u64(100..2500)) };
        let how = if long { 0 } else { self.rng.u8(..5) };
        if self.redis.as_ref().is_some_and(|running| !running.is_finished()) {
            return;
        }
        self.arena.watch.redis_faults += 1;
        self.arena.watch.in_flight_at_faults += POOL * (self.storm.workers + 1);
        let pid = self.arena.redis_pid().await;
        let redis = std::sync::Arc::clone(&self.arena.redis).lock_owned().await;
        if how == 4 {
            // It is there and holds every answer back; and it forgets the scripts, as it would by a restart.
            let away = away.as_millis().to_string();
            self.arena.eyes.ask::<()>(&["SCRIPT", "FLUSH"]).await;
            self.arena.eyes.ask::<()>(&["CLIENT", "PAUSE", &away, "ALL"]).await;
        }
        self.redis = Some(tokio::spawn(async move {
            let mut redis = redis;
            match how {
                0 | 1 => {
                    let paused = Paused::new(pid);
                    tokio::time::sleep(away).await;
                    drop(paused);
                }
                2 | 3 => {
                    tokio::task::block_in_place(|| redis.kill());
                    tokio::time::sleep(away).await;
                    tokio::task::block_in_place(|| redis.start_again());
                }
                _ => tokio::time::sleep(away).await,
            }
        }));
    }

    /// Ends what is due, and looks around.
    async fn pass(&mut self) {
        let now = Instant::now();
        for at in (0..self.ends.len()).rev() {
            if self.ends[at].0 <= now {
                let (_, end) = self.ends.swap_remove(at);
                self.end(end).await;
            }
        }
        self.arena.look().await;
    }

    async fn end(&mut self, end: Ends) {
        match end {
            Ends::Thaw(slot, id) => {
                self.arena.recovered(&id).await;
                // It may have been told to kill its worker meanwhile; then another one is there.
                if self.arena.fleet.id(slot) == id {
                    self.arena.fleet.thaw(slot);
                }
            }
            Ends::Heal => self.arena.wire.heal(),
            Ends::Twin(twin) => {
                let (id, process) = self.arena.fleet.retire_twin(twin);
                self.arena.struck(&id, Over::Ended(process)).await;
            }
        }
    }

    /// Ends everything that still goes on.
    async fn calm(mut self) {
        if let Some(redis) = self.redis.take() {
            redis.await.expect("the server comes back");
        }
        for (_, end) in std::mem::take(&mut self.ends) {
            self.end(end).await;
        }
        self.arena.wire.heal();
        debug_assert!(!self.arena.fleet.frozen(WATCHED));
    }
}
