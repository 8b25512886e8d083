//! Ports that follow a script and remember what they were asked, for the tests of the modes.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, HashMap, VecDeque};
use std::future::pending;
use std::num::{NonZeroU32, NonZeroUsize};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use serde_json::value::{RawValue, to_raw_value};
use serde_json::{Value, json};

use crate::config::{AgentConfig, Config};
use crate::domain::blob::BlobRef;
use crate::domain::cancel::CancelOrder;
use crate::domain::event::EventType;
use crate::domain::ids::{EntryId, GraphId, WorkId};
use crate::domain::journal::{CallId, HEADER, JournalEntry, said_field};
use crate::domain::message::{AssistantTurn, Completion, StopReason, ToolUse, Turn, Usage};
use crate::domain::node::LlmConfig;
use crate::domain::outcome::{Failure, Outcome, Report};
use crate::domain::state::{NodeView, Snapshot};
use crate::domain::task::{self, Pace, Task, TaskNews};
use crate::domain::tool::{Arguments, ToolHints, ToolOutput, ToolSpec, ToolTarget};
use crate::domain::wait::{Ask, Said};
use crate::domain::work::{Delivery, Meta, Token, WorkItem};
use crate::modes::unknown::UnknownOutcomes;
use crate::modes::{ModeSettings, give_up_tasks, run_node};
use crate::ports::{
    Appended, Away, Cancel, Events, Found, Journal, Llm, LlmRequest, Opened, Ports, Route, Store, ToolCall, Tools,
    Wanted,
};
use crate::retry::RetryPolicy;

/// The answer of one try of a tool.
pub type ToolAnswer = Result<ToolOutput, Failure>;

/// What looks at a task find, one after the other.
type Looks = VecDeque<Result<TaskNews, Failure>>;

type ToolFn = Rc<dyn Fn(&Value) -> ToolAnswer>;

/// What one try of a model does.
pub enum LlmAct {
    /// It answers.
    Says(Box<Completion>),
    /// It fails.
    Fails(Failure),
    /// It never answers.
    Hangs,
}

/// When the worker dies: at this append, counted from 1 over its life, before or after it is written.
#[derive(Debug, Clone, Copy)]
pub enum Death {
    /// What was done is not on record.
    Before(usize),
    /// What was done is on record, and nothing followed from it.
    After(usize),
}

/// The journal of the one node. It outlives the runs of a script as it outlives workers.
#[derive(Default)]
pub struct ScriptedJournal {
    fields: RefCell<BTreeMap<String, String>>,
    /// The entries in the order in which they were written, over all lives.
    pub written: RefCell<Vec<JournalEntry>>,
    appends: Cell<usize>,
    death: Cell<Option<Death>>,
    dead: Cell<bool>,
    died: tokio::sync::Notify,
    /// Answers before the real ones.
    answers: RefCell<VecDeque<Result<Appended, Failure>>>,
}

impl ScriptedJournal {
    fn fields(&self) -> Vec<(String, Vec<u8>)> {
        self.fields.borrow().iter().map(|(name, value)| (name.clone(), value.clone().into_bytes())).collect()
    }

    /// The names of the fields.
    pub fn names(&self) -> Vec<String> {
        self.fields.borrow().keys().cloned().collect()
    }

    /// A field, JSON.
    pub fn field(&self, name: &str) -> Value {
        serde_json::from_str(&self.fields.borrow()[name]).expect("JSON")
    }

    /// Replaces a field, or puts it in.
    pub fn put(&self, name: &str, value: &Value) {
        self.fields.borrow_mut().insert(name.to_owned(), value.to_string());
    }

    async fn alive(&self) {
        if self.dead.get() {
            pending().await
        }
    }

