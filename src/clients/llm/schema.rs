//! What of an output schema the API can enforce by itself. The API takes a part of JSON Schema and refuses the rest,
//! so only that part is sent; the answer is checked against the whole schema elsewhere.

use serde_json::{Map, Value, json};

/// References followed inside one another.
const MAX_REFERENCES: usize = 16;
/// Nodes of the schema once every reference is written out.
const MAX_NODES: usize = 1_000;
/// Properties that are not required, over the whole schema; the API refuses more.
const MAX_OPTIONAL: usize = 24;
/// Unions over the whole schema; the API refuses more.
const MAX_UNIONS: usize = 16;

const TYPES: &[&str] = &["object", "array", "string", "number", "integer", "boolean", "null"];
const FORMATS: &[&str] = &["date-time", "date", "time", "duration", "email", "hostname", "uri", "ipv4", "ipv6", "uuid"];
/// Limits that the API refuses; the model gets to read them in the description instead.
const TOLD: &[&str] = &[
    "minimum",
    "maximum",
    "exclusiveMinimum",
    "exclusiveMaximum",
    "multipleOf",
    "minLength",
    "maxLength",
    "pattern",
    "minItems",
    "maxItems",
    "uniqueItems",
    "format",
];
/// Members that say nothing about which values are valid.
const ANNOTATIONS: &[&str] = &[
    "title",
    "description",
    "default",
    "examples",
    "deprecated",
    "readOnly",
    "writeOnly",
    "$comment",
    "$schema",
    "$id",
    "$anchor",
    "$defs",
    "definitions",
];

/// The part of `schema` that the API enforces: it accepts whatever the model should write, with every reference
/// written out. The error says why there is no such part.
pub(super) fn subset(schema: &Value) -> Result<Value, String> {
    let mut walk = Walk { root: schema, references: Vec::new(), nodes: 0, optional: 0, unions: 0 };
    let subset = walk.node(schema, "$")?;
    if subset.get("type").and_then(Value::as_str) != Some("object") {
        return Err(String::from("its root is not an object"));
    }
    if walk.optional > MAX_OPTIONAL {
        return Err(format!("it has {} optional properties, more than {MAX_OPTIONAL}", walk.optional));
    }
    if walk.unions > MAX_UNIONS {
        return Err(format!("it has {} unions, more than {MAX_UNIONS}", walk.unions));
    }
    Ok(subset)
}

struct Walk<'a> {
    root: &'a Value,
    references: Vec<String>,
    nodes: usize,
    optional: usize,
    unions: usize,
}

