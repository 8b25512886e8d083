//! What a server may ask in the middle of a call, and who answers. A worker has nobody to ask, so without an answerer
//! such a call fails, and says what for.

use futures_util::future::BoxFuture;
use serde_json::Value;

/// Answers what a tool asks before it can go on.
pub trait AnswerInput: Send + Sync {
    /// The client capabilities that this makes true, such as `{"elicitation": {}}`: told to the server with every
    /// request.
    fn capabilities(&self) -> Value;

    /// The result of one request of the server, such as `elicitation/create`; none if there is no answer to it.
    fn answer<'a>(&'a self, method: &'a str, params: &'a Value) -> BoxFuture<'a, Option<Value>>;
}
