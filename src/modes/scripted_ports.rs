//! Ports that follow a script and remember what they were asked, for the tests of the modes.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::future::pending;
use std::num::{NonZeroU32, NonZeroUsize};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use serde_json::value::to_raw_value;
use serde_json::{Value, json};

use crate::config::AgentConfig;
use crate::domain::cancel::CancelOrder;
use crate::domain::event::EventType;
use crate::domain::ids::{EntryId, GraphId, WorkId};
use crate::domain::message::{AssistantTurn, Completion, StopReason, ToolUse, Usage};
use crate::domain::outcome::{Failure, Outcome, Report};
use crate::domain::state::{NodeView, Snapshot};
use crate::domain::tool::{ToolHints, ToolOutput, ToolSpec, ToolTarget};
use crate::domain::work::{Delivery, Meta, Token, WorkItem};
use crate::modes::{ModeSettings, run_node};
use crate::ports::{CallContext, Cancel, Events, Llm, LlmRequest, Opened, Ports, Store, ToolCall, Tools, Wanted};
use crate::retry::RetryPolicy;

/// The answer of one try of a tool.
pub type ToolAnswer = Result<ToolOutput, Failure>;

type ToolFn = Rc<dyn Fn(&Value) -> ToolAnswer>;

/// What one try of a model does.
pub enum LlmAct {
    /// It answers.
    Says(Completion),
    /// It fails.
    Fails(Failure),
    /// It never answers.
    Hangs,
}

struct ScriptedTool {
    spec: ToolSpec,
    delay: Duration,
    answer: ToolFn,
}

/// All ports in one.
#[derive(Default)]
pub struct Script {
    acts: RefCell<VecDeque<LlmAct>>,
    /// What the model was asked.
    pub requests: RefCell<Vec<LlmRequest>>,
    tools: Vec<ScriptedTool>,
    /// The tool calls, tries included, in the order in which they began.
    pub calls: RefCell<Vec<ToolCall>>,
    running: Cell<usize>,
    /// The most tool calls that ran at once.
    pub most_running: Cell<usize>,
    /// Told progress.
    pub events: RefCell<Vec<(EventType, Value)>>,
    inputs: Value,
    nodes: Value,
    config: Option<String>,
    status: Option<String>,
    duplicate: bool,
    order: Option<CancelOrder>,
    store_failures: RefCell<VecDeque<Failure>>,
    /// What was asked of the store.
    pub wanted: RefCell<Vec<Wanted>>,
}

impl Script {
    pub fn new() -> Self {
        Self { inputs: json!({}), nodes: json!({}), ..Self::default() }
    }

    /// Adds tries of the model.
    pub fn model(self, acts: impl IntoIterator<Item = LlmAct>) -> Self {
        self.acts.borrow_mut().extend(acts);
        self
    }

    /// Adds a tool whose arguments may be any object.
    pub fn tool(self, name: &str, answer: impl Fn(&Value) -> ToolAnswer + 'static) -> Self {
        self.tool_with(name, json!({"type": "object"}), Duration::ZERO, answer)
    }

    /// Adds a tool with a schema that takes its time.
    pub fn tool_with(
        mut self,
        name: &str,
        schema: Value,
        delay: Duration,
        answer: impl Fn(&Value) -> ToolAnswer + 'static,
    ) -> Self {
        let spec = ToolSpec {
            name: name.to_owned(),
            target: ToolTarget { server: Some(String::from("srv")), name: name.to_owned() },
            description: Some(format!("does {name}")),
            input_schema: Arc::new(schema),
            hints: ToolHints::default(),
        };
        self.tools.push(ScriptedTool { spec, delay, answer: Rc::new(answer) });
        self
    }

    /// Sets the graph's state.
    pub fn state(mut self, inputs: Value, nodes: Value) -> Self {
        self.inputs = inputs;
        self.nodes = nodes;
        self
    }

    /// Sets the node's configuration in the graph.
    pub fn graph_config(mut self, config: &Value) -> Self {
        self.config = Some(config.to_string());
        self
    }

    /// Sets the graph's status.
    pub fn status(mut self, status: &str) -> Self {
        self.status = Some(status.to_owned());
        self
    }

    /// Says that the run is somebody else's.
    pub fn duplicate(mut self) -> Self {
        self.duplicate = true;
        self
    }

