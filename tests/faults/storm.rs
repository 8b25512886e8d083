//! What strikes a run, drawn from its seed: each tick kills a worker, and now and then something else goes wrong as
//! well. The work is fed in step with the faults, so that there is always something to be struck.

use std::time::{Duration, Instant};

use fastrand::Rng;
use tokio::task::JoinHandle;

use super::arena::{Arena, WATCHED};
use super::charges::Over;
use super::fleet::LEASE_MS;
use super::items::Work;
use super::network::Wire;
use super::outage::Outage;

/// How much of everything.
#[derive(Debug, Clone, Copy)]
pub struct Storm {
    pub seed: u64,
    pub items: usize,
    pub kills: usize,
    pub redis_faults: usize,
    /// How many of the Redis faults are a pause of [`LONG`](super::outage::LONG).
    pub long_pauses: usize,
    pub workers: usize,
}

/// Between two kills.
const TICK_MS: std::ops::RangeInclusive<u64> = 250..=1000;
/// Ticks that the faults may be ahead of the work, of a long storm and of a short one: Redis takes none while it is away,
/// and workers die all the same.
const AHEAD: std::ops::RangeInclusive<usize> = 4..=32;
/// Kills from which on every kind of fault happens; that one does not is drawn less than once in a thousand runs.
const MANY: usize = 120;
/// Between two faults of Redis: workers connect again, may take work over after a lease of contact, and do. Without it the
/// faults that are overdue after a long pause would be one more.
const CALM: Duration = Duration::from_millis(2 * LEASE_MS + 1500);

/// What one tick brings. It is drawn from the seed and the number of the tick alone, so that a seed brings the same
/// whatever became of the ticks before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Tick {
    /// The worker that is killed, and the one that is met by something else: the first that goes on from these.
    kill: usize,
    meets: usize,
    strike: Option<Strike>,
    next: Duration,
}

/// What happens beside the kills.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Strike {
    /// A worker stands still for longer than a lease: its work is taken over, and then it wakes up and goes on with it.
    Freeze(Duration),
    Retire,
    /// A second worker of one name.
    Twin,
    Cut,
    Slow(Duration),
    FrozenWire(Duration),
    /// Most of all the moment that is hardest: it is done, and nobody was told.
    LostAnswers(usize),
}

/// The dice of one moment: `what` tells apart what is thrown for.
pub fn dice(seed: u64, what: u64, number: usize) -> Rng {
    Rng::with_seed((seed ^ what).wrapping_add((number as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15)))
}

pub fn millis(rng: &mut Rng, range: impl std::ops::RangeBounds<u64>) -> Duration {
    Duration::from_millis(rng.u64(range))
}

impl Tick {
    fn draw(seed: u64, number: usize) -> Self {
        let rng = &mut dice(seed, 0x5707, number);
        let (kill, meets) = (rng.usize(..), rng.usize(..));
        let next = millis(rng, TICK_MS);
        let strike = match rng.u8(..16) {
            0 | 1 => Some(Strike::Freeze(Duration::from_millis(LEASE_MS).mul_f64(1.2 + rng.f64()))),
            2 | 3 => Some(Strike::Retire),
            4 => Some(Strike::Twin),
            5..=8 => Some(match rng.u8(..6) {
                0 => Strike::Cut,
                1 => Strike::Slow(millis(rng, 20..200)),
                2 => Strike::FrozenWire(millis(rng, 200..3000)),
                _ => Strike::LostAnswers(rng.usize(1..4)),
            }),
            _ => None,
        };
        Self { kill, meets, strike, next }
    }
}

/// Something that ends later.
enum Ends {
    Thaw(usize, String),
    Heal,
    Twin(u32),
}

struct Weather<'a> {
    arena: &'a mut Arena,
    ends: Vec<(Instant, Ends)>,
    /// Brings Redis back.
    redis: Option<JoinHandle<()>>,
    /// Since when it is back.
    calm: Option<Instant>,
    storm: Storm,
    ticks: usize,
    next: Instant,
}

