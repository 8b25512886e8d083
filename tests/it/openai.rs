//! Providers of OpenAI's protocols, and several providers at once: real workers speak to the scripted model over HTTP
//! in every wire format it has.

use serde_json::{Value, json};

use crate::harness::bed::Bed;
use crate::harness::gate::Gate;
use crate::harness::model::Model;
use crate::harness::worker::Spec;

/// The lines of a configuration file for a provider of chat completions or responses.
fn provider(name: &str, model: &Model, members: &str) -> String {
    let url = model.base_url();
    format!("[llm.providers.{name}]\nkind = \"openai\"\nbase_url = \"{url}\"\nmodel = \"scripted\"\n{members}\n")
}

/// Every way to speak to such a provider.
const WAYS: [&str; 4] = [
    "api = \"chat\"\nstream = \"never\"",
    "api = \"chat\"\nstream = \"always\"",
    "api = \"responses\"\nstream = \"never\"",
    "api = \"responses\"\nstream = \"always\"",
];

fn item(graph: &str, config: Value) -> Value {
    json!({"graph_id": graph, "node_id": "n", "config": config, "inputs": {}})
}

const MODES: &str = r#"
rules:
  - match: {prompt: "two sums"}
    replies:
      - thinking: I had better count.
        text: Let me see.
        tool_calls:
          - {name: calculate, input: {expression: "6 * 7"}}
          - {name: calculate, input: {expression: "1 +"}}
      - text: "{{ tool_results | first }}"
        usage: {input_tokens: 100, output_tokens: 5, cache_read_tokens: 80}
  - match: {prompt: "a colour"}
    replies:
      - {json: {colour: 7}}
      - {json: {colour: green}}
  - match: {prompt: "six and seven"}
    reply: {json: {expression: "6 * 7"}}
"#;

#[tokio::test]
async fn all_modes_run_through_every_protocol() {
    let (bed, model) = (Bed::new().await, Model::start(MODES));
    for (at, way) in WAYS.into_iter().enumerate() {
        let file = provider("local", &model, way);
        let id = format!("w{at}");
        let _worker = bed.worker(&id).file(&file).env("LLM_PROVIDER", "local").start().ready().await;
        let schema = json!({"type": "object", "properties": {"colour": {"type": "string"}}, "required": ["colour"]});
        let calculate = json!({"from": "six and seven", "llm_config": {}});
        for (name, config) in [
            ("agent", json!({"task": "two sums", "tools": ["calculate"], "llm_config": {}})),
            ("llm", json!({"llm_config": {"prompt": "a colour", "output_schema": schema}})),
            ("tool", json!({"tool_name": "calculate", "extract_params": calculate})),
        ] {
            bed.submit(&item(&format!("{name}-{at}"), config)).await;
        }
        let events = bed.ended(3 * (at + 1)).await;
        let output = |name: &str| {
            let graph = format!("{name}-{at}");
            let event = events.iter().find(|event| event["graph_id"] == graph.as_str()).expect("it ended");
            assert_eq!(event["type"], "node.completed", "{way}: {:?}", event.body);
            event.output().clone()
        };
        let agent = output("agent");
        assert_eq!((&agent["result"], &agent["tool_calls"]), (&json!("42"), &json!(2)), "{way}");
        assert_eq!((&agent["provider"], &agent["model"]), (&json!("local"), &json!("scripted")));
        let llm = output("llm");
        assert_eq!((&llm["parsed"], &llm["provider"]), (&json!({"colour": "green"}), &json!("local")), "{way}");
        assert_eq!(output("tool"), json!(42), "{way}");
    }
    let calls = model.calls();
    assert_eq!((calls.errors, calls.completions), (0, 4 * 5), "{calls:?}");
}

#[tokio::test]
async fn the_environment_alone_sets_up_a_provider() {
    let (bed, model) = (Bed::new().await, Model::start("rules: [{match: {prompt: hello}, reply: {text: hi}}]"));
    for (at, kind) in ["openai", "openai-responses", "ollama", "llama-cpp", "vllm"].into_iter().enumerate() {
        let spec = bed.worker(&format!("w{at}")).env("LLM_PROVIDER", kind).env("LLM_BASE_URL", model.base_url());
        let _worker =
            spec.env("LLM_MODEL", "scripted").env("OPENAI_API_KEY", "a key of the test").start().ready().await;
        bed.submit(&item(kind, json!({"llm_config": {"prompt": "hello"}}))).await;
        let events = bed.ended(at + 1).await;
        let event = events.iter().find(|event| event["graph_id"] == kind).expect("it ended");
        assert_eq!((&event.output()["content"], &event.output()["provider"]), (&json!("hi"), &json!(kind)));
    }
}

/// An effect, a question in whose middle the worker dies, the answer.
const COURSE: &str = r#"
rules:
  - match: {prompt: the doors}
    replies:
      - thinking: one door first
        tool_calls: [{name: http_request, input: {method: POST, url: GATE/first}}]
      - {tool_calls: [{name: http_request, input: {url: GATE/wait}}]}
      - {text: through}
