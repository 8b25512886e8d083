//! What a limit lets through, and in which order.

use std::collections::BTreeSet;

use proptest::prelude::*;

use super::*;

const SECOND: u64 = 1_000_000;

fn rate(per_minute: u64, burst: Duration) -> Rate {
    Rate::new(NonZeroU64::new(per_minute).expect("not zero"), burst)
}

/// A call that nobody else is, and that comes back after any wait.
fn demand(request: Charge, tokens: Charge, patience: u64) -> Demand {
    Demand { who: fastrand::u64(..), request, tokens, patience, returns: u64::MAX }
}

#[test]
fn a_burst_goes_at_once_and_then_one_after_the_other() {
    let one = rate(60, Duration::from_secs(3)).charge(1);
    let mut limit = Limit::default();
    let now = 100 * SECOND;
    let waits: Vec<_> = (0..5).map(|_| limit.reserve(now, &demand(one, Charge::default(), 10 * SECOND))).collect();
    let go = |wait| Verdict::Go { wait: wait * SECOND, era: 0 };
    assert_eq!(waits, [go(0), go(0), go(0), go(1), go(2)]);
    assert_eq!(limit.reserve(now + 60 * SECOND, &demand(one, Charge::default(), 0)), go(0));
}

#[test]
fn who_would_wait_for_long_is_not_charged_and_stands_in_line() {
    let one = rate(60, Duration::from_secs(1)).charge(1);
    let mut limit = Limit::default();
    let now = 100 * SECOND;
    let call = |who| Demand { who, ..demand(one, Charge::default(), 0) };
    assert_eq!(limit.reserve(now, &call(0)), Verdict::Go { wait: 0, era: 0 });
    let told: Vec<_> = (1..4).map(|who| limit.reserve(now, &call(who))).collect();
    assert_eq!(told, [1, 2, 3].map(|wait| Verdict::Later { wait: wait * SECOND }));
    let (charged, elsewhere) = (limit.requests, Demand { returns: 0, ..call(4) });
    assert_eq!(limit.reserve(now, &elsewhere), Verdict::Later { wait: 4 * SECOND });
    assert_eq!((limit.requests, limit.line.len()), (charged, 3), "nobody of them was charged, and one goes elsewhere");
    // Who comes later does not take what the first in line waits for; nor does the second.
    let now = now + SECOND;
    assert_eq!(limit.reserve(now, &call(5)), Verdict::Later { wait: 3 * SECOND });
    assert_eq!(limit.reserve(now, &call(2)), Verdict::Later { wait: SECOND });
    assert_eq!(limit.reserve(now, &call(1)), Verdict::Go { wait: 0, era: 0 });
    assert_eq!(limit.line.iter().map(|waiting| waiting.who).collect::<Vec<_>>(), [2, 3, 5]);
}

#[test]
fn nobody_is_sent_away_for_hours_and_who_finds_no_place_has_a_moment_of_its_own() {
    let one = rate(6, Duration::from_secs(10)).charge(1);
    let mut limit = Limit::default();
    let now = 100 * SECOND;
    let mut ask = || match limit.reserve(now, &demand(one, Charge::default(), 0)) {
        Verdict::Later { wait } => wait / SECOND,
        Verdict::Go { .. } => 0,
    };
    let waits: Vec<u64> = (0..=LINE).map(|_| ask()).collect();
    assert_eq!(waits[..8], [0, 10, 20, 30, 40, 50, 60, 60]);
    assert!(waits.iter().all(|wait| *wait <= 60));
    assert_eq!((0..8).map(|_| ask()).collect::<Vec<_>>(), [60, 70, 80, 90, 100, 110, 120, 120]);
    assert_eq!(limit.line.len(), LINE);
}

#[test]
fn a_large_call_begins_although_there_are_always_small_ones_that_would_fit_before_it() {
    let rate = rate(600, Duration::from_secs(60));
    let small = || Demand { returns: 0, ..demand(Charge::default(), rate.charge(10), 5 * SECOND) };
    let mut limit = Limit::default();
    let begin = 1_000 * SECOND;
    // All that was saved up is used, and two calls a second come for the one that fits.
    let mut now = begin;
    limit.amend(now, &Amendment { tokens_full: rate.missing(0), ..Amendment::default() });
    let large = Demand { who: 1, ..demand(Charge::default(), rate.charge(500), 5 * SECOND) };
    let (mut due, mut before, mut after) = (Some(begin), 0, 0);
    while now < begin + 120 * SECOND {
        if due.is_some_and(|due| due <= now) {
            match limit.reserve(now, &large) {
                Verdict::Later { wait } => due = Some(now + wait),
                Verdict::Go { wait, .. } => {
                    assert!(now + wait <= begin + 50 * SECOND, "{} s", (now + wait - begin) / SECOND);
                    due = None;
                }
            }
        }
        if let Verdict::Go { .. } = limit.reserve(now, &small()) {
            *if due.is_some() { &mut before } else { &mut after } += 1;
        }
        now += SECOND / 2;
    }
    assert_eq!(due, None, "it began");
    assert!(before <= 1 && after >= 60, "{before} before it, {after} after it");
}

