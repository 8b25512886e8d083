//! The rules of templates, one a test.

use indexmap::IndexMap;
use serde_json::json;

use super::*;
use crate::domain::state::NodeView;

fn scope(inputs: Value, nodes: Value) -> Scope {
    let Value::Object(inputs) = inputs else { panic!("inputs are an object") };
    let nodes: IndexMap<String, NodeView> = serde_json::from_value(nodes).expect("node states");
    Scope::new(inputs, nodes, 10_000)
}

fn value(text: &str, inputs: Value, nodes: Value) -> Result<Value, TemplateError> {
    Template::compile(text)?.value(&scope(inputs, nodes))
}

fn done(output: Value) -> Value {
    json!({"status": "completed", "output": output})
}

#[test]
fn an_exact_key_is_an_input_then_a_nodes_output_then_an_expression() {
    let nodes = json!({"topic": done(json!("node")), "step-1.a": done(json!({"k": [1]})), "it's": done(json!(5))});
    assert_eq!(value("{{ topic }}", json!({"topic": "input"}), nodes.clone()), Ok(json!("input")));
    assert_eq!(value("{{topic}}", json!({}), nodes.clone()), Ok(json!("node")));
    assert_eq!(value("{{ step-1.a }}", json!({}), nodes.clone()), Ok(json!({"k": [1]})));
    assert_eq!(value("{{ it's }} and {{ it's }}", json!({}), nodes.clone()), Ok(json!("5 and 5")));
    assert_eq!(value("{{ a-b }}", json!({"a": 5, "b": 3}), nodes), Ok(json!(2)));
}