    /// Says that somebody gave the order not to run it.
    pub fn cancelled(mut self, order: CancelOrder) -> Self {
        self.order = Some(order);
        self
    }

    /// Lets the first uses of the store fail.
    pub fn store_fails(self, failures: impl IntoIterator<Item = Failure>) -> Self {
        self.store_failures.borrow_mut().extend(failures);
        self
    }

    /// The data of the told events of a kind.
    pub fn told(&self, kind: EventType) -> Vec<Value> {
        self.events.borrow().iter().filter(|(told, _)| *told == kind).map(|(_, data)| data.clone()).collect()
    }

    /// Runs a node of this configuration.
    pub async fn run(&self, config: Value) -> Report {
        self.run_item(json!({"config": config})).await
    }

    /// Runs an item of these members.
    pub async fn run_item(&self, members: Value) -> Report {
        self.run_with(&settings(), members).await
    }

    /// Runs an item of these members under other settings.
    pub async fn run_with(&self, settings: &ModeSettings, members: Value) -> Report {
        run_node(self, settings, &delivery(members), &Cancel::new()).await
    }

    fn snapshot(&self, wanted: &Wanted) -> Snapshot {
        let nodes = self.nodes.as_object().expect("nodes are an object");
        let nodes = nodes
            .iter()
            .filter(|(id, _)| wanted.all_nodes || wanted.nodes.contains(id))
            .map(|(id, state)| (id.clone(), serde_json::from_value::<NodeView>(state.clone()).expect("a node state")));
        let inputs = if wanted.inputs { self.inputs.as_object().cloned() } else { None };
        Snapshot { inputs: inputs.unwrap_or_default(), nodes: nodes.collect() }
    }
}

impl Llm for Script {
    async fn complete(&self, request: LlmRequest) -> Result<Completion, Failure> {
        self.requests.borrow_mut().push(request);
        let act = self.acts.borrow_mut().pop_front().expect("the script has an act for every call of the model");
        match act {
            LlmAct::Says(completion) => Ok(completion),
            LlmAct::Fails(failure) => Err(failure),
            LlmAct::Hangs => pending().await,
        }
    }
}

impl Tools for Script {
    async fn find(&self, patterns: &[String], _: &CallContext) -> Result<Vec<ToolSpec>, Failure> {
        let all = patterns.iter().any(|pattern| pattern == "*");
        let found = self.tools.iter().filter(|tool| all || patterns.contains(&tool.spec.name));
        let found: Vec<ToolSpec> = found.map(|tool| tool.spec.clone()).collect();
        if found.is_empty() {
            return Err(Failure::configuration("unknown_tool", format!("nobody offers {patterns:?}")));
        }
        Ok(found)
    }

    async fn call(&self, call: ToolCall) -> ToolAnswer {
        let tool = self.tools.iter().find(|tool| tool.spec.target == call.target).expect("a scripted tool");
        let arguments = json!(*call.arguments);
        self.calls.borrow_mut().push(call);
        self.running.set(self.running.get() + 1);
        self.most_running.set(self.most_running.get().max(self.running.get()));
        tokio::time::sleep(tool.delay).await;
        self.running.set(self.running.get() - 1);
        (tool.answer)(&arguments)
    }
}

impl Store for Script {
    async fn open(&self, _: &Arc<Delivery>, wanted: &Wanted) -> Result<Opened, Failure> {
        self.wanted.borrow_mut().push(wanted.clone());
        if let Some(failure) = self.store_failures.borrow_mut().pop_front() {
            return Err(failure);
        }
        if self.duplicate {
            return Ok(Opened::Duplicate);
        }
        if let Some(order) = &self.order {
            return Ok(Opened::Cancelled(order.clone()));
        }
        Ok(Opened::Ready {
            snapshot: self.snapshot(wanted),
            config: if wanted.config { self.config.clone() } else { None },
            status: self.status.clone(),
        })
    }

    async fn read(&self, _: &GraphId, wanted: &Wanted) -> Result<Snapshot, Failure> {
        self.wanted.borrow_mut().push(wanted.clone());
        Ok(self.snapshot(wanted))
    }

