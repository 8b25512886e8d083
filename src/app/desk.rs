//! The questions of all nodes as the API tells them, and decides them.

use serde_json::{Value, json};

use crate::clients::redis::{Decided, Open, RedisError, WaitingRoom};
use crate::domain::wait::{Action, Ask, Asked, Decision, Refusal, WaitId, words};
use crate::http::waits::{Found, Verdict, WaitDesk, Wish};
use crate::modes::schema::fits;

/// The desk over what is kept in Redis.
pub struct Desk(pub WaitingRoom);

impl WaitDesk for Desk {
    fn list(&self, graph: Option<String>, limit: usize) -> Found<Value> {
        let room = self.0.clone();
        Box::pin(async move { list(&room, graph.as_deref(), limit).await.map_err(told) })
    }

    fn show(&self, wait: String) -> Found<Option<Value>> {
        let room = self.0.clone();
        Box::pin(async move {
            let Some(open) = room.find(&WaitId::from_text(wait)).await.map_err(told)? else { return Ok(None) };
            let asked =
                room.look(std::slice::from_ref(&open)).await.map_err(told)?.pop().transpose().map_err(told)?.flatten();
            Ok(asked.filter(|asked| asked.said.is_none()).map(|Asked { ask, .. }| json!(ask)))
        })
    }

    fn decide(&self, wait: String, wish: Wish) -> Found<Verdict> {
        let room = self.0.clone();
        Box::pin(async move { decide(&room, WaitId::from_text(wait), wish).await.map_err(told) })
    }
}

fn told(error: RedisError) -> String {
    error.to_string()
}

async fn list(room: &WaitingRoom, graph: Option<&str>, limit: usize) -> Result<Value, RedisError> {
    let (mut from, mut asks, mut total) = (0, Vec::<Ask>::new(), 0);
    loop {
        let (next, page) = room.open(from).await?;
        let page = page.into_iter().filter(|ask| graph.is_none_or(|graph| graph == ask.graph_id.as_str()));
        for ask in page {
            total += 1;
            if asks.len() < limit {
                asks.push(ask);
            }
        }
        from = next;
        if from == 0 {
            break;
        }
    }
    asks.sort_by_key(|ask| ask.expires_at);
    Ok(json!({ "total": total, "waits": asks }))
}

async fn decide(room: &WaitingRoom, wait_id: WaitId, wish: Wish) -> Result<Verdict, RedisError> {
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
                let decided = json!({ "action": line["action"], "by": line["by"], "at": line["at"] });
                refused("already_decided", String::from("somebody decided first"), decided)
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
