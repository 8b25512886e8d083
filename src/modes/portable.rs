//! A tool's schema as every model API takes it. Servers write any JSON Schema; APIs refuse parts of it, and one refused
//! tool fails the whole request. What is written here guides a model and decides nothing: arguments are checked against
//! the tool's own schema before a call.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use serde_json::{Map, Value, json};

use crate::domain::tool::Arguments;
use crate::modes::logbook::digest;

/// Schemas within one another.
const MAX_DEPTH: usize = 32;
/// Schemas in all once references are written out; beyond that, a part accepts anything.
const MAX_PARTS: usize = 2_000;
/// The longest name of an argument.
const MAX_NAME: usize = 64;
/// Schemas of one property that alternatives may bring.
const MAX_GROUP: usize = 32;
/// Alternatives whose needs are told in words.
const TOLD: usize = 8;

const TYPES: [&str; 7] = ["object", "array", "string", "number", "integer", "boolean", "null"];
/// What only says how a schema is to be read, or stands elsewhere once references are written out.
const REMOVED: [&str; 14] = [
    "$schema",
    "$id",
    "$anchor",
    "$comment",
    "$defs",
    "definitions",
    "$ref",
    "$dynamicRef",
    "$dynamicAnchor",
    "$recursiveRef",
    "$recursiveAnchor",
    "$vocabulary",
    "additionalItems",
    "dependencies",
];
/// Members whose meaning depends on what stands beside them, so that they cannot move into another schema.
const BOUND: [&str; 8] =
    ["if", "then", "else", "contains", "minContains", "maxContains", "unevaluatedProperties", "unevaluatedItems"];
const NUMBERS: [&str; 4] = ["minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"];
const COUNTS: [&str; 8] =
    ["minLength", "maxLength", "minItems", "maxItems", "minProperties", "maxProperties", "minContains", "maxContains"];
const TEXTS: [&str; 6] = ["title", "description", "format", "pattern", "contentMediaType", "contentEncoding"];

/// A schema for models, and the way back to the tool's own names of arguments.
#[derive(Debug, Clone)]
pub(super) struct Portable {
    /// The schema; the tool's own where nothing is wrong with that.
    pub schema: Arc<Value>,
    /// Names of arguments that were made up, and the tool's own.
    renamed: BTreeMap<String, String>,
}

impl Portable {
    /// What models are told of a schema.
    pub fn of(source: &Arc<Value>) -> Self {
        let mut walk = Walk { root: source, references: Vec::new(), parts: 0, names: Names::of(source) };
        let cleaned = walk.part(source, 0);
        let portable = Value::Object(as_object(cleaned));
        let schema = match portable == **source {
            // The very text that the server wrote, in its own order.
            true => Arc::clone(source),
            false if jsonschema::draft202012::meta::is_valid(&portable) => Arc::new(portable),
            false => Arc::new(json!({"type": "object", "properties": {}})),
        };
        Self { schema, renamed: walk.names.made }
    }

    /// The arguments that a model wrote, under the tool's own names.
    pub fn restore(&self, arguments: Arguments) -> Arguments {
        if self.renamed.is_empty() { arguments } else { self.restore_members(arguments) }
    }

    fn restore_members(&self, members: Map<String, Value>) -> Map<String, Value> {
        let restored = members.into_iter().map(|(name, value)| {
            let name = self.renamed.get(&name).cloned().unwrap_or(name);
            (name, self.restore_value(value))
        });
        restored.collect()
    }

    fn restore_value(&self, value: Value) -> Value {
        match value {
            Value::Object(members) => Value::Object(self.restore_members(members)),
            Value::Array(items) => Value::Array(items.into_iter().map(|item| self.restore_value(item)).collect()),
            other => other,
        }
    }
}

/// The names of arguments that APIs refuse, and others in their place.
struct Names {
    /// Every name that the schema mentions.
    taken: BTreeSet<String>,
    made: BTreeMap<String, String>,
}

impl Names {
    fn of(schema: &Value) -> Self {
        let mut taken = BTreeSet::new();
        collect(schema, &mut taken);
        Self { taken, made: BTreeMap::new() }
    }

    /// The name itself where every API takes it; else one that depends on nothing but the name.
    fn portable(&mut self, name: &str) -> String {
        let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '-');
        if (1..=MAX_NAME).contains(&name.len()) && name.chars().all(plain) {
            return name.to_owned();
        }
        let digest = digest([name]);
        let readable: String = name.chars().map(|c| if plain(c) { c } else { '_' }).collect();
        for length in (8..=digest.len().min(MAX_NAME - 1)).step_by(8) {
            let room = readable.len().min(MAX_NAME - 1 - length);
            let made = format!("{}_{}", &readable[..room], &digest[..length]);
            let own = self.made.get(&made);
            if !self.taken.contains(&made) && own.is_none_or(|own| own == name) {
                self.made.insert(made.clone(), name.to_owned());
                return made;
            }
        }
        // Seven digests of growing length that all stand in one schema were put there on purpose: the name stays.
        name.to_owned()
    }
}

