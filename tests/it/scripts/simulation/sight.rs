//! What stands in Redis and what should stand there, as texts that can be compared line by line.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt::Debug;

use da_node_executor::domain::event::EventType;
use redis::FromRedisValue;

use super::model::{Id, Model, Owner, Place, Record, SAID};
use crate::scripts::{GROUP, World};

/// Idle time from which on a lease has run out.
pub const LEASE_MS: u64 = 60_000;
/// The kinds of terminal events.
const KINDS: [EventType; 2] = [EventType::NodeCompleted, EventType::NodeFailed];

/// Everything that matters, a name and a text for each part.
pub type Sight = BTreeMap<String, String>;

fn put(sight: &mut Sight, name: impl Into<String>, value: &impl Debug) {
    sight.insert(name.into(), format!("{value:?}"));
}

/// The lines that differ.
pub fn difference(found: &Sight, expected: &Sight) -> Result<(), String> {
    let names: BTreeSet<&String> = found.keys().chain(expected.keys()).collect();
    let differ = names.into_iter().filter(|name| found.get(*name) != expected.get(*name));
    let lines: Vec<String> = differ
        .map(|name| {
            let [found, expected] = [found, expected].map(|side| side.get(name).map_or("nothing", String::as_str));
            format!("{name}:\n  is        {found}\n  should be {expected}")
        })
        .collect();
    if lines.is_empty() { Ok(()) } else { Err(lines.join("\n")) }
}

pub fn node(run: usize) -> String {
    format!("n{run}")
}

fn record(model: &Model, record: &Record) -> Option<String> {
    let token = |owner: &Owner| format!("{}\n{}", owner.consumer, owner.deliveries);
    match record {
        Record::Free => None,
        Record::Running { work, entry } => {
            Some(format!("r\n{}\n{}\n{entry}", model.name(*work), model.streams[model.works[*work].stream]))
        }
        Record::Parked { work, owner } => Some(format!("p\n{}\n{}", model.name(*work), token(owner))),
        Record::Done { work, owner, event } => Some(format!("d\n{}\n{}\n{event}", model.name(*work), token(owner))),
    }
}

/// What should stand in Redis.
pub fn expected(model: &Model) -> Sight {
    let mut sight = Sight::new();
    for (at, stream) in model.streams.iter().enumerate() {
        let entries = model.in_stream(at);
        put(&mut sight, format!("{at} entries"), &entries.iter().map(|(entry, _)| *entry).collect::<Vec<_>>());
        let pending = entries.iter().filter_map(|(entry, work)| match &model.works[*work].place {
            Place::Held { owner, silent, .. } => Some((*entry, owner.consumer.clone(), owner.deliveries, *silent)),
            _ => None,
        });
        put(&mut sight, format!("{at} pending"), &pending.collect::<Vec<_>>());
        let crashes: BTreeMap<Id, i64> = entries
            .iter()
            .map(|(entry, work)| (*entry, model.works[*work].crashes))
            .filter(|(_, crashes)| *crashes != 0)
            .collect();
        put(&mut sight, format!("{at} crashes"), &crashes);
        let parked: BTreeMap<Id, bool> = model
            .works
            .iter()
            .filter(|work| work.stream == at)
            .filter_map(|work| match work.place {
                Place::Parked { due } => Some((work.first, due)),
                _ => None,
            })
            .collect();
        put(&mut sight, format!("{at} parked"), &parked);
        let bodies: BTreeSet<String> =
            parked.keys().flat_map(|first| ["", ":meta", ":run"].map(|part| format!("{first}{part}"))).collect();
        put(&mut sight, format!("{at} bodies"), &bodies);
        let letters = model.letters.iter().filter(|(work, _)| model.streams[model.works[*work].stream] == *stream);
        put(
            &mut sight,
            format!("{at} letters"),
            &letters.map(|(work, id)| (id, model.name(*work))).collect::<Vec<_>>(),
        );
    }
    let parked = model.works.iter().filter(|work| matches!(work.place, Place::Parked { .. })).count();
    put(&mut sight, "parked of the graph", &parked);
    put(&mut sight, "the state expires", &(parked == 0));
    let events = (1_u64..).zip(model.events.iter().map(|(kind, event)| (kind.as_str(), event)));
    put(&mut sight, "events", &events.collect::<BTreeMap<_, _>>());
    for (at, run) in model.runs.iter().enumerate() {
        put(&mut sight, format!("record {at}"), &record(model, &run.record));
        put(&mut sight, format!("journal {at}"), &run.journal);
        put(&mut sight, format!("node {at}"), &run.node_state);
        put(&mut sight, format!("blob {at}"), &run.blob);
    }
    sight
}

