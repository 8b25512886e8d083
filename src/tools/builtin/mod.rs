//! The built-in tools, one file each, and which of them the configuration leaves switched on.

mod arithmetic;
mod calculate;
mod current_time;
mod http_request;
mod json_query;
mod query_bounds;
mod template;

use crate::clients::http::InvalidHost;
use crate::config::ToolsConfig;
use crate::domain::node::nearest;
use crate::tools::registry::Registry;

/// The names of all built-in tools.
pub const BUILTIN_NAMES: [&str; 5] = ["calculate", "current_time", "http_request", "json_query", "template"];

/// Why the section `tools` of the configuration cannot be meant.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidTools {
    /// A name in `tools.disable` is not a built-in tool.
    #[error("tools.disable: there is no built-in tool `{name}`; {hint}")]
    Unknown {
        /// The name as written.
        name: String,
        /// What could be meant.
        hint: String,
    },
    /// An entry of `tools.http_request.allow` names no host.
    #[error("tools.http_request.allow: {0}")]
    Host(#[from] InvalidHost),
}

/// Registers what is switched on; `http_request` is off while no host is allowed.
pub(super) fn register(registry: &mut Registry, config: &ToolsConfig) -> Result<(), InvalidTools> {
    if let Some(name) = config.disable.iter().find(|name| !BUILTIN_NAMES.contains(&name.as_str())) {
        let hint = match nearest(name, BUILTIN_NAMES) {
            Some(near) => format!("did you mean `{near}`?"),
            None => format!("there are {}", BUILTIN_NAMES.join(", ")),
        };
        return Err(InvalidTools::Unknown { name: name.clone(), hint });
    }
    let on = |name: &str| !config.disable.iter().any(|disabled| disabled == name);
    if on(calculate::NAME) {
        calculate::register(registry);
    }
    if on(current_time::NAME) {
        current_time::register(registry);
    }
    if on(json_query::NAME) {
        json_query::register(registry);
    }
    if on(template::NAME) {
        template::register(registry);
    }
    if on(http_request::NAME) && !config.http_request.allow.is_empty() {
        http_request::register(registry, &config.http_request)?;
    }
    Ok(())
}

/// Why a built-in tool is not there, if it is one and the configuration keeps it off.
pub(super) fn why_off(config: &ToolsConfig, name: &str) -> Option<String> {
    if !BUILTIN_NAMES.contains(&name) {
        return None;
    }
    if config.disable.iter().any(|disabled| disabled == name) {
        return Some(format!("`{name}` is switched off by `tools.disable`"));
    }
    let off = name == http_request::NAME && config.http_request.allow.is_empty();
    off.then(|| format!("`{name}` is off until `tools.http_request.allow` names a host"))
}

#[cfg(test)]
pub(super) mod testing {
    //! What the tests of the tools share: a caller, and one call of a built-in tool.

    use std::time::{Duration, Instant};

    use serde_json::Value;

    use crate::config::Config;
    use crate::domain::ids::{EntryId, GraphId, NodeId, RunId, WorkId};
    use crate::domain::outcome::Failure;
    use crate::ports::CallContext;
    use crate::tools::registry::Registry;

    /// A caller with half a minute left.
    pub fn context() -> CallContext {
        CallContext {
            graph_id: GraphId::new("g").expect("valid"),
            node_id: NodeId::new("n").expect("valid"),
            run_id: RunId::new("r").expect("valid"),
            work_id: WorkId::new("executor.work", &EntryId::new("1-0")),
            traceparent: Some(String::from("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01")),
            idempotency_key: String::from("key-1"),
            deadline: Instant::now() + Duration::from_secs(30),
        }
    }

    /// Calls a built-in tool under the default configuration.
    pub async fn call(name: &str, arguments: Value) -> Result<Value, Failure> {
        let Value::Object(arguments) = arguments else { panic!("arguments are an object") };
        let registry = Registry::builtin(&Config::default().tools).expect("the defaults are valid");
        registry.call(name, &arguments, &context()).await.map(|output| output.into_value())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;

    fn names(config: &ToolsConfig) -> Vec<String> {
        let registry = Registry::builtin(config).expect("valid");
        registry.specs().into_iter().map(|spec| spec.name).collect()
    }

    #[test]
    fn every_tool_but_http_request_is_on_by_default_and_each_can_be_switched_off() {
        let mut config = Config::default().tools;
        assert_eq!(names(&config), ["calculate", "current_time", "json_query", "template"]);
        config.http_request.allow = vec![String::from("example.org")];
        assert_eq!(names(&config), BUILTIN_NAMES);
        for name in BUILTIN_NAMES {
            config.disable = vec![name.to_owned()];
            assert!(!names(&config).contains(&name.to_owned()), "{name}");
        }
    }

    #[test]
    fn the_configuration_knows_the_same_tools_and_the_same_hosts() {
        assert_eq!(BUILTIN_NAMES, crate::config::validate::BUILT_IN_TOOLS);
        let mut config = Config::default();
        for entry in ["example.org", "example.org:8080", "*.example.org", "*", "[::1]:80", "127.0.0.1"] {
            config.tools.http_request.allow = vec![entry.to_owned()];
            assert!(Registry::builtin(&config.tools).is_ok(), "{entry}");
        }
    }

    #[test]
    fn a_slip_in_the_configuration_is_refused() {
        let mut config = Config::default().tools;
        config.disable = vec![String::from("calcluate")];
        let error = Registry::builtin(&config).expect_err("unknown");
        assert_eq!(
            error.to_string(),
            "tools.disable: there is no built-in tool `calcluate`; did you mean `calculate`?"
        );
        config.disable.clear();
        config.http_request.allow = vec![String::from("https://example.org/")];
        assert!(
            Registry::builtin(&config).expect_err("not a host").to_string().starts_with("tools.http_request.allow:")
        );
    }
}