impl Walk<'_> {
    fn node(&mut self, schema: &Value, path: &str) -> Result<Value, String> {
        self.nodes += 1;
        if self.nodes > MAX_NODES {
            return Err(format!("it has more than {MAX_NODES} parts once its references are written out"));
        }
        let outer = self.references.len();
        let flat = self.flatten(schema, path)?;
        let node = self.object(&flat, path);
        self.references.truncate(outer);
        node
    }

    /// One schema object with `$ref` and `allOf` merged into it. The references that it followed stay noted until
    /// the node is done, so that a recursion is seen.
    fn flatten(&mut self, schema: &Value, path: &str) -> Result<Map<String, Value>, String> {
        let Value::Object(members) = schema else {
            return Err(format!("{path} accepts anything or nothing"));
        };
        let mut flat = members.clone();
        flat.remove("$ref");
        flat.remove("allOf");
        if let Some(reference) = members.get("$ref") {
            let reference = reference.as_str().ok_or_else(|| format!("{path}.$ref is not a text"))?;
            if self.references.iter().any(|seen| seen == reference) {
                return Err(format!("{path} is recursive through {reference:?}"));
            }
            if self.references.len() == MAX_REFERENCES {
                return Err(format!("{path} nests more than {MAX_REFERENCES} references"));
            }
            let root = self.root;
            let target = reference
                .strip_prefix('#')
                .and_then(|pointer| root.pointer(pointer))
                .ok_or_else(|| format!("{path} refers to {reference:?}, which is not in the schema"))?;
            self.references.push(reference.to_owned());
            let target = self.flatten(target, path)?;
            merge(&mut flat, target, path)?;
        }
        if let Some(Value::Array(parts)) = members.get("allOf") {
            for part in parts {
                let part = self.flatten(part, path)?;
                merge(&mut flat, part, path)?;
            }
        }
        Ok(flat)
    }

    fn object(&mut self, flat: &Map<String, Value>, path: &str) -> Result<Value, String> {
        let types = types(flat, path)?;
        let mut node = Map::new();
        match types.as_slice() {
            [] => {}
            [one] => {
                node.insert(String::from("type"), json!(one));
            }
            several => {
                self.unions += 1;
                node.insert(String::from("type"), json!(several));
            }
        }
        describe(flat, &mut node);
        let scalars = |value: &Value| !value.is_object() && !value.is_array();
        let mut restricted = !types.is_empty();
        if let Some(values) = flat.get("enum").and_then(Value::as_array).filter(|values| values.iter().all(scalars)) {
            node.insert(String::from("enum"), json!(values));
            restricted = true;
        }
        if let Some(value) = flat.get("const").filter(|value| scalars(value)) {
            node.insert(String::from("const"), value.clone());
            restricted = true;
        }
        if types.contains(&"object") {
            self.properties(flat, &mut node, path)?;
        }
        if types.contains(&"array") {
            self.items(flat, &mut node, path)?;
        }
        if let Some(format) = flat.get("format").and_then(Value::as_str).filter(|format| FORMATS.contains(format)) {
            node.insert(String::from("format"), json!(format));
        }
        // A union beside a type only narrows it, and leaving it out is safe; without a type it is all there is.
        if !restricted {
            let variants = flat.get("anyOf").or_else(|| flat.get("oneOf")).and_then(Value::as_array);
            let variants = variants.ok_or_else(|| format!("{path} accepts anything"))?;
            self.unions += 1;
            let variants = variants
                .iter()
                .enumerate()
                .map(|(index, variant)| self.node(variant, &format!("{path}.anyOf[{index}]")))
                .collect::<Result<Vec<_>, _>>()?;
            node.insert(String::from("anyOf"), Value::Array(variants));
        }
        Ok(Value::Object(node))
    }

    fn properties(
        &mut self,
        flat: &Map<String, Value>,
        node: &mut Map<String, Value>,
        path: &str,
    ) -> Result<(), String> {
        let empty = Map::new();
        let described = flat.get("properties").and_then(Value::as_object).unwrap_or(&empty);
        let closed = flat.get("additionalProperties") == Some(&Value::Bool(false));
        if described.is_empty() && !closed {
            return Err(format!("{path} is an object with free names"));
        }
        let mut properties = Map::new();
        for (name, schema) in described {
            if schema != &Value::Bool(false) {
                properties.insert(name.clone(), self.node(schema, &format!("{path}.{name}"))?);
            }
        }
        let required: Vec<&Value> = flat.get("required").and_then(Value::as_array).into_iter().flatten().collect();
        if let Some(missing) =
            required.iter().filter_map(|name| name.as_str()).find(|name| !properties.contains_key(*name))
        {
            return Err(format!("{path} requires {missing:?} without describing it"));
        }
        self.optional += properties.len().saturating_sub(required.len());
        node.insert(String::from("properties"), Value::Object(properties));
        if !required.is_empty() {
            node.insert(String::from("required"), json!(required));
        }
        node.insert(String::from("additionalProperties"), Value::Bool(false));
        Ok(())
    }

    fn items(&mut self, flat: &Map<String, Value>, node: &mut Map<String, Value>, path: &str) -> Result<(), String> {
        let items = flat.get("items").filter(|_| !flat.contains_key("prefixItems"));
        let items = items.ok_or_else(|| format!("{path} is a list whose items are not described alike"))?;
        node.insert(String::from("items"), self.node(items, &format!("{path}[]"))?);
        if let Some(least) = flat.get("minItems").and_then(Value::as_u64).filter(|least| *least <= 1) {
            node.insert(String::from("minItems"), json!(least));
        }
        Ok(())
    }
}

