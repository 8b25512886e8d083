//! Templates: `{{ … }}` in strings, first an exact key, else a Jinja expression. What the names stand for is
//! [`scope`](super::scope)'s; which ones there are is [`names`](super::names)'s.

use minijinja::Expression;
use serde_json::{Map, Value};

use crate::domain::outcome::Failure;
use crate::domain::state::NodeStatus;
use crate::modes::names::{Names, is_word, split_word};
use crate::modes::scope::{ENVIRONMENT, Scope};

/// Ends of one `{{` that are tried: an expression may hold `}}` itself, in a string or after an object.
const MAX_ENDS: usize = 16;

/// Jinja's statements, which would otherwise reach a model as text without anybody noticing.
const STATEMENTS: &[&str] = &[
    "if",
    "elif",
    "else",
    "endif",
    "for",
    "endfor",
    "set",
    "endset",
    "block",
    "endblock",
    "extends",
    "include",
    "import",
    "from",
    "macro",
    "endmacro",
    "call",
    "endcall",
    "filter",
    "endfilter",
    "with",
    "endwith",
    "do",
    "autoescape",
    "endautoescape",
    "endraw",
];

/// Why a template cannot be rendered.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum TemplateError {
    /// The text is not a template.
    #[error("the template `{text}` cannot be read: {message}")]
    Syntax {
        /// The place.
        text: String,
        /// What is wrong there.
        message: String,
    },
    /// Nothing has this name.
    #[error("the template names `{name}`, which does not exist")]
    UnknownName {
        /// The name.
        name: String,
    },
    /// The node exists but has no output yet, or never will.
    #[error(
        "the template names node `{node}`, whose status is `{}` and not `completed`; run it first, or add it to this node's dependencies",
        status.as_str()
    )]
    NotCompleted {
        /// The node.
        node: String,
        /// How far it has come.
        status: NodeStatus,
    },
    /// The node's output was written by somebody who writes what cannot be read.
    #[error("the output of node `{node}` in the state cannot be read: {reason}")]
    CorruptOutput {
        /// The node.
        node: String,
        /// What is wrong with it.
        reason: String,
    },
    /// The expression does not fit its values.
    #[error("the template expression `{expression}` failed: {message}")]
    Evaluation {
        /// The expression.
        expression: String,
        /// Why.
        message: String,
    },
    /// The substituted values are too large together.
    #[error(
        "the node's templates substitute more than {limit} bytes (`limits.output`); name smaller parts of the values"
    )]
    TooLarge {
        /// The limit in bytes.
        limit: usize,
    },
    /// A substituted value is nested too deep to be read by others.
    #[error(
        "a value that the node's templates substitute is nested deeper than {} levels",
        crate::modes::scope::MAX_DEPTH
    )]
    TooDeep,
}

impl TemplateError {
    /// The failure of a node whose template cannot be read, whatever the names.
    pub(super) fn alone(self) -> Failure {
        self.into_failure(&[], &[])
    }

    /// The failure of the node, with the names that do exist.
    pub fn into_failure(self, inputs: &[String], nodes: &[String]) -> Failure {
        let message = self.to_string();
        match self {
            Self::Syntax { .. } => Failure::configuration("template_syntax", message),
            Self::UnknownName { .. } => Failure::validation(
                "unknown_name",
                format!(
                    "{message}; inputs: {}; nodes: {}; use `default(…)` if it may be missing",
                    listed(inputs),
                    listed(nodes)
                ),
            ),
            Self::NotCompleted { .. } => Failure::validation("dependency_not_completed", message),
            Self::CorruptOutput { .. } => Failure::validation("state_corrupt", message),
            Self::Evaluation { .. } => Failure::validation("template_failed", message),
            Self::TooLarge { .. } => Failure::validation("template_too_large", message),
            Self::TooDeep => Failure::validation("template_too_deep", message),
        }
    }
}

/// Names for an error message, cut where a list stops being readable.
pub(super) fn listed(names: &[String]) -> String {
    const SHOWN: usize = 20;
    if names.is_empty() {
        return String::from("none");
    }
    let shown = names.iter().take(SHOWN).map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", ");
    match names.len().saturating_sub(SHOWN) {
        0 => shown,
        more => format!("{shown} and {more} more"),
    }
}

/// One string, read once.
#[derive(Debug)]
pub struct Template {
    segments: Vec<Segment>,
}

#[derive(Debug)]
enum Segment {
    Literal(String),
    Substitution(Substitution),
}

