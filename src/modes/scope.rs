//! What a node's templates can see: inputs and the other nodes, as exact keys and as the variables of an expression.
//! Reading the text of a template is [`template`](super::template)'s.

use std::sync::{Arc, LazyLock, Mutex, PoisonError};

use indexmap::IndexMap;
use minijinja::value::{Enumerator, Object, Serde};
use minijinja::{Environment, ErrorKind, UndefinedBehavior, Value as JinjaValue};
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use crate::domain::state::{NodeStatus, NodeView};
use crate::modes::template::TemplateError;

/// What one expression may use. One unit pays for an instruction, for two list members that a filter walks, or for
/// 64 bytes that an operator or filter makes (4 bytes of JSON), so this is 64 MB of memory and well below a second.
const FUEL: u64 = 1_000_000;

/// The deepest nesting a rendered value may have: consumers' JSON readers stop at 128, and the value is wrapped.
pub(super) const MAX_DEPTH: usize = 100;

/// One environment for all expressions: it holds the filters, tests and functions and never a template.
pub(super) static ENVIRONMENT: LazyLock<Environment<'static>> = LazyLock::new(|| {
    let mut environment = Environment::new();
    environment.set_undefined_behavior(UndefinedBehavior::Strict);
    environment.set_fuel(Some(FUEL));
    // Errors then know which part of the expression they are about.
    environment.set_debug(true);
    environment
});

/// What the templates of one node can see. Substituted values share one budget of bytes.
#[derive(Debug)]
pub struct Scope {
    view: Arc<View>,
}

#[derive(Debug)]
struct View {
    inputs: Map<String, Value>,
    nodes: IndexMap<String, NodeView>,
    limit: usize,
    trace: Mutex<Trace>,
}

/// What happened while an expression was evaluated; the engine's own errors do not tell it.
#[derive(Debug, Default)]
struct Trace {
    /// The last name that nothing stands for.
    missed: Option<String>,
    /// The first node whose output was asked for before it was there.
    withheld: Option<(String, NodeStatus)>,
    /// The first output that cannot be read.
    corrupt: Option<TemplateError>,
    /// Bytes substituted so far.
    used: usize,
}

impl Scope {
    /// A scope whose substitutions may have `limit` bytes in all.
    pub fn new(inputs: Map<String, Value>, nodes: IndexMap<String, NodeView>, limit: usize) -> Self {
        Self { view: Arc::new(View { inputs, nodes, limit, trace: Mutex::default() }) }
    }

    /// Lays further inputs over the others.
    pub fn lay_over(&mut self, more: Map<String, Value>) {
        let view = Arc::get_mut(&mut self.view).expect("only an expression that is being evaluated shares the view");
        view.inputs.extend(more);
    }

    /// The names of all inputs.
    pub fn input_names(&self) -> impl Iterator<Item = &str> {
        self.view.inputs.keys().map(String::as_str)
    }

    /// The value of an exact key: an input, else a node, which stands for its output.
    pub(super) fn exact(&self, key: &str) -> Option<Result<Value, TemplateError>> {
        if let Some(input) = self.view.inputs.get(key) {
            return Some(Ok(input.clone()));
        }
        let node = self.view.nodes.get(key)?;
        Some(match node.status() {
            NodeStatus::Completed => output(node).map_err(|reason| corrupt(key, &reason)),
            status => Err(TemplateError::NotCompleted { node: key.to_owned(), status }),
        })
    }