/// Adds what `other` demands to `into`. Where both speak of the same thing differently there is no simple answer.
fn merge(into: &mut Map<String, Value>, other: Map<String, Value>, path: &str) -> Result<(), String> {
    for (name, theirs) in other {
        let Some(ours) = into.get_mut(&name) else {
            into.insert(name, theirs);
            continue;
        };
        match (name.as_str(), ours, theirs) {
            (_, ours, theirs) if *ours == theirs => {}
            (annotation, ..) if ANNOTATIONS.contains(&annotation) => {}
            ("required", Value::Array(ours), Value::Array(theirs)) => {
                let new: Vec<Value> = theirs.into_iter().filter(|name| !ours.contains(name)).collect();
                ours.extend(new);
            }
            ("properties", Value::Object(ours), Value::Object(theirs)) => {
                for (property, schema) in theirs {
                    if ours.get(&property).is_some_and(|known| *known != schema) {
                        return Err(format!("{path}.{property} is described twice"));
                    }
                    ours.insert(property, schema);
                }
            }
            (name, ..) => return Err(format!("{path} combines several values of `{name}`")),
        }
    }
    Ok(())
}

fn types<'a>(flat: &'a Map<String, Value>, path: &str) -> Result<Vec<&'a str>, String> {
    let named: Vec<&str> = match flat.get("type") {
        Some(Value::String(one)) => vec![one],
        Some(Value::Array(several)) => several.iter().filter_map(Value::as_str).collect(),
        Some(_) => return Err(format!("{path}.type is not a text")),
        None if flat.contains_key("properties") => vec!["object"],
        None if flat.contains_key("items") => vec!["array"],
        None => Vec::new(),
    };
    match named.iter().find(|name| !TYPES.contains(name)) {
        Some(unknown) => Err(format!("{path} has the unknown type {unknown:?}")),
        None => Ok(named),
    }
}