    async fn die(&self) -> ! {
        self.dead.set(true);
        self.died.notify_one();
        pending().await
    }
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
    by_turn: Option<Rc<dyn Fn(usize) -> LlmAct>>,
    /// What the model was asked.
    pub requests: RefCell<Vec<LlmRequest>>,
    tools: Vec<ScriptedTool>,
    warnings: Vec<String>,
    /// The tool calls, tries included, in the order in which they began.
    pub calls: RefCell<Vec<ToolCall>>,
    /// What becomes of the tasks of tools whose calls become tasks, look by look.
    tasks: RefCell<HashMap<String, (Pace, Looks)>>,
    /// The looks at tasks, by tool and task.
    pub looks: RefCell<Vec<(String, String)>>,
    /// What the calls of these tasks were said to be called with.
    pub looked_with: RefCell<Vec<Arc<Arguments>>>,
    /// Tasks that were given up.
    pub given_up: RefCell<Vec<String>>,
    running: Cell<usize>,
    /// The most tool calls that ran at once.
    pub most_running: Cell<usize>,
    /// What the model tells while it writes, before each of its answers.
    pub told_early: Vec<&'static str>,
    /// Whether the model has no price.
    pub priceless: bool,
    /// Whether there is a place for whole results of tools.
    pub keeps: bool,
    /// Told progress.
    pub events: RefCell<Vec<(EventType, Value)>>,
    inputs: Value,
    nodes: Value,
    config: Option<String>,
    status: Option<String>,
    /// The node's journal.
    pub journal: ScriptedJournal,
    duplicate: bool,
    order: Option<CancelOrder>,
    /// A tool that is searched in vain, and how often yet.
    away: Cell<usize>,
    away_tool: Option<(String, Failure)>,
    store_failures: RefCell<VecDeque<Failure>>,
    /// What was asked of the store.
    pub wanted: RefCell<Vec<Wanted>>,
    /// Conversations of the graph by name, JSON.
    pub sessions: RefCell<HashMap<String, String>>,
    blobs: HashMap<String, Option<Value>>,
    /// Nodes whose large outputs were fetched.
    pub fetched: RefCell<Vec<String>>,
}

impl Script {
    pub fn new() -> Self {
        Self { inputs: json!({}), nodes: json!({}), keeps: true, ..Self::default() }
    }

    /// Adds tries of the model.
    pub fn model(self, acts: impl IntoIterator<Item = LlmAct>) -> Self {
        self.acts.borrow_mut().extend(acts);
        self
    }

    /// Sets what the model does by how many turns it has had, whoever asks.
    pub fn model_by_turn(mut self, act: impl Fn(usize) -> LlmAct + 'static) -> Self {
        self.by_turn = Some(Rc::new(act));
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

    /// Adds a tool whose calls become tasks, and what looks at them find.
    pub fn task(self, name: &str, pace: Pace, looks: impl IntoIterator<Item = Result<TaskNews, Failure>>) -> Self {
        self.tasks.borrow_mut().insert(name.to_owned(), (pace, looks.into_iter().collect()));
        self.tool(name, |_| unreachable!("its calls become tasks"))
    }

    /// Lets the server of a tool be away for the first searches.
    pub fn away(mut self, tool: &str, failure: Failure, searches: usize) -> Self {
        self.away = Cell::new(searches);
        self.away_tool = Some((tool.to_owned(), failure));
        self
    }

    /// Warns whoever looks for tools.
    pub fn warning(mut self, words: &str) -> Self {
        self.warnings.push(words.to_owned());
        self
    }

    /// Changes the schema of the tool that was added last.
    pub fn taking(mut self, schema: Value) -> Self {
        self.tools.last_mut().expect("a tool was added").spec.input_schema = Arc::new(schema);
        self
    }

    /// Changes what is said of the effects of the tool that was added last.
    pub fn hinting(mut self, hints: ToolHints) -> Self {
        self.tools.last_mut().expect("a tool was added").spec.hints = hints;
        self
    }

    /// Goes on with the journal of another script.
    pub fn after(mut self, other: Self) -> Self {
        self.journal = other.journal;
        self
    }

    /// Lets the first appends be answered like this.
    pub fn appends(self, answers: impl IntoIterator<Item = Result<Appended, Failure>>) -> Self {
        self.journal.answers.borrow_mut().extend(answers);
        self
    }

    /// Stores a large output; without one the key is somebody else's.
    pub fn blob(mut self, key: &str, value: Option<Value>) -> Self {
        self.blobs.insert(key.to_owned(), value);
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
        self.ended(run_node(self, settings, &delivery(members), &Cancel::new()).await).await
    }

    /// The end of a node is written, and its tasks are given up as they are by whoever ran it.
    pub async fn ended(&self, mut report: Report) -> Report {
        give_up_tasks(self, std::mem::take(&mut report.tasks)).await;
        report
    }

    /// Runs a node of this configuration on a worker that dies. The next run takes it over.
    pub async fn dies(&self, death: Death, config: Value) {
        self.journal.appends.set(0);
        self.journal.death.set(Some(death));
        tokio::select! {
            biased;
            report = self.run(config) => panic!("the node ended before its worker died at {death:?}: {report:?}"),
            () = self.journal.died.notified() => {}
        }
        self.journal.death.set(None);
        self.journal.dead.set(false);
        self.running.set(0);
    }

    fn snapshot(&self, wanted: &Wanted) -> Snapshot {
        let nodes = self.nodes.as_object().expect("nodes are an object");
        let nodes = nodes
            .iter()
            .filter(|(id, _)| wanted.all_nodes || wanted.nodes.contains(id))
            .map(|(id, state)| (id.clone(), serde_json::from_value::<NodeView>(state.clone()).expect("a node state")));
        let inputs = if wanted.inputs { self.inputs.as_object().cloned() } else { None };
        let session = wanted.session.as_ref().and_then(|name| self.sessions.borrow().get(name).cloned());
        let session = session.map(|json| RawValue::from_string(json).expect("a session is JSON"));
        Snapshot { inputs: inputs.unwrap_or_default(), nodes: nodes.collect(), session }
    }
}

impl Llm for Script {
    fn routes(&self, settings: &Arc<LlmConfig>) -> Result<Vec<Route>, Failure> {
        let named = settings.provider.iter().map(String::as_str);
        let named = if settings.provider.is_empty() { vec!["scripted"] } else { named.collect() };
        let route = |name: &str| {
            let settings = LlmConfig { provider: vec![name.to_owned()], ..LlmConfig::clone(settings) };
            Route { provider: Arc::from(name), settings: Arc::new(settings) }
        };
        Ok(named.into_iter().map(route).collect())
    }