#[test]
fn what_is_given_back_is_used_while_those_who_were_told_of_less_are_away() {
    // Twenty thousand tokens are feared of each call, a twentieth is used, and an answer takes two seconds.
    let rate = rate(400_000, Duration::from_secs(60));
    let unused = rate.time_of(1_000) as i64 - rate.time_of(20_000) as i64;
    let (mut limit, begin) = (Limit::default(), 1_000 * SECOND);
    // Sixty come at once, then two a second: more than what is feared allows, a third of what is used.
    let arrivals = (0..60).map(|_| begin).chain((1..600).map(|at| begin + at * SECOND / 2));
    let mut asks: BTreeSet<(u64, u64, u64)> = (0..).zip(arrivals).map(|(who, at)| (at, who, at)).collect();
    let mut ends: BTreeSet<(u64, u64, u64)> = BTreeSet::new();
    let mut longest = 0;
    while let Some((now, who, came)) = asks.pop_first() {
        while let Some(&(end, of, era)) = ends.first().filter(|(end, ..)| *end <= now) {
            ends.remove(&(end, of, era));
            limit.amend(end, &Amendment { era, tokens: unused, ..Amendment::default() });
        }
        let call = Demand { who, ..demand(Charge::default(), rate.charge(20_000), 5 * SECOND) };
        match limit.reserve(now, &call) {
            Verdict::Later { wait } => drop(asks.insert((now + wait, who, came))),
            Verdict::Go { wait, era } => {
                ends.insert((now + wait + 2 * SECOND, who, era));
                longest = longest.max(if came > begin + 60 * SECOND { now + wait - came } else { 0 });
            }
        }
    }
    assert!(longest <= SECOND, "after the first minute nobody waits: {longest}");
}

#[test]
fn who_does_not_come_back_holds_up_nobody_for_long() {
    let one = rate(60, Duration::ZERO).charge(1);
    let mut limit = Limit::default();
    let mut now = 100 * SECOND;
    let call = |who| Demand { who, ..demand(one, Charge::default(), 0) };
    assert_eq!(limit.reserve(now, &call(0)), Verdict::Go { wait: 0, era: 0 });
    assert_eq!(limit.reserve(now, &call(1)), Verdict::Later { wait: SECOND });
    let waited = loop {
        match limit.reserve(now, &call(2)) {
            Verdict::Later { wait } => now += wait,
            Verdict::Go { wait, .. } => break now + wait - 100 * SECOND,
        }
    };
    assert!(waited <= 2 * SECOND + micros(GRACE), "{waited}");
    assert!(limit.line.is_empty());

    // Where enough was saved up for both, it is not waited for at all.
    let rate = rate(60, Duration::from_secs(10));
    let call = |who, amount| Demand { who, ..demand(rate.charge(amount), Charge::default(), 0) };
    let mut limit = Limit::default();
    let now = 1_000 * SECOND;
    limit.amend(now, &Amendment { requests_full: rate.missing(0), ..Amendment::default() });
    assert_eq!(limit.reserve(now, &call(1, 5)), Verdict::Later { wait: 5 * SECOND });
    assert_eq!(limit.reserve(now + 5 * SECOND, &call(2, 1)), Verdict::Later { wait: SECOND });
    assert_eq!(limit.reserve(now + 6 * SECOND, &call(2, 1)), Verdict::Go { wait: 0, era: 0 });
    assert_eq!(limit.reserve(now + 6 * SECOND, &call(1, 5)), Verdict::Go { wait: 0, era: 0 });
}

#[test]
fn a_wait_that_is_too_long_to_be_waited_out_on_the_spot_is_not_cut_into_pieces_that_are_not() {
    let rate = rate(600, Duration::from_secs(60));
    let call =
        |who, amount, patience| Demand { who, ..demand(Charge::default(), rate.charge(amount), patience * SECOND) };
    let now = 1_000 * SECOND;
    let told = |waits: u64, patience| {
        let mut limit = Limit::default();
        limit.amend(now, &Amendment { tokens_full: rate.missing(0), ..Amendment::default() });
        limit.reserve(now, &call(1, waits * 10, patience))
    };
    assert_eq!(told(9, 5), Verdict::Later { wait: 5 * SECOND + micros(MOMENT) });
    assert_eq!(told(20, 5), Verdict::Later { wait: 10 * SECOND });
    assert!(matches!(told(5, 5), Verdict::Go { .. }));
    // Behind others a short one is asked about again on the spot.
    let mut limit = Limit::default();
    limit.amend(now, &Amendment { tokens_full: rate.missing(0), ..Amendment::default() });
    limit.reserve(now, &call(1, 10, 0));
    assert_eq!(limit.reserve(now, &call(2, 10, 5)), Verdict::Later { wait: SECOND });
}

