//! JSON Schemas of answers and of tool arguments, checked here whatever a provider or server promises. References
//! to other documents are never fetched.

use std::sync::Arc;

use jsonschema::Validator;
use serde_json::Value;

use crate::domain::wait::{Ask, Kind};

/// Errors told at once; a model that sees more than a few does not get better.
const SHOWN_ERRORS: usize = 5;

/// A compiled schema.
#[derive(Debug)]
pub struct Schema {
    /// The schema as it was given.
    pub source: Arc<Value>,
    validator: Validator,
}

impl Schema {
    /// Compiles a schema; an error says in words what is wrong with it.
    pub fn compile(source: Arc<Value>) -> Result<Self, String> {
        let validator =
            jsonschema::options().offline().build(&source).map_err(|error| shortened(&error.to_string()))?;
        Ok(Self { source, validator })
    }

    /// Checks a value; an error lists in words what does not fit and where.
    pub fn check(&self, value: &Value) -> Result<(), String> {
        if self.validator.is_valid(value) {
            return Ok(());
        }
        let errors = self.validator.iter_errors(value).take(SHOWN_ERRORS).map(|error| {
            let place = error.instance_path().to_string();
            let place = if place.is_empty() { String::from("the whole value") } else { format!("`{place}`") };
            format!("{place}: {}", shortened(&error.to_string()))
        });
        Err(errors.collect::<Vec<_>>().join("; "))
    }

    /// Reads an answer as JSON, a code fence around it allowed, and checks it.
    pub fn read(&self, text: &str) -> Result<Value, String> {
        let value = parse(text)?;
        self.check(&value).map(|()| value)
    }
}

/// Whether what goes with a decision fits what was asked. A tool's schema that cannot be compiled checks nothing here as
/// it checks nothing of what a model wants.
pub fn fits(ask: &Ask, content: &Value) -> Result<(), String> {
    match Schema::compile(Arc::new(ask.schema.clone())) {
        Ok(schema) => schema.check(content),
        Err(_) if ask.kind == Kind::Approval => Ok(()),
        Err(error) => Err(error),
    }
}

fn parse(text: &str) -> Result<Value, String> {
    let text = text.trim();
    let error = match serde_json::from_str(text) {
        Ok(value) => return Ok(value),
        Err(error) => error,
    };
    match fenced(text).map(serde_json::from_str) {
        Some(Ok(value)) => Ok(value),
        Some(Err(error)) => Err(format!("the text in the code fence is not JSON: {error}")),
        None => Err(format!("the text is not JSON: {error}")),
    }
}

/// What stands in the first code fence.
fn fenced(text: &str) -> Option<&str> {
    let (_, behind) = text.split_once("```")?;
    let (_language, body) = behind.split_once('\n')?;
    Some(body.rsplit_once("```").map_or(body, |(body, _)| body))
}

fn shortened(message: &str) -> String {
    const MOST: usize = 300;
    match message.char_indices().nth(MOST) {
        Some((at, _)) => format!("{}…", &message[..at]),
        None => message.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn schema() -> Schema {
        let source = json!({"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]});
        Schema::compile(Arc::new(source)).expect("a valid schema")
    }

    #[test]
    fn an_answer_is_json_with_or_without_a_code_fence() {
        for text in
            ["{\"n\": 1}", " {\"n\":1}\n", "```json\n{\"n\": 1}\n```", "Here it is:\n```\n{\"n\": 1}\n```\nDone."]
        {
            assert_eq!(schema().read(text), Ok(json!({"n": 1})), "{text}");
        }
        assert!(schema().read("n is 1").expect_err("no JSON").contains("not JSON"));
    }

    #[test]
    fn what_does_not_fit_is_said_with_its_place() {
        let error = schema().read(r#"{"n": "one"}"#).expect_err("not an integer");
        assert!(error.contains("`/n`") && error.contains("integer"), "{error}");
        let error = schema().check(&json!({})).expect_err("n is missing");
        assert!(error.contains("the whole value") && error.contains("\"n\""), "{error}");
    }

    #[test]
    fn a_reference_to_another_document_is_refused_and_not_fetched() {
        for reference in ["https://example.com/schema.json", "file:///etc/hostname"] {
            assert!(Schema::compile(Arc::new(json!({"$ref": reference}))).is_err(), "{reference}");
        }
    }
}
