//! `json_query`: a JMESPath expression over JSON data. What keeps an expression within bounds is [`query_bounds`]'s.

use std::rc::Rc;

use jmespath::{Context, JmespathError, Rcvar, Variable, interpret};
use schemars::JsonSchema;
use serde::Deserialize;
use serde::de::IgnoredAny;
use serde_json::{Map, Value};

use crate::domain::outcome::Failure;
use crate::domain::tool::ToolHints;
use crate::tools::builtin::query_bounds;
use crate::tools::registry::Registry;

pub(super) const NAME: &str = "json_query";

/// Bytes of a result, roughly; parts that an expression repeats count each time.
const MAX_RESULT: usize = 32 * 1024 * 1024;
/// What a value counts beside its text.
const VALUE_COST: usize = 8;

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct JsonQuery {
    /// The data to search: any JSON value.
    #[serde(rename = "data")]
    #[schemars(with = "Value")]
    _data: IgnoredAny,
    #[schemars(description = "JMESPath expression, for example: people[?age >= `18`].name")]
    expression: String,
}

pub(super) fn register(registry: &mut Registry) {
    let description = "Searches JSON data with a JMESPath expression and returns what it finds; null if nothing.";
    registry.register_in_place(NAME, description, ToolHints::READ_ONLY, |args: JsonQuery, given| {
        query(given.get("data").expect("the argument was checked"), &args.expression)
    });
}

fn query(data: &Value, expression: &str) -> Result<Value, Failure> {
    query_bounds::check_text(expression)?;
    let ast = jmespath::parse(expression).map_err(|error| failure("invalid_expression", &error))?;
    let mut values = 0;
    let data = Rcvar::new(to_variable(data, &mut values));
    query_bounds::check_growth(&ast, values)?;
    let mut context = Context::new(expression, &query_bounds::RUNTIME);
    let found = interpret(&data, &ast, &mut context).map_err(|error| failure("query_failed", &error))?;
    // What is found is then moved rather than copied, where nothing else holds it.
    drop((data, ast));
    let mut room = MAX_RESULT;
    to_value(found, &mut room).ok_or_else(|| {
        Failure::validation("output_too_large", format!("the expression finds more than {MAX_RESULT} bytes"))
    })
}

/// The crate's own conversion goes through serde; this one keeps every number as it is.
fn to_variable(value: &Value, values: &mut usize) -> Variable {
    *values += 1;
    match value {
        Value::Null => Variable::Null,
        Value::Bool(value) => Variable::Bool(*value),
        Value::Number(number) => Variable::Number(number.clone()),
        Value::String(text) => Variable::String(text.clone()),
        Value::Array(items) => {
            Variable::Array(items.iter().map(|item| Rcvar::new(to_variable(item, values))).collect())
        }
        Value::Object(members) => Variable::Object(
            members.iter().map(|(name, member)| (name.clone(), Rcvar::new(to_variable(member, values)))).collect(),
        ),
    }
}

/// None if the result exceeds what room there is.
fn to_value(found: Rcvar, room: &mut usize) -> Option<Value> {
    *room = room.checked_sub(VALUE_COST)?;
    Some(match Rc::unwrap_or_clone(found) {
        // An expression reference alone, `&name`, is no value.
        Variable::Null | Variable::Expref(_) => Value::Null,
        Variable::Bool(value) => Value::Bool(value),
        Variable::Number(number) => Value::Number(number),
        Variable::String(text) => {
            *room = room.checked_sub(text.len())?;
            Value::String(text)
        }
        Variable::Array(items) => {
            Value::Array(items.into_iter().map(|item| to_value(item, room)).collect::<Option<_>>()?)
        }
        Variable::Object(members) => {
            let mut object = Map::new();
            for (name, member) in members {
                *room = room.checked_sub(name.len())?;
                object.insert(name, to_value(member, room)?);
            }
            Value::Object(object)
        }
    })
}