#[test]
fn what_others_did_not_use_is_found_by_who_waits_for_it() {
    let rate = rate(600, Duration::from_secs(60));
    let mut limit = Limit::default();
    let now = 1_000 * SECOND;
    let call = |who| Demand { who, ..demand(Charge::default(), rate.charge(500), 0) };
    let Verdict::Go { wait: 0, era } = limit.reserve(now, &call(1)) else { panic!("it is full") };
    // Forty seconds by what is feared, and half of it by experience.
    assert_eq!(limit.reserve(now, &call(2)), Verdict::Later { wait: 20 * SECOND });
    let used = Amendment { era, tokens: -(rate.time_of(480) as i64), ..Amendment::default() };
    limit.amend(now + SECOND, &used);
    assert!(matches!(limit.reserve(now + 20 * SECOND, &call(2)), Verdict::Go { wait: 0, .. }));
}

#[test]
fn more_than_can_be_saved_up_begins_with_a_full_allowance_and_is_paid_off() {
    let tokens = rate(600, Duration::from_secs(60));
    let mut limit = Limit::default();
    let now = 100 * SECOND;
    let huge = demand(Charge::default(), tokens.charge(900), u64::MAX);
    assert_eq!(limit.reserve(now, &huge), Verdict::Go { wait: 0, era: now });
    let small = demand(Charge::default(), tokens.charge(10), u64::MAX);
    assert_eq!(limit.reserve(now, &small), Verdict::Go { wait: 31 * SECOND, era: now });
}

#[test]
fn what_was_not_used_is_given_back_once_and_not_after_time_made_it_good() {
    let tokens = rate(600, Duration::from_secs(60));
    let charge = tokens.charge(600);
    let mut limit = Limit::default();
    let now = 1000 * SECOND;
    let call = demand(Charge::default(), charge, 0);
    let ask = |limit: &mut Limit, now| limit.reserve(now, &call);
    let Verdict::Go { era, .. } = ask(&mut limit, now) else { panic!("it is full") };
    assert!(matches!(ask(&mut limit, now), Verdict::Later { .. }));
    let back = Amendment { era, tokens: -(charge.cost as i64), ..Amendment::default() };
    limit.amend(now, &back);
    let Verdict::Go { era, .. } = ask(&mut limit, now) else { panic!("it was given back") };
    // A minute later everything would be there again without the gift.
    let later = now + 61 * SECOND;
    assert!(matches!(ask(&mut limit, later), Verdict::Go { wait: 0, .. }));
    limit.amend(later, &Amendment { era, ..back });
    assert!(matches!(ask(&mut limit, later), Verdict::Later { .. }), "the first charge is long forgiven");
}

#[test]
fn the_providers_word_closes_the_limit_or_lowers_what_is_left() {
    let rate = rate(60, Duration::from_secs(10));
    let now = 100 * SECOND;
    let ask = |limit: &mut Limit, now| limit.reserve(now, &demand(rate.charge(1), Charge::default(), 0));
    let mut limit = Limit::default();
    limit.amend(now, &Amendment { closed: 7 * SECOND, ..Amendment::default() });
    limit.amend(now, &Amendment { closed: 2 * SECOND, ..Amendment::default() });
    assert_eq!(ask(&mut limit, now), Verdict::Later { wait: 7 * SECOND });
    assert_eq!(ask(&mut limit, now + 8 * SECOND), Verdict::Go { wait: 0, era: 0 });
    let mut limit = Limit::default();
    limit.amend(now, &Amendment { requests_full: rate.missing(2), ..Amendment::default() });
    let go = Verdict::Go { wait: 0, era: 0 };
    assert_eq!([ask(&mut limit, now), ask(&mut limit, now)], [go, go]);
    assert_eq!(ask(&mut limit, now), Verdict::Later { wait: SECOND }, "two were left");
    assert_eq!(rate.missing(10), 0, "enough is left");
}

#[test]
fn the_providers_count_of_tokens_goes_before_what_is_given_back_later() {
    let rate = rate(600, Duration::from_secs(60));
    let mut limit = Limit::default();
    let now = 100 * SECOND;
    let charge = rate.charge(300);
    let Verdict::Go { era, .. } = limit.reserve(now, &demand(Charge::default(), charge, 0)) else { panic!("full") };
    limit.amend(now, &Amendment { tokens_full: rate.missing(0), ..Amendment::default() });
    limit.amend(now, &Amendment { era, tokens: -(charge.cost as i64), ..Amendment::default() });
    assert_eq!(limit.tokens, now + 60 * SECOND);
}

