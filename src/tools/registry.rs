//! Functions of this process that a node can call as tools. Registering one takes a name, an argument type and an
//! async function. What a panic in a function means is its caller's to say, not decided here.

use std::borrow::Borrow;
use std::collections::BTreeMap;
use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;

use futures_util::TryFutureExt as _;
use schemars::JsonSchema;
use schemars::generate::SchemaSettings;
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::config::ToolsConfig;
use crate::domain::node::nearest;
use crate::domain::outcome::Failure;
use crate::domain::tool::{Arguments, ToolHints, ToolOutput, ToolSpec, ToolTarget};
use crate::ports::CallContext;
use crate::tools::arguments;
use crate::tools::builtin::{self, BUILTIN_NAMES, InvalidTools};

/// The answer of a function, still to come; it may move between threads.
type Answer = Pin<Box<dyn Future<Output = Result<ToolOutput, Failure>> + Send>>;

/// Reads the arguments and starts the function.
type Run = dyn Fn(&Arguments, &CallContext) -> Result<Answer, Failure> + Send + Sync;

/// Judges the effects of a call by its arguments.
type Effects = fn(&Arguments) -> ToolHints;

struct Function {
    spec: ToolSpec,
    effects: Option<Effects>,
    run: Box<Run>,
}

/// Functions by name. A copy is cheap and shares them.
#[derive(Clone, Default)]
pub struct Registry {
    functions: BTreeMap<String, Arc<Function>>,
    /// Why those that the configuration keeps off are not there.
    off: BTreeMap<&'static str, String>,
}

impl Registry {
    /// No functions.
    pub fn new() -> Self {
        Self::default()
    }

    /// The built-in tools that the configuration leaves switched on.
    pub fn builtin(config: &ToolsConfig) -> Result<Self, InvalidTools> {
        let mut registry = Self::new();
        builtin::register(&mut registry, config)?;
        let off = BUILTIN_NAMES.into_iter().filter_map(|name| Some((name, builtin::why_off(config, name)?)));
        registry.off = off.collect();
        Ok(registry)
    }

    /// Why there is no function of this name, if the configuration keeps it off.
    pub fn why_off(&self, name: &str) -> Option<&str> {
        self.off.get(name).map(String::as_str)
    }

    /// Adds the functions of another registry; one of the same name is replaced.
    pub fn extend(&mut self, other: &Self) {
        let functions = other.functions.iter().map(|(name, function)| (name.clone(), Arc::clone(function)));
        self.functions.extend(functions);
        self.off.retain(|name, _| !other.contains(name));
    }

    /// Adds a function whose schema follows from its argument type; one of the same name is replaced.
    ///
    /// ```
    /// # use da_node_executor::{domain::tool::ToolHints, tools::Registry};
    /// # use serde_json::json;
    /// #[derive(serde::Deserialize, schemars::JsonSchema)]
    /// struct Greet {
    ///     /// Whom to greet.
    ///     name: String,
    /// }
    ///
    /// let mut registry = Registry::new();
    /// registry.register("greet", "Greets a person.", ToolHints::READ_ONLY, |args: Greet, _| async move {
    ///     Ok(json!({"greeting": format!("Hello, {}!", args.name)}))
    /// });
    /// ```
    ///
    /// # Panics
    /// If the name is not 1–64 letters, digits, `_` or `-`: models accept no other.
    pub fn register<A, R, F, Fut>(&mut self, name: &str, description: &str, hints: ToolHints, function: F) -> &mut Self
    where
        A: DeserializeOwned + JsonSchema,
        R: Into<ToolOutput> + 'static,
        F: Fn(A, CallContext) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<R, Failure>> + Send + 'static,
    {
        self.register_with_schema(name, description, hints, schema_of::<A>(), function)
    }

    /// Adds a function with a schema of its own; `A` may then be as loose as [`Arguments`].
    ///
    /// # Panics
    /// If the name is not 1–64 letters, digits, `_` or `-`: models accept no other.
    pub fn register_with_schema<A, R, F, Fut>(
        &mut self,
        name: &str,
        description: &str,
        hints: ToolHints,
        schema: Value,
        function: F,
    ) -> &mut Self
    where
        A: DeserializeOwned,
        R: Into<ToolOutput> + 'static,
        F: Fn(A, CallContext) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<R, Failure>> + Send + 'static,
    {
        self.insert(name, description, hints, schema, move |typed: A, _, context| {
            // An `async` block around it would keep room for it twice.
            Box::pin(function(typed, context.clone()).map_ok(Into::into))
        })
    }

    /// Adds a function that computes and never waits. It also sees its arguments in place, so that large ones need
    /// not be copied: `A` has the small ones, and [`IgnoredAny`](serde::de::IgnoredAny) where the others are.
    ///
    /// # Panics
    /// If the name is not 1–64 letters, digits, `_` or `-`: models accept no other.
    pub fn register_in_place<A, R, F>(
        &mut self,
        name: &str,
        description: &str,
        hints: ToolHints,
        function: F,
    ) -> &mut Self
    where
        A: DeserializeOwned + JsonSchema,
        R: Into<ToolOutput> + 'static,
        F: Fn(A, &Arguments) -> Result<R, Failure> + Send + Sync + 'static,
    {
        self.insert(name, description, hints, schema_of::<A>(), move |typed: A, given, _| {
            Box::pin(std::future::ready(function(typed, given).map(Into::into)))
        })
    }

