//! How the names that a node writes find their tools, and what those tools are called before a model. Pure: lists
//! come in, a list goes out; asking servers for their tools happens elsewhere.

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::sync::Arc;

use data_encoding::HEXLOWER;
use sha2::{Digest, Sha256};

use crate::config::McpServerConfig;
use crate::domain::node::nearest;
use crate::domain::outcome::Failure;
pub use crate::domain::tool::matches;
use crate::domain::tool::{ToolSpec, ToolTarget};
use crate::tools::index::ToolIndex;
use crate::tools::registry::is_model_name;

/// The longest name that every model accepts.
const MAX_NAME: usize = 64;
/// Digits of a hash in a name, where they are enough to tell it from every other.
const SHORT_HASH: usize = 8;

/// The tools of one server.
#[derive(Debug, Clone)]
pub struct Catalog {
    /// The server by its configured name.
    pub server: String,
    /// What it offers and its configuration allows.
    pub tools: Arc<ToolIndex>,
}

/// A bare name that several places offer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Collision {
    /// The name as the node wrote it.
    pub name: String,
    /// Where it leads.
    pub chosen: ToolTarget,
    /// Where else it could have led.
    pub others: Vec<ToolTarget>,
}

impl fmt::Display for Collision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let place = |target: &ToolTarget| target.server.clone().unwrap_or_else(|| String::from("the built-in tools"));
        let others: Vec<String> = self.others.iter().map(place).collect();
        write!(f, "`{}` of {} hides the one of {}", self.name, place(&self.chosen), others.join(", "))
    }
}

/// What patterns found.
#[derive(Debug, Clone, Default)]
pub struct Resolution {
    /// Each tool once, in the order of the patterns, under the name that a model sees.
    pub tools: Vec<ToolSpec>,
    /// Bare names that were ambiguous; the caller reports each once.
    pub collisions: Vec<Collision>,
}

/// Finds the tools that `patterns` name: `tool`, `server/tool`, `server/*`, `*`; a `*` may stand for any part of a
/// tool's name. A bare name leads to the first server that offers it, in the order given, and to the registry last.
pub fn resolve(catalogs: &[Catalog], registry: &ToolIndex, patterns: &[String]) -> Result<Resolution, Failure> {
    let places = Places { catalogs, registry };
    let mut chosen = Vec::new();
    let mut seen = HashSet::new();
    let mut collisions = Vec::new();
    for pattern in patterns {
        let found = places.matching(pattern);
        let Some(first) = found.first() else { return Err(places.unknown(pattern)) };
        if pattern.contains('*') {
            chosen.extend(found.iter().filter(|tool| seen.insert(**tool)));
            continue;
        }
        if seen.insert(*first) {
            chosen.push(*first);
        }
        let mut others: Vec<ToolTarget> =
            found.iter().filter(|tool| tool.server != first.server).map(Found::target).collect();
        others.dedup();
        let collision = Collision { name: pattern.clone(), chosen: first.target(), others };
        if !collision.others.is_empty() && !collisions.contains(&collision) {
            collisions.push(collision);
        }
    }
    let names = model_names(&chosen);
    let tools =
        chosen.iter().zip(names).map(|(tool, name)| ToolSpec { name, target: tool.target(), ..tool.spec.clone() });
    Ok(Resolution { tools: tools.collect(), collisions })
}

/// Whether a server's configuration allows one of its tools: in `allow` or that is empty, and not in `deny`.
pub fn allowed(config: &McpServerConfig, tool: &str) -> bool {
    let listed = |patterns: &[String]| patterns.iter().any(|pattern| matches(pattern, tool));
    (config.allow.is_empty() || listed(&config.allow)) && !listed(&config.deny)
}

/// A tool and where it was found; the same tool is equal to itself however often a server lists it.
#[derive(Debug, Clone, Copy)]
struct Found<'a> {
    server: Option<&'a str>,
    spec: &'a ToolSpec,
}

impl Found<'_> {
    fn name(&self) -> &str {
        &self.spec.target.name
    }

    fn target(&self) -> ToolTarget {
        ToolTarget { server: self.server.map(str::to_owned), name: self.name().to_owned() }
    }
}

impl PartialEq for Found<'_> {
    fn eq(&self, other: &Self) -> bool {
        (self.server, self.name()) == (other.server, other.name())
    }
}

impl Eq for Found<'_> {}

impl std::hash::Hash for Found<'_> {
    fn hash<H: std::hash::Hasher>(&self, state: &mut H) {
        (self.server, self.name()).hash(state);
    }
}