    fn priced(&self, _: &LlmConfig) -> bool {
        !self.priceless
    }

    async fn complete(&self, request: LlmRequest) -> Result<Completion, Failure> {
        self.journal.alive().await;
        let had = request.turns.iter().filter(|turn| matches!(***turn, Turn::Assistant(_))).count();
        if let Some(deltas) = &request.deltas {
            deltas.begin();
            for text in &self.told_early {
                deltas.text(text);
                tokio::time::sleep(Duration::from_millis(150)).await;
            }
        }
        self.requests.borrow_mut().push(request);
        let act = match &self.by_turn {
            Some(act) => act(had),
            None => self.acts.borrow_mut().pop_front().expect("the script has an act for every call of the model"),
        };
        match act {
            LlmAct::Says(completion) => Ok(*completion),
            LlmAct::Fails(failure) => Err(failure),
            LlmAct::Hangs => pending().await,
        }
    }
}

impl Tools for Script {
    async fn find(&self, patterns: &[String], _: std::time::Instant) -> Result<Found, Failure> {
        let all = patterns.iter().any(|pattern| pattern == "*");
        let found = self.tools.iter().filter(|tool| all || patterns.contains(&tool.spec.name));
        let found: Vec<ToolSpec> = found.map(|tool| tool.spec.clone()).collect();
        let away = self.away_tool.as_ref().filter(|_| self.away.get() > 0);
        self.away.set(self.away.get().saturating_sub(1));
        let found: Vec<ToolSpec> =
            found.into_iter().filter(|spec| away.is_none_or(|(tool, _)| *tool != spec.name)).collect();
        let away = away.map(|(_, failure)| Away { server: String::from("srv"), failure: failure.clone() });
        let away = away.into_iter().collect();
        if found.is_empty() {
            return Err(Failure::configuration("unknown_tool", format!("nobody offers {patterns:?}")));
        }
        Ok(Found { tools: found, warnings: self.warnings.clone(), away })
    }

    async fn call(&self, call: ToolCall) -> Result<task::ToolAnswer, Failure> {
        let tool = self.tools.iter().find(|tool| tool.spec.target == call.target).expect("a scripted tool");
        self.journal.alive().await;
        let arguments = json!(*call.arguments);
        let pace = self.tasks.borrow().get(&call.target.name).map(|(pace, _)| *pace);
        self.calls.borrow_mut().push(call);
        if let Some(pace) = pace {
            let id = format!("task-{}", self.calls.borrow().len());
            return Ok(task::ToolAnswer::Task(Task::new(id, pace, jiff::Timestamp::now())));
        }
        self.running.set(self.running.get() + 1);
        self.most_running.set(self.most_running.get().max(self.running.get()));
        tokio::time::sleep(tool.delay).await;
        self.running.set(self.running.get() - 1);
        (tool.answer)(&arguments).map(Into::into)
    }

    async fn look(&self, call: ToolCall, task: Task) -> Result<TaskNews, Failure> {
        self.journal.alive().await;
        let tool = call.target.name;
        self.looks.borrow_mut().push((tool.clone(), task.id));
        self.looked_with.borrow_mut().push(call.arguments);
        let mut tasks = self.tasks.borrow_mut();
        let (_, looks) = tasks.get_mut(&tool).expect("a tool whose calls become tasks");
        looks.pop_front().expect("the script has news for every look")
    }

