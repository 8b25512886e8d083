//! `template`: renders a Jinja template over values, strictly and within bounds. The templates of nodes are another
//! matter: those are rendered before a tool is called.

use std::io;
use std::sync::LazyLock;

use minijinja::syntax::SyntaxConfig;
use minijinja::value::Serde;
use minijinja::{Environment, ErrorKind, UndefinedBehavior};
use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::{Map, Value};

use crate::domain::outcome::Failure;
use crate::domain::tool::ToolHints;
use crate::tools::registry::Registry;

pub(super) const NAME: &str = "template";

/// Instructions of one rendering; a loop over ten thousand rows needs about a tenth of it.
const FUEL: u64 = 1_000_000;
/// Bytes of the template itself.
const MAX_TEMPLATE: usize = 256 * 1024;
/// Bytes of the rendered text.
const MAX_OUTPUT: usize = 4 * 1024 * 1024;

static ENVIRONMENT: LazyLock<Environment<'static>> = LazyLock::new(|| {
    let mut environment = Environment::new();
    environment.set_undefined_behavior(UndefinedBehavior::Strict);
    environment.set_fuel(Some(FUEL));
    let syntax = SyntaxConfig::builder().keep_trailing_newline(true).build();
    environment.set_syntax(syntax.expect("the default delimiters are distinct"));
    environment
});

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Template {
    /// Jinja template, for example "Hello, {{ name }}!".
    template: String,
    /// The values that the template may use, by name.
    #[serde(default)]
    values: Map<String, Value>,
}

pub(super) fn register(registry: &mut Registry) {
    let description = "Renders a Jinja template over the given values and returns the text. \
                       A name that has no value is an error unless `default(…)` is given.";
    registry.register(NAME, description, ToolHints::READ_ONLY, |args: Template, _| async move { render(&args) });
}

fn render(args: &Template) -> Result<Value, Failure> {
    if args.template.len() > MAX_TEMPLATE {
        return Err(Failure::validation(
            "template_too_long",
            format!("`template` has {} bytes, more than {MAX_TEMPLATE}", args.template.len()),
        ));
    }
    let mut text = Bounded::default();
    let rendered = ENVIRONMENT
        .template_from_str(&args.template)
        .and_then(|template| template.render_captured_to(Serde(&args.values), &mut text).map(|_| ()));
    if text.full {
        return Err(Failure::validation("output_too_large", format!("the rendered text exceeds {MAX_OUTPUT} bytes")));
    }
    rendered.map_err(|error| failure(&error, &args.values))?;
    let text = String::from_utf8(text.bytes).expect("a template writes whole texts");
    Ok(Value::String(text))
}

/// What went wrong and where. The values stay out of it.
fn failure(error: &minijinja::Error, values: &Map<String, Value>) -> Failure {
    let line = error.line().map(|line| format!(" in line {line}")).unwrap_or_default();
    let detail = error.detail().map(|detail| format!(": {detail}")).unwrap_or_default();
    let kind = error.kind();
    match kind {
        ErrorKind::OutOfFuel => Failure::validation(
            "template_too_expensive",
            format!("the template takes more than {FUEL} steps to render{line}"),
        ),
        ErrorKind::UndefinedError => {
            let known: Vec<&str> = values.keys().map(String::as_str).collect();
            let known = if known.is_empty() { String::from("nothing") } else { known.join(", ") };
            Failure::validation(
                "undefined_value",
                format!("the template uses a name that has no value{line}{detail}; `values` has {known}"),
            )
        }
        _ => Failure::validation("invalid_template", format!("the template cannot be rendered{line}: {kind}{detail}")),
    }
}

/// A text that grows no further than allowed.
#[derive(Default)]
struct Bounded {
    bytes: Vec<u8>,
    full: bool,
}

impl io::Write for Bounded {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.bytes.len() + bytes.len() > MAX_OUTPUT {
            self.full = true;
            return Err(io::Error::from(io::ErrorKind::WriteZero));
        }
        self.bytes.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::tools::builtin::testing::call;