"#;

fn course(spec: Spec, gate: &Gate) -> Spec {
    spec.set("tools.http_request.allow", gate.host()).set("lease.duration", "1s").set("lease.renew", "200ms")
}

#[tokio::test]
async fn an_agent_of_a_killed_worker_goes_on_with_the_same_bytes() {
    for way in WAYS {
        let (bed, gate) = (Bed::new().await, Gate::start().await);
        let model = Model::start(&COURSE.replace("GATE", &format!("http://{}", gate.host())));
        let worker =
            |id: &str| course(bed.worker(id).file(&provider("local", &model, way)).env("LLM_PROVIDER", "local"), &gate);
        gate.open("first");
        let doomed = worker("w1").start().ready().await;
        bed.submit(&item("g", json!({"task": "the doors", "tools": ["http_request"], "llm_config": {}}))).await;
        gate.arrived("wait", 1).await;
        let _next = worker("w2").start().ready().await;
        doomed.kill();
        gate.arrived("wait", 2).await;
        gate.open("wait");
        let event = bed.ended(1).await.remove(0);
        assert_eq!((&event.output()["result"], event.worker()), (&json!("through"), "w2"), "{way}");
        assert_eq!(event["metadata"]["resumed"], json!({"turns": 2, "tool_calls": 1}));
        assert_eq!(gate.arrivals("first"), 1, "{way}: an effect once");
        // The server signs what was thought and refuses it changed, so what went back was what had come.
        let calls = model.calls();
        assert_eq!((calls.completions, calls.repeated, calls.errors), (3, 0, 0), "{way}: {calls:?}");
    }
}

#[tokio::test]
async fn another_provider_stands_in_and_the_next_worker_stays_with_it() {
    let (bed, gate) = (Bed::new().await, Gate::start().await);
    let busy = Model::start("rules: [{reply: {error: {status: 529, message: no room}}}]");
    let model = Model::start(&COURSE.replace("GATE", &format!("http://{}", gate.host())));
    let file = format!(
        "{}{}",
        format_args!(
            "[llm.providers.first]\nkind = \"anthropic\"\nbase_url = \"{}\"\napi_key = \"any\"\n",
            busy.base_url()
        ),
        provider("second", &model, WAYS[1]),
    );
    let worker = |id: &str| {
        let spec = bed.worker(id).file(&file).env("LLM_PROVIDER", "first").set("llm.fallback", "second");
        course(spec, &gate)
    };
    gate.open("first");
    let doomed = worker("w1").start().ready().await;
    bed.submit(&item("g", json!({"task": "the doors", "tools": ["http_request"], "llm_config": {}}))).await;
    gate.arrived("wait", 1).await;
    assert_eq!(busy.calls().requests, 1, "the second turn is asked of the provider that had the first");
    let _next = worker("w2").start().ready().await;
    doomed.kill();
    gate.arrived("wait", 2).await;
    gate.open("wait");
    let event = bed.ended(1).await.remove(0);
    let output = event.output();
    assert_eq!((&output["result"], &output["provider"], event.worker()), (&json!("through"), &json!("second"), "w2"));
    assert_eq!((busy.calls().requests, model.calls().completions), (1, 3));
}

#[tokio::test]
async fn a_node_names_its_providers_and_a_refusal_is_asked_of_no_other() {
    let bed = Bed::new().await;
    let script = "rules:\n  - match: {prompt: hello}\n    reply: {error: {status: 503}}\n  \
                  - match: {prompt: bad}\n    reply: {error: {status: 400, message: no}}\n";
    let (busy, model) = (Model::start(script), Model::start("rules: [{reply: {text: 'hi from {{ model }}'}}]"));
    let file = provider("one", &busy, WAYS[0]) + &provider("two", &model, WAYS[2]);
    let _worker = bed.worker("w1").file(&file).start().ready().await;
    let ask = |graph: &str, prompt: &str, names: Value| {
        item(graph, json!({"llm_config": {"prompt": prompt, "provider": names, "model": "m"}}))
    };
    bed.submit(&ask("stands-in", "hello", json!(["one", "two/special"]))).await;
    let event = bed.ended(1).await.remove(0);
    assert_eq!((&event.output()["content"], &event.output()["provider"]), (&json!("hi from special"), &json!("two")));
    let warning = event["metadata"]["warnings"][0].as_str().expect("it is told");
    assert!(warning.contains("two answered in the place of one (overloaded)"), "{warning}");

    bed.submit(&ask("refused", "bad", json!(["one", "two"]))).await;
    bed.submit(&ask("unknown", "hello", json!(["one", "too"]))).await;
    let failed = bed.ended(3).await;
    let code = |graph: &str| {
        let event = failed.iter().find(|event| event["graph_id"] == graph).expect("it failed");
        event["data"]["error_details"]["code"].clone()
    };
    assert_eq!((code("refused"), code("unknown")), (json!("invalid_request"), json!("unknown_provider")));
    assert_eq!(model.calls().requests, 1);
}