proptest! {
    /// Whatever is asked and when, no window of time sees more than comes together in it and in the burst.
    #[test]
    fn no_window_sees_more_than_its_share_and_the_burst(
        per_minute in 1u64..5000,
        burst in 0u64..90,
        asks in prop::collection::vec((0u64..3_000_000, 1u64..400, 0u64..8), 1..120),
    ) {
        let rate = rate(per_minute, Duration::from_secs(burst));
        let mut limit = Limit::default();
        let mut now = 1_000 * SECOND;
        let mut begun: Vec<(u64, u64)> = Vec::new();
        for (pause, amount, patience) in asks {
            now += pause;
            let who = amount % 7;
            let ask = Demand { who, ..demand(Charge::default(), rate.charge(amount), patience * SECOND) };
            if let Verdict::Go { wait, .. } = limit.reserve(now, &ask) {
                begun.push((now + wait, amount));
            }
        }
        begun.sort_unstable();
        for (first, (from, _)) in begun.iter().enumerate() {
            let (mut used, mut largest) = (0, 0);
            for (until, amount) in &begun[first..] {
                used += amount;
                largest = largest.max(*amount);
                let time = until - from + burst * SECOND;
                let share = time as f64 * per_minute as f64 / 60e6;
                // What is larger than can be saved up began with a full allowance.
                let over = (largest as f64 - (burst * per_minute) as f64 / 60.0).max(0.0);
                prop_assert!(used as f64 <= share + over + 1e-6, "{used} in {}, {share} + {over}", until - from);
            }
        }
    }

    /// Charges that are corrected at once by what was used let through what the tokens allow, not what was feared.
    #[test]
    fn corrected_charges_let_through_what_is_really_used(used in 1u64..50, feared in 50u64..600) {
        let rate = rate(600, Duration::from_secs(60));
        let mut limit = Limit::default();
        let mut now = 1_000 * SECOND;
        let (begin, mut done) = (now, 0);
        while now < begin + 600 * SECOND {
            match limit.reserve(now, &demand(Charge::default(), rate.charge(feared), u64::MAX)) {
                Verdict::Go { wait, era } => {
                    now += wait;
                    let tokens = rate.time_of(used) as i64 - rate.time_of(feared) as i64;
                    limit.amend(now, &Amendment { era, tokens, ..Amendment::default() });
                    done += used;
                }
                Verdict::Later { .. } => unreachable!("there is patience"),
            }
        }
        let most = 600 + 600 * (now - begin) / (60 * SECOND) + feared;
        prop_assert!(done <= most, "{done} of {most}");
        prop_assert!(done + 600 + feared >= 600 * 10, "{done} is too little");
    }

    /// Calls of any size that come back when they are told to begin as early as if they were served one after the other
    /// in the order in which they came; each may be late by the shortest wait.
    #[test]
    fn calls_begin_in_the_order_in_which_they_came(
        per_minute in 1u64..5000,
        burst in 0u64..90,
        requests in 1u64..600,
        patience in 0u64..8,
        asks in prop::collection::vec((0u64..3_000_000, 1u64..400), 1..LINE),
    ) {
        let (tokens, requests) = (rate(per_minute, Duration::from_secs(burst)), rate(requests, Duration::from_secs(9)));
        let mut arrives = 1_000 * SECOND;
        let calls: Vec<(u64, Demand)> = asks.iter().zip(0..).map(|((pause, amount), who)| {
            arrives += pause;
            let call = demand(requests.charge(1), tokens.charge(*amount), patience * SECOND);
            (arrives, Demand { who, ..call })
        }).collect();

        let (mut full_requests, mut full_tokens) = (0u64, 0u64);
        let expected: Vec<u64> = calls.iter().map(|(arrives, call)| {
            let start = *arrives.max(&call.request.from(full_requests)).max(&call.tokens.from(full_tokens));
            full_requests = full_requests.max(start) + call.request.cost;
            full_tokens = full_tokens.max(start) + call.tokens.cost;
            start
        }).collect();

        let mut limit = Limit::default();
        let mut due: std::collections::BTreeSet<(u64, usize)> =
            calls.iter().enumerate().map(|(at, (arrives, _))| (*arrives, at)).collect();
        let mut begun = vec![0; calls.len()];
        while let Some((now, at)) = due.pop_first() {
            match limit.reserve(now, &calls[at].1) {
                Verdict::Go { wait, .. } => begun[at] = now + wait,
                Verdict::Later { wait } => {
                    due.insert((now + wait, at));
                }
            }
        }
        for (before, (begun, expected)) in (1..).zip(begun.iter().zip(&expected)) {
            let latest = expected + before * micros(SHORTEST);
            prop_assert!((*expected..=latest).contains(begun), "number {before}: {begun}, not {expected}");
        }
    }
}