/// Feeds the work and lets the faults loose, until all of both are over.
pub async fn rage(arena: &mut Arena, work: &Work, storm: Storm) {
    let next = Instant::now() + Duration::from_millis(500);
    let mut weather = Weather { arena, ends: Vec::new(), redis: None, calm: None, storm, ticks: 0, next };
    let mut fed = 0;
    let ahead = (storm.kills / 16).clamp(*AHEAD.start(), *AHEAD.end());
    let ahead = work.entries.len() * ahead / storm.kills.max(1);
    while fed < work.entries.len() || weather.ticks < storm.kills {
        // What is fed keeps in step with the faults, so that neither is over long before the other.
        let share = (weather.ticks + 1) as f64 / (storm.kills + 1) as f64;
        let due = ((work.entries.len() as f64 * share) as usize).min(work.entries.len());
        if fed < due {
            fed += weather.arena.feed(&work.entries[fed..due]).await;
        }
        weather.pass().await;
        let overdue = weather.strike_redis().await;
        // And the faults wait for it, or a machine with much else to do would meet half of the work without any. The
        // last kill waits for the last fault of Redis.
        let in_step = fed + ahead >= due && (overdue == 0 || weather.ticks + 1 < storm.kills);
        if Instant::now() >= weather.next && in_step && weather.ticks < storm.kills {
            weather.tick().await;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    weather.calm_down().await;
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
        let Tick { kill, meets, strike, next } = Tick::draw(self.storm.seed, self.ticks);
        if let Some(slot) = self.going_on(kill) {
            self.arena.kill(slot).await;
        }
        if let Some(strike) = strike {
            self.strike(strike, meets).await;
        }
        self.next = Instant::now() + next;
    }

    fn later(&mut self, after: Duration, end: Ends) {
        self.ends.push((Instant::now() + after, end));
    }

    /// The first worker that goes on, from the one that was drawn.
    fn going_on(&self, drawn: usize) -> Option<usize> {
        let others = self.storm.workers - WATCHED - 1;
        let slots = (0..others).map(|step| WATCHED + 1 + (drawn % others + step) % others);
        slots.into_iter().find(|slot| !self.arena.fleet.frozen(*slot))
    }

    async fn strike(&mut self, strike: Strike, meets: usize) {
        let slot = self.going_on(meets);
        match strike {
            Strike::Freeze(long) => {
                let Some(slot) = slot else { return };
                let id = String::from(self.arena.fleet.id(slot));
                self.arena.fleet.freeze(slot);
                self.arena.struck(&id, Over::Recovered).await;
                self.arena.watch.pauses += 1;
                self.later(long, Ends::Thaw(slot, id));
            }
            Strike::Retire => {
                let Some(slot) = slot else { return };
                let (id, process) = self.arena.fleet.retire(slot);
                self.arena.watch.stops += 1;
                self.arena.struck(&id, Over::Ended(process)).await;
            }
            Strike::Twin => {
                let Some(slot) = slot else { return };
                // Nothing is executed again because of a namesake; it counts when it is told to stop.
                let twin = self.arena.fleet.twin(slot);
                self.arena.watch.twins += 1;
                self.later(Duration::from_secs(2), Ends::Twin(twin));
            }
            Strike::Cut => self.strike_wire(|arena| arena.wire.cut()).await,
            Strike::Slow(pause) => {
                self.strike_wire(|arena| arena.wire.set(Wire::Slow(pause))).await;
                self.later(Duration::from_millis(1500), Ends::Heal);
            }
            Strike::FrozenWire(long) => {
                self.strike_wire(|arena| arena.wire.set(Wire::Frozen)).await;
                self.later(long, Ends::Heal);
            }
            Strike::LostAnswers(count) => self.strike_wire(|arena| arena.wire.lose_settlements(count)).await,
        }
    }

    async fn strike_wire(&mut self, strike: impl FnOnce(&Arena)) {
        self.arena.watch.wire_faults += 1;
        strike(self.arena);
        self.arena.look_at_the_wire().await;
    }

    /// Takes the server away if that is due, and brings it back in the background, for the kills go on meanwhile. Gives
    /// how many faults of it are overdue.
    async fn strike_redis(&mut self) -> usize {
        let Storm { kills, redis_faults, .. } = self.storm;
        if self.redis.as_ref().is_some_and(JoinHandle::is_finished) {
            self.redis.take().expect("it was there").await.expect("the server comes back");
            self.calm = Some(Instant::now());
        }
        // Those that come late make up for it in the last ticks.
        let due = redis_faults.min(self.ticks * (redis_faults + 2) / kills.max(1));
        let overdue = due - self.arena.watch.redis_faults;
        if overdue == 0 || self.redis.is_some() || self.calm.is_some_and(|calm| calm.elapsed() < CALM) {
            return overdue;
        }
        self.arena.watch.redis_faults += 1;
        let outage = Outage::draw(self.storm, self.arena.watch.redis_faults);
        self.redis = Some(outage.begins(self.arena).await);
        overdue - 1
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
                if let Some(id) = self.arena.fleet.retire_twin(twin) {
                    self.arena.struck(&id, Over::Ended(twin)).await;
                }
            }
        }
    }

    /// Ends everything that still goes on.
    async fn calm_down(mut self) {
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

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn a_seed_draws_the_same_faults_whatever_was_drawn_before() {
        let forwards: Vec<_> = (1..=200).map(|number| Tick::draw(7, number)).collect();
        let backwards: Vec<_> = (1..=200).rev().map(|number| Tick::draw(7, number)).collect();
        assert!(forwards.iter().eq(backwards.iter().rev()));
        assert!((1..=200).any(|number| Tick::draw(8, number) != forwards[number - 1]));
        let different: HashSet<_> = forwards.iter().map(|tick| (tick.kill, tick.next)).collect();
        assert_eq!(different.len(), 200, "each tick throws dice of its own");
        for one in [Strike::Retire, Strike::Twin, Strike::Cut] {
            assert!(forwards.iter().any(|tick| tick.strike == Some(one)), "{one:?}");
        }
    }
}
