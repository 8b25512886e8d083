//! `/api/waits`: what nodes wait for, and the way to decide it. All of it wants the token, for questions show what tools
//! are called with; where questions are kept is asked through a trait, so that no store is known here.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;

use actix_web::HttpResponse;
use actix_web::web::{Bytes, Data, Path, Query};
use serde::Deserialize;
use serde_json::{Value, json};

/// What was found or done, still to come; an error is a sentence about the store.
pub type Found<T> = Pin<Box<dyn Future<Output = Result<T, String>> + Send>>;

/// What somebody wants.
#[derive(Debug, Clone, PartialEq)]
pub struct Wish {
    /// `accept`, `reject`, `decline` or `cancel`.
    pub action: String,
    /// What goes with it.
    pub content: Option<Value>,
    /// Who.
    pub by: Option<String>,
    /// Why.
    pub note: Option<String>,
}

/// What became of it.
#[derive(Debug, Clone, PartialEq)]
pub enum Verdict {
    /// It counts.
    Counts,
    /// It does not: a code and what is told.
    Refused(&'static str, Value),
}

/// The questions of all nodes.
pub trait WaitDesk: Send + Sync {
    /// Those that are open, of one graph or of all, at most so many, with their number.
    fn list(&self, graph: Option<String>, limit: usize) -> Found<Value>;

    /// One of them.
    fn show(&self, wait: String) -> Found<Option<Value>>;

    /// Decides one of them.
    fn decide(&self, wait: String, wish: Wish) -> Found<Verdict>;
}

/// Questions of one answer unless the request says otherwise.
const LIMIT: usize = 100;
const MOST: usize = 1000;

/// Which questions.
#[derive(Deserialize)]
pub(super) struct Which {
    graph: Option<String>,
    limit: Option<usize>,
}

pub(super) async fn list(desk: Data<Arc<dyn WaitDesk>>, which: Query<Which>) -> HttpResponse {
    let Which { graph, limit } = which.into_inner();
    match desk.list(graph, limit.unwrap_or(LIMIT).min(MOST)).await {
        Ok(found) => HttpResponse::Ok().insert_header(("cache-control", "no-store")).json(found),
        Err(error) => away(&error),
    }
}

pub(super) async fn show(desk: Data<Arc<dyn WaitDesk>>, wait: Path<String>) -> HttpResponse {
    match desk.show(wait.into_inner()).await {
        Ok(Some(found)) => HttpResponse::Ok().insert_header(("cache-control", "no-store")).json(found),
        Ok(None) => HttpResponse::NotFound().json(json!({"error": "no open question has this name"})),
        Err(error) => away(&error),
    }
}

/// The body of a decision; each of its ways takes what it needs.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Body {
    action: Option<String>,
    arguments: Option<Value>,
    content: Option<Value>,
    by: Option<String>,
    note: Option<String>,
}

pub(super) async fn decide(desk: Data<Arc<dyn WaitDesk>>, path: Path<(String, String)>, body: Bytes) -> HttpResponse {
    let (wait, way) = path.into_inner();
    let wrong = |message: &str| HttpResponse::BadRequest().json(json!({"error": message}));
    // Whatever its content type says: a body that cannot be read must not pass for none, which agrees to everything.
    let read = if body.is_empty() { Ok(Body::default()) } else { serde_json::from_slice(&body) };
    let Body { action, arguments, content, by, note } = match read {
        Ok(body) => body,
        Err(error) => return wrong(&format!("the body is not a decision: {error}")),
    };
    let action = match (way.as_str(), action) {
        ("approve", None) => String::from("accept"),
        ("reject", None) => String::from("reject"),
        ("decide", Some(action)) => action,
        ("decide", None) => return wrong("`action` must be accept, reject, decline or cancel"),
        (_, Some(_)) => return wrong("only `decide` takes an `action`"),
        _ => return HttpResponse::NotFound().json(json!({"error": "it is approve, reject or decide"})),
    };
    let content = match (arguments, content) {
        (Some(_), Some(_)) => return wrong("give `arguments` or `content`, not both"),
        (Some(arguments), None) => Some(json!({ "arguments": arguments })),
        (None, content) => content,
    };
    match desk.decide(wait, Wish { action, content, by, note }).await {
        Ok(Verdict::Counts) => HttpResponse::Ok().json(json!({"accepted": true})),
        Ok(Verdict::Refused(code, told)) => match code {
            "unknown_wait" => HttpResponse::NotFound().json(told),
            "content_invalid" => HttpResponse::UnprocessableEntity().json(told),
            "invalid_decision" => HttpResponse::BadRequest().json(told),
            _ => HttpResponse::Conflict().json(told),
        },
        Err(error) => away(&error),
    }
}

fn away(error: &str) -> HttpResponse {
    HttpResponse::ServiceUnavailable().json(json!({ "error": error }))
}
