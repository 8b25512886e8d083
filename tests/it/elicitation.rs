//! Tools that ask a person in the middle of a call, in both eras of the protocol: the node waits, and goes on with the
//! answer.

use std::sync::{Arc, Mutex};

use serde_json::{Value, json};
use wiremock::matchers::{body_partial_json, method};
use wiremock::{Mock, MockServer, Request, ResponseTemplate};

use crate::harness::bed::Bed;
use crate::harness::eventually;
use crate::harness::mcp;
use crate::harness::model::Model;
use crate::harness::worker::Worker;

/// The one open question, as its event told it.
async fn asked(bed: &Bed) -> Value {
    eventually("a question", async || {
        let open: usize = bed.ask(&["HLEN", &bed.key("waits")]).await;
        (open == 1).then_some(())
    })
    .await;
    let entries = bed.entries(&bed.key("events:node.input_required")).await;
    serde_json::from_slice(&entries.last().expect("an event")[0].1).expect("JSON")
}

async fn decide(bed: &Bed, event: &Value, decision: Value) {
    let mut members = json!({"wait_id": event["data"]["wait_id"], "by": "ann"});
    members.as_object_mut().expect("an object").extend(decision.as_object().expect("an object").clone());
    let ids = ["graph_id", "node_id", "run_id"].map(|id| (id, event[id].clone()));
    let mut item: Value = ids.into_iter().map(|(id, value)| (id.to_owned(), value)).collect();
    item["decision"] = members;
    bed.submit(&item).await;
}

async fn refused(bed: &Bed) -> Value {
    let stream = bed.key("events:node.decision");
    let answer = eventually("an answer", async || bed.entries(&stream).await.pop()).await;
    serde_json::from_slice::<Value>(&answer[0].1).expect("JSON")["data"]["code"].clone()
}

fn item(node: &str, config: Value) -> Value {
    json!({"graph_id": "g", "node_id": node, "run_id": format!("run-{node}"), "config": config, "inputs": {}})
}

fn waiting(lines: String) -> String {
    lines + "elicitation = \"wait\"\n"
}

async fn started(bed: &Bed, file: &str) -> Worker {
    bed.worker("w1").set("retry.park_after", "100ms").file(file).start().ready().await
}

#[tokio::test]
async fn a_tool_of_the_era_of_sessions_gets_the_answer_of_a_person() {
    let bed = Bed::new().await;
    let worker = started(&bed, &waiting(mcp::stdio("air", &mcp::fastmcp(), &["stdio"]))).await;
    bed.submit(&item("n", json!({"tool_name": "air/book", "tool_params": {"flight": "LH 7"}}))).await;
    let event = asked(&bed).await;
    let data = &event["data"];
    assert_eq!((&data["kind"], &data["message"]), (&json!("elicitation"), &json!("Which seat on LH 7?")));
    assert_eq!((&data["asked_by"]["name"], &data["tool"]), (&json!("air"), &json!("air/book")));
    assert_eq!(data["schema"]["properties"]["seat"]["type"], "string");
    bed.settled().await;
    assert_eq!(worker.metric("executor_items_in_flight", &[]).await, 0.0, "nothing is held while a person thinks");
    let wait_id = data["wait_id"].as_str().expect("a name");
    let edit = bed.worker("cli").argument("approve").argument(wait_id).argument("--edit").argument("{}").start();
    let (code, text) = edit.ends().await;
    assert!(code == Some(2) && text.contains("--content"), "arguments are no answer: {text}");
    decide(&bed, &event, json!({"action": "accept", "content": {"seat": 12}})).await;
    assert_eq!(refused(&bed).await, "content_invalid");
    decide(&bed, &event, json!({"action": "accept", "content": {"seat": "12A"}})).await;
    let event = bed.ended(1).await.remove(0);
    assert!(event.output().to_string().contains("booked 12A with none"), "{}", event.output());
    assert_eq!(event["metadata"]["decisions"][0]["kind"], "elicitation");

    bed.submit(&item("m", json!({"tool_name": "air/book", "tool_params": {"flight": "LH 8"}}))).await;
    let question = asked(&bed).await;
    decide(&bed, &question, json!({"action": "decline"})).await;
    let events = bed.ended(2).await;
    let end = events.iter().find(|event| event["node_id"] == "m").expect("it ended");
    assert!(end.output().to_string().contains("not booked: decline"), "{}", end.output());
}