    fn insert<A: DeserializeOwned>(
        &mut self,
        name: &str,
        description: &str,
        hints: ToolHints,
        schema: Value,
        start: impl Fn(A, &Arguments, &CallContext) -> Answer + Send + Sync + 'static,
    ) -> &mut Self {
        assert!(is_model_name(name), "the tool name {name:?} is not 1–64 letters, digits, `_` or `-`");
        let schema = Arc::new(schema);
        let spec = ToolSpec {
            name: name.to_owned(),
            target: ToolTarget { server: None, name: name.to_owned() },
            description: Some(description.to_owned()),
            input_schema: Arc::clone(&schema),
            hints,
        };
        let tool = name.to_owned();
        let run = move |given: &Arguments, context: &CallContext| -> Result<Answer, Failure> {
            let typed = A::deserialize(given).map_err(|error| arguments::explain(&tool, &schema, given, &error))?;
            Ok(start(typed, given, context))
        };
        self.functions.insert(name.to_owned(), Arc::new(Function { spec, effects: None, run: Box::new(run) }));
        self
    }

    /// Lets the effects of each call be judged by its arguments, for a function whose hints must cover the worst.
    ///
    /// # Panics
    /// If there is no such function, or a copy of the registry shares it already.
    pub fn judge_effects(&mut self, name: &str, effects: fn(&Arguments) -> ToolHints) {
        let function = self.functions.get_mut(name).and_then(Arc::get_mut);
        function.expect("the function was registered and is not shared yet").effects = Some(effects);
    }

    /// What is said of the effects of a call with these arguments; nothing of a function that does not exist.
    pub fn effects(&self, name: &str, arguments: &Arguments) -> ToolHints {
        let Some(function) = self.functions.get(name) else { return ToolHints::default() };
        function.effects.map_or(function.spec.hints, |effects| effects(arguments))
    }

    /// What all functions are, by name.
    pub fn specs(&self) -> Vec<ToolSpec> {
        self.functions.values().map(|function| function.spec.clone()).collect()
    }

    /// Whether there is a function of this name.
    pub fn contains(&self, name: &str) -> bool {
        self.functions.contains_key(name)
    }

    /// Calls a function. Dropping the future cancels the call.
    pub async fn call(
        &self,
        name: &str,
        arguments: impl Borrow<Arguments> + Send,
        context: &CallContext,
    ) -> Result<ToolOutput, Failure> {
        let function = self.functions.get(name).ok_or_else(|| self.unknown(name))?;
        (function.run)(arguments.borrow(), context)?.await
    }

    fn unknown(&self, name: &str) -> Failure {
        let hint = nearest(name, self.functions.keys().map(String::as_str))
            .map(|near| format!("; did you mean `{near}`?"))
            .unwrap_or_default();
        Failure::configuration("unknown_tool", format!("there is no function `{name}` in the registry{hint}"))
    }
}

impl fmt::Debug for Registry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.functions.keys()).finish()
    }
}

/// Whether every model accepts this as the name of a tool.
pub(super) fn is_model_name(name: &str) -> bool {
    (1..=64).contains(&name.len())
        && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-'))
}

/// The schema of an argument type in the plainest form: models and providers stumble over references and titles.
fn schema_of<A: JsonSchema>() -> Value {
    let settings = SchemaSettings::draft2020_12().with(|settings| {
        settings.inline_subschemas = true;
        settings.meta_schema = None;
    });
    let mut schema = settings.into_generator().into_root_schema_for::<A>();
    schema.remove("title");
    schema.remove("description");
    schema.to_value()
}

#[cfg(test)]
mod tests {
    use serde::Deserialize;
    use serde_json::json;

    use super::*;
    use crate::domain::outcome::Category;
    use crate::tools::builtin::testing::context;

    #[derive(Deserialize, JsonSchema)]
    #[serde(deny_unknown_fields)]
    struct Repeat {
        /// What to repeat.
        text: String,
        /// How often.
        #[serde(default)]
        times: u32,
        #[serde(default)]
        style: Style,
    }

    #[derive(Default, Deserialize, JsonSchema)]
    #[serde(deny_unknown_fields)]
    struct Style {
        upper: bool,
    }

    fn registry() -> Registry {
        let mut registry = Registry::new();
        registry.register("repeat", "Repeats a text.", ToolHints::READ_ONLY, |args: Repeat, context| async move {
            let text = args.text.repeat(args.times as usize);
            let text = if args.style.upper { text.to_uppercase() } else { text };
            Ok(json!({"text": text, "by": context.node_id}))
        });
        registry
    }