/// What stands in Redis, and the terminal events by themselves.
pub async fn found(world: &World, streams: &[String], runs: usize) -> (Sight, Vec<String>) {
    let mut ask = redis::pipe();
    for stream in streams {
        ask.cmd("XRANGE").arg(stream).arg("-").arg("+");
        ask.cmd("XPENDING").arg(stream).arg(GROUP).arg("-").arg("+").arg(1000);
        ask.cmd("HGETALL").arg(world.keys.crashes(stream));
        ask.cmd("ZRANGE").arg(world.keys.parked(stream)).arg(0).arg(-1).arg("WITHSCORES");
        ask.cmd("HKEYS").arg(world.keys.parked_bodies(stream));
        ask.cmd("XRANGE").arg(world.keys.dead(stream)).arg("-").arg("+");
    }
    ask.cmd("HGETALL").arg(world.key("done:g"));
    ask.cmd("PTTL").arg(world.key("state:g"));
    ask.cmd("HGETALL").arg(world.key("state:g"));
    for kind in KINDS {
        ask.cmd("XRANGE").arg(world.keys.events(kind)).arg("-").arg("+");
    }
    for run in 0..runs {
        ask.cmd("HGETALL").arg(world.key(&format!("journal:g:{}:r", node(run))));
        ask.cmd("GET").arg(world.key(&format!("blob:g:{}:r", node(run))));
    }
    let answers: Vec<redis::Value> = ask.query_async(&mut world.raw.clone()).await.expect("the server answers");
    let mut answers = answers.into_iter();
    read(&mut answers, streams, runs)
}

type Entries = Vec<(String, HashMap<String, String>)>;

fn next<T: FromRedisValue>(answers: &mut impl Iterator<Item = redis::Value>) -> T {
    T::from_redis_value(answers.next().expect("an answer each")).expect("the keys have their types")
}

fn read(answers: &mut impl Iterator<Item = redis::Value>, streams: &[String], runs: usize) -> (Sight, Vec<String>) {
    let mut sight = Sight::new();
    for at in 0..streams.len() {
        let entries: Vec<(String, redis::Value)> = next(answers);
        let entries: Vec<Id> = entries.iter().map(|(id, _)| Id::parse(id)).collect();
        put(&mut sight, format!("{at} entries"), &entries);
        let pending: Vec<(String, String, u64, u64)> = next(answers);
        let pending =
            pending.into_iter().map(|(id, owner, idle, count)| (Id::parse(&id), owner, count, idle >= LEASE_MS));
        put(&mut sight, format!("{at} pending"), &pending.collect::<Vec<_>>());
        let crashes: BTreeMap<String, i64> = next(answers);
        // A count may outlive its entry until the janitor comes by.
        let crashes = crashes.into_iter().map(|(id, count)| (Id::parse(&id), count));
        let crashes: BTreeMap<_, _> = crashes.filter(|(id, _)| entries.contains(id)).collect();
        put(&mut sight, format!("{at} crashes"), &crashes);
        let parked: Vec<(String, f64)> = next(answers);
        let parked = parked.into_iter().map(|(id, moment)| (Id::parse(&id), moment < now() + 60_000.0));
        put(&mut sight, format!("{at} parked"), &parked.collect::<BTreeMap<_, _>>());
        put(&mut sight, format!("{at} bodies"), &next::<BTreeSet<String>>(answers));
        let letters: Entries = next(answers);
        let letters: Vec<_> = letters.iter().map(|(id, fields)| (id, fields["work_id"].clone())).collect();
        put(&mut sight, format!("{at} letters"), &letters);
    }
    let done: BTreeMap<String, String> = next(answers);
    put(&mut sight, "parked of the graph", &done.get("held").map_or(0, |held| held.parse().expect("a count")));
    put(&mut sight, "the state expires", &(next::<i64>(answers) >= 0));
    let state: BTreeMap<String, String> = next(answers);
    let (mut events, mut texts) = (BTreeMap::new(), Vec::new());
    for kind in KINDS {
        for (_, mut fields) in next::<Entries>(answers) {
            let seq: u64 = fields["seq"].parse().expect("a count");
            let event = fields.remove("data").expect("an event");
            texts.push(event.clone());
            events.insert(seq, (kind.as_str(), event));
        }
    }
    put(&mut sight, "events", &events);
    for at in 0..runs {
        let node = node(at);
        put(&mut sight, format!("record {at}"), &done.get(&format!("{node}\nr")));
        let mut journal = next::<BTreeMap<String, String>>(answers);
        without_words(&mut journal);
        put(&mut sight, format!("journal {at}"), &journal);
        put(&mut sight, format!("node {at}"), &state.get(&format!("node:{node}")));
        put(&mut sight, format!("blob {at}"), &next::<Option<String>>(answers));
    }
    (sight, texts)
}

/// A journal in which answers are no more than that: they have the moment in them at which they were given.
pub fn without_words(journal: &mut BTreeMap<String, String>) {
    let answers = journal.iter_mut().filter(|(field, _)| field.ends_with(":said"));
    answers.for_each(|(_, said)| *said = String::from(SAID));
}

fn now() -> f64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    since.expect("it is after 1970").as_secs_f64() * 1000.0
}