#[derive(Debug)]
struct Substitution {
    /// What stands between the braces.
    source: String,
    /// Its meaning as an expression; an exact key need not be one.
    expression: Result<Expression<'static, 'static>, String>,
}

impl Template {
    /// Reads a string.
    pub fn compile(text: &str) -> Result<Self, TemplateError> {
        let mut segments = Vec::new();
        let mut literal = String::new();
        let mut rest = text;
        while let Some(at) = rest.find("{{").into_iter().chain(rest.find("{%")).min() {
            let (before, tag) = rest.split_at(at);
            literal.push_str(before);
            if let Some(inner) = tag.strip_prefix("{{") {
                let (substitution, length) = Substitution::read(tag)?;
                if inner.starts_with('-') {
                    literal.truncate(literal.trim_end().len());
                }
                if !literal.is_empty() {
                    segments.push(Segment::Literal(std::mem::take(&mut literal)));
                }
                segments.push(Segment::Substitution(substitution));
                rest = &tag[length..];
                if tag[..length].ends_with("-}}") {
                    rest = rest.trim_start();
                }
            } else {
                let (verbatim, length) = read_tag(tag)?;
                literal.push_str(verbatim);
                rest = &tag[length..];
            }
        }
        literal.push_str(rest);
        if !literal.is_empty() || segments.is_empty() {
            segments.push(Segment::Literal(literal));
        }
        Ok(Self { segments })
    }

    /// Adds the names that the template uses.
    pub fn names(&self, names: &mut Names) {
        for segment in &self.segments {
            if let Segment::Substitution(substitution) = segment {
                names.either.insert(substitution.source.clone());
                if let Ok(expression) = &substitution.expression {
                    names.add_expression(expression, &substitution.source);
                }
            }
        }
    }

    /// The value: of its own type if the string is one single substitution, else a string.
    pub fn value(&self, scope: &Scope) -> Result<Value, TemplateError> {
        match self.segments.as_slice() {
            [Segment::Substitution(substitution)] => substitution.value(scope),
            _ => self.text(scope).map(Value::String),
        }
    }

    /// The text; what is not a string stands in it as JSON.
    pub fn text(&self, scope: &Scope) -> Result<String, TemplateError> {
        let mut text = String::new();
        for segment in &self.segments {
            match segment {
                Segment::Literal(literal) => text.push_str(literal),
                Segment::Substitution(substitution) => match substitution.value(scope)? {
                    Value::String(value) => text.push_str(&value),
                    value => text.push_str(&value.to_string()),
                },
            }
        }
        Ok(text)
    }
}

impl Substitution {
    /// Reads the substitution that `tag` begins with; also how long it is, braces included.
    fn read(tag: &str) -> Result<(Self, usize), TemplateError> {
        let shown = || tag.chars().take(60).collect::<String>();
        let syntax = |message: String| TemplateError::Syntax { text: shown(), message };
        let mut first = None;
        for (at, _) in tag[2..].char_indices().filter(|(at, _)| tag[2 + at..].starts_with("}}")).take(MAX_ENDS) {
            let inner = &tag[2..2 + at];
            let inner = inner.strip_prefix('-').unwrap_or(inner);
            let source = inner.strip_suffix('-').unwrap_or(inner).trim();
            match ENVIRONMENT.compile_expression_owned(source.to_owned()) {
                Ok(expression) => return Ok((Self { source: source.to_owned(), expression: Ok(expression) }, at + 4)),
                Err(error) => {
                    let message = error.detail().map_or_else(|| error.kind().to_string(), ToOwned::to_owned);
                    first.get_or_insert((Self { source: source.to_owned(), expression: Err(message) }, at + 4));
                }
            }
        }
        match first {
            Some((Self { source, .. }, _)) if source.is_empty() => Err(syntax(String::from("`{{ }}` names nothing"))),
            Some(found) => Ok(found),
            None => Err(syntax(String::from(
                "`{{` is not closed by `}}`; write literal braces as `{% raw %}{{{% endraw %}`",
            ))),
        }
    }

    fn value(&self, scope: &Scope) -> Result<Value, TemplateError> {
        let value = match (scope.exact(&self.source), &self.expression) {
            (Some(exact), _) => exact?,
            (None, Ok(expression)) => scope.evaluate(expression, &self.source)?,
            // Neither a name that exists nor an expression: more likely a name that is missing, if it looks like one.
            (None, Err(_)) if looks_like_a_name(&self.source) => {
                return Err(TemplateError::UnknownName { name: self.source.clone() });
            }
            (None, Err(message)) => {
                return Err(TemplateError::Syntax { text: self.source.clone(), message: message.clone() });
            }
        };
        scope.charge(&value)?;
        Ok(value)
    }
}

