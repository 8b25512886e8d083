//! Excerpts: what is shown of a text, a JSON object or a JSON schema that is too large to be shown as a whole. Where the
//! whole of it stands is for others to say.

use serde_json::{Map, Value};

/// Ways to cut, each shorter than the one before.
const CUTS: [Cut; 4] = [
    Cut { chars: 1000, members: 100 },
    Cut { chars: 250, members: 30 },
    Cut { chars: 60, members: 10 },
    Cut { chars: 20, members: 4 },
];
/// What stands for the members of an object that were left out.
const REST: &str = "…";
/// Keywords of a schema that say something to people and demand nothing (JSON Schema 2020-12, validation, section 9; core,
/// section 8.3). `default` is one too, and stays: forms are filled in by it.
const WORDS: [&str; 7] = ["title", "description", "examples", "$comment", "deprecated", "readOnly", "writeOnly"];
/// Keywords with one schema, with a list of schemas, and with schemas by name.
const ONE: [&str; 12] = [
    "items",
    "contains",
    "additionalItems",
    "additionalProperties",
    "propertyNames",
    "unevaluatedItems",
    "unevaluatedProperties",
    "not",
    "if",
    "then",
    "else",
    "contentSchema",
];
const LISTS: [&str; 5] = ["allOf", "anyOf", "oneOf", "prefixItems", "items"];
const NAMED: [&str; 5] = ["properties", "patternProperties", "dependentSchemas", "$defs", "definitions"];

/// What is left at each place.
#[derive(Debug, Clone, Copy)]
struct Cut {
    /// Characters of a text.
    chars: usize,
    /// Members of an object, and elements of a list.
    members: usize,
}

/// A text with its middle left out; none if it has no more than so many characters.
pub fn of_text(text: &str, chars: usize) -> Option<String> {
    // Counting bytes is enough for most.
    if text.len() <= chars {
        return None;
    }
    let total = text.chars().count();
    let left_out = total.checked_sub(chars).filter(|&out| out > 0)?;
    let head: String = text.chars().take(chars - chars / 2).collect();
    let tail: String = text.chars().skip(total - chars / 2).collect();
    Some(format!("{head}[… {left_out} of {total} characters left out …]{tail}"))
}

/// An object of the same shape with texts, lists and objects in it cut, so that it has no more than so many bytes as JSON;
/// none if it has no more as it is. What cannot be cut so far is told as a text under `…`.
pub fn of_object(object: &Map<String, Value>, bytes: usize) -> Option<Map<String, Value>> {
    let text = text_of(object);
    if text.len() <= bytes {
        return None;
    }
    let cut = CUTS.iter().map(|cut| cut.object(object)).find(|cut| length_of(cut) <= bytes);
    Some(cut.unwrap_or_else(|| {
        // A character may have six bytes in a text of JSON.
        let words = of_text(&text, bytes / 8).unwrap_or(text);
        Map::from_iter([(String::from(REST), Value::String(words))])
    }))
}

/// The same schema without words for people, so that it demands what it demanded.
pub fn of_schema(schema: &Value) -> Value {
    let Value::Object(members) = schema else { return schema.clone() };
    let kept = members.iter().filter(|(name, _)| !WORDS.contains(&name.as_str()));
    let terse = kept.map(|(name, value)| {
        let value = match value {
            Value::Object(schemas) if NAMED.contains(&name.as_str()) => {
                Value::Object(schemas.iter().map(|(name, schema)| (name.clone(), of_schema(schema))).collect())
            }
            Value::Object(_) if ONE.contains(&name.as_str()) => of_schema(value),
            Value::Array(schemas) if LISTS.contains(&name.as_str()) => schemas.iter().map(of_schema).collect(),
            _ => value.clone(),
        };
        (name.clone(), value)
    });
    Value::Object(terse.collect())
}

/// Bytes of an object as JSON.
pub fn length_of(object: &Map<String, Value>) -> usize {
    text_of(object).len()
}

fn text_of(object: &Map<String, Value>) -> String {
    serde_json::to_string(object).expect("JSON values are JSON")
}

impl Cut {
    fn value(self, value: &Value) -> Value {
        match value {
            Value::String(text) => Value::String(of_text(text, self.chars).unwrap_or_else(|| text.clone())),
            Value::Array(elements) => {
                let mut kept: Vec<Value> = elements.iter().take(self.members).map(|value| self.value(value)).collect();
                kept.extend(self.rest(elements.len(), "elements"));
                Value::Array(kept)
            }
            Value::Object(members) => Value::Object(self.object(members)),
            Value::Null | Value::Bool(_) | Value::Number(_) => value.clone(),
        }
    }

