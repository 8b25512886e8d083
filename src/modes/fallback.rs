//! Several providers for one call of a model: who is asked, and when the next one stands in. How often one of them is
//! tried is the step's.

use crate::domain::journal::Class;
use crate::domain::message::Completion;
use crate::domain::outcome::{Category, Failure};
use crate::modes::budget::no_price;
use crate::modes::execution::{CallSite, Execution};
use crate::ports::{Llm, LlmRequest, Ports, Route};

impl<P: Ports> Execution<'_, P> {
    /// Asks the provider that had the turn before, else the first; then those that stand in for it, each only after
    /// the one before it is overloaded or has failed in a way that passes. What a provider refuses, none is asked again.
    pub async fn ask_any(&self, request: LlmRequest, before: Option<&str>, turn: u32) -> Result<Completion, Failure> {
        let mut routes = self.ports.llm().routes(&request.settings)?;
        if let Some(at) = before.and_then(|before| routes.iter().position(|route| *route.provider == *before)) {
            // Its cache is warm, and what only it can read of its own turns is not lost.
            routes[..=at].rotate_right(1);
        }
        if self.budget.is_of_money()
            && let Some(route) = routes.iter().find(|route| !self.ports.llm().priced(&route.settings))
        {
            return Err(no_price(route.settings.model.as_deref()));
        }
        let mut passed: Vec<String> = Vec::new();
        let mut routes = routes.into_iter().peekable();
        while let Some(Route { provider, settings }) = routes.next() {
            let elsewhere = routes.peek().is_some();
            let request = LlmRequest { settings, elsewhere, ..request.clone() };
            let operation = || self.attempt(Class::Safe, self.ports.llm().complete(request.clone()));
            let failure = match self.step("llm call", CallSite::Turn(turn), elsewhere, operation).await {
                Ok(mut completion) => {
                    if !passed.is_empty() {
                        self.ledger
                            .warn([format!("provider {provider} answered in the place of {}", passed.join(", "))]);
                    }
                    completion.provider = Some(provider.to_string());
                    completion.turn.author = Some(request.author());
                    return Ok(completion);
                }
                Err(failure) => failure,
            };
            if failure.category != Category::Retriable || !elsewhere {
                let before = passed.join(", ");
                let before = if before.is_empty() { before } else { format!(" (asked before it: {before})") };
                return Err(Failure { message: failure.message.clone() + &before, ..failure });
            }
            tracing::warn!(llm.provider = %provider, code = failure.code.as_ref(), error = %failure,
                "the next provider is asked instead");
            passed.push(format!("{provider} ({})", failure.code));
        }
        Err(Failure::internal("no_provider", "there is no provider to ask"))
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use serde_json::{Value, json};

    use super::*;
    use crate::domain::outcome::Report;
    use crate::domain::tool::ToolOutput;
    use crate::modes::scripted_ports::{LlmAct, Script, code, failure, output, says, text_output, wants};

    fn echo(arguments: &Value) -> Result<ToolOutput, Failure> {
        Ok(text_output(&arguments.to_string()))
    }

    fn fails(failure: Failure) -> LlmAct {
        LlmAct::Fails(failure)
    }

    async fn run(acts: impl IntoIterator<Item = LlmAct>) -> (Report, Script, Duration) {
        let script = Script::new().tool("echo", echo).model(acts);
        let started = tokio::time::Instant::now();
        let llm = json!({"provider": ["one", "two"]});
        let report = script.run(json!({"task": "Do it", "tools": ["*"], "llm_config": llm})).await;
        (report, script, started.elapsed())
    }

    fn asked(script: &Script) -> Vec<String> {
        script.requests.borrow().iter().map(|request| request.settings.provider.join("+")).collect()
    }

    #[tokio::test(start_paused = true)]
    async fn an_overloaded_provider_is_stood_in_for_at_once_and_the_node_stays_with_who_answered() {
        let busy = Failure::retriable("overloaded", "busy");
        let (report, script, took) = run([fails(busy), wants(&[("echo", json!({}))]), says("done")]).await;
        assert_eq!(asked(&script), ["one", "two", "two"]);
        assert_eq!(took, Duration::ZERO);
        assert_eq!((&output(&report)["provider"], &output(&report)["result"]), (&json!("two"), &json!("done")));
        assert!(report.warnings[0].contains("two answered in the place of one (overloaded)"), "{:?}", report.warnings);
        assert_eq!(report.spent.attempts, 1);
    }

    #[tokio::test(start_paused = true)]
    async fn a_wait_that_is_asked_for_is_not_waited_out_while_another_can_be_asked() {
        let limited = Failure::retriable("rate_limited", "slow down").with_retry_after(Some(Duration::from_secs(90)));
        let (report, script, took) = run([fails(limited), says("done")]).await;
        assert_eq!((asked(&script).join(" "), took), (String::from("one two"), Duration::ZERO));
        assert_eq!(output(&report)["provider"], "two");
    }

    #[tokio::test(start_paused = true)]
    async fn other_passing_failures_use_up_the_attempts_first() {
        let lost = || fails(Failure::retriable("connection_lost", "gone"));
        let (report, script, _) = run([lost(), lost(), lost(), says("done")]).await;
        assert_eq!(asked(&script), ["one", "one", "one", "two"]);
        assert_eq!(output(&report)["provider"], "two");
    }

    #[tokio::test(start_paused = true)]
    async fn what_a_provider_refuses_nobody_else_is_asked() {
        for refused in [Failure::permanent("invalid_request", "no"), Failure::configuration("authentication", "no")] {
            let name = refused.code.clone();
            let (report, script, _) = run([fails(refused)]).await;
            assert_eq!((asked(&script).join(" "), code(&report).1), (String::from("one"), name.as_ref()));
        }
    }

    #[tokio::test(start_paused = true)]
    async fn when_all_have_failed_the_last_tells_of_the_others() {
        let lost = || fails(Failure::retriable("connection_lost", "gone"));
        let busy = fails(Failure::retriable("overloaded", "busy"));
        let (report, script, _) = run([busy, lost(), lost(), lost()]).await;
        assert_eq!(asked(&script), ["one", "two", "two", "two"]);
        assert_eq!(code(&report), ("retriable", "connection_lost"));
        assert!(failure(&report).message.contains("asked before it: one (overloaded)"), "{}", failure(&report).message);
    }

    #[tokio::test(start_paused = true)]
    async fn who_stood_in_may_be_stood_in_for() {
        let busy = || fails(Failure::retriable("overloaded", "busy"));
        let (report, script, _) = run([busy(), wants(&[("echo", json!({}))]), busy(), says("done")]).await;
        assert_eq!(asked(&script), ["one", "two", "two", "one"]);
        assert_eq!(output(&report)["provider"], "one");
        // What the other one wrote goes to each of them with its author.
        let requests = script.requests.borrow();
        let crate::domain::message::Turn::Assistant(turn) = &*requests[3].turns[1] else {
            panic!("a turn of the model")
        };
        assert!(turn.author.as_deref().is_some_and(|author| author.starts_with("two/#")), "{:?}", turn.author);
    }
}