fn collect(schema: &Value, names: &mut BTreeSet<String>) {
    match schema {
        Value::Object(members) => members.iter().for_each(|(name, value)| {
            names.insert(name.clone());
            collect(value, names);
        }),
        Value::Array(items) => items.iter().for_each(|item| collect(item, names)),
        _ => {}
    }
}

struct Walk<'a> {
    root: &'a Value,
    references: Vec<&'a str>,
    parts: usize,
    names: Names,
}

impl<'a> Walk<'a> {
    /// One schema without what APIs refuse anywhere. What cannot be said becomes a schema that accepts anything.
    fn part(&mut self, schema: &'a Value, depth: usize) -> Map<String, Value> {
        self.parts += 1;
        let Value::Object(members) = schema else { return Map::new() };
        if self.parts > MAX_PARTS || depth > MAX_DEPTH {
            return Map::new();
        }
        let own = self.members(members, depth);
        match members.get("$ref").and_then(Value::as_str) {
            Some(reference) => merged(self.referenced(reference, depth), own),
            None => own,
        }
    }

    /// What a reference within the schema leads to; a recursion is written out once.
    fn referenced(&mut self, reference: &'a str, depth: usize) -> Map<String, Value> {
        let Some(target) = resolve(self.root, reference) else { return Map::new() };
        if self.references.contains(&reference) {
            let simple = target.get("type").filter(|kind| kind.as_str().is_some_and(|kind| TYPES.contains(&kind)));
            let mut cut = Map::new();
            if let Some(kind) = simple {
                cut.insert(String::from("type"), kind.clone());
                complete(&mut cut);
            }
            return cut;
        }
        self.references.push(reference);
        let part = self.part(target, depth + 1);
        self.references.pop();
        part
    }

    fn members(&mut self, members: &'a Map<String, Value>, depth: usize) -> Map<String, Value> {
        let mut clean = Map::new();
        for (name, value) in members {
            if let Some(value) = self.member(name, value, members, depth) {
                clean.insert(name.clone(), value);
            }
        }
        if let Some(Value::Array(tuple)) = members.get("items") {
            // As drafts before 2020-12 write a tuple.
            let tuple = tuple.iter().map(|item| Value::Object(self.part(item, depth + 1))).collect::<Vec<_>>();
            if !tuple.is_empty() {
                clean.insert(String::from("prefixItems"), Value::Array(tuple));
            }
        }
        for (limit, inclusive) in [("exclusiveMinimum", "minimum"), ("exclusiveMaximum", "maximum")] {
            if members.get(limit) == Some(&Value::Bool(true))
                && let Some(value) = clean.remove(inclusive)
            {
                clean.insert(limit.to_owned(), value);
            }
        }
        // An alternative or a condition that was widened means something else than before.
        if let Some(branches) = clean.get("oneOf").cloned().filter(|new| members.get("oneOf") != Some(new)) {
            clean.remove("oneOf");
            clean.entry("anyOf").or_insert(branches);
        }
        if clean.get("not") != members.get("not") {
            clean.remove("not");
        }
        if ["if", "then", "else"].iter().any(|name| clean.get(*name) != members.get(*name)) {
            for name in ["if", "then", "else"] {
                clean.remove(name);
            }
        }
        complete(&mut clean);
        clean
    }

