//! The providers that a node names, each with the settings that are meant for it. Who is asked when is the modes'.

use std::sync::Arc;

use crate::config::Protocol;
use crate::domain::node::LlmConfig;
use crate::domain::outcome::Failure;
use crate::ports::Route;

/// One route for each provider of `named`, `name` or `name/model`, in order. `protocol` says what is spoken with one,
/// or that it does not exist.
pub fn routes(
    named: &[String],
    settings: &LlmConfig,
    protocol: impl Fn(&str) -> Result<Protocol, Failure>,
) -> Result<Vec<Route>, Failure> {
    let mut first = None;
    let mut routes: Vec<Route> = Vec::with_capacity(named.len());
    for entry in named {
        let (name, model) = entry.split_once('/').map_or((entry.as_str(), ""), |(name, model)| (name, model));
        let spoken = protocol(name)?;
        if routes.iter().any(|route| *route.provider == *name) {
            continue;
        }
        let mut own = LlmConfig { provider: vec![name.to_owned()], ..settings.clone() };
        if let Some(first) = first {
            // The name of a model is its provider's own, and members in a vendor's words are meant for that vendor.
            own.model = None;
            if first != spoken {
                own.thinking = None;
                own.extra.clear();
            }
        }
        if !model.is_empty() {
            own.model = Some(model.to_owned());
        }
        first.get_or_insert(spoken);
        routes.push(Route { provider: Arc::from(name), settings: Arc::new(own) });
    }
    Ok(routes)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn protocol(name: &str) -> Result<Protocol, Failure> {
        match name {
            "claude" | "claude-eu" => Ok(Protocol::Messages),
            "openai" | "openrouter" => Ok(Protocol::Openai),
            _ => Err(Failure::configuration("unknown_provider", "no")),
        }
    }

    fn of(named: &[&str]) -> Result<Vec<Route>, Failure> {
        let settings = json!({"model": "m", "effort": "low", "thinking": {"type": "adaptive"}, "extra": {"x": 1}});
        let settings: LlmConfig = serde_json::from_value(settings).expect("settings");
        let named: Vec<String> = named.iter().map(|name| (*name).to_owned()).collect();
        routes(&named, &settings, protocol)
    }

    #[test]
    fn the_first_provider_has_the_nodes_model_and_the_others_their_own() {
        let routes = of(&["claude", "openai", "openrouter/a/b", "claude-eu"]).expect("known providers");
        let models: Vec<_> = routes.iter().map(|route| (&*route.provider, route.settings.model.as_deref())).collect();
        assert_eq!(models, [("claude", Some("m")), ("openai", None), ("openrouter", Some("a/b")), ("claude-eu", None)]);
        assert!(routes.iter().all(|route| *route.settings.provider == [route.provider.to_string()]));
        assert_eq!(of(&["openai/gpt"]).expect("known")[0].settings.model.as_deref(), Some("gpt"));
    }

    #[test]
    fn what_is_said_in_a_vendors_words_goes_to_no_other() {
        let routes = of(&["claude", "openai", "claude-eu"]).expect("known providers");
        let words: Vec<_> =
            routes.iter().map(|route| (route.settings.thinking.is_some(), route.settings.extra.len())).collect();
        assert_eq!(words, [(true, 1), (false, 0), (true, 1)]);
        assert!(routes.iter().all(|route| route.settings.effort.as_deref() == Some("low")));
    }

    #[test]
    fn a_provider_that_is_unknown_is_told_before_any_is_asked() {
        assert_eq!(of(&["claude", "clod"]).expect_err("unknown").code, "unknown_provider");
        assert_eq!(of(&["claude", "claude"]).expect("known").len(), 1);
    }
}