    /// The value of a compiled expression.
    pub(super) fn evaluate(
        &self,
        expression: &minijinja::Expression<'static, 'static>,
        source: &str,
    ) -> Result<Value, TemplateError> {
        {
            let mut trace = self.view.trace();
            trace.missed = None;
            trace.withheld = None;
            trace.corrupt = None;
        }
        let result = expression.eval(JinjaValue::from_object(Root(Arc::clone(&self.view)))).and_then(|value| {
            if value.is_undefined() {
                return Err(minijinja::Error::new(ErrorKind::UndefinedError, "the expression has no value"));
            }
            serde_json::to_value(&value)
                .map_err(|error| minijinja::Error::new(ErrorKind::BadSerialization, error.to_string()))
        });
        let mut trace = self.view.trace();
        let withheld = trace.withheld.take();
        let missed = trace.missed.take();
        let corrupt = trace.corrupt.take();
        drop(trace);
        if let Some(corrupt) = corrupt {
            return Err(corrupt);
        }
        match (result, withheld) {
            // A node that may still complete is never replaced by a default: that would hide a wrong order.
            (Ok(_), Some((node, status))) if may_complete(status) => Err(TemplateError::NotCompleted { node, status }),
            (Ok(value), _) => Ok(value),
            (Err(_), Some((node, status))) => Err(TemplateError::NotCompleted { node, status }),
            (Err(error), None) if error.kind() == ErrorKind::UndefinedError => {
                let name = error.range().and_then(|range| undefined_part(source, range));
                let name = name.map(ToOwned::to_owned).or(missed).unwrap_or_else(|| source.to_owned());
                Err(TemplateError::UnknownName { name })
            }
            (Err(error), None) => Err(TemplateError::Evaluation {
                expression: source.to_owned(),
                message: error.detail().map_or_else(|| error.kind().to_string(), ToOwned::to_owned),
            }),
        }
    }

    /// Counts `value` against the budget of substituted bytes and checks its depth.
    pub(super) fn charge(&self, value: &Value) -> Result<(), TemplateError> {
        let (bytes, depth) = measure(value);
        if depth > MAX_DEPTH {
            return Err(TemplateError::TooDeep);
        }
        let mut trace = self.view.trace();
        trace.used = trace.used.saturating_add(bytes);
        if trace.used > self.view.limit {
            return Err(TemplateError::TooLarge { limit: self.view.limit });
        }
        Ok(())
    }
}

impl View {
    fn trace(&self) -> std::sync::MutexGuard<'_, Trace> {
        self.trace.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn miss(&self, name: String) -> Option<JinjaValue> {
        self.trace().missed = Some(name);
        None
    }

    /// The output of a node, or nothing and a note why.
    fn output(&self, id: &str, node: &NodeView) -> Option<JinjaValue> {
        match node.status() {
            NodeStatus::Completed => match output(node) {
                Ok(value) => Some(value),
                Err(reason) => {
                    self.trace().corrupt.get_or_insert_with(|| corrupt(id, &reason));
                    None
                }
            },
            status => {
                self.trace().withheld.get_or_insert_with(|| (id.to_owned(), status));
                None
            }
        }
    }
}

/// The output of a completed node in the form that is needed. That it is JSON was seen when it was read; what still can
/// be wrong is a number or a character that nothing stands for, or a depth that nobody reads.
fn output<T: DeserializeOwned>(node: &NodeView) -> Result<T, serde_json::Error> {
    serde_json::from_str(node.output.as_ref().map_or("null", |output| output.get()))
}

fn corrupt(node: &str, reason: &serde_json::Error) -> TemplateError {
    TemplateError::CorruptOutput { node: node.to_owned(), reason: reason.to_string() }
}

/// The path in an expression that has no value, given the place of the error: the place itself with what stands in
/// front of it, or, where the place is a filter or a test, the path that it is applied to.
fn undefined_part(source: &str, place: std::ops::Range<usize>) -> Option<&str> {
    let is_path = |c: char| c.is_alphanumeric() || "_.[]\"'".contains(c);
    let before = source.get(..place.start)?.trim_end();
    let end = match before.strip_suffix('|').or_else(|| before.strip_suffix(" is")) {
        Some(operand) => operand.trim_end().len(),
        None if source.get(place.clone())?.chars().all(is_path) => place.end,
        None => return None,
    };
    let path = source[..end].rsplit(|c| !is_path(c)).next()?;
    (!path.is_empty()).then_some(path)
}

