//! The sample nodes of `examples/`, in which order they are submitted, what happens to their workers, and how each
//! must end.

/// The script of the model.
pub const MODEL: &str = include_str!("../../../examples/model.yaml");
/// The graph of the samples.
const GRAPH: &str = "demo";

/// What `dev` does to the workers of a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sabotage {
    /// Nothing.
    None,
    /// The worker is killed once, in the middle of the second tool call: two turns of the model and one tool call are
    /// on record by then.
    OnceInATool,
    /// Every worker that starts the node is killed.
    AtEveryStart,
}

/// How a node must end.
#[derive(Debug, Clone, Copy)]
pub enum Expected {
    /// It completes, and these parts of its output (JSON pointers) are as they should be.
    Output(&'static [(&'static str, Is)]),
    /// It fails with this category and code.
    Failure {
        /// The category.
        category: &'static str,
        /// The code.
        code: &'static str,
    },
}

/// What a part of an output must be.
#[derive(Debug, Clone, Copy)]
pub enum Is {
    /// This JSON value.
    Json(&'static str),
    /// A text that contains this.
    Saying(&'static str),
}

/// One sample node.
#[derive(Debug, Clone, Copy)]
pub struct Sample {
    /// Its name, which is also its node id.
    pub name: &'static str,
    /// Its file in `examples/`.
    pub file: &'static str,
    /// The work item. It names no `run_id`, so that its work id is its identity and it can be submitted again.
    pub json: &'static str,
    /// Its mode.
    pub mode: &'static str,
    /// Samples that must have ended before.
    pub after: &'static [&'static str],
    /// What happens to its workers.
    pub sabotage: Sabotage,
    /// Whether it waits for a person, whose part this run plays.
    pub asks: bool,
    /// The attempts its steps take, where that is part of the show.
    pub attempts: Option<u64>,
    /// How it must end.
    pub expected: Expected,
}

/// What most samples have in common.
const PLAIN: Sample = Sample {
    name: "",
    file: "",
    json: "",
    mode: "",
    after: &[],
    sabotage: Sabotage::None,
    asks: false,
    attempts: None,
    expected: Expected::Output(&[]),
};

macro_rules! sample {
    ($name:literal, $mode:literal, { $($field:ident: $value:expr),* $(,)? }) => {
        Sample {
            name: $name,
            file: concat!($name, ".json"),
            json: include_str!(concat!("../../../examples/", $name, ".json")),
            mode: $mode,
            $($field: $value,)*
            ..PLAIN
        }
    };
}

/// Nodes that nobody disturbs. A killed worker takes all its nodes with it, so they end before the first kill.
const CALM: &[&str] = &["tool", "llm", "agent", "retry", "invalid", "approval", "chain"];

/// The samples.
pub const SAMPLES: [Sample; 9] = [
    sample!("tool", "tool", {
        attempts: Some(1),
        expected: Expected::Output(&[("", Is::Json("78"))]),
    }),
    sample!("llm", "llm", {
        expected: Expected::Output(&[
            ("/parsed", Is::Json(r#"{"sentiment": "mixed", "complaint": "one leg is a little scratched"}"#)),
            ("/stop_reason", Is::Json("\"end_turn\"")),
        ]),
    }),
    sample!("agent", "agent", {
        expected: Expected::Output(&[
            ("/tool_calls", Is::Json("2")),
            // Two calls in two turns of the model: both were asked for in the first.
            ("/iterations", Is::Json("2")),
            ("/result", Is::Saying("\"city\":\"Lisbon\"")),
            ("/result", Is::Saying("\"city\":\"Oslo\"")),
        ]),
    }),
    sample!("retry", "llm", {
        attempts: Some(2),
        expected: Expected::Output(&[("/content", Is::Json("\"Welcome, Ada, and take your time!\""))]),
    }),
    sample!("invalid", "tool", {
        expected: Expected::Failure { category: "validation", code: "unknown_name" },
    }),
    sample!("approval", "agent", {
        asks: true,
        expected: Expected::Output(&[
            ("/tool_calls", Is::Json("1")),
            // The call that was agreed to was made, and made once.
            ("/result", Is::Saying("\"effects\":1")),
            ("/result", Is::Saying("\"calls\":1")),
        ]),
    }),
    sample!("chain", "llm", {
        after: &["tool", "llm"],
        expected: Expected::Output(&[
            ("/content", Is::Saying("the order of 78 euros")),
            ("/content", Is::Saying("one leg is a little scratched")),
        ]),
    }),
    sample!("takeover", "agent", {
        after: CALM,
        sabotage: Sabotage::OnceInATool,
        expected: Expected::Output(&[
            ("/tool_calls", Is::Json("2")),
            ("/result", Is::Saying("parcel P-17 is at the door")),
        ]),
    }),
    sample!("poison", "tool", {
        after: &["takeover"],
        sabotage: Sabotage::AtEveryStart,
        expected: Expected::Failure { category: "poison", code: "max_crashes" },
    }),
];

/// Whether a node waits for a person whose part this run plays.
pub fn asks(graph: &str, node: &str) -> bool {
    SAMPLES.iter().any(|sample| graph == GRAPH && sample.name == node && sample.asks)
}

/// What happens to the workers of a node, whoever submitted it.
pub fn sabotage_of(graph: &str, node: &str) -> Sabotage {
    let sample = SAMPLES.iter().find(|sample| graph == GRAPH && sample.name == node);
    sample.map_or(Sabotage::None, |sample| sample.sabotage)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clients::llm::script::ScriptedModel;
    use crate::domain::ids::EntryId;
    use crate::domain::node::NodeConfig;
    use crate::domain::work::WorkItem;

    #[test]
    fn every_sample_is_a_work_item_of_its_mode() {
        for (place, sample) in SAMPLES.iter().enumerate() {
            let item = WorkItem::parse(sample.json.as_bytes(), "s", &EntryId::new("5-0")).expect(sample.name);
            assert_eq!((item.graph_id.as_str(), item.node_id.as_str()), (GRAPH, sample.name));
            assert_eq!(item.run_id.as_str(), "s/5-0", "{}: it can be submitted again", sample.name);
            let (config, warnings) = NodeConfig::parse(item.config.expect("a config").get()).expect(sample.name);
            assert!(warnings.is_empty(), "{}: {warnings:?}", sample.name);
            assert_eq!(config.mode().expect(sample.name).as_str(), sample.mode);
            // Whatever a sample waits for comes before it, so the run cannot wait for itself.
            let earlier = |name: &str| SAMPLES[..place].iter().any(|sample| sample.name == name);
            assert!(sample.after.iter().all(|name| earlier(name)), "{}", sample.name);
        }
    }

    #[test]
    fn no_calm_node_shares_a_worker_with_one_that_is_killed() {
        for sample in SAMPLES.iter().filter(|sample| sample.sabotage != Sabotage::None) {
            let waits = |name: &str| sample.after.contains(&name);
            assert!(waits("takeover") || CALM.iter().all(|name| waits(name)), "{}", sample.name);
        }
        assert_eq!(sabotage_of("another", "poison"), Sabotage::None);
        assert_eq!(sabotage_of(GRAPH, "poison"), Sabotage::AtEveryStart);
    }

    #[test]
    fn the_script_can_be_read() {
        ScriptedModel::parse(MODEL, "examples/model.yaml").expect("a script");
    }
}