#[test]
fn one_single_substitution_keeps_the_type_and_text_around_it_makes_text() {
    let inputs = json!({"n": 3, "list": [1, {"a": null}], "flag": true, "none": null, "s": "x"});
    let render = |text| value(text, inputs.clone(), json!({})).expect(text);
    assert_eq!(render("{{ n }}"), json!(3));
    assert_eq!(render("{{ list }}"), json!([1, {"a": null}]));
    assert_eq!(render("{{ none }}"), Value::Null);
    assert_eq!(
        render("n={{ n }} {{ flag }} {{ none }} {{ s }} {{ list }}"),
        json!(r#"n=3 true null x [1,{"a":null}]"#)
    );
    assert_eq!(render("a  {{- s -}}  b"), json!("axb"));
    assert_eq!(render(""), json!(""));
}

#[test]
fn numbers_stay_exact() {
    let inputs = json!({"big": u64::MAX, "small": i64::MIN, "f": 0.1, "one": 1.0});
    for (name, number) in [("big", json!(u64::MAX)), ("small", json!(i64::MIN)), ("f", json!(0.1)), ("one", json!(1.0))]
    {
        assert_eq!(value(&format!("{{{{ {name} }}}}"), inputs.clone(), json!({})), Ok(number.clone()));
        assert_eq!(value(&format!("{{{{ inputs.{name} }}}}"), inputs.clone(), json!({})), Ok(number));
    }
}

#[test]
fn expressions_see_inputs_and_nodes() {
    let nodes = json!({"a": done(json!({"titles": ["x", "y"]})), "b-c": {"status": "failed"}});
    let render = |text| value(text, json!({"name": "ann", "inner": {"k": 1}}), nodes.clone()).expect(text);
    assert_eq!(render("{{ inputs.name | upper }}"), json!("ANN"));
    assert_eq!(render("{{ name | upper }}"), json!("ANN"));
    assert_eq!(render("{{ inputs['inner'].k + 1 }}"), json!(2));
    assert_eq!(render("{{ nodes.a.output.titles | join(', ') }}"), json!("x, y"));
    assert_eq!(render("{{ nodes[\"b-c\"].status }}"), json!("failed"));
    assert_eq!(render("{{ a.titles[1] }}"), json!("y"));
    assert_eq!(render("{{ {'x': {'y': 1}} }}"), json!({"x": {"y": 1}}));
    assert_eq!(render("{{ '}}' ~ name }}"), json!("}}ann"));
    assert_eq!(render("{{ nodes }}"), json!({"a": done(json!({"titles": ["x", "y"]})), "b-c": {"status": "failed"}}));
}

#[test]
fn what_is_substituted_is_never_rendered_again() {
    let inputs = json!({"a": "{{ b }}", "b": "secret", "c": "{% raw %}"});
    assert_eq!(value("{{ a }}", inputs.clone(), json!({})), Ok(json!("{{ b }}")));
    assert_eq!(value("<{{ a }}{{ c }}>", inputs, json!({})), Ok(json!("<{{ b }}{% raw %}>")));
}

#[test]
fn raw_keeps_braces_and_a_stray_percent_is_text() {
    let render = |text| value(text, json!({"a": 1}), json!({}));
    assert_eq!(render("{% raw %}{{ a }}{% x %}{% endraw %}={{ a }}"), Ok(json!("{{ a }}{% x %}=1")));
    assert_eq!(render("100{% of {%- raw -%}{{{%- endraw %}"), Ok(json!("100{% of {{")));
    for text in ["{% raw %}{{ a }}", "{% if a %}x{% endif %}", "{{ a", "{{ }}", "{{ a + }}"] {
        assert!(matches!(render(text), Err(TemplateError::Syntax { .. })), "{text}: {:?}", render(text));
    }
}

#[test]
fn an_unknown_name_is_named_unless_a_default_is_given() {
    let name = |text| match value(text, json!({"known": {"x": 1}}), json!({"a": done(json!({}))})) {
        Err(TemplateError::UnknownName { name }) => name,
        other => panic!("{text}: {other:?}"),
    };
    assert_eq!(name("{{ unknown }}"), "unknown");
    assert_eq!(name("{{ my key }}"), "my key");
    assert_eq!(name("{{ unknown | upper }}"), "unknown");
    assert_eq!(name("{{ inputs.unknown }}"), "inputs.unknown");
    assert_eq!(name("{{ inputs.known.y.z }}"), "inputs.known.y.z");
    assert_eq!(name("{{ (other | default(1)) ~ (inputs.known.y | upper) }}"), "inputs.known.y");
    assert_eq!(name("{{ (other | default('')) ~ nodes.b.output }}"), "nodes.b.output");
    assert_eq!(name("{{ nodes.a.output.k }}"), "nodes.a.output.k");
    assert_eq!(value("{{ unknown | default('d') }}", json!({}), json!({})), Ok(json!("d")));
    assert_eq!(value("{{ inputs.unknown | default([1]) }}", json!({}), json!({})), Ok(json!([1])));
    assert_eq!(value("{{ inputs.unknown is defined }}", json!({}), json!({})), Ok(json!(false)));
}

#[test]
fn a_node_that_is_not_completed_is_named_with_its_status() {
    let nodes = json!({"a": {"status": "running"}, "b": {"status": "skipped"}, "c": {"output": 1}});
    let not_completed = |text: &str, node: &str, status| {
        let expected = Err(TemplateError::NotCompleted { node: node.to_owned(), status });
        assert_eq!(value(text, json!({}), nodes.clone()), expected, "{text}");
    };
    not_completed("{{ a }}", "a", NodeStatus::Running);
    not_completed("{{ nodes.a.output.x }}", "a", NodeStatus::Running);
    not_completed("{{ nodes.a.output | default('hides the wrong order') }}", "a", NodeStatus::Running);
    not_completed("{{ b | upper }}", "b", NodeStatus::Skipped);
    assert_eq!(value("{{ nodes.b.output | default('none') }}", json!({}), nodes.clone()), Ok(json!("none")));
    assert_eq!(value("{{ nodes.a.status }}", json!({}), nodes.clone()), Ok(json!("running")));
    assert_eq!(value("{{ c }}", json!({}), nodes.clone()), Ok(json!(1)));
}

#[test]
fn an_endless_or_huge_template_is_stopped() {
    for hungry in ["{{ (x * 90000000) | length }}", "{{ (x * 9000) | replace('x', 'x' * 9000) | length }}"] {
        let stopped = value(hungry, json!({"x": "x"}), json!({}));
        assert!(
            matches!(&stopped, Err(TemplateError::Evaluation { message, .. }) if message.contains("fuel")),
            "{hungry}: {stopped:?}"
        );
    }
    let megabyte = json!({"text": "x".repeat(1_000_000)});
    assert_eq!(value("{{ text | tojson | length }}", megabyte, json!({})), Ok(json!(1_000_002)));
    let inputs = json!({"text": "x".repeat(6000)});
    assert_eq!(value("{{ text }}{{ text }}", inputs, json!({})), Err(TemplateError::TooLarge { limit: 10_000 }));
    let mut deep = json!(1);
    for _ in 0..101 {
        deep = json!([deep]);
    }
    assert_eq!(value("{{ deep }}", json!({"deep": deep}), json!({})), Err(TemplateError::TooDeep));
}

#[test]
fn templates_are_found_at_any_depth_and_the_rest_is_kept() {
    let params = json!({"a": [{"b": "{{ n }}", "c": "plain"}, 7], "{{ n }}": true});
    let template = ValueTemplate::compile(&params).expect("a template");
    let rendered = template.value(&scope(json!({"n": 3}), json!({}))).expect("a value");
    assert_eq!(rendered, json!({"a": [{"b": 3, "c": "plain"}, 7], "{{ n }}": true}));
    assert!(matches!(ValueTemplate::compile(&json!({"a": ["b", 1]})), Ok(ValueTemplate::Plain(_))));
}

#[test]
fn an_error_says_which_names_exist() {
    let failure = TemplateError::UnknownName { name: "x".into() }.into_failure(&["a".into()], &[]);
    assert_eq!((failure.code.as_ref(), failure.category.as_str()), ("unknown_name", "validation"));
    assert!(failure.message.contains("`x`") && failure.message.contains("inputs: `a`; nodes: none"));
}

#[test]
fn an_output_that_nobody_can_read_fails_the_node_and_not_its_reading() {
    let nodes =
        r#"{"bad": {"status": "completed", "output": {"n": 1e999}}, "good": {"status": "completed", "output": 1}}"#;
    let scope = Scope::new(Map::new(), serde_json::from_str(nodes).expect("node states"), 10_000);
    let render = |text| Template::compile(text).and_then(|template| template.value(&scope));
    for text in ["{{ bad }}", "{{ bad.n }}", "{{ nodes.bad.output.n | default(1) }}", "a {{ bad }}"] {
        let failure = render(text).expect_err(text).alone();
        assert_eq!(failure.code, "state_corrupt", "{text}");
        assert!(
            failure.message.contains("`bad`") && failure.message.contains("number out of range"),
            "{}",
            failure.message
        );
    }
    assert_eq!(render("{{ good + 1 }}"), Ok(json!(2)));
}
