//! `calculate`: the value of an arithmetic expression. How an expression is read is [`arithmetic`]'s.

use std::collections::HashMap;

use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::Value;

use crate::domain::outcome::Failure;
use crate::domain::tool::ToolHints;
use crate::tools::builtin::arithmetic::{self, Wrong};
use crate::tools::registry::Registry;

pub(super) const NAME: &str = "calculate";

/// Characters of an expression.
const MAX_CHARS: usize = 10_000;
/// From here on a float no longer tells neighbouring integers apart.
const MAX_EXACT: f64 = 9_007_199_254_740_992.0;

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Calculate {
    /// The expression, for example "round(2 * pi * r, 2)".
    expression: String,
    /// Values of the names in the expression.
    #[serde(default)]
    variables: HashMap<String, f64>,
}

pub(super) fn register(registry: &mut Registry) {
    let description = "Evaluates an arithmetic expression and returns the number. Operators: + - * / % ^ and \
                       parentheses. Functions: abs, sqrt, cbrt, pow, exp, ln, log2, log10, floor, ceil, trunc, fract, \
                       round(x, digits), min, max, signum, and the trigonometric ones in radians. Constants: pi, e, tau.";
    registry.register(NAME, description, ToolHints::READ_ONLY, |args: Calculate, _| async move { calculate(&args) });
}

fn calculate(args: &Calculate) -> Result<Value, Failure> {
    let chars = args.expression.chars().count();
    if chars > MAX_CHARS {
        return Err(Failure::validation(
            "expression_too_long",
            format!("`expression` has {chars} characters, more than {MAX_CHARS}"),
        ));
    }
    let value = arithmetic::evaluate(&args.expression, |name| args.variables.get(name).copied());
    value.map(number).map_err(|wrong| match wrong {
        Wrong::Unreadable { .. } => {
            Failure::validation("invalid_expression", format!("the expression cannot be read: {wrong}"))
        }
        Wrong::NotFinite { .. } => {
            Failure::validation("not_finite", format!("the expression has no finite value: {wrong}"))
        }
    })
}

/// Integers as integers, as far as a float is exact about them.
fn number(value: f64) -> Value {
    if value.fract() == 0.0 && value.abs() < MAX_EXACT {
        #[expect(clippy::cast_possible_truncation, reason = "it is an integer below 2^53")]
        return Value::from(value as i64);
    }
    Value::from(value)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::tools::builtin::testing::call;

    #[tokio::test]
    async fn integers_are_integers_and_fractions_are_not() {
        for (expression, expected) in [
            ("2 + 3", "5"),
            ("6 / 3", "2"),
            ("0 * -1", "0"),
            ("7 / 2", "3.5"),
            ("2 ^ 53 - 1", "9007199254740991"),
            ("1e300", "1e+300"),
        ] {
            let value = call(NAME, json!({"expression": expression})).await.expect("valid");
            assert_eq!(value.to_string(), expected, "{expression}");
        }
    }

    #[tokio::test]
    async fn names_take_their_values_from_the_variables() {
        let arguments = json!({"expression": "price * (1 + tax_rate)", "variables": {"price": 200, "tax_rate": 0.19}});
        assert_eq!(call(NAME, arguments).await.expect("valid"), json!(238));
        let own = json!({"expression": "e + pi", "variables": {"e": 1, "pi": 2}});
        assert_eq!(call(NAME, own).await.expect("variables win over constants"), json!(3));
    }

    #[tokio::test]
    async fn bad_input_is_refused_in_words() {
        let code = async |arguments: Value| call(NAME, arguments).await.expect_err("refused").code.into_owned();
        assert_eq!(code(json!({})).await, "invalid_arguments");
        assert_eq!(code(json!({"expression": 5})).await, "invalid_arguments");
        assert_eq!(code(json!({"expression": "x", "variables": {"x": "1"}})).await, "invalid_arguments");
        assert_eq!(code(json!({"expression": "1 +* 2"})).await, "invalid_expression");
        assert_eq!(code(json!({"expression": "1 / 0"})).await, "not_finite");
        assert_eq!(code(json!({"expression": "1".repeat(MAX_CHARS + 1)})).await, "expression_too_long");
        let long = format!("0{}", "+1".repeat(MAX_CHARS / 2 - 1));
        assert_eq!(call(NAME, json!({"expression": long})).await.expect("long is not deep"), json!(4999));
        let failure = call(NAME, json!({"expression": "floo(1)"})).await.expect_err("unknown");
        assert!(failure.message.contains("did you mean `floor`?"), "{}", failure.message);
    }
}
