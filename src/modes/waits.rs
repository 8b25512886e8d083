//! Waits that are too long to hold a slot for, and questions to others. A step that meets one stands still, and the node
//! is ended around it as soon as nothing else of it is under way; deciding what is too long is the step's.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::future::pending;

use tokio::sync::Notify;
use tokio::time::{Instant, sleep_until};

use crate::domain::outcome::Failure;
use crate::domain::wait::Ask;

/// One step that stands still.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Wait {
    /// When it can go on.
    pub until: Instant,
    /// Attempts that are used up by then.
    pub made: u32,
    /// What is waited out.
    pub failure: Failure,
    /// Which step it is.
    pub site: String,
    /// Whether it may as well go on later, but gains nothing by that: a look at what somebody else works on.
    pub look: bool,
}

/// An execution of which nothing is under way any more.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Stillness {
    /// When it goes on, and what is waited out until then; none if all wait for others.
    pub next: Option<(Instant, Failure)>,
    /// The steps, and the attempts that each has used up.
    pub waits: BTreeMap<String, u32>,
    /// What others are asked.
    pub asks: Vec<Ask>,
    /// The journal as it was when the first of them was asked.
    pub page: Option<Page>,
}

/// What a journal begins with.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Page {
    /// Its header, JSON.
    pub header: String,
    /// Whether everything in it goes.
    pub restart: bool,
}

/// The steps of one execution that stand still, and the calls that are under way.
#[derive(Debug, Default)]
pub(super) struct Waits {
    under_way: Cell<usize>,
    /// By a number that none of them shares.
    waiting: RefCell<BTreeMap<u64, Wait>>,
    numbers: Cell<u64>,
    asks: RefCell<Vec<Ask>>,
    /// Calls that were begun and are made again once their question is answered.
    again: RefCell<Vec<String>>,
    page: RefCell<Option<Page>>,
    changed: Notify,
}

/// A call that is under way until this is dropped.
#[derive(Debug)]
pub(super) struct Busy<'a>(&'a Waits);

impl Drop for Busy<'_> {
    fn drop(&mut self) {
        self.0.under_way.set(self.0.under_way.get() - 1);
        self.0.changed.notify_one();
    }
}

/// A step that stands still until this is dropped, with its wait over or not.
struct Standing<'a> {
    waits: &'a Waits,
    number: u64,
}

impl Drop for Standing<'_> {
    fn drop(&mut self) {
        self.waits.waiting.borrow_mut().remove(&self.number);
    }
}