    async fn node_ids(&self, _: &GraphId) -> Result<Vec<String>, Failure> {
        Ok(self.nodes.as_object().expect("nodes are an object").keys().cloned().collect())
    }
}

impl Events for Script {
    fn progress(&self, _: &Arc<Delivery>, kind: EventType, data: Value) {
        self.events.borrow_mut().push((kind, data));
    }
}

impl Ports for Script {
    type Llm = Self;
    type Tools = Self;
    type Store = Self;
    type Events = Self;

    fn llm(&self) -> &Self {
        self
    }
    fn tools(&self) -> &Self {
        self
    }
    fn store(&self) -> &Self {
        self
    }
    fn events(&self) -> &Self {
        self
    }
}

/// Settings with small limits.
pub fn settings() -> ModeSettings {
    ModeSettings {
        strict: false,
        retry: RetryPolicy {
            max_attempts: NonZeroU32::new(3).expect("3 is not zero"),
            initial: Duration::from_millis(500),
            max: Duration::from_secs(30),
        },
        node_timeout: Duration::from_secs(60),
        agent: AgentConfig {
            max_iterations: NonZeroU32::new(10).expect("10 is not zero"),
            max_tool_calls: 50,
            parallel_tools: NonZeroUsize::new(4).expect("4 is not zero"),
            finalize: false,
        },
        output_limit: 10_000,
        tool_result_chars: 100,
    }
}

/// A delivery of an item with these members beside its ids.
pub fn delivery(mut members: Value) -> Arc<Delivery> {
    members["graph_id"] = json!("g");
    members["node_id"] = json!("n");
    members["run_id"] = json!("r");
    let entry = EntryId::new("5-0");
    Arc::new(Delivery {
        stream: Arc::from("executor.work"),
        token: Token { consumer: Arc::from("w-1"), deliveries: 1 },
        meta: Meta::default(),
        crashes: 0,
        work_id: WorkId::new("executor.work", &entry),
        item: WorkItem::parse(members.to_string().as_bytes(), "executor.work", &entry).expect("a valid item"),
        entry,
    })
}

/// A turn of the model.
pub fn turn(text: &str, uses: &[(&str, Value)], stop_reason: StopReason) -> LlmAct {
    let tool_uses: Vec<ToolUse> = uses
        .iter()
        .enumerate()
        .map(|(index, (name, input))| ToolUse {
            id: format!("use-{index}"),
            name: (*name).to_owned(),
            input: input.as_object().expect("arguments are an object").clone(),
        })
        .collect();
    let mut raw: Vec<Value> = tool_uses.iter().map(|tool_use| json!({"type": "tool_use", "id": tool_use.id})).collect();
    if !text.is_empty() {
        raw.insert(0, json!({"type": "text", "text": text}));
    }
    LlmAct::Says(Completion {
        turn: AssistantTurn { raw: to_raw_value(&raw).expect("JSON"), text: text.to_owned(), tool_uses },
        stop_reason,
        model: String::from("scripted-1"),
        usage: Usage { input_tokens: 10, output_tokens: 5, cache_read_tokens: 2, cache_write_tokens: 1 },
        request_id: None,
        warnings: Vec::new(),
    })
}

/// The model ends with this text.
pub fn says(text: &str) -> LlmAct {
    turn(text, &[], StopReason::EndTurn)
}

/// The model wants these tools.
pub fn wants(uses: &[(&str, Value)]) -> LlmAct {
    turn("", uses, StopReason::ToolUse)
}

/// A tool's answer in one text.
pub fn text_output(text: &str) -> ToolOutput {
    ToolOutput { content: vec![json!({"type": "text", "text": text})], ..ToolOutput::default() }
}

/// The output of a completed node.
pub fn output(report: &Report) -> Value {
    match &report.outcome {
        Outcome::Completed { output, .. } => serde_json::from_str(output.get()).expect("JSON"),
        other => panic!("the node did not complete: {other:?}"),
    }
}

/// The failure of a failed node.
pub fn failure(report: &Report) -> &Failure {
    match &report.outcome {
        Outcome::Failed { failure, .. } => failure,
        other => panic!("the node did not fail: {other:?}"),
    }
}

/// The category and the code of a failed node.
pub fn code(report: &Report) -> (&'static str, &str) {
    let failure = failure(report);
    (failure.category.as_str(), failure.code.as_ref())
}
