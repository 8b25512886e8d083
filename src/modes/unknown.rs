//! What follows when a worker died during a tool call: the operator's word, then what is said of the tool, then the
//! general rule.

use std::collections::BTreeMap;

use crate::config::{ToolsConfig, UnknownOutcome};
use crate::domain::outcome::Failure;
use crate::domain::tool::ToolTarget;

/// The rules.
#[derive(Debug, Clone)]
pub struct UnknownOutcomes {
    default: UnknownOutcome,
    chosen: BTreeMap<String, UnknownOutcome>,
}

impl From<&ToolsConfig> for UnknownOutcomes {
    fn from(config: &ToolsConfig) -> Self {
        Self { default: config.on_unknown_outcome, chosen: config.unknown_outcome.clone() }
    }
}

impl UnknownOutcomes {
    /// Every call is made again.
    #[cfg(test)]
    pub(super) fn always_retry() -> Self {
        Self { default: UnknownOutcome::Retry, chosen: BTreeMap::new() }
    }

    /// What follows for a tool of which is said that its calls may be repeated, or not.
    pub fn of(&self, target: &ToolTarget, repeatable: bool) -> UnknownOutcome {
        let server = || self.chosen.get(&format!("{}/*", target.server.as_ref()?));
        let chosen = self.chosen.get(&target.to_string()).or_else(server).copied();
        chosen.unwrap_or(if repeatable { UnknownOutcome::Retry } else { self.default })
    }
}

/// The end of a node whose call must not be made again.
pub(super) fn failure(target: &ToolTarget) -> Failure {
    Failure::permanent(
        "unknown_tool_outcome",
        format!(
            "a worker ended while it called the tool `{target}`; the call may have taken effect. Check that, then send \
             the node again under a new `run_id`, or let `tools.unknown_outcome` repeat calls of this tool"
        ),
    )
}

/// What the model is told about such a call.
pub(super) fn words(target: &ToolTarget) -> String {
    format!(
        "The call of `{target}` was interrupted and its result is lost. It may or may not have taken effect. Check \
         whether it did before you repeat it."
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn target(text: &str) -> ToolTarget {
        match text.split_once('/') {
            Some((server, name)) => ToolTarget { server: Some(server.to_owned()), name: name.to_owned() },
            None => ToolTarget { server: None, name: text.to_owned() },
        }
    }

    #[test]
    fn the_tool_goes_before_its_server_and_both_before_the_hint_and_the_default() {
        use UnknownOutcome::{AskModel, Fail, Retry};
        let chosen = [("shop/order", Fail), ("shop/*", Retry), ("http_request", Retry), ("odd/a/b", Fail)];
        let rules = UnknownOutcomes {
            default: AskModel,
            chosen: chosen.into_iter().map(|(name, rule)| (String::from(name), rule)).collect(),
        };
        assert_eq!(rules.of(&target("shop/order"), true), Fail, "even if the server says that it may be repeated");
        assert_eq!(rules.of(&target("shop/list"), false), Retry);
        assert_eq!(rules.of(&target("http_request"), false), Retry);
        assert_eq!(rules.of(&target("odd/a/b"), false), Fail);
        assert_eq!(rules.of(&target("mail/send"), true), Retry);
        assert_eq!(rules.of(&target("mail/send"), false), AskModel);
    }
}