/// Title and description, with the limits that cannot be sent told in words.
fn describe(flat: &Map<String, Value>, node: &mut Map<String, Value>) {
    if let Some(title) = flat.get("title").filter(|title| title.is_string()) {
        node.insert(String::from("title"), title.clone());
    }
    let sent = |name: &str, value: &Value| match name {
        "format" => value.as_str().is_some_and(|format| FORMATS.contains(&format)),
        "minItems" => value.as_u64().is_some_and(|least| least <= 1),
        _ => false,
    };
    let limits: Vec<String> = TOLD
        .iter()
        .filter_map(|name| flat.get(*name).map(|value| (*name, value)))
        .filter(|(name, value)| !sent(name, value) && !value.is_object() && !value.is_array())
        .map(|(name, value)| format!("{name}: {value}"))
        .collect();
    let words = flat.get("description").and_then(Value::as_str);
    let description = match (words, limits.is_empty()) {
        (Some(words), true) => words.to_owned(),
        (Some(words), false) => format!("{words} ({})", limits.join(", ")),
        (None, false) => format!("({})", limits.join(", ")),
        (None, true) => return,
    };
    node.insert(String::from("description"), Value::String(description));
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(schema: Value) -> String {
        subset(&schema).expect_err("has no part that the API enforces")
    }

    #[test]
    fn objects_are_closed_and_limits_move_into_the_description() {
        let schema = json!({
            "$schema": "https://json-schema.org/draft/2020-12/schema",
            "type": "object",
            "properties": {
                "name": {"type": "string", "minLength": 1, "pattern": "^[a-z]+$", "description": "lower case"},
                "age": {"type": "integer", "minimum": 0},
                "mail": {"type": "string", "format": "email", "default": ""},
                "tags": {"type": "array", "items": {"enum": ["a", "b"]}, "minItems": 1, "maxItems": 3},
            },
            "required": ["name", "age"],
            "if": {"required": ["mail"]},
        });
        assert_eq!(
            subset(&schema).expect("simple"),
            json!({
                "type": "object",
                "properties": {
                    "name": {"type": "string", "description": "lower case (minLength: 1, pattern: \"^[a-z]+$\")"},
                    "age": {"type": "integer", "description": "(minimum: 0)"},
                    "mail": {"type": "string", "format": "email"},
                    "tags": {"type": "array", "description": "(maxItems: 3)", "items": {"enum": ["a", "b"]}, "minItems": 1},
                },
                "required": ["name", "age"],
                "additionalProperties": false,
            })
        );
    }

    #[test]
    fn local_references_are_written_out() {
        let schema = json!({
            "type": "object",
            "properties": {"from": {"$ref": "#/$defs/place", "description": "start"}, "to": {"allOf": [{"$ref": "#/$defs/place"}]}},
            "$defs": {"place": {"type": "object", "properties": {"city": {"type": "string"}}, "description": "a place"}},
        });
        let subset = subset(&schema).expect("not recursive");
        assert_eq!(subset["properties"]["from"]["description"], "start");
        assert_eq!(subset["properties"]["to"]["properties"]["city"], json!({"type": "string"}));
        assert!(!subset.to_string().contains("$ref"));
    }

    #[test]
    fn parts_of_all_of_are_one_object() {
        let schema = json!({"allOf": [
            {"type": "object", "properties": {"a": {"type": "string"}}, "required": ["a"]},
            {"properties": {"b": {"type": "null"}}, "required": ["b"]},
        ]});
        let subset = subset(&schema).expect("compatible");
        assert_eq!(subset["required"], json!(["a", "b"]));
        assert_eq!(subset["properties"]["b"], json!({"type": "null"}));
    }

    #[test]
    fn unions_stay_unions() {
        let schema = json!({"type": "object", "properties": {
            "x": {"oneOf": [{"type": "string"}, {"type": "null"}]},
            "y": {"type": ["integer", "null"]},
        }});
        let subset = subset(&schema).expect("simple");
        assert_eq!(subset["properties"]["x"], json!({"anyOf": [{"type": "string"}, {"type": "null"}]}));
        assert_eq!(subset["properties"]["y"]["type"], json!(["integer", "null"]));
    }

    #[test]
    fn what_cannot_be_said_is_not_said() {
        let tree = json!({"$ref": "#/$defs/tree", "$defs": {"tree": {"type": "object", "properties": {
            "children": {"type": "array", "items": {"$ref": "#/$defs/tree"}},
        }}}});
        assert!(refused(tree).contains("recursive"));
        let itself = json!({"type": "object", "properties": {"next": {"$ref": "#"}}});
        assert!(refused(itself).contains("recursive"));
        assert!(refused(json!({"type": "array", "items": {"type": "string"}})).contains("root"));
        assert!(refused(json!({"type": "object", "additionalProperties": {"type": "string"}})).contains("free names"));
        assert!(refused(json!({"type": "object", "properties": {"x": {}}})).contains("$.x accepts anything"));
        assert!(refused(json!({"type": "object", "properties": {"x": true}})).contains("$.x"));
        assert!(refused(json!({"$ref": "https://example.com/schema.json"})).contains("not in the schema"));
        assert!(refused(json!({"type": "object", "properties": {"x": {"type": "list"}}})).contains("unknown type"));
        assert!(
            refused(json!({"type": "object", "properties": {"x": {"type": "null"}}, "required": ["y"]}))
                .contains("\"y\"")
        );
        let many: Map<String, Value> = (0..25).map(|index| (format!("p{index}"), json!({"type": "null"}))).collect();
        assert!(refused(json!({"type": "object", "properties": many})).contains("25 optional"));
    }

    #[test]
    fn references_that_multiply_are_given_up() {
        // Each level refers to the next ten times: written out, 10^8 parts.
        let mut defs = Map::new();
        for level in 0..8 {
            let next: Map<String, Value> = (0..10)
                .map(|index| (format!("p{index}"), json!({"$ref": format!("#/$defs/l{}", level + 1)})))
                .collect();
            let names: Vec<&String> = next.keys().collect();
            defs.insert(format!("l{level}"), json!({"type": "object", "required": names, "properties": next}));
        }
        defs.insert(String::from("l8"), json!({"type": "string"}));
        assert!(refused(json!({"$ref": "#/$defs/l0", "$defs": defs})).contains("more than 1000 parts"));
    }
}
