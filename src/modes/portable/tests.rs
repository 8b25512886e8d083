//! What APIs refuse in schemas is not in them any more, what they take is left alone, and arguments find their way back.

use std::time::{Duration, Instant};

use proptest::prelude::*;

use super::*;

fn portable(schema: Value) -> Value {
    Value::clone(&Portable::of(&Arc::new(schema)).schema)
}

/// What each API that is known to refuse anything wants.
fn assert_acceptable(schema: &Value) {
    assert!(jsonschema::draft202012::meta::is_valid(schema), "{schema}");
    assert_eq!(schema["type"], "object", "{schema}");
    assert!(schema["properties"].is_object(), "{schema}");
    for name in ["anyOf", "oneOf", "allOf", "enum", "const", "not", "$ref"] {
        assert!(schema.get(name).is_none(), "{name} at the root of {schema}");
    }
    assert_parts(schema);
}

fn assert_parts(schema: &Value) {
    let Value::Object(members) = schema else { return };
    assert!(!members.contains_key("$ref") && !members.contains_key("$defs"), "{schema}");
    if members.get("type").is_some_and(|kind| kind == "array") {
        assert!(members.contains_key("items"), "{schema}");
    }
    if let Some(Value::Object(properties)) = members.get("properties") {
        for (name, part) in properties {
            let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '-');
            assert!((1..=64).contains(&name.len()) && name.chars().all(plain), "{name:?}");
            assert_parts(part);
        }
        for name in names(members.get("required")) {
            assert!(properties.contains_key(name), "{name} in {schema}");
        }
    }
    for name in ["items", "additionalProperties", "not", "if", "then", "else", "contains", "propertyNames"] {
        assert_parts(members.get(name).unwrap_or(&Value::Null));
    }
    for name in ["anyOf", "oneOf", "allOf", "prefixItems"] {
        members.get(name).and_then(Value::as_array).into_iter().flatten().for_each(assert_parts);
    }
}

#[test]
fn a_schema_that_every_api_takes_is_sent_as_it_was_written() {
    let schema = Arc::new(json!({
        "type": "object",
        "title": "Query",
        "properties": {
            "q": {"type": "string", "minLength": 1, "default": ""},
            "n": {"anyOf": [{"type": "integer", "exclusiveMinimum": 0}, {"type": "null"}]},
            "tags": {"type": "array", "items": {"oneOf": [{"const": "a"}, {"enum": ["b", 1]}]}, "x-order": 3},
        },
        "required": ["q"],
        "additionalProperties": false,
    }));
    assert!(Arc::ptr_eq(&Portable::of(&schema).schema, &schema));
}

#[test]
fn a_root_is_an_object_whatever_the_server_wrote() {
    assert_eq!(portable(json!({})), json!({"type": "object", "properties": {}}));
    assert_eq!(portable(json!({"type": "object"})), json!({"type": "object", "properties": {}}));
    assert_eq!(
        portable(json!({"type": ["null", "object"], "properties": {}})),
        json!({"type": "object", "properties": {}})
    );
    for other in [json!({"type": "string", "enum": ["a"]}), json!({"type": ["array"]}), json!({"type": "wish"})] {
        assert_eq!(portable(other), json!({"type": "object", "properties": {}}));
    }
    assert_eq!(
        portable(json!({"type": "array", "description": "A list.", "items": {}})),
        json!({"type": "object", "description": "A list.", "properties": {}})
    );
}

#[test]
fn alternatives_at_the_root_become_one_list_and_what_belongs_together_is_told() {
    let needs_one = json!({
        "type": "object",
        "description": "Updates.",
        "properties": {"id": {"type": "string"}, "title": {"type": "string"}, "body": {"type": "string"}},
        "required": ["id"],
        "additionalProperties": false,
        "anyOf": [{"required": ["title"]}, {"required": ["id", "body"]}],
    });
    let schema = portable(needs_one);
    assert_acceptable(&schema);
    assert_eq!(schema["description"], "Updates. Needed: `title`, or `body`.");
    assert_eq!((&schema["required"], &schema["additionalProperties"]), (&json!(["id"]), &json!(false)));

    let schema = portable(json!({"oneOf": [
        {"type": "object", "properties": {"kind": {"const": "a"}, "x": {"type": "string"}}, "required": ["kind", "x"]},
        {"type": "object", "properties": {"kind": {"const": "b"}, "y": {"type": "string"}}, "required": ["kind"]},
        {"type": "object", "properties": {"kind": {"const": "c"}}, "required": ["kind"]},
        {"type": "string"},
    ]}));
    assert_acceptable(&schema);
    assert_eq!(schema["required"], json!(["kind"]));
    assert_eq!(schema["properties"]["kind"], json!({"anyOf": [{"const": "a"}, {"const": "b"}, {"const": "c"}]}));
    assert_eq!(schema["properties"]["y"], json!({"type": "string"}));
}