fn looks_like_a_name(source: &str) -> bool {
    source.chars().all(|c| is_word(c) || matches!(c, ' ' | '-' | '.' | ':' | '/'))
}

/// Reads the `{%` that `tag` begins with: what it stands for verbatim, and how long it is.
fn read_tag(tag: &str) -> Result<(&str, usize), TemplateError> {
    let Some((word, after)) = statement(tag) else {
        return Ok((&tag[..2], 2));
    };
    if word != "raw" {
        if !STATEMENTS.contains(&word) {
            return Ok((&tag[..2], 2));
        }
        return Err(TemplateError::Syntax {
            text: tag.chars().take(60).collect(),
            message: format!(
                "the statement `{word}` is not supported; use an expression such as `{{{{ a if b else c }}}}`, or `{{% raw %}}` for literal text"
            ),
        });
    }
    let mut from = after;
    while let Some(at) = tag[from..].find("{%") {
        let end = from + at;
        if let Some(("endraw", length)) = statement(&tag[end..]) {
            return Ok((&tag[after..end], end + length));
        }
        from = end + 2;
    }
    Err(TemplateError::Syntax {
        text: tag.chars().take(60).collect(),
        message: String::from("`{% raw %}` is not closed by `{% endraw %}`"),
    })
}

/// The first word of a `{% … %}` and the length of the whole; nothing if it is not one.
fn statement(tag: &str) -> Option<(&str, usize)> {
    let end = tag.find("%}")?;
    let inner = tag.get(2..end)?;
    let inner = inner.strip_prefix(['-', '+']).unwrap_or(inner);
    Some((split_word(inner.trim_start()).0, end + 2))
}

/// A JSON value with templates in its strings at any depth; parts without one are kept as they are.
#[derive(Debug)]
pub enum ValueTemplate {
    /// No template in it.
    Plain(Value),
    /// A string with templates.
    Text(Template),
    /// A list with templates in it.
    Array(Vec<ValueTemplate>),
    /// An object with templates in it.
    Object(Vec<(String, ValueTemplate)>),
}

impl ValueTemplate {
    /// Reads a value.
    pub fn compile(value: &Value) -> Result<Self, TemplateError> {
        if !has_template(value) {
            return Ok(Self::Plain(value.clone()));
        }
        Ok(match value {
            Value::String(text) => Self::Text(Template::compile(text)?),
            Value::Array(items) => Self::Array(items.iter().map(Self::compile).collect::<Result<_, _>>()?),
            Value::Object(members) => Self::Object(Self::members(members)?),
            Value::Null | Value::Bool(_) | Value::Number(_) => Self::Plain(value.clone()),
        })
    }

    /// Reads the members of an object.
    pub fn members(members: &Map<String, Value>) -> Result<Vec<(String, Self)>, TemplateError> {
        members.iter().map(|(name, value)| Ok((name.clone(), Self::compile(value)?))).collect()
    }

    /// Adds the names that the templates use.
    pub fn names(&self, names: &mut Names) {
        match self {
            Self::Plain(_) => {}
            Self::Text(template) => template.names(names),
            Self::Array(items) => items.iter().for_each(|item| item.names(names)),
            Self::Object(members) => members.iter().for_each(|(_, value)| value.names(names)),
        }
    }

    /// Puts the values in.
    pub fn value(&self, scope: &Scope) -> Result<Value, TemplateError> {
        Ok(match self {
            Self::Plain(value) => value.clone(),
            Self::Text(template) => template.value(scope)?,
            Self::Array(items) => Value::Array(items.iter().map(|item| item.value(scope)).collect::<Result<_, _>>()?),
            Self::Object(members) => Value::Object(Self::object(members, scope)?),
        })
    }

    /// Puts the values into the members of an object.
    pub fn object(members: &[(String, Self)], scope: &Scope) -> Result<Map<String, Value>, TemplateError> {
        members.iter().map(|(name, value)| Ok((name.clone(), value.value(scope)?))).collect()
    }
}

fn has_template(value: &Value) -> bool {
    match value {
        Value::String(text) => text.contains("{{") || text.contains("{%"),
        Value::Array(items) => items.iter().any(has_template),
        Value::Object(members) => members.values().any(has_template),
        Value::Null | Value::Bool(_) | Value::Number(_) => false,
    }
}

#[cfg(test)]
mod tests;