struct Places<'a> {
    catalogs: &'a [Catalog],
    registry: &'a ToolIndex,
}

impl<'a> Places<'a> {
    /// Everything there is, in the order of resolution.
    fn all(&self) -> impl Iterator<Item = Found<'a>> + use<'a> {
        let catalogs = self.catalogs.iter().flat_map(Self::of);
        catalogs.chain(self.registry.iter().map(|spec| Found { server: None, spec }))
    }

    fn of(catalog: &'a Catalog) -> impl Iterator<Item = Found<'a>> {
        catalog.tools.iter().map(|spec| Found { server: Some(&catalog.server), spec })
    }

    fn matching(&self, pattern: &str) -> Vec<Found<'a>> {
        let mut found = Vec::new();
        if let Some((server, name)) = pattern.split_once('/')
            && let Some(catalog) = self.catalogs.iter().find(|catalog| catalog.server == server)
        {
            fitting(Some(&catalog.server), &catalog.tools, name, &mut found);
            return found;
        }
        // The name of a tool may have a slash of its own.
        for catalog in self.catalogs {
            fitting(Some(&catalog.server), &catalog.tools, pattern, &mut found);
        }
        fitting(None, self.registry, pattern, &mut found);
        found
    }

    fn unknown(&self, pattern: &str) -> Failure {
        let message = if pattern.contains('*') {
            format!("`{pattern}` fits no tool; see `executor-worker tools` for those there are")
        } else if self.catalogs.iter().any(|catalog| catalog.server == pattern) {
            format!(
                "`{pattern}` is a server; write `{pattern}/TOOL` for a tool of it, or `{pattern}/*` for all of them"
            )
        } else {
            let full: Vec<String> = match pattern.contains('/') {
                true => self.all().map(|tool| tool.target().to_string()).collect(),
                false => Vec::new(),
            };
            let bare = self.all().map(|tool| tool.spec.target.name.as_str());
            let near = nearest(pattern, full.iter().map(String::as_str)).or_else(|| nearest(pattern, bare));
            match near {
                Some(near) => format!("no tool is named `{pattern}`; did you mean `{near}`?"),
                None => {
                    format!("no tool is named `{pattern}`; see `executor-worker tools` for those there are")
                }
            }
        };
        Failure::configuration("unknown_tool", message)
    }
}

/// Adds the tools of one place that fit a pattern. Only one with a `*` has to be held against each of them.
fn fitting<'a>(server: Option<&'a str>, tools: &'a ToolIndex, pattern: &str, found: &mut Vec<Found<'a>>) {
    let at = |spec| Found { server, spec };
    match pattern.contains('*') {
        true => found.extend(tools.iter().filter(|tool| matches(pattern, &tool.target.name)).map(at)),
        false => found.extend(tools.named(pattern).map(at)),
    }
}