    fn object(self, members: &Map<String, Value>) -> Map<String, Value> {
        let kept = members.iter().take(self.members).map(|(name, value)| (name.clone(), self.value(value)));
        let rest = self.rest(members.len(), "members").map(|rest| (String::from(REST), rest));
        kept.chain(rest).collect()
    }

    fn rest(self, total: usize, what: &str) -> Option<Value> {
        let left_out = total.checked_sub(self.members).filter(|&out| out > 0)?;
        Some(Value::String(format!("[… {left_out} of {total} {what} left out …]")))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn cut(value: &Value, bytes: usize) -> Option<Value> {
        of_object(value.as_object().expect("an object"), bytes).map(Value::Object)
    }

    #[test]
    fn what_is_small_enough_stays_as_it_is() {
        assert_eq!(of_text("äöü", 3), None);
        assert_eq!(cut(&json!({"a": "b"}), 9), None);
    }

    #[test]
    fn a_text_keeps_its_beginning_and_its_end() {
        let text = format!("{}ü{}", "a".repeat(60), "z".repeat(60));
        let expected = format!("{}[… 21 of 121 characters left out …]{}", "a".repeat(50), "z".repeat(50));
        assert_eq!(of_text(&text, 100), Some(expected));
    }

    #[test]
    fn an_object_keeps_its_shape_and_what_is_small_in_it() {
        let mail =
            json!({"to": ["ann", "bob"], "amount": 250, "body": "x".repeat(9000), "more": {"deep": "y".repeat(9000)}});
        let cut = cut(&mail, 4096).expect("it is too large");
        assert_eq!((&cut["to"], &cut["amount"]), (&json!(["ann", "bob"]), &json!(250)));
        for text in [&cut["body"], &cut["more"]["deep"]] {
            assert!(
                text.as_str().is_some_and(|text| text.contains("[… 8000 of 9000 characters left out …]")),
                "{text}"
            );
        }
    }

    #[test]
    fn long_lists_and_objects_say_how_much_is_left_out() {
        let numbers: Vec<u32> = (0..5000).collect();
        let many: Map<String, Value> = (0..5000).map(|at| (format!("m{at:04}"), json!(at))).collect();
        let cut = cut(&json!({"numbers": numbers, "many": many}), 1000).expect("it is too large");
        let last = cut["numbers"].as_array().and_then(|numbers| numbers.last());
        assert_eq!(last, Some(&json!("[… 4970 of 5000 elements left out …]")));
        assert_eq!(cut["many"]["…"], "[… 4970 of 5000 members left out …]");
        assert_eq!(cut["many"]["m0029"], 29);
    }

    #[test]
    fn a_schema_loses_its_words_and_no_demand() {
        let terse = of_schema(&json!({
            "title": "A letter", "$comment": "of 2026", "type": "object", "required": ["description"],
            "properties": {
                "description": {"description": "What it says", "type": "string", "default": "title"},
                "title": {"anyOf": [{"const": {"title": "x"}, "title": "y"}, true]},
                "tags": {"items": {"enum": ["description"], "examples": [1]}, "type": "array"},
            },
            "$defs": {"title": {"prefixItems": [{"title": "a", "minimum": 1}], "items": false}},
            "if": {"not": {"description": "z", "maxProperties": 1}},
        }));
        let expected = json!({
            "type": "object", "required": ["description"],
            "properties": {
                "description": {"type": "string", "default": "title"},
                "title": {"anyOf": [{"const": {"title": "x"}}, true]},
                "tags": {"items": {"enum": ["description"]}, "type": "array"},
            },
            "$defs": {"title": {"prefixItems": [{"minimum": 1}], "items": false}},
            "if": {"not": {"maxProperties": 1}},
        });
        assert_eq!(terse, expected);
    }

    proptest::proptest! {
        #[test]
        fn nothing_is_larger_than_it_may_be(
            name in "\\PC{0,400}", text in "[\\x00-\\x7f]{0,400}", depth in 0_usize..200, bytes in 512_usize..4096,
        ) {
            let deep = (0..depth).fold(json!(text), |value, _| json!([value, {name.as_str(): text}]));
            let value = json!({name.as_str(): deep, "plain": text});
            let cut = of_object(value.as_object().expect("an object"), bytes);
            let size = text_of(cut.as_ref().unwrap_or_else(|| value.as_object().expect("an object"))).len();
            proptest::prop_assert!(size <= bytes, "{size} of {bytes}");
        }
    }
}
