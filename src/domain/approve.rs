//! Rules that say which tool calls want a person's word first. Asking and waiting are the modes'.

use std::sync::LazyLock;

use minijinja::value::Serde;
use minijinja::{Environment, Expression, UndefinedBehavior};
use serde_json::{Value, json};

use crate::domain::outcome::Failure;
use crate::domain::tool::{Arguments, ToolSpec, matches};

/// What one condition may use; see the fuel of templates.
const FUEL: u64 = 100_000;
/// The condition that always holds.
const ALWAYS: &str = "always";

/// A rule: which tools, and on what condition.
#[derive(Debug)]
pub struct Rule {
    tool: String,
    when: Option<(String, Expression<'static, 'static>)>,
}

/// Rules, of which each stands for itself: a call that one of them wants a word on needs one.
#[derive(Debug, Default)]
pub struct Rules(Vec<Rule>);

/// One environment for all conditions.
static ENVIRONMENT: LazyLock<Environment<'static>> = LazyLock::new(|| {
    let mut environment = Environment::new();
    environment.set_undefined_behavior(UndefinedBehavior::Strict);
    environment.set_fuel(Some(FUEL));
    environment
});

impl Rule {
    /// A rule for the tools of this pattern, on a condition over `args`, the arguments. An error says what is wrong with
    /// the condition.
    pub fn new(tool: &str, when: Option<&str>) -> Result<Self, String> {
        let when = match when.map(str::trim).filter(|when| *when != ALWAYS) {
            None => None,
            Some(text) => {
                let compiled = ENVIRONMENT.compile_expression_owned(text.to_owned());
                let compiled = compiled.map_err(|error| {
                    let detail = error.detail().map_or_else(|| error.kind().to_string(), str::to_owned);
                    format!("`{text}` is not an expression: {detail}")
                })?;
                Some((text.to_owned(), compiled))
            }
        };
        Ok(Self { tool: tool.to_owned(), when })
    }

    /// Whether the rule is about this tool. A name without a server means it wherever it is offered: a rule that missed
    /// the tool would protect nothing.
    pub fn concerns(&self, spec: &ToolSpec) -> bool {
        let target = &spec.target;
        match (self.tool.split_once('/'), &target.server) {
            (Some((named, tool)), Some(server)) if named == server => matches(tool, &target.name),
            // The name of a tool may have a slash in it.
            _ => matches(&self.tool, &target.name) || self.tool == spec.name,
        }
    }

    /// Whether a call of a tool that the rule is about needs a word. A condition that cannot be evaluated holds.
    fn holds(&self, arguments: &Arguments) -> bool {
        let Some((text, expression)) = &self.when else { return true };
        let context = json!({ "args": arguments });
        match expression.eval(Serde(&context)) {
            Ok(value) if value.is_undefined() => true,
            Ok(value) => value.is_true(),
            Err(error) => {
                tracing::debug!(condition = text, error = %error.kind(), "a condition cannot be evaluated and so holds");
                true
            }
        }
    }

    /// The rule as a person wrote it.
    fn words(&self) -> String {
        match &self.when {
            None => self.tool.clone(),
            Some((text, _)) => format!("{} when {text}", self.tool),
        }
    }
}

impl Rules {
    /// Reads the `approve` of a node: names, or objects of `tool` and `when`.
    pub fn of_node(list: &[Value]) -> Result<Self, Failure> {
        let wrong = |message: String| Failure::configuration("invalid_approve", message);
        let rule = |entry: &Value| match entry {
            Value::String(tool) => Rule::new(tool, None),
            Value::Object(members) => {
                let text = |name: &str| members.get(name).and_then(Value::as_str);
                let unknown = members.keys().find(|name| !["tool", "when"].contains(&name.as_str()));
                match (text("tool"), members.get("when"), unknown) {
                    (_, _, Some(unknown)) => Err(format!("has an unknown member `{unknown}`")),
                    (None, ..) => Err(String::from("has no `tool`, the name that it is for")),
                    (Some(_), Some(when), _) if !when.is_string() => {
                        Err(format!("has {when} as `when`, which is no expression in a string"))
                    }
                    (Some(tool), _, _) => Rule::new(tool, text("when")),
                }
            }
            other => Err(format!("is {other}; write a name, or an object of `tool` and `when`")),
        };
        let rules = list.iter().enumerate();
        let rules = rules.map(|(at, entry)| rule(entry).map_err(|why| wrong(format!("`approve[{at}]` {why}"))));
        rules.collect::<Result<_, _>>().map(Self)
    }

