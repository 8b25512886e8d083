//! The questions of all nodes as the API tells them, and decides them.

use std::sync::Arc;

use serde_json::{Value, json};

use crate::clients::redis::{Decided, Open, RedisError, WaitingRoom};
use crate::domain::wait::{Action, Asked, Decision, Refusal, WaitId, words};
use crate::http::waits::{Found, Verdict, WaitDesk, Wish};
use crate::metrics::{Metrics, ResultLabels};
use crate::modes::schema::fits;

/// The desk over what is kept in Redis.
#[derive(Clone)]
pub struct Desk {
    room: WaitingRoom,
    metrics: Arc<Metrics>,
}

impl Desk {
    /// A desk that counts what is decided at it.
    pub fn new(room: WaitingRoom, metrics: Arc<Metrics>) -> Self {
        Self { room, metrics }
    }

    async fn judge(&self, wait_id: WaitId, wish: Wish) -> Result<Verdict, RedisError> {
        let room = &self.room;
        let refused = |code: &'static str, error: String, decided: Value| {
            Verdict::Refused(code, json!({ "error": error, "code": code, "decided": decided }))
        };
        let Wish { action, content, by, note } = wish;
        let Some(action) = Action::parse(&action) else {
            let error = String::from("`action` must be accept, reject, decline or cancel");
            return Ok(refused("invalid_decision", error, Value::Null));
        };
        let Some(Open { graph_id, node_id, run_id, .. }) = room.find(&wait_id).await? else {
            return Ok(match room.audited(&wait_id).await? {
                Some(line) => {
                    let text = |name: &str| line[name].as_str().unwrap_or("?").to_owned();
                    let by = line["by"].as_str().unwrap_or("somebody");
                    let error = format!("{by} decided first: {} at {}", text("action"), text("at"));
                    let decided = json!({ "action": line["action"], "by": line["by"], "at": line["at"] });
                    refused("already_decided", error, decided)
                }
                None => refused("unknown_wait", String::from("no open question has this name"), Value::Null),
            });
        };
        let (by, note) = (by.as_deref().and_then(words), note.as_deref().and_then(words));
        let decision = Decision { graph_id, node_id, run_id, wait_id, action, content, by, note };
        Ok(match room.decide(&decision, None, fits).await? {
            Decided::Counts => Verdict::Counts,
            Decided::Refused(Refusal { code, message, said }) => {
                let decided = said.map(|said| json!({ "action": said.action, "by": said.by, "at": said.at }));
                refused(code, message, decided.unwrap_or_default())
            }
            Decided::Lost => refused("already_decided", String::from("somebody decided first"), Value::Null),
        })
    }
}

impl WaitDesk for Desk {
    fn list(&self, graph: Option<String>, limit: usize) -> Found<Value> {
        let room = self.room.clone();
        Box::pin(async move {
            let wanted = |open: &Open| graph.as_ref().is_none_or(|graph| graph == open.graph_id.as_str());
            let (total, waits) = room.soonest(wanted, limit).await.map_err(told)?;
            Ok(json!({ "total": total, "waits": waits }))
        })
    }

    fn show(&self, wait: String) -> Found<Option<Value>> {
        let room = self.room.clone();
        Box::pin(async move {
            let Some(open) = room.find(&WaitId::from_text(wait)).await.map_err(told)? else { return Ok(None) };
            let asked =
                room.look(std::slice::from_ref(&open)).await.map_err(told)?.pop().transpose().map_err(told)?.flatten();
            Ok(asked.filter(|asked| asked.said.is_none()).map(|Asked { ask, .. }| json!(ask)))
        })
    }

    fn decide(&self, wait: String, wish: Wish) -> Found<Verdict> {
        let desk = self.clone();
        Box::pin(async move {
            let verdict = desk.judge(WaitId::from_text(wait), wish).await.map_err(told)?;
            let result = match &verdict {
                Verdict::Counts => "accepted",
                Verdict::Refused(code, _) => code,
            };
            desk.metrics.decisions.get_or_create(&ResultLabels { result }).inc();
            Ok(verdict)
        })
    }
}

fn told(error: RedisError) -> String {
    error.to_string()
}
