//! LlmActor: one provider of models. Bounds how many calls run at once, lets its limits and breakers decide when one
//! begins, and times them; speaking to the provider is the client's, trying again the mode's.

use std::sync::Arc;
use std::time::{Duration, Instant};

use actix::{Actor, Context, Handler, ResponseFuture};
use tokio::sync::{Semaphore, SemaphorePermit};

use crate::actors::circuit::Circuits;
use crate::actors::messages::Complete;
use crate::actors::pace::{Pace, Place};
use crate::actors::supervise::DeathWatch;
use crate::clients::llm::{LlmClient, LlmError, Prices};
use crate::domain::breaker::Sign;
use crate::domain::message::{Completion, Usage};
use crate::domain::outcome::{Category, Failure};
use crate::metrics::{LlmLabels, Metrics, ProviderLabels, TokenLabels};
use crate::ports::LlmRequest;

/// One provider as the actor needs it; kept over its lives, so that limits hold across a rebuild.
pub struct Provider {
    /// Its configured name.
    pub name: String,
    /// The client.
    pub client: LlmClient,
    /// What its models cost.
    pub prices: Prices,
    /// Calls that may run at once.
    pub slots: Arc<Semaphore>,
    /// How long one call may take.
    pub timeout: Duration,
    /// What its models may be asked.
    pub pace: Pace,
    /// Which of its models are left alone.
    pub circuits: Circuits,
    /// What is counted.
    pub metrics: Arc<Metrics>,
}

/// Calls one provider.
pub struct LlmActor {
    provider: Arc<Provider>,
    _watch: DeathWatch,
}

impl LlmActor {
    /// An actor for this provider.
    pub fn new(provider: Arc<Provider>, watch: DeathWatch) -> Self {
        Self { provider, _watch: watch }
    }
}

impl Actor for LlmActor {
    type Context = Context<Self>;
}

impl Handler<Complete> for LlmActor {
    type Result = ResponseFuture<Result<Completion, Failure>>;

    fn handle(&mut self, Complete { request, cancel }: Complete, _: &mut Self::Context) -> Self::Result {
        let provider = Arc::clone(&self.provider);
        Box::pin(async move {
            tokio::select! {
                // Dropping the call closes its connection, so that the provider stops writing.
                () = cancel.cancelled() => Err(Failure::new(Category::Cancelled, "cancelled", "the call was cancelled")),
                answer = provider.complete(request) => answer,
            }
        })
    }
}

/// A call that was made, and what it still holds.
struct Called<'a> {
    place: Option<Place>,
    answer: Result<Completion, LlmError>,
    slot: SemaphorePermit<'a>,
}

impl Provider {
    async fn complete(&self, request: LlmRequest) -> Result<Completion, Failure> {
        let model = self.client.model(&request).to_owned();
        let deadline = request.context.deadline;
        let called = tokio::time::timeout_at(deadline.into(), self.call(request, &model)).await;
        let Called { place, answer, slot } = called.unwrap_or_else(|_| {
            let words = format!("provider {:?} did not answer before the node's time was up", self.name);
            Err(Failure::permanent("timeout", words))
        })?;
        // An answer that is there and paid for is not given up for want of time to tell what it used.
        self.pace.settle(place, &model, &answer).await;
        // Who waits for it has to know by then whether the provider has closed.
        drop(slot);
        answer.map_err(Failure::from)
    }

    async fn call(&self, mut request: LlmRequest, model: &str) -> Result<Called<'_>, Failure> {
        self.circuits.check(model)?;
        let mut place = self.pace.admit(&mut request, model).await?;
        let slot = match self.slots.try_acquire() {
            Ok(slot) => slot,
            Err(_) => {
                let slot = self.slots.acquire().await.expect("the semaphore is never closed");
                place = self.pace.still_open(place, model).await?;
                slot
            }
        };
        // Who waited may find that the provider has failed meanwhile.
        let passage = match self.circuits.enter(model) {
            Ok(passage) => passage,
            Err(refused) => {
                self.pace.leave(place, model).await;
                return Err(refused);
            }
        };
        let started = Instant::now();
        let mut answer = self.client.complete(&request).await;
        if let Ok(completion) = &mut answer {
            let price = self.prices.of(model).or_else(|| self.prices.of(&completion.model));
            completion.usage.cost = price.map(|price| price.of(&completion.usage));
        }
        self.count(started, answer.as_ref().ok());
        passage.ended(answer.as_ref().err().map_or(Sign::Well, |error: &LlmError| error.sign(self.timeout)));
        Ok(Called { place, answer, slot })
    }

    fn count(&self, started: Instant, completion: Option<&Completion>) {
        let outcome = if completion.is_some() { "ok" } else { "failed" };
        let labels = LlmLabels { provider: self.name.clone(), outcome };
        Metrics::seconds(&self.metrics.llm_duration.get_or_create(&labels), started.elapsed());
        self.metrics.llm_calls.get_or_create(&labels).inc();
        let Some(Completion { usage, .. }) = completion else { return };
        let Usage { input_tokens, output_tokens, cache_read_tokens, cache_write_tokens, cost } = *usage;
        if let Some(cost) = cost {
            let labels = ProviderLabels { provider: self.name.clone() };
            self.metrics.llm_cost.get_or_create(&labels).inc_by(cost.as_usd());
        }
        for (kind, tokens) in [
            ("input", input_tokens),
            ("output", output_tokens),
            ("cache_read", cache_read_tokens),
            ("cache_write", cache_write_tokens),
        ] {
            let labels = TokenLabels { provider: self.name.clone(), kind };
            self.metrics.llm_tokens.get_or_create(&labels).inc_by(tokens);
        }
    }
}