    async fn call(arguments: Value) -> Result<ToolOutput, Failure> {
        let Value::Object(arguments) = arguments else { panic!("arguments are an object") };
        registry().call("repeat", &arguments, &context()).await
    }

    #[tokio::test]
    async fn a_function_gets_its_arguments_and_who_calls() {
        let output = call(json!({"text": "ab", "times": 2, "style": {"upper": true}})).await.expect("valid");
        assert_eq!(output.into_value(), json!({"text": "ABAB", "by": "n"}));
    }

    #[tokio::test]
    async fn arguments_that_do_not_fit_are_named_with_what_is_expected() {
        let message = |failure: Failure| {
            assert_eq!((failure.category, &*failure.code), (Category::Validation, "invalid_arguments"));
            failure.message
        };
        let missing = message(call(json!({"times": 2})).await.expect_err("no text"));
        assert!(missing.contains("`text` is missing"), "{missing}");
        let wrong = message(call(json!({"text": "a", "times": "two"})).await.expect_err("not a number"));
        assert!(wrong.contains("`times`") && wrong.contains("integer") && wrong.contains("How often."), "{wrong}");
        let nested = message(call(json!({"text": "a", "style": {"upper": 1}})).await.expect_err("not a boolean"));
        assert!(nested.contains("`style.upper`") && nested.contains("boolean"), "{nested}");
        let typo = message(call(json!({"text": "a", "tines": 2})).await.expect_err("unknown"));
        assert!(typo.contains("unknown member `tines`; did you mean `times`?"), "{typo}");
        let two = message(call(json!({"times": -1})).await.expect_err("two errors"));
        assert!(two.contains("`text`") && two.contains("`times`"), "{two}");
    }

    #[tokio::test]
    async fn values_of_wrong_arguments_are_not_repeated_in_the_message() {
        let failure = call(json!({"text": ["s3cret"]})).await.expect_err("not a string");
        assert!(!failure.message.contains("s3cret"), "{}", failure.message);
    }

    #[test]
    fn a_built_in_tool_that_is_kept_off_says_by_which_key() {
        let mut config = crate::config::Config::default().tools;
        config.disable = vec![String::from("calculate")];
        let registry = Registry::builtin(&config).expect("the name is known");
        let why = |name: &str| registry.why_off(name).unwrap_or_default().to_owned();
        assert_eq!(why("http_request"), "`http_request` is off until `tools.http_request.allow` names a host");
        assert_eq!(why("calculate"), "`calculate` is switched off by `tools.disable`");
        assert_eq!((registry.why_off("current_time"), registry.why_off("weather")), (None, None));
        config.disable = vec![String::from("http_request")];
        config.http_request.allow = vec![String::from("h")];
        let registry = Registry::builtin(&config).expect("the name is known");
        assert_eq!(registry.why_off("http_request"), Some("`http_request` is switched off by `tools.disable`"));
    }

    #[tokio::test]
    async fn an_unknown_function_is_named_with_the_nearest_one() {
        let failure = registry().call("repaet", &Arguments::new(), &context()).await.expect_err("unknown");
        assert_eq!((failure.category, &*failure.code), (Category::Configuration, "unknown_tool"));
        assert!(failure.message.contains("did you mean `repeat`?"));
    }

    #[test]
    fn a_call_may_move_between_threads_with_its_arguments_lent_or_given() {
        fn is_send<T: Send>(_: T) {}
        let (registry, context) = (registry(), context());
        is_send(registry.call("repeat", &Arguments::new(), &context));
        is_send(registry.call("repeat", Arguments::new(), &context));
    }

    #[test]
    fn the_schema_is_plain() {
        let spec = registry().specs().remove(0);
        assert_eq!((spec.target.server, &*spec.target.name), (None, "repeat"));
        assert_eq!(spec.input_schema["properties"]["text"]["description"], "What to repeat.");
        assert_eq!(spec.input_schema["required"], json!(["text"]));
        assert_eq!(spec.input_schema["additionalProperties"], false);
        let text = spec.input_schema.to_string();
        assert!(
            !text.contains("$ref") && !text.contains("$schema") && spec.input_schema.get("title").is_none(),
            "{text}"
        );
    }

    #[tokio::test]
    async fn a_function_may_bring_its_own_schema_and_replace_another() {
        let mut registry = registry();
        let schema = json!({"type": "object", "properties": {"any": {}}});
        registry.register_with_schema(
            "repeat",
            "Echoes.",
            ToolHints::default(),
            schema.clone(),
            |args: Arguments, _| async move { Ok(Value::Object(args)) },
        );
        assert_eq!(*registry.specs()[0].input_schema, schema);
        let arguments = Arguments::from_iter([(String::from("any"), json!(1))]);
        let output = registry.call("repeat", &arguments, &context()).await.expect("valid");
        assert_eq!(output.structured, Some(json!({"any": 1})));
    }

    #[test]
    #[should_panic(expected = "is not 1–64 letters")]
    fn a_name_that_models_refuse_cannot_be_registered() {
        Registry::new().register("a b", "", ToolHints::default(), |_: Style, _| async { Ok(Value::Null) });
    }
}
