//! What is left in Redis after a run: one look at every key. Whatever belongs to none of the families that may be there
//! is told, be it known or not.

use std::collections::{BTreeSet, HashMap, HashSet};

use super::evidence::Leftovers;
use super::redis_access::{Eyes, PREFIX, STREAM};

/// Keys of one look, and questions of one go.
const PAGE: usize = 2000;

/// What is known of a run and tells which keys may be there.
pub struct Expected<'a> {
    /// The graphs of the work, with whether their state has to expire.
    pub graphs: &'a HashMap<&'a str, bool>,
    /// Those that somebody ordered to stop.
    pub cancelled: &'a BTreeSet<String>,
    /// The keys of the outputs that terminal events refer to.
    pub outputs: &'a HashSet<String>,
}

/// What a kind of key may leave behind.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Family {
    /// What happened, and what is looked at again later.
    Stays,
    Expires,
    /// The same, of workers that died before they settled.
    Staged,
    /// An output that an event refers to.
    Output,
    State,
    Done,
    Order,
}

/// The family of a name behind the prefix, and what follows its kind.
fn family(name: &str) -> Option<(Family, &str)> {
    let families = [
        ("events:", Family::Stays),
        ("waits:audit", Family::Stays),
        ("blobs", Family::Stays),
        ("workers:", Family::Expires),
        ("limit:", Family::Expires),
        ("result:", Family::Expires),
        ("staged:", Family::Staged),
        ("blob:", Family::Output),
        ("state:", Family::State),
        ("done:", Family::Done),
        ("cancel:", Family::Order),
    ];
    families.into_iter().find_map(|(kind, family)| {
        let rest = name.strip_prefix(kind)?;
        (rest.is_empty() != kind.ends_with(':')).then_some((family, rest))
    })
}

/// What is wrong with a key that lives for `life` milliseconds, or for good with -1.
fn wrong(key: &str, life: i64, expected: &Expected<'_>) -> Option<String> {
    if [STREAM, &format!("{STREAM}:dead")].contains(&key) {
        return None;
    }
    let Some((family, rest)) = key.strip_prefix(PREFIX).and_then(family) else { return Some(format!("{key} is left")) };
    let stays = life == -1;
    let (graphs, stranger) = (expected.graphs, || Some(format!("{key} is of a graph that nobody submitted")));
    match family {
        Family::Stays => None,
        Family::State => match graphs.get(rest) {
            None => stranger(),
            // A state lives on while one of its nodes waits, and no longer.
            Some(expires) => (*expires && stays).then(|| format!("{key} does not expire any more")),
        },
        Family::Done if !graphs.contains_key(rest) => stranger(),
        Family::Order if !expected.cancelled.contains(rest) => Some(format!("{key} stops what nobody wanted to stop")),
        Family::Output if !expected.outputs.contains(key) => Some(format!("no event refers to {key}")),
        Family::Done | Family::Order | Family::Output | Family::Expires | Family::Staged => {
            stays.then(|| format!("{key} never expires"))
        }
    }
}

impl Eyes {
    /// What is left of work, of which there must be none: in the stream and in keys that belong to work in progress.
    pub async fn leftovers(&mut self, expected: &Expected<'_>) -> Leftovers {
        let (waiting, _) = self.progress().await.expect("the server is there");
        let pending = self.pending().await.unwrap_or_default().values().sum();
        let (mut others, mut staged) = (Vec::new(), 0);
        let keys: Vec<String> = self.keys().await.into_iter().collect();
        for page in keys.chunks(PAGE) {
            let lives = self.lives(page).await;
            // One that has gone since it was listed was not left.
            let there = page.iter().zip(lives).filter(|(_, life)| *life != -2);
            for (key, life) in there {
                staged += usize::from(matches!(key.strip_prefix(PREFIX).and_then(family), Some((Family::Staged, _))));
                others.extend(wrong(key, life, expected));
            }
        }
        for graph in expected.graphs.keys() {
            let done = format!("{PREFIX}done:{graph}");
            for (run, record) in self.ask::<HashMap<String, String>>(&["HGETALL", &done]).await {
                if !record.starts_with("d\n") && run != "seq" {
                    others.push(format!("{done} has {run:?}: {record:?}"));
                }
            }
        }
        Leftovers { waiting, pending, others, staged }
    }

    async fn keys(&mut self) -> BTreeSet<String> {
        let mut found = BTreeSet::new();
        let mut cursor = String::from("0");
        loop {
            let (next, keys): (String, Vec<String>) = self.ask(&["SCAN", &cursor, "COUNT", &PAGE.to_string()]).await;
            found.extend(keys);
            cursor = next;
            if cursor == "0" {
                return found;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_of_a_family_that_may_be_there_or_it_is_told() {
        let graphs = HashMap::from([("g", true), ("kept", false)]);
        let cancelled = BTreeSet::from([String::from("g")]);
        let outputs = HashSet::from([String::from("dago:blob:g:n:r")]);
        let expected = Expected { graphs: &graphs, cancelled: &cancelled, outputs: &outputs };
        let wrong = |key: &str, life| wrong(key, life, &expected);
        for (key, life) in [
            ("executor.work", -1),
            ("executor.work:dead", -1),
            ("dago:events:node.completed", -1),
            ("dago:waits:audit", -1),
            ("dago:blobs", -1),
            ("dago:workers:w1.2", 9),
            ("dago:staged:executor.work/1-0:w1:a:1", 9),
            ("dago:blob:g:n:r", 9),
            ("dago:state:g", 9),
            ("dago:state:kept", -1),
            ("dago:done:g", 9),
            ("dago:cancel:g", 9),
        ] {
            assert_eq!(wrong(key, life), None);
        }
        for key in [
            "dago:waits",
            "dago:waits:audit:1",
            "dago:blobs:1",
            "dago:journal:g:n:r",
            "dago:parked:executor.work",
            "dago:parked-bodies:executor.work",
            "dago:crashes:executor.work",
            "dago:blob:g:n:other",
            "dago:state:other",
            "dago:done:other",
            "dago:cancel:kept",
            "dago:something new",
            "elsewhere",
        ] {
            assert!(wrong(key, 9).is_some(), "{key}");
        }
        for key in
            ["dago:workers:w1.2", "dago:staged:1", "dago:blob:g:n:r", "dago:state:g", "dago:done:g", "dago:cancel:g"]
        {
            assert!(wrong(key, -1).is_some(), "{key} stays for good");
        }
    }
}