fn body(request: &Request) -> Value {
    serde_json::from_slice(&request.body).expect("requests are JSON")
}

/// A server of the modern era with a tool that wants a person's signature on a page, and a name.
async fn modern(calls: Arc<Mutex<Vec<Value>>>) -> MockServer {
    let server = MockServer::start().await;
    let answer = |request: &Request, result: Value| {
        ResponseTemplate::new(200).set_body_json(json!({"jsonrpc": "2.0", "id": body(request)["id"], "result": result}))
    };
    let on = async |what: &str, respond: Box<dyn Fn(&Request) -> ResponseTemplate + Send + Sync>| {
        let asks = body_partial_json(json!({ "method": what }));
        Mock::given(method("POST")).and(asks).respond_with(respond).mount(&server).await;
    };
    let discovered =
        json!({"resultType": "complete", "supportedVersions": ["2026-07-28"], "capabilities": {"tools": {}}});
    on("server/discover", Box::new(move |request| answer(request, discovered.clone()))).await;
    let tools = json!({"resultType": "complete", "tools": [{"name": "sign", "inputSchema": {"type": "object"}}]});
    on("tools/list", Box::new(move |request| answer(request, tools.clone()))).await;
    let asked = json!({"resultType": "input_required", "requestState": "state-1", "inputRequests": {
        "page": {"method": "elicitation/create", "params": {
            "mode": "url", "message": "Sign here", "url": "https://sign.example/1", "elicitationId": "e-1"}},
        "name": {"method": "elicitation/create", "params": {
            "message": "Who signs?", "requestedSchema": {"type": "object", "required": ["name"],
                "properties": {"name": {"type": "string"}, "title": {"type": "string", "default": "Dr"}}}}},
    }});
    let respond = move |request: &Request| {
        let params = body(request)["params"].clone();
        calls.lock().expect("free").push(params.clone());
        match params.get("inputResponses") {
            None => answer(request, asked.clone()),
            Some(responses) => {
                let text = format!("{responses} {}", params["requestState"]);
                let content = json!([{"type": "text", "text": text}]);
                answer(request, json!({"resultType": "complete", "content": content}))
            }
        }
    };
    on("tools/call", Box::new(respond)).await;
    server
}

#[tokio::test]
async fn a_tool_of_the_modern_era_ends_its_call_with_questions_and_is_called_again_with_the_answers() {
    let bed = Bed::new().await;
    let calls = Arc::new(Mutex::new(Vec::new()));
    let server = modern(Arc::clone(&calls)).await;
    let script = "rules:\n  - replies:\n      - tool_calls: [{name: sign, input: {}}]\n      - {text: signed}\n";
    let model = Model::start(script);
    let file = waiting(format!("[mcp.servers.desk]\nurl = \"{}\"\n", server.uri()));
    let spec = bed.worker_with_model("w1", &model).set("retry.park_after", "100ms").file(&file);
    let _worker = spec.start().ready().await;
    bed.submit(&item("n", json!({"task": "Have it signed", "tools": ["desk/*"], "llm_config": {}}))).await;
    // One after the other, as the client comes to them.
    let mut modes = Vec::new();
    for _ in 0..2 {
        let event = asked(&bed).await;
        let by_url = event["data"]["url"] == "https://sign.example/1";
        modes.push(by_url);
        let content = if by_url { json!({}) } else { json!({"name": "Ann"}) };
        decide(&bed, &event, json!({"action": "accept", "content": content})).await;
        eventually("it is answered", async || {
            let answered = bed.entries(&bed.key("events:node.decision")).await;
            (answered.len() == modes.len()).then_some(())
        })
        .await;
    }
    modes.sort_unstable();
    assert_eq!(modes, [false, true], "a form and a page");
    let event = bed.ended(1).await.remove(0);
    assert_eq!(event.output()["result"], "signed");
    let last = calls.lock().expect("free").last().cloned().expect("a call");
    assert_eq!(last["requestState"], "state-1");
    assert_eq!(last["inputResponses"]["page"], json!({"action": "accept"}));
    let form = json!({"action": "accept", "content": {"name": "Ann", "title": "Dr"}});
    assert_eq!(last["inputResponses"]["name"], form, "with the default of what nobody gave");
    let seen = model.calls();
    assert_eq!((seen.completions, seen.repeated), (2, 0));
}