    /// One member as it may stay, or nothing.
    fn member(&mut self, name: &str, value: &'a Value, beside: &'a Map<String, Value>, depth: usize) -> Option<Value> {
        match name {
            name if REMOVED.contains(&name) => None,
            "type" => kinds(value),
            "properties" => {
                let mut properties = Map::new();
                for (name, schema) in value.as_object()?.iter().filter(|(_, schema)| **schema != Value::Bool(false)) {
                    let schema = self.part(schema, depth + 1);
                    properties.insert(self.names.portable(name), Value::Object(schema));
                }
                Some(Value::Object(properties))
            }
            "patternProperties" | "dependentSchemas" => {
                let schemas = value.as_object()?.iter().map(|(key, schema)| {
                    let key = if name == "dependentSchemas" { self.names.portable(key) } else { key.clone() };
                    (key, Value::Object(self.part(schema, depth + 1)))
                });
                Some(Value::Object(schemas.collect()))
            }
            "required" => {
                let mut seen = BTreeSet::new();
                let names = value.as_array()?.iter().filter_map(Value::as_str).filter(|name| seen.insert(*name));
                Some(names.map(|name| Value::String(self.names.portable(name))).collect())
            }
            "items" if value.is_array() => match beside.get("additionalItems") {
                Some(rest @ Value::Object(_)) => Some(Value::Object(self.part(rest, depth + 1))),
                _ => None,
            },
            "items" | "contains" | "propertyNames" | "not" | "if" | "then" | "else" if value.is_object() => {
                Some(Value::Object(self.part(value, depth + 1)))
            }
            "items" | "contains" | "propertyNames" | "not" | "if" | "then" | "else" => None,
            "additionalProperties" | "unevaluatedProperties" | "unevaluatedItems" => match value {
                Value::Object(_) => Some(Value::Object(self.part(value, depth + 1))),
                value => value.is_boolean().then(|| value.clone()),
            },
            "anyOf" | "oneOf" | "allOf" | "prefixItems" => {
                let schemas = value.as_array().filter(|schemas| !schemas.is_empty())?;
                Some(schemas.iter().map(|schema| Value::Object(self.part(schema, depth + 1))).collect())
            }
            "enum" => value.as_array().filter(|values| !values.is_empty()).map(|_| value.clone()),
            "dependentRequired" => None,
            "multipleOf" => value.as_f64().filter(|number| *number > 0.0).map(|_| value.clone()),
            "uniqueItems" | "deprecated" | "readOnly" | "writeOnly" => value.is_boolean().then(|| value.clone()),
            "examples" => value.is_array().then(|| value.clone()),
            name if NUMBERS.contains(&name) => value.is_number().then(|| value.clone()),
            name if COUNTS.contains(&name) => value.as_u64().map(|_| value.clone()),
            name if TEXTS.contains(&name) => value.is_string().then(|| value.clone()),
            _ => Some(value.clone()),
        }
    }
}

/// What an API asks for beside a type: items of a list, and a description of every name that is required.
fn complete(clean: &mut Map<String, Value>) {
    let lists = match clean.get("type") {
        Some(Value::String(kind)) => kind == "array",
        Some(Value::Array(kinds)) => kinds.iter().any(|kind| kind == "array"),
        _ => clean.contains_key("prefixItems"),
    };
    if lists && !clean.contains_key("items") {
        clean.insert(String::from("items"), json!({}));
    }
    let required: Vec<String> = names(clean.get("required")).map(str::to_owned).collect();
    if let Some(Value::Object(properties)) = clean.get_mut("properties") {
        for name in required {
            properties.entry(name).or_insert_with(|| json!({}));
        }
    }
}

fn names(required: Option<&Value>) -> impl Iterator<Item = &str> {
    required.and_then(Value::as_array).into_iter().flatten().filter_map(Value::as_str)
}

/// The types that JSON Schema knows.
fn kinds(value: &Value) -> Option<Value> {
    match value {
        Value::String(kind) => TYPES.contains(&kind.as_str()).then(|| value.clone()),
        Value::Array(kinds) => {
            let mut seen = BTreeSet::new();
            let known =
                kinds.iter().filter_map(Value::as_str).filter(|kind| TYPES.contains(kind) && seen.insert(*kind));
            let known: Vec<&str> = known.collect();
            // One unknown type may stand for anything.
            (known.len() == kinds.len() && !known.is_empty()).then(|| json!(known))
        }
        _ => None,
    }
}

/// The part of a schema that a reference within it names.
fn resolve<'a>(root: &'a Value, reference: &str) -> Option<&'a Value> {
    let pointer = reference.strip_prefix('#')?;
    root.pointer(pointer).or_else(|| {
        // A reference is a URL, so its pointer may be encoded as one.
        let plain = percent_decoded(pointer)?;
        root.pointer(&plain)
    })
}

fn percent_decoded(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let [first, more @ ..] = rest {
        rest = match (first, more) {
            (b'%', [high, low, behind @ ..]) => {
                let digit = |byte: &u8| char::from(*byte).to_digit(16);
                bytes.push(u8::try_from(digit(high)? * 16 + digit(low)?).ok()?);
                behind
            }
            _ => {
                bytes.push(*first);
                more
            }
        };
    }
    String::from_utf8(bytes).ok()
}