impl Waits {
    /// Begins a call. The node is not ended before it is over or stands still itself.
    pub fn busy(&self) -> Busy<'_> {
        self.under_way.set(self.under_way.get() + 1);
        Busy(self)
    }

    /// Stands still until the wait is over. The node is ended around it, unless other calls go on for as long.
    pub async fn park(&self, wait: Wait) {
        let (until, number) = (wait.until, self.numbers.get());
        self.numbers.set(number + 1);
        self.waiting.borrow_mut().insert(number, wait);
        let _standing = Standing { waits: self, number };
        self.changed.notify_one();
        sleep_until(until).await;
    }

    /// Asks somebody else and stands still for good. `page` is what the journal begins with by now.
    pub async fn ask<T>(&self, ask: Ask, page: Page) -> T {
        self.asks.borrow_mut().push(ask);
        self.page.borrow_mut().get_or_insert(page);
        self.changed.notify_one();
        pending().await
    }

    /// The call at this place is broken off for a question of its own: that is no unknown end of it.
    pub fn again(&self, site: String) {
        self.again.borrow_mut().push(site);
    }

    /// Waits until every call that is under way stands still.
    pub async fn all_still(&self) -> Stillness {
        loop {
            let still = self.waiting.borrow().len() + self.asks.borrow().len();
            if still > 0 && self.under_way.get() <= still {
                break;
            }
            self.changed.notified().await;
        }
        let waiting = self.waiting.borrow();
        // Nothing may go on early, and so all of it waits for the longest; a look is not put off for another look.
        let longest = waiting.values().filter(|wait| !wait.look).max_by_key(|wait| wait.until);
        let look = waiting.values().filter(|wait| wait.look).min_by_key(|wait| wait.until);
        let next = longest.into_iter().chain(look).max_by_key(|wait| wait.until);
        Stillness {
            next: next.map(|wait| (wait.until, wait.failure.clone())),
            waits: {
                let again = self.again.borrow();
                let again = again.iter().map(|site| (site.clone(), 0));
                again.chain(waiting.values().map(|wait| (wait.site.clone(), wait.made))).collect()
            },
            asks: self.asks.borrow().clone(),
            page: self.page.borrow().clone(),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn wait(seconds: u64, made: u32, site: &str) -> Wait {
        let until = Instant::now() + Duration::from_secs(seconds);
        Wait { until, made, failure: Failure::retriable("busy", "busy"), site: site.to_owned(), look: false }
    }

    #[tokio::test(start_paused = true)]
    async fn a_node_is_ended_when_the_last_call_under_way_stands_still() {
        let waits = Waits::default();
        let (first, second) = (wait(9, 2, "first"), wait(60, 1, "second"));
        let start = Instant::now();
        let one = async {
            let _busy = waits.busy();
            waits.park(first).await;
        };
        let other = async {
            let _busy = waits.busy();
            tokio::time::sleep(Duration::from_secs(3)).await;
            waits.park(second).await;
        };
        let done = async {
            let _busy = waits.busy();
            tokio::time::sleep(Duration::from_secs(5)).await;
            pending::<()>().await;
        };
        // The last call ends rather than standing still.
        let done = tokio::time::timeout(Duration::from_secs(7), done);
        let all = tokio::select! {
            all = waits.all_still() => all,
            _ = async { tokio::join!(one, other, async { let _ = done.await; pending::<()>().await }) } => unreachable!(),
        };
        assert_eq!(start.elapsed(), Duration::from_secs(7));
        assert_eq!(all.next.map(|(until, _)| until), Some(start + Duration::from_secs(60)));
        assert_eq!(all.waits, BTreeMap::from([("first".into(), 2), ("second".into(), 1)]));
    }

    #[tokio::test(start_paused = true)]
    async fn who_stands_still_goes_on_when_its_wait_is_over_and_others_are_still_under_way() {
        let waits = Waits::default();
        let (start, _other) = (Instant::now(), waits.busy());
        let one = async {
            let _busy = waits.busy();
            waits.park(wait(9, 1, "one")).await;
        };
        tokio::select! {
            _ = waits.all_still() => panic!("another call is under way"),
            () = one => assert_eq!(start.elapsed(), Duration::from_secs(9)),
        }
        assert!(waits.waiting.borrow().is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn a_call_that_is_broken_off_does_not_stand_still_any_more() {
        let (waits, tenth) = (Waits::default(), Duration::from_millis(100));
        let _other = waits.busy();
        let broken = async {
            let _busy = waits.busy();
            tokio::time::timeout(tenth, waits.park(wait(9, 1, "broken"))).await.expect_err("it is broken off");
            pending::<()>().await;
        };
        let one_is_not_all = tokio::time::timeout(tenth * 2, waits.all_still());
        tokio::select! {
            () = broken => unreachable!("it goes on"),
            still = one_is_not_all => assert!(still.is_err(), "two calls are under way"),
        }
        assert!(waits.waiting.borrow().is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn a_look_is_not_put_off_for_another_one_and_nothing_goes_on_before_its_time() {
        for (retries, looks, due) in [
            (vec![], vec![30, 7, 90], 7),
            (vec![20], vec![30, 7], 20),
            (vec![5, 3], vec![30, 60], 30),
            (vec![5, 50], vec![], 50),
        ] {
            let waits = Waits::default();
            let waiting = retries.iter().map(|s| (*s, false)).chain(looks.iter().map(|s| (*s, true)));
            let all = waiting.map(|(seconds, look)| Wait { look, ..wait(seconds, 0, &format!("{look}{seconds}")) });
            let start = Instant::now();
            let standing = futures_util::future::join_all(all.map(|wait| waits.park(wait)));
            let still = tokio::select! {
                _ = standing => unreachable!("they stand still for longer"),
                still = waits.all_still() => still,
            };
            assert_eq!(
                still.next.map(|(until, _)| until),
                Some(start + Duration::from_secs(due)),
                "{retries:?} {looks:?}"
            );
            assert_eq!(still.waits.len(), retries.len() + looks.len());
        }
    }
}
