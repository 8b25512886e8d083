//! What a modern request over HTTP repeats in its headers, so that a gateway can route it without reading its body: the
//! name, and the arguments that a tool's schema marks with `x-mcp-header`.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::Value;

use crate::domain::tool::Arguments;

/// The mark in a schema.
const MARK: &str = "x-mcp-header";
/// The largest integer that every reader of JSON takes exactly.
const SAFE_INTEGER: i64 = (1 << 53) - 1;

/// One argument that goes into a header.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Mirrored {
    /// The header's name, without the prefix of all such headers.
    header: String,
    /// The properties that lead to the argument.
    path: Vec<String>,
}

/// The arguments that a schema marks, or what is wrong with its marks: such a tool must not be used over HTTP.
pub(super) fn marks(schema: &Value) -> Result<Vec<Mirrored>, String> {
    let mut found = Vec::new();
    search(schema, Some(&mut Vec::new()), &mut found)?;
    let mut names: Vec<String> = found.iter().map(|mark: &Mirrored| mark.header.to_ascii_lowercase()).collect();
    names.sort_unstable();
    match names.windows(2).find(|pair| pair[0] == pair[1]) {
        Some(pair) => Err(format!("two parameters claim the header `{}`", pair[0])),
        None => Ok(found),
    }
}

/// Searches a schema; `path` is how it is reached by properties alone, none if it is not. The parser has bounded its
/// depth.
fn search(schema: &Value, path: Option<&mut Vec<String>>, found: &mut Vec<Mirrored>) -> Result<(), String> {
    match schema {
        Value::Object(members) => {
            if let Some(mark) = members.get(MARK) {
                // The root is no parameter.
                let at = path.as_deref().filter(|path| !path.is_empty());
                let at = at.ok_or_else(|| format!("`{MARK}` stands where no parameter is reached by its name"))?;
                found.push(Mirrored { header: header(mark, members.get("type"))?, path: at.clone() });
            }
            let mut path = path;
            for (key, value) in members {
                match (&mut path, key.as_str(), value) {
                    (Some(path), "properties", Value::Object(properties)) => {
                        for (name, property) in properties {
                            path.push(name.clone());
                            search(property, Some(path), found)?;
                            path.pop();
                        }
                    }
                    // Data, not schemas: whatever it says, it marks nothing.
                    (_, "const" | "enum" | "default" | "examples", _) => {}
                    // Below a keyword such as `properties`, the keys are names and no keywords.
                    (
                        _,
                        "properties" | "$defs" | "definitions" | "patternProperties" | "dependentSchemas",
                        Value::Object(schemas),
                    ) => {
                        for schema in schemas.values() {
                            search(schema, None, found)?;
                        }
                    }
                    (_, _, value) => search(value, None, found)?,
                }
            }
            Ok(())
        }
        Value::Array(items) => items.iter().try_for_each(|item| search(item, None, found)),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => Ok(()),
    }
}

fn header(mark: &Value, kind: Option<&Value>) -> Result<String, String> {
    let name = mark.as_str().ok_or_else(|| format!("`{MARK}` is no text"))?;
    if name.is_empty() {
        return Err(format!("`{MARK}` is empty"));
    }
    if !name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)) {
        return Err(format!("`{MARK}` is no name of a header"));
    }
    match kind.and_then(Value::as_str) {
        Some("string" | "integer" | "boolean") => Ok(name.to_owned()),
        _ => Err(format!("`{MARK}` stands at a parameter that is no text, integer or boolean")),
    }
}

/// The headers of one call, names and encoded values; arguments that are absent or null have none.
pub(super) fn headers(marks: &[Mirrored], arguments: &Arguments) -> Vec<(String, String)> {
    let value = |mark: &Mirrored| {
        let (first, rest) = mark.path.split_first()?;
        let value = rest.iter().try_fold(arguments.get(first)?, |value, name| value.get(name))?;
        match value {
            Value::String(text) => Some(encoded(text)),
            Value::Bool(truth) => Some(truth.to_string()),
            Value::Number(number) => integer(number).map(|number| number.to_string()),
            Value::Null | Value::Array(_) | Value::Object(_) => None,
        }
    };
    marks.iter().filter_map(|mark| Some((format!("mcp-param-{}", mark.header), value(mark)?))).collect()
}

/// An integer, also one written as `42.0`.
fn integer(number: &serde_json::Number) -> Option<i64> {
    #[expect(clippy::cast_possible_truncation, reason = "a whole number in the safe range")]
    let whole = |float: f64| (float.fract() == 0.0 && float.abs() <= SAFE_INTEGER as f64).then_some(float as i64);
    let integer = number.as_i64().or_else(|| whole(number.as_f64()?))?;
    (-SAFE_INTEGER..=SAFE_INTEGER).contains(&integer).then_some(integer)
}

