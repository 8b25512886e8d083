//! Event streams whose answer has come and whose end has not: their connections are about to be free. Reading answers is
//! not done here.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use futures_util::FutureExt as _;
use reqwest::Response;
use tokio::sync::Notify;
use tokio::task::yield_now;
use tokio::time::{Instant, timeout};

/// How long the end of a stream may take to come after the answer, and what may come before it, in bytes.
const REST_LIMIT: Duration = Duration::from_secs(1);
const MAX_REST: usize = 16 * 1024;
/// Turns of the runtime until the connection of a stream that has ended is free.
const TURNS: usize = 8;
/// How long a request waits for a connection that is about to be free, rather than open another one. A machine that has
/// a thousand of them to see to needs its time.
const MOMENT: Duration = Duration::from_millis(500);

/// The ends of streams that are still to come, of one session.
#[derive(Default)]
pub(super) struct Tails {
    open: AtomicUsize,
    waiting: AtomicUsize,
    ended: Notify,
    /// This server does not end its streams soon, so nobody waits for that.
    lingers: AtomicBool,
}

impl Tails {
    /// Reads a stream to its end once its answer has come. Servers end it a moment later; dropped before that, it would
    /// take its connection with it, and the next request would have to open another one.
    pub(super) async fn read_out(self: &Arc<Self>, mut response: Response) {
        let mut rest = Box::pin(async move {
            let mut total = 0;
            while let Ok(Some(bytes)) = response.chunk().await {
                total += bytes.len();
                if total > MAX_REST {
                    return;
                }
            }
        });
        if rest.as_mut().now_or_never().is_some() {
            return free().await;
        }
        self.open.fetch_add(1, Ordering::AcqRel);
        let (tails, began) = (Arc::clone(self), Instant::now());
        tokio::spawn(async move {
            let _ = timeout(REST_LIMIT, rest).await;
            free().await;
            tails.lingers.store(began.elapsed() > MOMENT, Ordering::Release);
            tails.open.fetch_sub(1, Ordering::AcqRel);
            if tails.waiting.load(Ordering::Acquire) > 0 {
                tails.ended.notify_one();
            }
        });
    }

    /// Waits a moment for a connection that is about to be free, if there is one for each who waits. Where many call at
    /// once, each would have two connections otherwise: that of the call before, and its own.
    pub(super) async fn settle(&self) {
        let turn = Turn::take(self);
        if turn.number > self.open.load(Ordering::Acquire) || self.lingers.load(Ordering::Acquire) {
            return;
        }
        if timeout(MOMENT, self.ended.notified()).await.is_err() {
            self.lingers.store(true, Ordering::Release);
        }
    }
}

/// Waits until the connection of a stream that has ended can be used: its own task has to see the end, and then who keeps
/// it for the next request.
async fn free() {
    for _ in 0..TURNS {
        yield_now().await;
    }
}

/// A place in the line of those who wait.
struct Turn<'a> {
    tails: &'a Tails,
    number: usize,
}

impl<'a> Turn<'a> {
    fn take(tails: &'a Tails) -> Self {
        Self { tails, number: tails.waiting.fetch_add(1, Ordering::AcqRel) + 1 }
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        self.tails.waiting.fetch_sub(1, Ordering::AcqRel);
    }
}
