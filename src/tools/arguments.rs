//! Says why arguments do not fit a function, in words: which member, and what the schema expects there.
//! Only a call that failed to deserialise comes here, so validation costs the others nothing.

use jsonschema::ValidationError;
use jsonschema::error::ValidationErrorKind;
use serde_json::Value;

use crate::domain::node::nearest;
use crate::domain::outcome::Failure;
use crate::domain::tool::Arguments;

/// More complaints than this help nobody.
const SHOWN: usize = 5;

/// The failure of a call whose arguments could not be read. Values of arguments stay out of it: they may be secret.
pub(super) fn explain(tool: &str, schema: &Value, given: &Arguments, error: &serde_json::Error) -> Failure {
    let instance = Value::Object(given.clone());
    let complaints: Vec<String> = match jsonschema::validator_for(schema) {
        Ok(validator) => validator.iter_errors(&instance).take(SHOWN).map(|error| complaint(schema, &error)).collect(),
        Err(_) => Vec::new(),
    };
    // A type can be stricter than its schema; then serde's words are all there is.
    let reason = if complaints.is_empty() { error.to_string() } else { complaints.join("; ") };
    Failure::validation("invalid_arguments", format!("the arguments of `{tool}` do not fit: {reason}"))
}

fn complaint(schema: &Value, error: &ValidationError<'_>) -> String {
    let place = error.instance_path().as_str().trim_start_matches('/').replace('/', ".");
    let within = |member: &str| if place.is_empty() { member.to_owned() } else { format!("{place}.{member}") };
    match error.kind() {
        ValidationErrorKind::Required { property: Value::String(member) } => {
            let full = within(member);
            format!("`{full}` is missing{}", description(schema, &full))
        }
        ValidationErrorKind::AdditionalProperties { unexpected } => {
            let known = properties(schema, &place);
            let words = unexpected.iter().take(SHOWN).map(|member| {
                let hint = nearest(member, known.iter().copied())
                    .map(|near| format!("; did you mean `{near}`?"))
                    .unwrap_or_default();
                format!("unknown member `{}`{hint}", within(member))
            });
            words.collect::<Vec<_>>().join("; ")
        }
        _ => {
            let subject = if place.is_empty() { String::from("the arguments") } else { format!("`{place}`") };
            format!("{subject}: {}{}", error.masked(), description(schema, &place))
        }
    }
}

/// The schema of the member at a dotted path, as far as plain objects lead there.
fn member<'a>(schema: &'a Value, path: &str) -> Option<&'a Value> {
    path.split('.').filter(|part| !part.is_empty()).try_fold(schema, |at, part| at.get("properties")?.get(part))
}

fn properties<'a>(schema: &'a Value, path: &str) -> Vec<&'a str> {
    let members = member(schema, path).and_then(|at| at.get("properties")).and_then(Value::as_object);
    members.map(|members| members.keys().map(String::as_str).collect()).unwrap_or_default()
}

fn description(schema: &Value, path: &str) -> String {
    match member(schema, path).and_then(|at| at.get("description")).and_then(Value::as_str) {
        Some(words) if !path.is_empty() => format!(" ({words})"),
        _ => String::new(),
    }
}
