//! A state that is made for an item which brings its own configuration and inputs along. No I/O.

use std::fmt::Write as _;

use crate::clients::redis::layout::{NODE, quoted};
use crate::domain::work::Delivery;

/// The parts of a state that is created for an item with `config` and `inputs`.
pub(super) struct Creation {
    graph: String,
    inputs: String,
    at: String,
}

impl Creation {
    /// What the item brings along, if that is enough for a state.
    pub(super) fn of(delivery: &Delivery) -> Option<Self> {
        let item = &delivery.item;
        let (config, inputs) = (item.config.as_ref()?, item.inputs.as_ref()?);
        let node = quoted(item.node_id.as_str());
        let graph = format!(
            r#"{{"nodes":{{{node}:{{"id":{node},"config":{}}}}},"edges":[],"entry_node":{node}}}"#,
            config.get()
        );
        let inputs = serde_json::to_string(inputs).expect("inputs have string keys");
        Some(Self { graph, inputs, at: quoted(&jiff::Timestamp::now().to_string()) })
    }

    /// The fields and values of a hash. The graph's status is its orchestrator's to write.
    pub(super) fn hash(self, delivery: &Delivery) -> Vec<(String, String)> {
        let meta = format!(
            r#"{{"created_at":{},"created_by":{},"work_id":{}}}"#,
            self.at,
            quoted(&delivery.token.consumer),
            quoted(delivery.work_id.as_str())
        );
        let mut fields = vec![
            (String::from("graph"), self.graph),
            (String::from("inputs"), self.inputs),
            (String::from("meta"), meta),
        ];
        fields.extend(delivery.item.node_states.iter().map(|(id, state)| (format!("{NODE}{id}"), state.to_string())));
        fields
    }

    /// The document.
    pub(super) fn document(self, delivery: &Delivery) -> String {
        let item = &delivery.item;
        let mut document = String::with_capacity(self.graph.len() + self.inputs.len() + 256);
        let _ = write!(
            document,
            r#"{{"graph_id":{},"graph":{},"inputs":{},"node_states":{},"submitted_at":{}}}"#,
            quoted(item.graph_id.as_str()),
            self.graph,
            self.inputs,
            serde_json::to_string(&item.node_states).expect("node states have string keys"),
            self.at
        );
        document
    }
}
