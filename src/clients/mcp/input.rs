//! What a server may ask a person in the middle of a call, and who answers. A worker has nobody to ask, so without an
//! answerer such a call fails, and says what for.

use std::sync::Arc;

use futures_util::future::BoxFuture;
use reqwest::Url;
use serde_json::{Map, Value, json};

use super::error::excerpt;

/// Asks for the input of a person, the one request of a server that somebody here may answer.
const ELICIT: &str = "elicitation/create";

/// Answers what a server asks before it can go on.
pub trait AnswerInput: Send + Sync {
    /// The client capabilities that this makes true, such as `{"elicitation": {"form": {}}}`: told to the server when the
    /// session is opened, or with every request.
    fn capabilities(&self) -> Value;

    /// What is answered; none if nobody can say, which ends a call of the modern era, and declines in the era before.
    /// Dropped when the session ends, or the call that asks.
    fn answer<'a>(&'a self, question: &'a Question) -> BoxFuture<'a, Option<Reply>>;
}

/// What a server asks.
#[derive(Debug, Clone, PartialEq)]
pub struct Question {
    /// Who asks, by the name in the configuration.
    pub server: Arc<str>,
    /// What is asked, in the words of the server.
    pub message: String,
    /// How it is to be answered.
    pub mode: Mode,
    /// The server's name for it, where that is never another question's: in a task.
    pub key: Option<String>,
}

/// How a question is answered.
#[derive(Debug, Clone, PartialEq)]
pub enum Mode {
    /// By values that satisfy a JSON Schema of a flat object.
    Form {
        /// The schema, as the server wrote it.
        schema: Value,
    },
    /// On a page of the web, out of our sight: to accept means that the person goes there.
    Url {
        /// The page.
        url: Url,
        /// How the server calls this question when it tells that it is answered.
        id: Option<String>,
    },
}

/// The answer to a question.
#[derive(Debug, Clone, PartialEq)]
pub enum Reply {
    /// Yes; with the values of the form, where one was asked for.
    Accept(Map<String, Value>),
    /// No.
    Decline,
    /// Neither: the question was put away.
    Cancel,
}

impl Question {
    /// Reads a request of a server; none if it is no question to a person, or none that could be put to one.
    pub(super) fn read(server: &Arc<str>, method: &str, params: &Value) -> Option<Self> {
        if method != ELICIT {
            return None;
        }
        let mode = match params.get("mode").and_then(Value::as_str) {
            None | Some("form") => {
                Mode::Form { schema: params.get("requestedSchema").filter(|schema| schema.is_object())?.clone() }
            }
            Some("url") => {
                let url = Url::parse(params.get("url")?.as_str()?).ok();
                // Anything else could run in the browser of whoever is asked.
                let url = url.filter(|url| matches!(url.scheme(), "https" | "http") && url.has_host())?;
                Mode::Url { url, id: params.get("elicitationId").and_then(Value::as_str).map(str::to_owned) }
            }
            Some(_) => return None,
        };
        let message = params.get("message").and_then(Value::as_str).unwrap_or_default().to_owned();
        Some(Self { server: Arc::clone(server), message, mode, key: None })
    }
}

impl Reply {
    /// The result that the server gets for this question.
    pub(super) fn result(self, question: &Question) -> Value {
        match (self, &question.mode) {
            (Self::Accept(content), Mode::Form { .. }) => json!({"action": "accept", "content": content}),
            (Self::Accept(_), Mode::Url { .. }) => json!({"action": "accept"}),
            (Self::Decline, _) => json!({"action": "decline"}),
            (Self::Cancel, _) => json!({"action": "cancel"}),
        }
    }
}

/// What is asked for, on one line, where nobody can answer.
pub(super) fn in_words(method: &str, params: &Value) -> String {
    let message = params.get("message").and_then(Value::as_str).unwrap_or_default();
    excerpt(&format!("`{method}` {message}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(params: Value) -> Option<Question> {
        Question::read(&Arc::from("s"), ELICIT, &params)
    }

    #[test]
    fn a_form_is_asked_for_where_nothing_else_is_said() {
        let schema = json!({"type": "object", "properties": {"age": {"type": "integer"}}});
        let question = read(json!({"message": "How old?", "requestedSchema": schema})).expect("a form");
        assert_eq!((&*question.message, &question.mode), ("How old?", &Mode::Form { schema }));
        let content = Map::from_iter([(String::from("age"), json!(3))]);
        assert_eq!(Reply::Accept(content).result(&question), json!({"action": "accept", "content": {"age": 3}}));
        assert_eq!(Reply::Decline.result(&question), json!({"action": "decline"}));
        assert_eq!(Reply::Cancel.result(&question), json!({"action": "cancel"}));
    }

    #[test]
    fn a_page_is_one_of_the_web_and_its_acceptance_has_no_content() {
        let asks = |url: &str| read(json!({"mode": "url", "message": "Sign", "url": url, "elicitationId": "e-1"}));
        let question = asks("https://example.org/sign?x=1").expect("a page");
        let Mode::Url { url, id } = &question.mode else { panic!("{question:?}") };
        assert_eq!((url.as_str(), id.as_deref()), ("https://example.org/sign?x=1", Some("e-1")));
        assert_eq!(Reply::Accept(Map::new()).result(&question), json!({"action": "accept"}));
        for odd in ["javascript:alert(1)", "file:///etc/passwd", "sign", ""] {
            assert_eq!(asks(odd), None, "{odd}");
        }
    }

    #[test]
    fn what_cannot_be_put_to_a_person_is_no_question() {
        for odd in [json!({"message": "?"}), json!({"requestedSchema": 1}), json!({"mode": "dance"}), Value::Null] {
            assert_eq!(read(odd.clone()), None, "{odd}");
        }
        assert_eq!(Question::read(&Arc::from("s"), "sampling/createMessage", &json!({"requestedSchema": {}})), None);
    }
}