/// A text as a header's value: as it is if a header can carry it, else in Base64.
pub(super) fn encoded(text: &str) -> String {
    let plain = text.bytes().all(|byte| matches!(byte, b' '..=b'~' | b'\t'));
    let padded = text.trim_matches([' ', '\t']) != text;
    let looks_encoded = text.starts_with("=?base64?") && text.ends_with("?=");
    if plain && !padded && !looks_encoded { text.to_owned() } else { format!("=?base64?{}?=", STANDARD.encode(text)) }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn object(value: Value) -> Arguments {
        value.as_object().cloned().expect("an object")
    }

    #[test]
    fn marked_arguments_go_into_headers_and_absent_ones_do_not() {
        let schema = json!({"type": "object", "properties": {
            "region": {"type": "string", "x-mcp-header": "Region"},
            "count": {"type": "integer", "x-mcp-header": "Count"},
            "dry": {"type": "boolean", "x-mcp-header": "Dry"},
            "gone": {"type": "string", "x-mcp-header": "Gone"},
            "plain": {"type": "number"},
            "inner": {"type": "object", "properties": {"properties": {"type": "string", "x-mcp-header": "Inner"}}},
        }});
        let marks = marks(&schema).expect("well marked");
        let arguments = object(json!({
            "region": "eu", "count": -7.0, "dry": false, "gone": null, "plain": 1.5, "inner": {"properties": ""}
        }));
        let mut headers = headers(&marks, &arguments);
        headers.sort();
        let expected = [
            ("mcp-param-Count", "-7"),
            ("mcp-param-Dry", "false"),
            ("mcp-param-Inner", ""),
            ("mcp-param-Region", "eu"),
        ];
        assert_eq!(headers, expected.map(|(name, value)| (name.to_owned(), value.to_owned())));
    }

    #[test]
    fn a_mark_that_breaks_the_rules_is_told() {
        let with = |mark: Value| json!({"properties": {"a": mark}});
        for (schema, problem) in [
            (with(json!({"type": "string", "x-mcp-header": ""})), "empty"),
            (with(json!({"type": "string", "x-mcp-header": 7})), "no text"),
            (with(json!({"type": "string", "x-mcp-header": "a b"})), "no name"),
            (with(json!({"type": "string", "x-mcp-header": "a\r\nb"})), "no name"),
            (with(json!({"type": "number", "x-mcp-header": "A"})), "no text, integer or boolean"),
            (with(json!({"type": ["string", "null"], "x-mcp-header": "A"})), "no text, integer or boolean"),
            (with(json!({"x-mcp-header": "A"})), "no text, integer or boolean"),
            (with(json!({"type": "array", "items": {"type": "string", "x-mcp-header": "A"}})), "reached"),
            (json!({"type": "object", "x-mcp-header": "A"}), "reached"),
            (json!({"$defs": {"x": {"type": "string", "x-mcp-header": "A"}}}), "reached"),
            (json!({"oneOf": [{"properties": {"a": {"type": "string", "x-mcp-header": "A"}}}]}), "reached"),
            (
                json!({"properties": {
                    "a": {"type": "string", "x-mcp-header": "X"}, "b": {"type": "string", "x-mcp-header": "x"}
                }}),
                "two parameters",
            ),
        ] {
            let error = marks(&schema).expect_err(problem);
            assert!(error.contains(problem), "{schema}: {error}");
        }
        let data = json!({"properties": {"a": {"const": {"x-mcp-header": ""}}}, "examples": [{"x-mcp-header": ""}]});
        assert_eq!(marks(&data), Ok(Vec::new()));
        let mut deep = json!({"x-mcp-header": "A"});
        for _ in 0..100 {
            deep = json!({"items": deep});
        }
        assert!(marks(&deep).is_err());
    }

    #[test]
    fn what_a_header_cannot_carry_is_encoded() {
        for (text, value) in [
            ("us-west1", "us-west1"),
            ("us west", "us west"),
            ("", ""),
            ("Hello, 世界", "=?base64?SGVsbG8sIOS4lueVjA==?="),
            (" padded ", "=?base64?IHBhZGRlZCA=?="),
            ("line1\nline2", "=?base64?bGluZTEKbGluZTI=?="),
            ("=?base64?literal?=", "=?base64?PT9iYXNlNjQ/bGl0ZXJhbD89?="),
        ] {
            assert_eq!(encoded(text), value);
        }
    }

    #[test]
    fn numbers_beyond_what_is_exact_everywhere_have_no_header() {
        let schema = json!({"properties": {"n": {"type": "integer", "x-mcp-header": "N"}}});
        let marks = marks(&schema).expect("well marked");
        assert_eq!(headers(&marks, &object(json!({"n": 9_007_199_254_740_993_i64}))), []);
        assert_eq!(headers(&marks, &object(json!({"n": "text"})))[0].1, "text", "the body is as odd");
    }
}
