//! The second ring of supervision: an actor that dies is rebuilt from its factory, with backoff and a budget; a spent
//! budget ends the process, which the container restarts.
//!
//! `actix::Supervisor` does not restart an actor after a panic (its own future is the task that died), and it has no
//! backoff. Here a guard field reports the death, whatever its cause.

use std::collections::VecDeque;
use std::sync::{Arc, RwLock};
use std::time::{Duration, Instant};

use actix::dev::ToEnvelope;
use actix::{Actor, Addr, Handler, Message, Recipient};
use actix_rt::System;
use tokio::sync::mpsc;

use crate::metrics::{ActorLabels, Metrics};
use crate::retry::backoff;

/// Rebuilds of one actor that are tolerated within [`WINDOW`].
pub const BUDGET: usize = 5;
/// The time in which [`BUDGET`] counts.
pub const WINDOW: Duration = Duration::from_secs(60);
/// The exit code when the budget is spent: an internal fault, worth a restart of the container.
pub const EXIT_CODE: i32 = 70;

const FIRST_PAUSE: Duration = Duration::from_millis(50);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

/// Where an actor is reached, whichever of its lives it is in.
pub struct Post<A: Actor> {
    addr: Arc<RwLock<Option<Addr<A>>>>,
}

impl<A: Actor> Clone for Post<A> {
    fn clone(&self) -> Self {
        Self { addr: Arc::clone(&self.addr) }
    }
}

impl<A: Actor> Post<A> {
    fn vacant() -> Self {
        Self { addr: Arc::new(RwLock::new(None)) }
    }

    fn occupy(&self, addr: Option<Addr<A>>) {
        *self.addr.write().expect("nobody panics while holding the address") = addr;
    }

    /// The present address; none while the actor is being rebuilt.
    pub fn addr(&self) -> Option<Addr<A>> {
        self.addr.read().expect("nobody panics while holding the address").clone().filter(Addr::connected)
    }

    /// The present address as a recipient of one message.
    pub fn recipient<M>(&self) -> Option<Recipient<M>>
    where
        A: Handler<M>,
        A::Context: ToEnvelope<A, M>,
        M: Message + Send + 'static,
        M::Result: Send,
    {
        self.addr().map(Addr::recipient)
    }
}

/// A field of a supervised actor: its drop is the actor's death.
#[derive(Debug)]
pub struct DeathWatch {
    dead: mpsc::UnboundedSender<()>,
}

impl Drop for DeathWatch {
    fn drop(&mut self) {
        // A closed channel means that the worker stops and nobody rebuilds any more.
        let _ = self.dead.send(());
    }
}

/// Starts an actor from `build` and rebuilds it whenever it dies, until `stopping` says that deaths are meant.
///
/// `build` gets the guard that the actor must own and says where it runs. It is called again for each life.
pub fn supervise<A: Actor>(
    name: &'static str,
    metrics: Arc<Metrics>,
    stopping: tokio_util::sync::CancellationToken,
    build: impl Fn(DeathWatch) -> Addr<A> + 'static,
) -> Post<A> {
    let post = Post::vacant();
    // One message a life: the channel cannot grow.
    let (dead, mut deaths) = mpsc::unbounded_channel();
    post.occupy(Some(build(DeathWatch { dead: dead.clone() })));
    let posted = post.clone();
    actix_rt::spawn(async move {
        let mut rebuilt: VecDeque<Instant> = VecDeque::new();
        loop {
            tokio::select! {
                () = stopping.cancelled() => return,
                death = deaths.recv() => if death.is_none() { return },
            }
            if stopping.is_cancelled() {
                return;
            }
            posted.occupy(None);
            let now = Instant::now();
            while rebuilt.front().is_some_and(|at| now.duration_since(*at) > WINDOW) {
                rebuilt.pop_front();
            }
            if rebuilt.len() >= BUDGET {
                tracing::error!(actor = name, restarts = BUDGET, "an actor keeps dying, the process ends");
                System::current().stop_with_code(EXIT_CODE);
                return;
            }
            let attempt = u32::try_from(rebuilt.len()).unwrap_or(u32::MAX).saturating_add(1);
            let pause = backoff(FIRST_PAUSE, LONGEST_PAUSE, attempt, 0.5 + fastrand::f64() / 2.0);
            tracing::warn!(actor = name, pause_ms = pause.as_millis(), "an actor died and is rebuilt");
            metrics.actor_restarts.get_or_create(&ActorLabels { actor: name }).inc();
            tokio::time::sleep(pause).await;
            rebuilt.push_back(Instant::now());
            posted.occupy(Some(build(DeathWatch { dead: dead.clone() })));
        }
    });
    post
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use actix::Context;
    use tokio_util::sync::CancellationToken;

    use super::*;

    struct Fragile {
        _watch: DeathWatch,
    }

    impl Actor for Fragile {
        type Context = Context<Self>;
    }

    #[derive(Message)]
    #[rtype(result = "usize")]
    struct Ask(bool);

    impl Handler<Ask> for Fragile {
        type Result = usize;
        fn handle(&mut self, Ask(die): Ask, _: &mut Self::Context) -> usize {
            assert!(!die, "asked to die");
            7
        }
    }

    async fn answer(post: &Post<Fragile>) -> usize {
        loop {
            if let Some(addr) = post.addr()
                && let Ok(answer) = addr.send(Ask(false)).await
            {
                return answer;
            }
            tokio::task::yield_now().await;
        }
    }

    #[actix::test]
    async fn an_actor_that_panics_is_rebuilt_and_answers_again() {
        let lives = Arc::new(AtomicUsize::new(0));
        let counted = Arc::clone(&lives);
        let post = supervise("fragile", Arc::new(Metrics::new("w")), CancellationToken::new(), move |watch| {
            counted.fetch_add(1, Ordering::SeqCst);
            Fragile { _watch: watch }.start()
        });
        let first = post.addr().expect("it was just started");
        assert!(first.send(Ask(true)).await.is_err(), "the panic takes the answer with it");
        let second = tokio::time::timeout(Duration::from_secs(10), answer(&post)).await.expect("it is rebuilt in time");
        assert_eq!((second, lives.load(Ordering::SeqCst)), (7, 2));
    }

    #[test]
    fn an_actor_that_keeps_dying_ends_the_process() {
        let system = System::new();
        system.block_on(async {
            tokio::time::pause();
            // Each life ends at once: the guard is dropped before the actor runs.
            let _post = supervise("doomed", Arc::new(Metrics::new("w")), CancellationToken::new(), |watch| {
                drop(watch);
                let (watch, _) = mpsc::unbounded_channel();
                Fragile { _watch: DeathWatch { dead: watch } }.start()
            });
            tokio::time::sleep(WINDOW / 2).await;
        });
        assert_eq!(system.run_with_code().expect("the system ran"), EXIT_CODE);
    }
}