fn failure(code: &'static str, error: &JmespathError) -> Failure {
    // The crate's own text repeats the expression with a caret under it, on three lines.
    let place = if error.line == 0 {
        format!("character {}", error.column + 1)
    } else {
        format!("line {}, character {}", error.line + 1, error.column + 1)
    };
    Failure::validation(code, format!("the JMESPath expression fails at {place}: {}", error.reason))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;
    use crate::tools::builtin::testing::call;

    fn found(data: Value, expression: &str) -> Value {
        query(&data, expression).unwrap_or_else(|failure| panic!("{expression}: {failure}"))
    }

    fn code(data: Value, expression: &str) -> String {
        query(&data, expression).expect_err(expression).code.into_owned()
    }

    #[tokio::test]
    async fn an_expression_finds_projects_and_filters() {
        let data = json!({"items": [{"n": "a", "p": 5}, {"n": "b", "p": 15}, {"n": "c", "p": 20}]});
        let names = call(NAME, json!({"data": data, "expression": "items[?p > `10`].n"})).await.expect("valid");
        assert_eq!(names, json!(["b", "c"]));
        assert_eq!(found(data.clone(), "items[-1].{name: n, cheap: p < `10`}"), json!({"name": "c", "cheap": false}));
        assert_eq!(found(data.clone(), "sort_by(items, &p)[::-1].n | join('-', @)"), json!("c-b-a"));
        assert_eq!(found(data, "missing.member"), Value::Null);
    }

    #[test]
    fn numbers_come_back_as_they_went_in() {
        let data = r#"[9007199254740993, 18446744073709551615, -9223372036854775808, 1.0, 0.1, 1e-7, 5]"#;
        let data: Value = serde_json::from_str(data).expect("JSON");
        assert_eq!(found(data.clone(), "@").to_string(), data.to_string());
        assert_eq!(found(data.clone(), "[0]").to_string(), "9007199254740993");
        assert_eq!(found(data, "max(@)").to_string(), "18446744073709551615");
        assert_eq!(found(Value::Null, "`9007199254740993`").to_string(), "9007199254740993");
    }

    #[test]
    fn integers_stay_integers_through_the_functions() {
        let data = json!({"a": [9007199254740993_i64, 1, 1], "f": [0.5, 2], "n": -3, "x": 2.5, "s": "12"});
        assert_eq!(found(data.clone(), "sum(a)").to_string(), "9007199254740995");
        assert_eq!(found(data.clone(), "sum(f)").to_string(), "2.5");
        assert_eq!(found(data.clone(), "sum(`[]`)").to_string(), "0");
        assert_eq!(found(data.clone(), "[abs(n), ceil(x), floor(x), ceil(n)]").to_string(), "[3,3,2,-3]");
        assert_eq!(found(data.clone(), "[to_number(s), length(a)]").to_string(), "[12,3]");
        assert_eq!(found(data, "avg(f)").to_string(), "1.25");
    }

    #[tokio::test]
    async fn bad_input_is_refused_in_words() {
        let failure = call(NAME, json!({"data": 1})).await.expect_err("no expression");
        assert!(failure.message.contains("`expression` is missing"), "{}", failure.message);
        let failure = call(NAME, json!({"data": [], "expression": "a["})).await.expect_err("broken");
        assert_eq!(failure.code, "invalid_expression");
        assert!(failure.message.contains("character 3") && !failure.message.contains('\n'), "{}", failure.message);
        assert_eq!(code(json!([]), ""), "invalid_expression");
        assert_eq!(code(json!({}), "nope(@)"), "query_failed");
        let failure = query(&json!({"a": "text"}), "sum(a)").expect_err("wrong type");
        assert!(failure.message.contains("expects type array"), "{}", failure.message);
        assert_eq!(code(json!([1]), "[::0]"), "query_failed");
        assert_eq!(code(json!(["x"]), "join(@, @)"), "query_failed");
    }

    #[test]
    fn an_expression_that_multiplies_the_data_is_refused_before_it_fills_the_memory() {
        let flat = format!("[@, @]{}", "[] | [@, @]".repeat(40));
        assert_eq!(code(json!([1]), &flat), "expression_too_complex");
        let shared = format!("@{}", " | [@, @]".repeat(40));
        assert_eq!(code(json!([1]), &shared), "expression_too_complex");
        let nested = format!("@{}", " | [@, @, @]".repeat(6));
        assert_eq!(code(json!("x".repeat(200_000)), &nested), "output_too_large");
        let glue = "x".repeat(100_000);
        assert_eq!(code(json!({"g": glue, "l": vec!["a"; 1000]}), "join(g, l)"), "query_failed");
        let escaped = format!("@{}", " | to_string([@])".repeat(30));
        assert_eq!(code(json!("\"\\"), &escaped), "expression_too_complex");
    }

    #[test]
    fn a_deep_expression_is_refused_and_a_wide_one_is_not() {
        for deep in [
            "(".repeat(5000),
            "a.".repeat(4000),
            "!".repeat(5000),
            "[[".repeat(3000),
            "a|".repeat(4000),
            "a[0]".repeat(2000),
        ] {
            assert_eq!(code(json!({}), &deep), "expression_too_complex", "{}", &deep[..4]);
        }
        assert_eq!(code(json!({}), &"a".repeat(20_000)), "expression_too_long");
        let wide: Vec<String> = (0..300).map(|n| format!("k{n}: a.b")).collect();
        let object = found(json!({"a": {"b": 1}}), &format!("{{{}}}", wide.join(", ")));
        assert_eq!(object.as_object().map(Map::len), Some(300));
        let quoted = format!("'{}'", "((((....".repeat(500));
        assert!(found(json!({}), &quoted).is_string());
    }

    #[test]
    fn the_deepest_expression_that_is_let_through_is_evaluated() {
        let limit = query_bounds::MAX_DEPTH;
        for text in
            [format!("a{}", ".a".repeat(limit)), format!("{}a", "!".repeat(limit)), format!("{}a", "*.".repeat(limit))]
        {
            assert!(query(&json!({"a": 1}), &text).is_ok(), "{}", &text[..4]);
        }
        let half = limit / 2;
        for (open, close) in [("(", ")"), ("[", "]"), ("{a:", "}"), ("abs(", ")"), ("[?", "]")] {
            let text = format!("{}@{}", open.repeat(half), close.repeat(half));
            // Whether it makes sense or not: it comes back.
            let _ = query(&json!([1]), &text);
        }
    }

    proptest! {
        #[test]
        fn no_expression_makes_it_panic(text in "[\\[\\]@*.,:?!&|<>={}()a-c0-9'`\" -]{0,30}|.{0,20}") {
            let _ = query(&json!({"a": [1, {"b": "c"}], "b": [[1], [2]], "c": null}), &text);
        }
    }
}