/// Adds to `target` what stands beside the reference to it: words in its place, rules where it has none of that kind.
fn merged(mut target: Map<String, Value>, beside: Map<String, Value>) -> Map<String, Value> {
    for (name, value) in beside {
        if ["title", "description", "default"].contains(&name.as_str()) {
            target.insert(name, value);
        } else if let ("required", Some(Value::Array(known)), Value::Array(more)) =
            (name.as_str(), target.get_mut(&name), &value)
        {
            let new: Vec<Value> = more.iter().filter(|name| !known.contains(name)).cloned().collect();
            known.extend(new);
        } else if !BOUND.contains(&name.as_str()) {
            target.entry(name).or_insert(value);
        }
    }
    target
}

/// A root as APIs want it: an object, with its properties in one place and no alternatives.
fn as_object(mut root: Map<String, Value>) -> Map<String, Value> {
    let object = match root.get("type") {
        None => true,
        Some(Value::String(kind)) => kind == "object",
        Some(Value::Array(kinds)) => kinds.iter().any(|kind| kind == "object"),
        Some(_) => false,
    };
    if !object {
        // No arguments can ever fit. The server has to say what it wants.
        let mut open = Map::from_iter([(String::from("type"), json!("object"))]);
        open.extend(root.remove_entry("description"));
        root = open;
    }
    flatten(&mut root);
    root.insert(String::from("type"), json!("object"));
    root.entry("properties").or_insert_with(|| json!({}));
    complete(&mut root);
    root
}

/// Takes alternatives and conjunctions of objects apart into one list of properties.
fn flatten(object: &mut Map<String, Value>) {
    for name in ["enum", "const", "not"] {
        object.remove(name);
    }
    for (name, all) in [("allOf", true), ("anyOf", false), ("oneOf", false)] {
        let Some(Value::Array(branches)) = object.remove(name) else { continue };
        let mut required: Option<Vec<String>> = None;
        let mut groups: Vec<Vec<String>> = Vec::new();
        for branch in branches {
            let Value::Object(mut branch) = branch else { continue };
            let kind = branch.get("type");
            if !all && kind.is_some_and(|kind| kind != "object" && !kind.is_array()) {
                // Arguments are an object: this alternative can never be meant.
                continue;
            }
            flatten(&mut branch);
            let needs: Vec<String> = names(branch.get("required")).map(str::to_owned).collect();
            groups.push(needs.clone());
            required = Some(match required {
                None => needs,
                Some(known) if all => known.into_iter().chain(needs).collect(),
                Some(known) => known.into_iter().filter(|name| needs.contains(name)).collect(),
            });
            if let Some(Value::Object(properties)) = branch.remove("properties") {
                if !properties.is_empty() {
                    // What was closed around other properties would now refuse these.
                    for name in ["additionalProperties", "unevaluatedProperties"] {
                        object.remove(name);
                    }
                }
                let known = object.entry("properties").or_insert_with(|| json!({}));
                properties.into_iter().for_each(|(name, schema)| add(known, name, schema, all));
            }
        }
        let mut needed: Vec<String> = names(object.get("required")).map(str::to_owned).collect();
        if !all {
            tell(object, &groups, &needed);
        }
        for name in required.unwrap_or_default() {
            if !needed.contains(&name) {
                needed.push(name);
            }
        }
        if !needed.is_empty() {
            object.insert(String::from("required"), json!(needed));
        }
    }
}

/// Adds a property; where two schemas speak of it, both or either of them must hold.
fn add(known: &mut Value, name: String, schema: Value, all: bool) {
    let Value::Object(known) = known else { return };
    match known.get_mut(&name) {
        None => {
            known.insert(name, schema);
        }
        Some(present) if *present == schema => {}
        Some(present) => {
            let group = if all { "allOf" } else { "anyOf" };
            let alone = present.as_object().is_some_and(|members| members.len() == 1);
            match present.get_mut(group) {
                Some(Value::Array(schemas)) if alone => {
                    if schemas.len() < MAX_GROUP && !schemas.contains(&schema) {
                        schemas.push(schema);
                    }
                }
                _ => *present = json!({group: [present.take(), schema]}),
            }
        }
    }
}

/// Says in words which groups of arguments belong together, because the schema no longer can.
fn tell(object: &mut Map<String, Value>, groups: &[Vec<String>], always: &[String]) {
    let groups: Vec<String> = groups
        .iter()
        .map(|group| {
            let names = group.iter().filter(|name| !always.contains(name)).map(|name| format!("`{name}`"));
            names.collect::<Vec<_>>().join(" and ")
        })
        .collect();
    if groups.len() < 2 || groups.len() > TOLD || groups.iter().any(String::is_empty) {
        return;
    }
    let words = format!("Needed: {}.", groups.join(", or "));
    let description = match object.get("description").and_then(Value::as_str) {
        Some(description) => format!("{description} {words}"),
        None => words,
    };
    object.insert(String::from("description"), Value::String(description));
}

#[cfg(test)]
mod tests;