fn may_complete(status: NodeStatus) -> bool {
    match status {
        NodeStatus::Pending | NodeStatus::Running | NodeStatus::Waiting => true,
        NodeStatus::Completed | NodeStatus::Failed | NodeStatus::Cancelled | NodeStatus::Skipped => false,
    }
}

/// About how many bytes of JSON a value has, and how deep it is nested.
pub(super) fn measure(value: &Value) -> (usize, usize) {
    match value {
        Value::Null | Value::Bool(_) | Value::Number(_) => (8, 0),
        Value::String(text) => (text.len() + 2, 0),
        Value::Array(items) => items
            .iter()
            .map(measure)
            .fold((2, 1), |(bytes, depth), (inner, below)| (bytes + inner + 1, depth.max(below + 1))),
        Value::Object(members) => members.iter().fold((2, 1), |(bytes, depth), (name, value)| {
            let (inner, below) = measure(value);
            (bytes + name.len() + inner + 4, depth.max(below + 1))
        }),
    }
}

/// The variables of an expression. Values are converted only when they are looked up.
#[derive(Debug)]
struct Root(Arc<View>);

impl Object for Root {
    fn get_value(self: &Arc<Self>, key: &JinjaValue) -> Option<JinjaValue> {
        let name = key.as_str()?;
        match name {
            "inputs" => return Some(JinjaValue::from_object(Inputs(Arc::clone(&self.0)))),
            "nodes" => return Some(JinjaValue::from_object(Nodes(Arc::clone(&self.0)))),
            _ => {}
        }
        if let Some(input) = self.0.inputs.get(name) {
            return Some(JinjaValue::from(Serde(input)));
        }
        match self.0.nodes.get(name) {
            Some(node) => self.0.output(name, node),
            None => self.0.miss(name.to_owned()),
        }
    }
}

#[derive(Debug)]
struct Inputs(Arc<View>);

impl Object for Inputs {
    fn get_value(self: &Arc<Self>, key: &JinjaValue) -> Option<JinjaValue> {
        let name = key.as_str()?;
        match self.0.inputs.get(name) {
            Some(input) => Some(JinjaValue::from(Serde(input))),
            None => self.0.miss(format!("inputs.{name}")),
        }
    }

    fn enumerate(self: &Arc<Self>) -> Enumerator {
        Enumerator::Values(self.0.inputs.keys().map(|name| JinjaValue::from(name.as_str())).collect())
    }
}

#[derive(Debug)]
struct Nodes(Arc<View>);

impl Object for Nodes {
    fn get_value(self: &Arc<Self>, key: &JinjaValue) -> Option<JinjaValue> {
        let id = key.as_str()?;
        if !self.0.nodes.contains_key(id) {
            return self.0.miss(format!("nodes.{id}"));
        }
        Some(JinjaValue::from_object(Node { view: Arc::clone(&self.0), id: id.to_owned() }))
    }

    fn enumerate(self: &Arc<Self>) -> Enumerator {
        Enumerator::Values(self.0.nodes.keys().map(|id| JinjaValue::from(id.as_str())).collect())
    }
}

#[derive(Debug)]
struct Node {
    view: Arc<View>,
    id: String,
}

impl Object for Node {
    fn get_value(self: &Arc<Self>, key: &JinjaValue) -> Option<JinjaValue> {
        let node = self.view.nodes.get(&self.id)?;
        match key.as_str()? {
            "status" => Some(JinjaValue::from(node.status().as_str())),
            "output" => self.view.output(&self.id, node),
            other => self.view.miss(format!("nodes.{}.{other}", self.id)),
        }
    }

    fn enumerate(self: &Arc<Self>) -> Enumerator {
        match self.view.nodes.get(&self.id).map(NodeView::status) {
            Some(NodeStatus::Completed) => Enumerator::Str(&["output", "status"]),
            _ => Enumerator::Str(&["status"]),
        }
    }
}
