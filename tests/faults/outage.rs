//! Redis goes away, each time in one of several ways, and comes back by itself.

use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::task::JoinHandle;

use super::arena::Arena;
use super::storm::{Storm, dice, millis};

/// Longer than every lease, grace and deadline of a command.
pub const LONG: Duration = Duration::from_secs(30);

/// A fault of Redis.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Outage {
    pub how: How,
    pub away: Duration,
}

/// What becomes of the server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum How {
    /// It stands still in the middle of whatever it does.
    Pause,
    /// It is killed, and started again.
    Kill,
    /// It is there and holds every answer back; and it forgets the scripts, as it would by a restart.
    Silence,
}

impl Outage {
    /// The one of this number, drawn from it and the seed alone.
    pub fn draw(Storm { seed, redis_faults, long_pauses, .. }: Storm, number: usize) -> Self {
        // The long ones are spread over the storm, away from its ends.
        let long = (1..=long_pauses).any(|long| number == long * (redis_faults + 1) / (long_pauses + 1));
        if long {
            return Self { how: How::Pause, away: LONG };
        }
        let rng = &mut dice(seed, 0x2ed15, number);
        let away = millis(rng, 100..2500);
        let how = match rng.u8(..5) {
            0 | 1 => How::Pause,
            2 | 3 => How::Kill,
            _ => How::Silence,
        };
        Self { how, away }
    }

    /// Takes the server away and brings it back in the background.
    pub async fn begins(self, arena: &mut Arena) -> JoinHandle<()> {
        let Self { how, away } = self;
        let info: String = arena.eyes.ask(&["INFO", "server"]).await;
        let pid = info.lines().find_map(|line| line.strip_prefix("process_id:")?.trim().parse().ok());
        let pid = Pid::from_raw(pid.expect("the server tells its process"));
        let mut redis = arena.take_redis().await;
        if how == How::Silence {
            let away = away.as_millis().to_string();
            arena.eyes.ask::<()>(&["SCRIPT", "FLUSH"]).await;
            arena.eyes.ask::<()>(&["CLIENT", "PAUSE", &away, "ALL"]).await;
        }
        tokio::spawn(async move {
            match how {
                How::Pause => {
                    let paused = Paused::new(pid);
                    tokio::time::sleep(away).await;
                    drop(paused);
                }
                How::Kill => {
                    tokio::task::block_in_place(|| redis.kill());
                    tokio::time::sleep(away).await;
                    tokio::task::block_in_place(|| redis.start_again());
                }
                How::Silence => tokio::time::sleep(away).await,
            }
        })
    }
}

/// A server that is stopped; it goes on when this is dropped.
struct Paused(Pid);

impl Paused {
    fn new(pid: Pid) -> Self {
        kill(pid, Signal::SIGSTOP).expect("the process is ours");
        Self(pid)
    }
}

impl Drop for Paused {
    fn drop(&mut self) {
        let _ = kill(self.0, Signal::SIGCONT);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn storm(redis_faults: usize, long_pauses: usize) -> Storm {
        Storm { seed: 7, items: 1, kills: 200, redis_faults, long_pauses, workers: 8 }
    }

    #[test]
    fn a_number_draws_the_same_whatever_was_drawn_before() {
        let outage = |number| Outage::draw(storm(100, 0), number);
        assert_eq!(outage(9), outage(9));
        for how in [How::Pause, How::Kill, How::Silence] {
            assert!((1..=100).any(|number| outage(number).how == how), "{how:?}");
        }
        let other = Storm { seed: 8, ..storm(100, 0) };
        assert!((1..=100).any(|number| Outage::draw(other, number) != outage(number)));
    }

    #[test]
    fn long_pauses_are_spread_over_the_storm() {
        let long = |faults, pauses| -> Vec<usize> {
            (1..=faults).filter(|number| Outage::draw(storm(faults, pauses), *number).away == LONG).collect()
        };
        assert_eq!(long(100, 2), [33, 67]);
        assert_eq!(long(8, 2), [3, 6]);
        assert_eq!(long(3, 0), [0; 0]);
    }
}