    async fn code(arguments: Value) -> String {
        call(NAME, arguments).await.expect_err("refused").code.into_owned()
    }

    #[tokio::test]
    async fn values_are_put_in_with_loops_and_filters() {
        let arguments = json!({
            "template": "{% for i in items %}{{ i.name | upper }}={{ i.n }};{% endfor %}{{ items | tojson }}\n",
            "values": {"items": [{"name": "a", "n": 1}, {"name": "b", "n": 2.5}]}
        });
        let text = call(NAME, arguments).await.expect("valid");
        assert_eq!(text, "A=1;B=2.5;[{\"name\": \"a\", \"n\": 1}, {\"name\": \"b\", \"n\": 2.5}]\n");
    }

    #[tokio::test]
    async fn what_was_put_in_is_not_rendered_again_and_not_escaped() {
        let arguments = json!({"template": "{{ a }}", "values": {"a": "{{ b }} <&>"}});
        assert_eq!(call(NAME, arguments).await.expect("valid"), "{{ b }} <&>");
    }

    #[tokio::test]
    async fn a_name_without_a_value_is_an_error_that_lists_what_there_is() {
        let failure =
            call(NAME, json!({"template": "a\n{{ nmae }}", "values": {"name": "x"}})).await.expect_err("strict");
        assert_eq!(failure.code, "undefined_value");
        assert!(failure.message.contains("line 2") && failure.message.contains("has name"), "{}", failure.message);
        let text = call(NAME, json!({"template": "{{ nmae | default('-') }}"})).await.expect("a default is given");
        assert_eq!(text, "-");
    }

    #[tokio::test]
    async fn a_template_that_cannot_be_read_says_where() {
        let failure = call(NAME, json!({"template": "ok\n{% for %}"})).await.expect_err("broken");
        assert_eq!(failure.code, "invalid_template");
        assert!(failure.message.contains("line 2"), "{}", failure.message);
        assert_eq!(code(json!({"template": "{% include 'a' %}"})).await, "invalid_template");
        assert_eq!(code(json!({"template": 1})).await, "invalid_arguments");
        assert_eq!(code(json!({"template": "", "values": []})).await, "invalid_arguments");
    }

    #[tokio::test]
    async fn bad_input_is_refused_in_words() {
        for (arguments, word) in [
            (json!({}), "`template` is missing"),
            (json!({"template": 7}), "`template`"),
            (json!({"template": "x", "values": [1]}), "`values`"),
            (json!({"template": "x", "value": {}}), "did you mean `values`?"),
            (json!({"template": "x".repeat(MAX_TEMPLATE + 1)}), "bytes, more than"),
        ] {
            let failure = call(NAME, arguments).await.expect_err(word);
            assert_eq!(failure.category, crate::domain::outcome::Category::Validation, "{failure}");
            assert!(failure.message.contains(word), "{failure}");
        }
    }

    #[tokio::test]
    async fn a_template_without_end_ends() {
        let endless = "{% for a in range(9999) %}{% for b in range(9999) %}{% endfor %}{% endfor %}";
        assert_eq!(code(json!({"template": endless})).await, "template_too_expensive");
        let recursive = "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}";
        assert_eq!(code(json!({"template": recursive})).await, "invalid_template");
        let nested = "(".repeat(10_000);
        assert_eq!(code(json!({"template": format!("{{{{ {nested} }}}}")})).await, "invalid_template");
    }

    #[tokio::test]
    async fn a_text_without_end_is_cut_off_as_an_error() {
        let large = "{% for a in range(9999) %}{{ 'x' * 9999 }}{% endfor %}";
        assert_eq!(code(json!({"template": large})).await, "output_too_large");
        assert_eq!(code(json!({"template": "x".repeat(MAX_TEMPLATE + 1)})).await, "template_too_long");
    }
}
