//! `output_mapping`: named JMESPath expressions over a node's output.

use jmespath::{Expression, compile};
use serde_json::{Map, Value};

use crate::domain::outcome::Failure;

/// The compiled expressions of one node, in the order in which they were written.
pub struct OutputMapping(Vec<(String, Expression<'static>)>);

impl OutputMapping {
    /// Reads the expressions, so that a wrong one fails the node before it costs anything.
    pub fn compile(mapping: &Map<String, Value>) -> Result<Self, Failure> {
        let wrong = |name: &str, message: String| {
            Failure::configuration("invalid_output_mapping", format!("`output_mapping.{name}` {message}"))
        };
        let expression = |(name, value): (&String, &Value)| match value {
            Value::String(text) => compile(text)
                .map(|expression| (name.clone(), expression))
                .map_err(|error| wrong(name, format!("is not a JMESPath expression: {}", one_line(&error)))),
            other => Err(wrong(name, format!("is {other}, not a JMESPath expression in a string"))),
        };
        mapping.iter().map(expression).collect::<Result<_, _>>().map(Self)
    }

    /// Applies them; nothing where there are none. What an expression does not find is null.
    pub fn apply(&self, output: &Value) -> Result<Option<Map<String, Value>>, Failure> {
        if self.0.is_empty() {
            return Ok(None);
        }
        let mapped = self.0.iter().map(|(name, expression)| {
            let failed = |message: String| {
                Failure::validation(
                    "output_mapping_failed",
                    format!("`output_mapping.{name}` ({}) does not fit the output: {message}", expression.as_str()),
                )
            };
            let found = expression.search(output).map_err(|error| failed(one_line(&error)))?;
            let value = serde_json::to_value(&*found).map_err(|error| failed(error.to_string()))?;
            Ok((name.clone(), value))
        });
        mapped.collect::<Result<_, _>>().map(Some)
    }
}

/// The reason without the drawing of the place that follows it.
fn one_line(error: &jmespath::JmespathError) -> String {
    error.to_string().lines().next().unwrap_or_default().to_owned()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn mapping(value: Value) -> Result<OutputMapping, Failure> {
        OutputMapping::compile(value.as_object().expect("an object"))
    }

    #[test]
    fn names_are_found_in_the_output_with_exact_numbers() {
        let mapping = mapping(json!({"first": "items[0].id", "all": "items[].id", "none": "missing.path"}));
        let output = json!({"items": [{"id": u64::MAX}, {"id": 0.1}]});
        let mapped = mapping.expect("valid").apply(&output).expect("it fits");
        assert_eq!(json!(mapped), json!({"first": u64::MAX, "all": [u64::MAX, 0.1], "none": null}));
        assert_eq!(super::OutputMapping::compile(&Map::new()).expect("valid").apply(&output), Ok(None));
    }

    #[test]
    fn a_wrong_expression_is_a_configuration_failure_that_names_it() {
        for wrong in [json!({"x": "items["}), json!({"x": 5})] {
            let failure = mapping(wrong).err().expect("not a JMESPath expression");
            assert_eq!((failure.code.as_ref(), failure.category.as_str()), ("invalid_output_mapping", "configuration"));
            assert!(failure.message.contains("`output_mapping.x`"), "{}", failure.message);
        }
    }

    #[test]
    fn an_expression_that_does_not_fit_is_a_validation_failure() {
        let mapping = mapping(json!({"x": "abs(name)"})).expect("valid");
        let failure = mapping.apply(&json!({"name": "ann"})).expect_err("abs of a string");
        assert_eq!((failure.code.as_ref(), failure.category.as_str()), ("output_mapping_failed", "validation"));
    }
}
