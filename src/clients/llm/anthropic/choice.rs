//! Whether a request may force the model to use a tool. Models refuse that while they think, and a refused request is a
//! failed node, so such a wish becomes a free choice with a remark.

use serde_json::{Map, Value, json};

use super::request::Tool;
use crate::domain::message::Turn;
use crate::ports::LlmRequest;

/// Brings `tool_choice` among the members of a body into a form that the API takes.
pub(super) fn settle(
    members: &mut Map<String, Value>,
    request: &LlmRequest,
    model: &str,
    tools: &[Tool<'_>],
    warnings: &mut Vec<String>,
) {
    if tools.is_empty() {
        if members.shift_remove("tool_choice").is_some() {
            warnings.push(String::from("`tool_choice` was left out: there are no tools to choose from"));
        }
        return;
    }
    // Tools of the provider are the node's own wish, and no part of our loop.
    let may_be_called = request.tools_allowed && !request.tools.is_empty();
    if !may_be_called && tools.iter().any(|tool| matches!(tool, Tool::Own { .. })) {
        // The tools stay listed: the history uses them, and taking them away would change the cached prefix.
        members.insert(String::from("tool_choice"), json!({"type": "none"}));
        return;
    }
    let thinks = thinks(members.get("thinking"), model);
    let Some(choice) = members.get_mut("tool_choice") else { return };
    if !matches!(choice["type"].as_str(), Some("any" | "tool")) {
        return;
    }
    // Forced in every turn, a loop could never end with an answer.
    let begun = request.turns.iter().any(|turn| matches!(&**turn, Turn::Assistant(_)));
    if thinks {
        warnings.push(format!(
            "a forced `tool_choice` became \"auto\": {model} refuses it while it thinks; set `thinking` to \
             {{\"type\": \"disabled\"}} where the model allows that"
        ));
    }
    if thinks || begun {
        let parallel = choice.get("disable_parallel_tool_use").cloned();
        *choice = json!({"type": "auto"});
        if let Some(parallel) = parallel {
            choice["disable_parallel_tool_use"] = parallel;
        }
    }
}

/// Whether the model thinks in this call: as the node says, else as models of its generation do.
fn thinks(thinking: Option<&Value>, model: &str) -> bool {
    match thinking.and_then(|thinking| thinking["type"].as_str()) {
        Some(kind) => kind != "disabled",
        None => generation(model).is_some_and(|generation| generation >= 5),
    }
}

/// The first number in the name of a Claude model. What is not known is not restricted.
fn generation(model: &str) -> Option<u32> {
    model.strip_prefix("claude-")?.split('-').find_map(|part| part.parse().ok())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clients::llm::fixture::{assistant, request, with_tools};

    fn settled(mut members: Value, request: &LlmRequest, model: &str) -> (Value, usize) {
        let mut warnings = Vec::new();
        let members = members.as_object_mut().expect("an object");
        let tools: Vec<Tool<'_>> = request.tools.iter().map(|tool| Tool::own(tool, false)).collect();
        settle(members, request, model, &tools, &mut warnings);
        (members.get("tool_choice").cloned().unwrap_or_default(), warnings.len())
    }

    #[test]
    fn a_tool_is_never_forced_on_a_model_that_thinks() {
        let call = with_tools(request("x"), &["add"]);
        let any = || json!({"tool_choice": {"type": "any", "disable_parallel_tool_use": true}});
        let free = json!({"type": "auto", "disable_parallel_tool_use": true});
        for model in ["claude-sonnet-5-5", "claude-opus-5", "claude-haiku-5-5", "claude-fable-5-1"] {
            assert_eq!(settled(any(), &call, model), (free.clone(), 1), "{model}");
        }
        for model in ["claude-haiku-4-5", "claude-opus-4-8", "some-local-model", "claude-next"] {
            assert_eq!(settled(any(), &call, model), (any()["tool_choice"].clone(), 0), "{model}");
        }
        let mut off = any();
        off["thinking"] = json!({"type": "disabled"});
        assert_eq!(settled(off, &call, "claude-haiku-5-5"), (any()["tool_choice"].clone(), 0));
        let mut on = any();
        on["thinking"] = json!({"type": "enabled", "budget_tokens": 2000});
        assert_eq!(settled(on, &call, "claude-opus-4-5"), (free, 1));
        let auto = json!({"tool_choice": {"type": "auto"}});
        assert_eq!(settled(auto, &call, "claude-sonnet-5-5"), (json!({"type": "auto"}), 0));
    }

    #[test]
    fn a_tool_is_forced_in_the_first_turn_alone() {
        let mut call = with_tools(request("x"), &["add"]);
        call.turns.push(assistant(r#"[{"type":"text","text":"x"}]"#));
        let tool = json!({"tool_choice": {"type": "tool", "name": "add"}});
        assert_eq!(settled(tool, &call, "claude-opus-4-5"), (json!({"type": "auto"}), 0));
    }

    #[test]
    fn there_is_no_choice_among_no_tools() {
        assert_eq!(settled(json!({"tool_choice": {"type": "auto"}}), &request("x"), "m"), (Value::Null, 1));
        let mut last = request("x");
        last.tools_allowed = false;
        assert_eq!(settled(json!({}), &last, "m"), (Value::Null, 0));
    }
}
