//! What a tool asks a person in the middle of its call: the answer where there is one, and the question where there is
//! none yet. Which server may ask is its configuration's.

use serde_json::{Map, Value, json};

use crate::domain::journal::CallId;
use crate::domain::outcome::Failure;
use crate::domain::tool::{Arguments, ToolQuestion, ToolReply, ToolTarget};
use crate::domain::wait::{Action, Answer, Ask, AskedBy, Kind, Said};
use crate::modes::approval::too_late;
use crate::modes::execution::{CallSite, Execution};
use crate::ports::Ports;

/// What follows from a question.
#[derive(Debug)]
pub(super) enum Followed {
    /// It was answered before.
    Answered(ToolReply),
    /// It has to be asked.
    Ask(Box<Ask>),
}

impl<P: Ports> Execution<'_, P> {
    /// What follows from a question of a call. The same question of the same call has the same answer, so a call that is
    /// made again after its question was answered comes further.
    pub fn follow_question(
        &self,
        call: CallId,
        target: &ToolTarget,
        arguments: &Arguments,
        question: ToolQuestion,
    ) -> Result<Followed, Failure> {
        let ToolQuestion { message, schema, url, key } = question;
        let what = match key {
            None => format!("elicitation {}", json!([message, schema, url])),
            // Its words may change from one look to the next.
            Some(key) => format!("elicitation {}", json!([key])),
        };
        let site = CallSite::Tool(call);
        if let Some(asked) = self.logbook.asked(&self.wait_id(site, &what)) {
            return match asked.answer(self.delivery.added_at()) {
                Answer::Said(said) => Ok(Followed::Answered(reply(&asked.ask, said))),
                Answer::Open => Ok(Followed::Ask(Box::new(asked.ask))),
                Answer::TooLate => Err(too_late(&asked.ask)),
            };
        }
        let server = target.server.clone().unwrap_or_default();
        let ask = self.new_ask(site, &what, Kind::Elicitation, AskedBy::Server { name: server });
        Ok(Followed::Ask(Box::new(Ask {
            message,
            schema: schema.unwrap_or_else(|| json!({ "type": "object", "maxProperties": 0 })),
            url,
            tool: Some(target.to_string()),
            arguments: Some(arguments.clone()),
            ..ask
        })))
    }

    /// The call is broken off for its question, and made again once that is answered.
    pub async fn wait_in_call<T>(&self, call: CallId, ask: Ask) -> T {
        self.ledger.waits.again(CallSite::Tool(call).to_string());
        self.wait_for(ask).await
    }
}

fn reply(ask: &Ask, said: Said) -> ToolReply {
    match said.action {
        Action::Reject | Action::Decline => ToolReply::Decline,
        Action::Cancel => ToolReply::Cancel,
        Action::Accept => {
            let values = match said.content {
                Some(Value::Object(values)) => values,
                _ => Map::new(),
            };
            ToolReply::Accept(completed(values, &ask.schema))
        }
    }
}

/// The values with the defaults of those that nobody gave.
fn completed(mut values: Map<String, Value>, schema: &Value) -> Map<String, Value> {
    for (name, property) in schema.get("properties").and_then(Value::as_object).into_iter().flatten() {
        if let (false, Some(default)) = (values.contains_key(name), property.get("default")) {
            values.insert(name.clone(), default.clone());
        }
    }
    values
}

#[cfg(test)]
mod tests {
    use jiff::Timestamp;

    use super::*;

    #[test]
    fn what_nobody_gave_has_its_default() {
        let ask = Ask {
            schema: json!({"type": "object", "properties": {
                "size": {"type": "string", "default": "M"}, "count": {"type": "integer", "default": 1},
                "note": {"type": "string"},
            }}),
            ..crate::domain::wait::tests::ask()
        };
        let said =
            |action, content| Said { action, content, by: None, note: None, at: Timestamp::UNIX_EPOCH, expired: false };
        let given = said(Action::Accept, Some(json!({"count": 3})));
        let ToolReply::Accept(values) = reply(&ask, given) else { panic!("it was accepted") };
        assert_eq!(Value::Object(values), json!({"count": 3, "size": "M"}));
        assert_eq!(reply(&ask, said(Action::Reject, None)), ToolReply::Decline);
        assert_eq!(reply(&ask, said(Action::Cancel, None)), ToolReply::Cancel);
    }
}