#[test]
fn parts_of_all_of_at_the_root_hold_together() {
    let schema = portable(json!({"allOf": [
        {"$ref": "#/$defs/page"},
        {"type": "object", "properties": {"q": {"type": "string"}, "n": {"maximum": 9}}, "required": ["q"]},
    ], "$defs": {"page": {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"], "additionalProperties": false}}}));
    assert_acceptable(&schema);
    assert_eq!(schema["required"], json!(["n", "q"]));
    assert_eq!(schema["properties"]["n"], json!({"allOf": [{"type": "integer"}, {"maximum": 9}]}));
}

#[test]
fn references_are_written_out_and_a_recursion_once() {
    let schema = portable(json!({
        "$schema": "http://json-schema.org/draft-07/schema#",
        "type": "object",
        "properties": {
            "tree": {"$ref": "#/definitions/node", "description": "The tree."},
            "far": {"$ref": "https://example.com/schema.json"},
            "odd": {"$ref": "#/definitions/a%20b~1c"},
        },
        "definitions": {
            "node": {"type": "object", "properties": {"name": {"type": "string"}, "next": {"$ref": "#/definitions/node"},
                "all": {"type": "array", "items": {"$ref": "#/definitions/node"}}}},
            "a b/c": {"type": "boolean"},
        },
    }));
    assert_acceptable(&schema);
    let tree = &schema["properties"]["tree"];
    assert_eq!((&tree["description"], &tree["properties"]["name"]), (&json!("The tree."), &json!({"type": "string"})));
    assert_eq!(tree["properties"]["next"], json!({"type": "object"}), "written out once");
    assert_eq!(schema["properties"]["far"], json!({}), "never fetched");
    assert_eq!(schema["properties"]["odd"], json!({"type": "boolean"}));
}

#[test]
fn what_older_drafts_and_slips_of_servers_say_is_said_in_todays_words() {
    let schema = portable(json!({
        "type": "object",
        "properties": {
            "pair": {"type": "array", "items": [{"type": "string"}, {"type": "integer"}]},
            "more": {"type": "array", "items": [{}], "additionalItems": {"type": "null"}},
            "list": {"type": "array"},
            "low": {"type": "number", "minimum": 1, "exclusiveMinimum": true, "maximum": 5, "exclusiveMaximum": false},
            "any": {"type": "any", "enum": [], "required": true},
            "yes": true,
            "no": false,
            "text": {"type": "string", "minLength": "3", "description": 7, "pattern": ["x"]},
        },
        "required": ["pair", "pair", "undescribed", 3],
    }));
    assert_acceptable(&schema);
    let properties = &schema["properties"];
    assert_eq!(
        properties["pair"],
        json!({"type": "array", "prefixItems": [{"type": "string"}, {"type": "integer"}], "items": {}})
    );
    assert_eq!(properties["more"]["items"], json!({"type": "null"}));
    assert_eq!(properties["list"], json!({"type": "array", "items": {}}));
    assert_eq!(properties["low"], json!({"type": "number", "maximum": 5, "exclusiveMinimum": 1}));
    assert_eq!(
        (&properties["any"], &properties["yes"], &properties["text"]),
        (&json!({}), &json!({}), &json!({"type": "string"}))
    );
    assert_eq!((properties.get("no"), &properties["undescribed"]), (None, &json!({})));
    assert_eq!(schema["required"], json!(["pair", "undescribed"]));
}

#[test]
fn names_that_apis_refuse_are_replaced_and_found_again_at_any_depth() {
    let long = "x".repeat(70);
    let schema = Arc::new(json!({
        "type": "object",
        "properties": {
            "$filter": {"type": "string"},
            "größe": {"type": "object", "properties": {"@type": {"type": "string"}}, "required": ["@type"]},
            "list": {"type": "array", "items": {"type": "object", "properties": {"a b": {"type": "integer"}}}},
            long.clone(): {"type": "null"},
            "plain": {"type": "string"},
        },
        "required": ["$filter"],
    }));
    let found = Portable::of(&schema);
    assert_acceptable(&found.schema);
    let alias =
        |own: &str| found.renamed.iter().find(|(_, name)| *name == own).map(|(made, _)| made.clone()).expect("renamed");
    assert!(alias("$filter").starts_with("_filter_") && alias(&long).starts_with(&"x".repeat(55)));
    assert_eq!(found.schema["required"], json!([alias("$filter")]));
    let written = json!({
        alias("$filter"): "f", alias("größe"): {alias("@type"): "t"}, "list": [{alias("a b"): 1}], "plain": alias("$filter"),
    });
    let Value::Object(written) = written else { unreachable!("an object") };
    assert_eq!(
        Value::Object(found.restore(written)),
        json!({"$filter": "f", "größe": {"@type": "t"}, "list": [{"a b": 1}], "plain": alias("$filter")})
    );
    assert_eq!(Portable::of(&schema).renamed, found.renamed, "the same each time");
}

#[test]
fn schemas_that_multiply_or_never_end_are_cut() {
    let mut defs = Map::new();
    for level in 0..8 {
        let next: Map<String, Value> =
            (0..10).map(|index| (format!("p{index}"), json!({"$ref": format!("#/$defs/l{}", level + 1)}))).collect();
        defs.insert(format!("l{level}"), json!({"type": "object", "properties": next}));
    }
    defs.insert(String::from("l8"), json!({"type": "string"}));
    let started = Instant::now();
    let schema = portable(json!({"$ref": "#/$defs/l0", "$defs": defs}));
    assert_acceptable(&schema);
    assert!(schema.to_string().len() < 1_000_000);
    let mut deep = json!({"type": "string"});
    for _ in 0..500 {
        deep = json!({"type": "object", "properties": {"d": deep}});
    }
    assert_acceptable(&portable(deep));
    for circle in [
        json!({"$ref": "#"}),
        json!({"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}}),
    ] {
        assert_acceptable(&portable(circle));
    }
    assert!(started.elapsed() < Duration::from_secs(5), "{:?}", started.elapsed());
}

/// Schemas as servers write them, good and bad.
fn schemas() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(json!({"type": "string"})),
        Just(json!({"type": "integer", "minimum": 0})),
        Just(json!({"type": "array"})),
        Just(json!({"enum": ["a", 1, null]})),
        Just(json!({"const": {"a": 1}})),
        Just(json!({"$ref": "#"})),
        Just(json!({"$ref": "#/properties/a"})),
        Just(json!({"type": ["string", "null"]})),
        Just(json!({"type": "any", "minimum": true})),
        Just(json!(true)),
        Just(json!(null)),
    ];
    leaf.prop_recursive(4, 24, 3, |inner| {
        let name = prop_oneof![Just("a"), Just("b"), Just("$c"), Just("d e"), Just("")];
        let object = (proptest::collection::vec((name.clone(), inner.clone()), 0..3), name, any::<bool>()).prop_map(
            |(members, required, closed)| {
                let members: Map<String, Value> = members.into_iter().map(|(name, part)| (name.to_owned(), part)).collect();
                json!({"type": "object", "properties": members, "required": [required], "additionalProperties": !closed})
            },
        );
        let group = prop_oneof![Just("anyOf"), Just("oneOf"), Just("allOf"), Just("prefixItems"), Just("items")];
        prop_oneof![
            2 => object.clone(),
            1 => (group, proptest::collection::vec(inner.clone(), 0..3)).prop_map(|(group, parts)| json!({group: parts})),
            1 => (object, inner.clone()).prop_map(|(mut object, part)| {
                object["allOf"] = json!([part]);
                object
            }),
            1 => inner.clone().prop_map(|part| json!({"type": "array", "items": part})),
            1 => inner.prop_map(|part| json!({"not": part})),
        ]
    })
}

fn instances() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![Just(json!("a")), Just(json!(1)), Just(json!(null)), Just(json!(true)), Just(json!({}))];
    leaf.prop_recursive(3, 12, 3, |inner| {
        let name = prop_oneof![Just("a"), Just("b")];
        prop_oneof![
            proptest::collection::vec((name, inner.clone()), 0..3).prop_map(|members| members
                .into_iter()
                .map(|(name, value)| (name.to_owned(), value))
                .collect::<Value>()),
            proptest::collection::vec(inner, 0..3).prop_map(Value::Array),
        ]
    })
}

proptest! {
    #[test]
    fn whatever_a_server_writes_becomes_acceptable_and_stays_so(schema in schemas()) {
        prop_assume!(schema.is_object());
        let once = portable(schema);
        assert_acceptable(&once);
        prop_assert_eq!(portable(once.clone()), once);
    }

    #[test]
    fn what_a_part_accepts_is_still_accepted(schema in schemas(), instance in instances()) {
        // Below the root: there alternatives are told apart in words only.
        let source = Arc::new(json!({"type": "object", "properties": {"p": schema}}));
        let Ok(own) = jsonschema::options().offline().build(&source) else { return Ok(()) };
        let arguments = json!({"p": instance});
        prop_assume!(own.is_valid(&arguments));
        let told = Portable::of(&source);
        let theirs = jsonschema::validator_for(&told.schema).expect("acceptable");
        prop_assert!(theirs.is_valid(&arguments), "{} refuses {}", told.schema, arguments);
    }

    #[test]
    fn renamed_arguments_are_never_confused(names in proptest::collection::btree_set("[a-c$ ]{0,3}|\\PC{0,80}", 0..8)) {
        let properties: Map<String, Value> = names.iter().map(|name| (name.clone(), json!({"type": "string"}))).collect();
        let source = Arc::new(json!({"type": "object", "properties": properties}));
        let told = Portable::of(&source);
        let shown: Vec<&String> = told.schema["properties"].as_object().expect("an object").keys().collect();
        prop_assert_eq!(shown.len(), names.len());
        let arguments: Arguments = shown.into_iter().map(|name| (name.clone(), json!(1))).collect();
        let restored: BTreeSet<String> = told.restore(arguments).into_iter().map(|(name, _)| name).collect();
        prop_assert_eq!(restored, names);
    }
}