    async fn give_up(&self, _: &ToolTarget, task: &str) {
        self.given_up.borrow_mut().push(task.to_owned());
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
            return Ok(Opened::Cancelled { order: order.clone(), journal: self.journal.fields() });
        }
        Ok(Opened::Ready {
            snapshot: self.snapshot(wanted),
            config: if wanted.config { self.config.clone() } else { None },
            status: self.status.clone(),
            journal: self.journal.fields(),
        })
    }

    async fn read(&self, _: &GraphId, wanted: &Wanted) -> Result<Snapshot, Failure> {
        self.wanted.borrow_mut().push(wanted.clone());
        Ok(self.snapshot(wanted))
    }

    async fn blob(&self, _: &GraphId, node: &str, blob: &BlobRef) -> Result<Option<Box<RawValue>>, Failure> {
        self.fetched.borrow_mut().push(node.to_owned());
        match self.blobs.get(&blob.key) {
            Some(value) => Ok(value.as_ref().map(|value| to_raw_value(value).expect("JSON"))),
            None => Err(Failure::validation("blob_missing", "it is gone")),
        }
    }

    async fn node_ids(&self, _: &GraphId) -> Result<Vec<String>, Failure> {
        Ok(self.nodes.as_object().expect("nodes are an object").keys().cloned().collect())
    }
}

impl Journal for Script {
    fn place(&self, _: &Delivery, call: CallId) -> Option<String> {
        self.keeps.then(|| format!("blob:{call}"))
    }

    async fn append(&self, _: &Arc<Delivery>, entry: &Arc<JournalEntry>) -> Result<Appended, Failure> {
        let journal = &self.journal;
        journal.alive().await;
        if let Some(answer) = journal.answers.borrow_mut().pop_front() {
            return answer;
        }
        journal.appends.set(journal.appends.get() + 1);
        let at = journal.appends.get();
        match journal.death.get() {
            Some(Death::Before(death)) if death == at => journal.die().await,
            _ => {}
        }
        {
            let mut fields = journal.fields.borrow_mut();
            if entry.restart {
                fields.clear();
            }
            fields.insert(String::from(HEADER), entry.header.clone());
            fields.insert(entry.field.clone(), entry.value.clone());
            journal.written.borrow_mut().push(JournalEntry::clone(entry));
        }
        match journal.death.get() {
            Some(Death::After(death)) if death == at => journal.die().await,
            _ => Ok(Appended::Done),
        }
    }

    async fn lapse(&self, ask: &Arc<Ask>, said: &Said) -> Result<(), Failure> {
        self.journal.put(&said_field(&ask.wait_id), &json!(said));
        Ok(())
    }
}

impl Events for Script {
    fn wants(&self, kind: EventType) -> bool {
        kind != EventType::LlmDelta || !self.told_early.is_empty()
    }

    fn progress(&self, _: &Arc<Delivery>, kind: EventType, data: Value) {
        self.events.borrow_mut().push((kind, data));
    }
}

impl Ports for Script {
    type Llm = Self;
    type Tools = Self;
    type Store = Self;
    type Journal = Self;
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
    fn journal(&self) -> &Self {
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
        park_after: None,
        node_timeout: Duration::from_secs(60),
        attempt_timeout: None,
        queue_age: None,
        agent: AgentConfig {
            max_iterations: NonZeroU32::new(10).expect("10 is not zero"),
            max_tool_calls: 50,
            parallel_tools: NonZeroUsize::new(4).expect("4 is not zero"),
            finalize: false,
        },
        output_limit: 10_000,
        tool_result_chars: 100,
        stored_tool_result: 20 << 20,
        unknown_outcomes: UnknownOutcomes::from(&Config::default().tools),
        approve: Arc::default(),
        wait: Config::default().wait,
        tool_schemas: Arc::default(),
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
            problem: None,
        })
        .collect();
    let mut raw: Vec<Value> = tool_uses.iter().map(|tool_use| json!({"type": "tool_use", "id": tool_use.id})).collect();
    if !text.is_empty() {
        raw.insert(0, json!({"type": "text", "text": text}));
    }
    LlmAct::Says(Box::new(Completion {
        turn: AssistantTurn { raw: to_raw_value(&raw).expect("JSON"), text: text.to_owned(), tool_uses, author: None },
        stop_reason,
        model: String::from("scripted-1"),
        provider: None,
        usage: Usage { input_tokens: 10, output_tokens: 5, cache_read_tokens: 2, cache_write_tokens: 1, cost: None },
        request_id: None,
        warnings: Vec::new(),
        shortened: 0,
    }))
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