    /// Rules by the names that they are for.
    pub fn of_settings<'a>(rules: impl IntoIterator<Item = (&'a str, &'a str)>) -> Result<Self, String> {
        rules.into_iter().map(|(tool, when)| Rule::new(tool, Some(when))).collect::<Result<_, _>>().map(Self)
    }

    /// A rule for every call.
    pub fn everything() -> Self {
        Self(vec![Rule { tool: String::from("*"), when: None }])
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The rule because of which a call needs a word, if it does.
    pub fn wanting(&self, spec: &ToolSpec, arguments: &Arguments) -> Option<String> {
        self.0.iter().find(|rule| rule.concerns(spec) && rule.holds(arguments)).map(Rule::words)
    }

    /// The first name that no offered tool has: its rule would protect nothing.
    pub fn idle<'a>(&'a self, offered: &[ToolSpec]) -> Option<&'a str> {
        let idle = self.0.iter().find(|rule| !offered.iter().any(|spec| rule.concerns(spec)));
        idle.map(|rule| rule.tool.as_str())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::domain::tool::{ToolHints, ToolTarget};

    fn spec(server: Option<&str>, name: &str) -> ToolSpec {
        ToolSpec {
            name: name.replace('.', "_"),
            target: ToolTarget { server: server.map(str::to_owned), name: name.to_owned() },
            description: None,
            input_schema: Arc::new(json!({})),
            hints: ToolHints::default(),
        }
    }

    fn wants(rules: &Value, spec: &ToolSpec, arguments: Value) -> bool {
        let rules = Rules::of_node(rules.as_array().expect("a list")).expect("rules");
        rules.wanting(spec, arguments.as_object().expect("an object")).is_some()
    }

    #[test]
    fn a_name_means_the_tool_wherever_it_is_and_a_server_can_be_named() {
        let (built_in, pay, refund) = (spec(None, "pay"), spec(Some("shop"), "pay"), spec(Some("shop"), "refund.all"));
        for (rule, expected) in [
            ("pay", [true, true, false]),
            ("shop/*", [false, true, true]),
            ("shop/pay", [false, true, false]),
            ("bank/*", [false, false, false]),
            ("*", [true, true, true]),
            ("ref*", [false, false, true]),
            ("refund_all", [false, false, true]),
        ] {
            let found = [&built_in, &pay, &refund].map(|spec| wants(&json!([rule]), spec, json!({})));
            assert_eq!(found, expected, "{rule}");
        }
    }

    #[test]
    fn a_condition_looks_at_the_arguments_and_holds_where_it_cannot() {
        let rules = json!([{"tool": "pay", "when": "args.amount > 100 and args.to != 'me'"}]);
        let wants = |arguments| wants(&rules, &spec(None, "pay"), arguments);
        assert!(wants(json!({"amount": 101, "to": "bob"})));
        assert!(!wants(json!({"amount": 100, "to": "bob"})));
        assert!(!wants(json!({"amount": 101, "to": "me"})));
        assert!(wants(json!({"to": "bob"})), "what the condition needs is missing");
    }

    #[test]
    fn any_rule_suffices_so_the_stricter_wins() {
        let rules = json!([{"tool": "pay", "when": "args.amount > 100"}, {"tool": "pay", "when": "args.amount > 10"}]);
        assert!(wants(&rules, &spec(None, "pay"), json!({"amount": 50})));
        let settings = Rules::of_settings([("pay", "always"), ("shop/*", "args.n > 1")]).expect("rules");
        let wanting = |spec: &ToolSpec, n: u8| settings.wanting(spec, json!({"n": n}).as_object().expect("an object"));
        assert_eq!(wanting(&spec(None, "pay"), 0).as_deref(), Some("pay"));
        assert_eq!(wanting(&spec(Some("shop"), "order"), 2).as_deref(), Some("shop/* when args.n > 1"));
        assert_eq!(wanting(&spec(Some("shop"), "order"), 1), None);
    }

    #[test]
    fn what_is_no_rule_is_told_with_its_place() {
        for (rules, word) in [
            (json!([5]), "approve[0]"),
            (json!(["a", {"when": "true"}]), "approve[1]"),
            (json!([{"tool": "a", "when": "args."}]), "not an expression"),
            (json!([{"tool": "a", "when": true}]), "no expression"),
            (json!([{"tool": "a", "unless": "x"}]), "`unless`"),
        ] {
            let failure = Rules::of_node(rules.as_array().expect("a list")).expect_err("no rule");
            assert_eq!(failure.code, "invalid_approve");
            assert!(failure.message.contains(word), "{}", failure.message);
        }
        assert!(Rules::of_settings([("a", "1 +")]).is_err());
    }

    #[test]
    fn a_rule_for_a_tool_that_is_not_offered_is_found() {
        let rules = Rules::of_node(&[json!("pay"), json!("shop/refnd")]).expect("rules");
        assert_eq!(rules.idle(&[spec(Some("shop"), "pay"), spec(Some("shop"), "refund")]), Some("shop/refnd"));
        assert_eq!(rules.idle(&[spec(Some("shop"), "pay"), spec(Some("shop"), "refnd")]), None);
    }
}