/// Names that every model accepts, each once: the tool's own where no other tool of the list has it, else with its
/// server before it. They depend on what is in the list and not on its order, so that a prompt's prefix stays the same.
fn model_names(tools: &[Found<'_>]) -> Vec<String> {
    let count = |names: &[String]| {
        names.iter().fold(HashMap::<String, usize>::new(), |mut counts, name| {
            *counts.entry(name.clone()).or_default() += 1;
            counts
        })
    };
    let bare: Vec<String> = tools.iter().map(|tool| acceptable(tool.name())).collect();
    let bare_counts = count(&bare);
    let wanted: Vec<String> = tools
        .iter()
        .zip(bare)
        .map(|(tool, bare)| match tool.server {
            Some(server) if bare_counts[&bare] > 1 => acceptable(&format!("{server}_{}", tool.name())),
            Some(_) | None => bare,
        })
        .collect();
    let counts = count(&wanted);
    let clear = |name: &str| counts[name] == 1 && is_model_name(name);
    let targets: Vec<ToolTarget> = tools.iter().map(Found::target).collect();
    let mut digits = vec![SHORT_HASH; tools.len()];
    loop {
        let names: Vec<String> = (0..tools.len())
            .map(|at| match clear(&wanted[at]) {
                true => wanted[at].clone(),
                false => hashed(&wanted[at], &targets[at], digits[at]),
            })
            .collect();
        // A tool may be called what a hash makes of another one's name, by chance or on purpose.
        let counts = count(&names);
        let mut longer = false;
        for at in 0..tools.len() {
            if counts[&names[at]] > 1 && !clear(&wanted[at]) && digits[at] < MAX_NAME - 1 {
                digits[at] = (digits[at] + 8).min(MAX_NAME - 1);
                longer = true;
            }
        }
        if !longer {
            return names;
        }
    }
}

/// The name with every character that models refuse replaced.
fn acceptable(name: &str) -> String {
    let plain = |character: char| match character {
        'a'..='z' | 'A'..='Z' | '0'..='9' | '_' | '-' => character,
        _ => '_',
    };
    name.chars().map(plain).collect()
}

/// The beginning of the name and so many digits of a hash of where it leads.
fn hashed(name: &str, target: &ToolTarget, digits: usize) -> String {
    let digest = Sha256::digest(format!("{}\n{}", target.server.as_deref().unwrap_or_default(), target.name));
    let hash = HEXLOWER.encode(&digest);
    let kept = name.len().min(MAX_NAME - 1 - digits);
    format!("{}_{}", &name[..kept], &hash[..digits])
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use proptest::prelude::*;
    use serde_json::json;

    use super::*;
    use crate::domain::outcome::Category;
    use crate::domain::tool::ToolHints;

    fn spec(server: Option<&str>, name: &str) -> ToolSpec {
        ToolSpec {
            name: name.to_owned(),
            target: ToolTarget { server: server.map(str::to_owned), name: name.to_owned() },
            description: Some(format!("{} at {server:?}", name)),
            input_schema: Arc::new(json!({"type": "object"})),
            hints: ToolHints::default(),
        }
    }

    fn catalog(server: &str, names: &[&str]) -> Catalog {
        Catalog {
            server: server.to_owned(),
            tools: Arc::new(ToolIndex::new(names.iter().map(|name| spec(Some(server), name)).collect())),
        }
    }

    fn found(catalogs: &[Catalog], registry: &[&str], patterns: &[&str]) -> Result<Resolution, Failure> {
        let registry: Vec<ToolSpec> = registry.iter().map(|name| spec(None, name)).collect();
        let patterns: Vec<String> = patterns.iter().map(|&pattern| pattern.to_owned()).collect();
        resolve(catalogs, &ToolIndex::new(registry), &patterns)
    }

    /// Name before the model and target of each.
    fn names(catalogs: &[Catalog], registry: &[&str], patterns: &[&str]) -> Vec<(String, String)> {
        let found = found(catalogs, registry, patterns).expect("all patterns fit");
        found.tools.into_iter().map(|tool| (tool.name, tool.target.to_string())).collect()
    }

    fn pairs(pairs: &[(&str, &str)]) -> Vec<(String, String)> {
        pairs.iter().map(|&(one, other)| (one.to_owned(), other.to_owned())).collect()
    }

    #[test]
    fn each_way_to_name_a_tool_finds_it_once_and_in_order() {
        let catalogs = [catalog("web", &["search", "fetch"]), catalog("db", &["query"])];
        let all = pairs(&[
            ("search", "web/search"),
            ("fetch", "web/fetch"),
            ("query", "db/query"),
            ("calculate", "calculate"),
        ]);
        assert_eq!(names(&catalogs, &["calculate"], &["*"]), all);
        assert_eq!(names(&catalogs, &["calculate"], &["query"]), pairs(&[("query", "db/query")]));
        assert_eq!(names(&catalogs, &["calculate"], &["calculate"]), pairs(&[("calculate", "calculate")]));
        assert_eq!(
            names(&catalogs, &["calculate"], &["db/query", "web/*", "fetch", "web/s*", "query"]),
            pairs(&[("query", "db/query"), ("search", "web/search"), ("fetch", "web/fetch")])
        );
        assert!(names(&catalogs, &[], &[]).is_empty());
    }

    #[test]
    fn a_bare_name_in_several_places_leads_to_the_first_and_the_collision_is_told() {
        let catalogs = [catalog("b", &["search"]), catalog("a", &["search", "now"])];
        let found = found(&catalogs, &["now", "search"], &["search", "now", "search"]).expect("known");
        let targets: Vec<String> = found.tools.iter().map(|tool| tool.target.to_string()).collect();
        assert_eq!(targets, ["b/search", "a/now"]);
        let told: Vec<String> = found.collisions.iter().map(Collision::to_string).collect();
        assert_eq!(
            told,
            ["`search` of b hides the one of a, the built-in tools", "`now` of a hides the one of the built-in tools"]
        );
    }

    #[test]
    fn no_collision_is_told_where_the_node_is_clear() {
        let catalogs = [catalog("a", &["x", "x"]), catalog("b", &["x"])];
        assert!(found(&catalogs, &[], &["a/x", "b/x", "*"]).expect("known").collisions.is_empty());
        let twice = [catalog("a", &["x", "x"])];
        let found = found(&twice, &[], &["x", "*"]).expect("known");
        assert_eq!((found.tools.len(), found.collisions.len()), (1, 0));
    }

    #[test]
    fn tools_of_one_name_get_their_server_before_it() {
        let catalogs = [catalog("a", &["search", "one"]), catalog("b", &["search"])];
        assert_eq!(
            names(&catalogs, &["search"], &["*"]),
            pairs(&[("a_search", "a/search"), ("one", "a/one"), ("b_search", "b/search"), ("search", "search")])
        );
    }

    #[test]
    fn names_that_models_refuse_are_made_acceptable_and_stay_apart() {
        let long = "x".repeat(80);
        let catalogs =
            [catalog("s", &["a.b", "a/b", "größe", &long, ""]), catalog("s_a", &["t"]), catalog("s2", &["t", "a_t"])];
        let found = found(&catalogs, &[], &["*"]).expect("known");
        let names: HashSet<&str> = found.tools.iter().map(|tool| tool.name.as_str()).collect();
        assert_eq!(names.len(), found.tools.len(), "{names:?}");
        assert!(names.iter().all(|name| is_model_name(name)), "{names:?}");
        let target = |name: &str| found.tools.iter().find(|tool| tool.name == name).map(|tool| tool.target.to_string());
        assert_eq!(target("s_a_b"), None, "two tools would have that name");
        assert_eq!(target("gr__e").as_deref(), Some("s/größe"));
        assert_eq!(target("s2_t").as_deref(), Some("s2/t"));
        assert!(names.iter().any(|name| name.starts_with(&"x".repeat(55)) && name.len() == 64));
    }

    #[test]
    fn a_name_does_not_change_with_the_order_of_the_list() {
        let catalogs = [catalog("a", &["s", "x.y"]), catalog("b", &["s", "x/y"])];
        let sorted = |patterns: &[&str]| {
            let mut names = names(&catalogs, &[], patterns);
            names.sort();
            names
        };
        assert_eq!(sorted(&["*"]), sorted(&["b/*", "a/x.y", "a/s"]));
    }

    #[test]
    fn a_name_that_nobody_offers_is_named_with_the_nearest_one() {
        let catalogs = [catalog("web", &["search"])];
        let refused = |pattern: &str| {
            let failure = found(&catalogs, &["calculate"], &["search", pattern]).expect_err("unknown");
            assert_eq!((failure.category, &*failure.code), (Category::Configuration, "unknown_tool"));
            failure.message
        };
        assert!(refused("calcluate").ends_with("did you mean `calculate`?"));
        assert!(refused("wbe/search").ends_with("did you mean `web/search`?"));
        assert!(refused("web/serach").ends_with("did you mean `web/search`?"));
        assert!(refused("other/*").contains("`other/*` fits no tool"));
        assert!(refused("web").contains("`web` is a server; write `web/TOOL`"));
        assert!(refused("").contains("no tool is named ``"));
        assert!(found(&[], &[], &["*"]).is_err(), "a node must not run without the tools it wants");
    }

    #[test]
    fn allow_and_deny_take_wildcards_and_deny_wins() {
        let config = |allow: &[&str], deny: &[&str]| McpServerConfig {
            allow: allow.iter().map(|&pattern| pattern.to_owned()).collect(),
            deny: deny.iter().map(|&pattern| pattern.to_owned()).collect(),
            ..McpServerConfig::default()
        };
        assert!(allowed(&config(&[], &[]), "any"));
        assert!(allowed(&config(&["get_*"], &[]), "get_user"));
        assert!(!allowed(&config(&["get_*"], &[]), "forget_user"));
        assert!(!allowed(&config(&["*"], &["*_all"]), "delete_all"));
        assert!(allowed(&config(&["a*b*c"], &[]), "a-bb-c"));
        assert!(!allowed(&config(&["exact"], &[]), "exactly"));
        assert!(!allowed(&config(&["a*a"], &[]), "a"), "one character is not two");
    }

    #[test]
    fn ten_thousand_tools_are_no_burden() {
        let many: Vec<String> = (0..10_000).map(|n| format!("tool_number_{n}")).collect();
        let many: Vec<&str> = many.iter().map(String::as_str).collect();
        let catalogs = [catalog("a", &many), catalog("b", &many)];
        let patterns: Vec<&str> = many.iter().copied().step_by(200).collect();
        let started = Instant::now();
        assert_eq!(names(&catalogs, &[], &patterns).len(), 50);
        assert_eq!(names(&catalogs, &[], &["*"]).len(), 20_000);
        // Quadratic work would take minutes; this leaves a slow machine all the room it needs.
        assert!(started.elapsed() < Duration::from_secs(5), "{:?}", started.elapsed());
    }

    #[test]
    fn a_node_that_names_its_tools_does_not_pay_for_the_others() {
        let registry = ToolIndex::new(vec![spec(None, "calculate")]);
        let of = |count: usize| {
            let many: Vec<String> = (0..count).map(|n| format!("tool_number_{n}")).collect();
            [catalog("a", &many.iter().map(String::as_str).collect::<Vec<_>>())]
        };
        let (few, many) = (of(10), of(5_000));
        let patterns = ["tool_number_7", "a/tool_number_3", "calculate"].map(str::to_owned);
        let once = |catalogs: &[Catalog]| {
            let started = Instant::now();
            for _ in 0..100 {
                assert_eq!(resolve(catalogs, &registry, &patterns).expect("known").tools.len(), 3);
            }
            started.elapsed()
        };
        // The quickest of several rounds is the one that nobody disturbed. Looking at every tool costs 100 times as much.
        let quickest = |catalogs: &[Catalog]| (0..20).map(|_| once(catalogs)).min().expect("twenty rounds");
        let (small, large) = (quickest(&few), quickest(&many));
        assert!(large < small * 4, "{large:?} among 5,000 tools, {small:?} among 10");
    }

    #[test]
    fn a_tool_cannot_take_the_name_that_is_made_for_another() {
        let made = hashed("s_a_b", &ToolTarget { server: Some(String::from("s")), name: String::from("a.b") }, 8);
        let catalogs = [catalog("s", &["a.b", "a/b", &made])];
        let found = found(&catalogs, &[], &["*"]).expect("known");
        let of = |name: &str| found.tools.iter().find(|tool| tool.target.name == name).map(|tool| tool.name.as_str());
        assert_eq!(of(&made), Some(made.as_str()), "a name of its own is kept");
        let other = of("a.b").expect("found");
        assert!(other.len() == made.len() + 8 && other.starts_with(&made), "{other}");
        assert_eq!(of("a/b").map(str::len), Some(made.len()), "what was clear stays short");
    }

    proptest! {
        #[test]
        fn every_tool_has_a_name_of_its_own_that_leads_back_and_does_not_depend_on_the_order(
            offered in proptest::collection::vec(
                (0..3_usize, proptest::collection::btree_set("[ab._-]{0,4}|\\PC{0,6}|a{60,70}", 0..5)), 1..4),
            turned in any::<bool>(),
        ) {
            let registry = |names: [&str; 2]| ToolIndex::new(names.map(|name| spec(None, name)).into());
            let mut catalogs: Vec<Catalog> = Vec::new();
            for (server, names) in &offered {
                let server = ["a", "a_b", "b"][*server];
                if catalogs.iter().all(|known| known.server != server) {
                    catalogs.push(catalog(server, &names.iter().map(String::as_str).collect::<Vec<_>>()));
                }
            }
            let all = resolve(&catalogs, &registry(["a", "a_b"]), &[String::from("*")]).expect("built-ins");
            let named: HashMap<String, ToolTarget> =
                all.tools.iter().map(|tool| (tool.name.clone(), tool.target.clone())).collect();
            prop_assert_eq!(named.len(), all.tools.len(), "each name once");
            prop_assert!(named.keys().all(|name| is_model_name(name)), "{:?}", named);
            if turned {
                catalogs.reverse();
                for catalog in &mut catalogs {
                    catalog.tools = Arc::new(ToolIndex::new(catalog.tools.iter().rev().cloned().collect()));
                }
            }
            let again = resolve(&catalogs, &registry(["a_b", "a"]), &[String::from("*")]).expect("built-ins");
            for tool in again.tools {
                prop_assert_eq!(named.get(&tool.name), Some(&tool.target));
            }
        }

        #[test]
        fn a_pattern_fits_what_a_plain_search_says(pattern in "[ab*]{0,6}", name in "[ab]{0,6}") {
            fn fits(pattern: &[u8], name: &[u8]) -> bool {
                match (pattern, name) {
                    ([], rest) => rest.is_empty(),
                    ([b'*', more @ ..], name) => (0..=name.len()).any(|at| fits(more, &name[at..])),
                    ([one, more @ ..], [other, rest @ ..]) => one == other && fits(more, rest),
                    (_, []) => false,
                }
            }
            prop_assert_eq!(matches(&pattern, &name), fits(pattern.as_bytes(), name.as_bytes()));
        }
    }
}
