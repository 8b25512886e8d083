//! What a call of a model has to wait for before it begins: the limit that all workers share, or its own copy of it where
//! nobody shares one or nobody can be asked. What a limit reckons is `domain::rate`'s, who retries is the modes'.

use std::collections::HashMap;
use std::num::NonZeroU64;
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

use sha2::{Digest, Sha256};
use tokio::time::{Instant, sleep, timeout};

use crate::clients::llm::{LlmError, estimate};
use crate::config::{Protocol, ProviderConfig, When};
use crate::domain::message::{Completion, Usage};
use crate::domain::outcome::Failure;
use crate::domain::rate::{Amendment, Demand, Limit, Rate, RateWord, Verdict, micros};
use crate::metrics::{DeferLabels, Metrics, ProviderLabels};
use crate::ports::{CallContext, LlmRequest, SharedLimits};

/// How long an answer of the shared limits is waited for: a call must not wait longer for its permission than for itself.
const ANSWER: Duration = Duration::from_millis(500);
/// How long nobody asks the shared limits again after they did not answer.
const OUTAGE: Duration = Duration::from_secs(1);
/// What may be saved up of the tokens: as much as providers let, for every call is charged more than it uses.
const TOKEN_BURST: Duration = Duration::from_secs(60);
/// Limits of models that are kept here before those that say nothing are forgotten.
const MANY: usize = 64;

/// Where the limits of all workers are kept, and how long a call may wait for them without giving up its slot.
#[derive(Clone, Default)]
pub struct Sharing {
    /// The limits of all workers; this process has its own without them.
    pub limits: Option<Arc<dyn SharedLimits>>,
    /// The longest wait within a slot; without it, as long as the node has time.
    pub patience: Option<Duration>,
}

/// The limits of one provider's models.
pub struct Pace {
    provider: String,
    config: ProviderConfig,
    sharing: Sharing,
    own: OwnLimits,
    /// Since when the shared limits do not answer: the moment they are asked again.
    outage: Mutex<Option<Instant>>,
    metrics: Arc<Metrics>,
}

/// The limits of one model.
#[derive(Debug, Clone, Copy)]
struct Rates {
    requests: Option<Rate>,
    tokens: Option<Rate>,
    /// Whether the provider's own word on its limits counts.
    heeds: bool,
}

/// A call that may begin.
pub struct Place {
    rates: Rates,
    /// Tokens that it was charged for.
    feared: u64,
    era: u64,
    shared: bool,
    word: Option<Arc<OnceLock<RateWord>>>,
}

impl Pace {
    /// The limits of the provider called `name`.
    pub fn new(name: &str, config: &ProviderConfig, sharing: Sharing, metrics: Arc<Metrics>) -> Self {
        Self {
            provider: name.to_owned(),
            config: config.clone(),
            sharing,
            own: OwnLimits::default(),
            outage: Mutex::default(),
            metrics,
        }
    }

    /// Waits until a call may begin. None where nothing is limited: then nobody is asked.
    pub async fn admit(&self, request: &mut LlmRequest, model: &str) -> Result<Option<Place>, Failure> {
        let Some(rates) = self.rates(model) else { return Ok(None) };
        let feared = rates.tokens.map_or(0, |_| {
            let written = request.settings.max_tokens.unwrap_or(self.config.max_tokens).get();
            estimate::input_tokens(request) + u64::from(written)
        });
        let mut demand = Demand {
            who: who(&request.context),
            request: rates.requests.map(|rate| rate.charge(1)).unwrap_or_default(),
            tokens: rates.tokens.map(|rate| rate.charge(feared)).unwrap_or_default(),
            ..Demand::default()
        };
        let (begun, deadline) = (Instant::now(), Instant::from_std(request.context.deadline));
        let (verdict, shared) = loop {
            let left = match request.elsewhere {
                true => Duration::ZERO,
                false => deadline.saturating_duration_since(Instant::now()),
            };
            let patience = self.sharing.patience.map_or(left, |all| all.saturating_sub(begun.elapsed()).min(left));
            (demand.patience, demand.returns) = (micros(patience), micros(left));
            match self.reserve(model, &demand).await {
                // Others came before it. Its place is kept, and a wait this short is not worth giving up the slot.
                (Verdict::Later { wait }, _) if wait <= demand.patience => sleep(Duration::from_micros(wait)).await,
                answer => break answer,
            }
        };
        match verdict {
            Verdict::Go { wait, era } => {
                let wait = Duration::from_micros(wait);
                if !wait.is_zero() {
                    sleep(wait).await;
                }
                let waited = begun.elapsed();
                let labels = ProviderLabels { provider: self.provider.clone() };
                Metrics::seconds(&self.metrics.llm_limit_wait.get_or_create(&labels), waited);
                if !wait.is_zero() {
                    let (provider, wait_ms) = (&self.provider, waited.as_millis());
                    tracing::debug!(
                        llm.provider = provider,
                        llm.model = model,
                        wait_ms,
                        "the call waited for its limit"
                    );
                }
                let word = rates.heeds.then(Arc::default);
                request.rate_word.clone_from(&word);
                let place = Some(Place { rates, feared, era, shared, word });
                if wait.is_zero() { Ok(place) } else { self.still_open(place, model).await }
            }
            Verdict::Later { wait } => Err(self.refusal(model, wait)),
        }
    }

    /// The place of a call that had to wait since it got it, unless the provider has asked everybody to stop meanwhile.
    pub async fn still_open(&self, place: Option<Place>, model: &str) -> Result<Option<Place>, Failure> {
        let closed = match &place {
            Some(place) => self.closed(model, place).await,
            None => None,
        };
        match closed {
            Some(closed) => {
                self.leave(place, model).await;
                Err(self.refusal(model, closed))
            }
            None => Ok(place),
        }
    }

    /// Gives a place back that no request was made from.
    pub async fn leave(&self, place: Option<Place>, model: &str) {
        let Some(place) = place else { return };
        let tokens = place.correction(Some(0));
        self.tell(model, place.shared, Amendment { era: place.era, tokens, ..Amendment::default() }).await;
    }

    /// Whether the provider has asked everybody to stop while a call waited for its place, and for how long.
    async fn closed(&self, model: &str, place: &Place) -> Option<u64> {
        let verdict = match (place.rates.heeds, place.shared) {
            (false, _) => None,
            (true, true) => self.ask_shared(model, &Demand::default()).await,
            (true, false) => Some(self.own.reserve(model, &Demand::default())),
        };
        match verdict {
            Some(Verdict::Later { wait }) => Some(wait),
            Some(Verdict::Go { .. }) | None => None,
        }
    }

    /// Tells the limit what a call used and what the provider said with its answer.
    pub async fn settle(&self, place: Option<Place>, model: &str, answer: &Result<Completion, LlmError>) {
        let Some(place) = place else { return };
        let used = match answer {
            Ok(completion) => self.counted(&completion.usage),
            Err(error) => (!error.may_have_cost()).then_some(0),
        };
        let mut amendment = Amendment { era: place.era, tokens: place.correction(used), ..Amendment::default() };
        if place.rates.heeds {
            let asked = answer.as_ref().err().and_then(LlmError::closed_for).unwrap_or_default();
            amendment.closed = micros(asked);
            if let Some(word) = place.word.as_ref().and_then(|word| word.get()) {
                let since = word.at.elapsed();
                let full = |rate: Option<Rate>, left: Option<u64>| match (rate, left) {
                    (Some(rate), Some(left)) => rate.missing(left).saturating_sub(micros(since)),
                    _ => 0,
                };
                amendment.requests_full = full(place.rates.requests, word.requests);
                amendment.tokens_full = full(place.rates.tokens, word.tokens);
                let empty = word.empty_for.unwrap_or_default().saturating_sub(since);
                amendment.closed = amendment.closed.max(micros(empty));
            }
        }
        self.tell(model, place.shared, amendment).await;
    }

    /// The limits of a model, if it has any.
    fn rates(&self, model: &str) -> Option<Rates> {
        let own = self.config.limits.get(model);
        let requests = own.and_then(|own| own.requests_per_minute).or(self.config.requests_per_minute);
        let tokens = own.and_then(|own| own.tokens_per_minute).or(self.config.tokens_per_minute);
        let heeds = match self.config.rate_headers {
            When::Auto => requests.is_some() || tokens.is_some(),
            When::Always => true,
            When::Never => false,
        };
        let rates = Rates {
            requests: requests.map(|number| Rate::new(NonZeroU64::from(number), self.config.burst)),
            tokens: tokens.map(|number| Rate::new(number, TOKEN_BURST)),
            heeds,
        };
        (requests.is_some() || tokens.is_some() || heeds).then_some(rates)
    }

    /// What the provider counts of a usage; none where it does not say what was used.
    fn counted(&self, usage: &Usage) -> Option<u64> {
        let all = usage.input_tokens + usage.output_tokens;
        // Anthropic does not count what comes out of its cache, OpenAI does.
        let free = match self.config.kind.protocol() {
            Protocol::Messages => usage.cache_read_tokens,
            Protocol::Openai => 0,
        };
        (all > 0).then(|| all.saturating_sub(free))
    }

    fn refusal(&self, model: &str, wait: u64) -> Failure {
        let labels = DeferLabels { provider: self.provider.clone(), cause: "limit" };
        self.metrics.llm_deferred.get_or_create(&labels).inc();
        let wait = Duration::from_micros(wait);
        let message = format!(
            "the model {model:?} of the provider {:?} has used up its limit for now; it can be asked again in {}",
            self.provider,
            humantime::format_duration(Duration::from_millis(u64::try_from(wait.as_millis()).unwrap_or(u64::MAX)))
        );
        Failure::retriable("limit_reached", message).with_retry_after(Some(wait))
    }

    /// Asks the limit of all workers, else our own. Also says which of them answered.
    async fn reserve(&self, model: &str, demand: &Demand) -> (Verdict, bool) {
        if let Some(verdict) = self.ask_shared(model, demand).await {
            return (verdict, true);
        }
        if self.sharing.limits.is_some() {
            let labels = ProviderLabels { provider: self.provider.clone() };
            self.metrics.llm_limit_alone.get_or_create(&labels).inc();
        }
        (self.own.reserve(model, demand), false)
    }

    /// Asks the limit of all workers; none where there is no such limit or it does not answer.
    async fn ask_shared(&self, model: &str, demand: &Demand) -> Option<Verdict> {
        let shared = self.reachable()?;
        let answer = timeout(ANSWER, shared.reserve(&self.provider, model, demand)).await;
        self.heard(answer.ok())
    }

    async fn tell(&self, model: &str, shared: bool, amendment: Amendment) {
        if amendment.is_empty() {
            return;
        }
        if !shared {
            return self.own.amend(model, &amendment);
        }
        if let Some(shared) = self.reachable() {
            // Nobody knows whether what was not answered took effect, so it is not told twice.
            let answer = timeout(ANSWER, shared.amend(&self.provider, model, &amendment)).await;
            self.heard(answer.ok());
        }
    }

    fn reachable(&self) -> Option<&Arc<dyn SharedLimits>> {
        let outage = *self.outage.lock().expect("nobody panics while holding the moment");
        self.sharing.limits.as_ref().filter(|_| outage.is_none_or(|until| Instant::now() >= until))
    }

    /// Remembers whether the shared limits answered; the log has a line for the beginning of an outage and one for its end.
    fn heard<T>(&self, answer: Option<Result<T, Failure>>) -> Option<T> {
        let mut outage = self.outage.lock().expect("nobody panics while holding the moment");
        match answer {
            Some(Ok(answer)) => {
                if outage.take().is_some() {
                    tracing::info!(llm.provider = self.provider, "the shared limits answer again");
                }
                Some(answer)
            }
            failed => {
                if outage.is_none() {
                    let error = failed.and_then(Result::err).map_or_else(|| String::from("no answer"), |e| e.message);
                    tracing::warn!(
                        llm.provider = self.provider,
                        error,
                        "the shared limits do not answer, each worker keeps them by itself for now"
                    );
                }
                *outage = Some(Instant::now() + OUTAGE);
                None
            }
        }
    }
}

impl Place {
    /// What the charge of tokens has to be corrected by; nothing where it is not known what was used.
    fn correction(&self, used: Option<u64>) -> i64 {
        let (Some(rate), Some(used)) = (self.rates.tokens, used) else { return 0 };
        let signed = |amount| i64::try_from(rate.time_of(amount)).unwrap_or(i64::MAX);
        signed(used) - signed(self.feared)
    }
}

/// The name under which a call waits for its limit: the same on whatever worker it asks again.
fn who(context: &CallContext) -> u64 {
    let digest = Sha256::digest(context.idempotency_key.as_bytes());
    digest.iter().take(8).fold(0, |name, byte| name << 8 | u64::from(*byte))
}

/// The limits of this process alone.
struct OwnLimits {
    since: Instant,
    models: Mutex<HashMap<String, Limit>>,
}

impl Default for OwnLimits {
    fn default() -> Self {
        Self { since: Instant::now(), models: Mutex::default() }
    }
}

impl OwnLimits {
    fn reserve(&self, model: &str, demand: &Demand) -> Verdict {
        self.with(model, |limit, now| limit.reserve(now, demand))
    }

    fn amend(&self, model: &str, amendment: &Amendment) {
        self.with(model, |limit, now| limit.amend(now, amendment));
    }

    fn with<T>(&self, model: &str, act: impl FnOnce(&mut Limit, u64) -> T) -> T {
        let now = u64::try_from(self.since.elapsed().as_micros()).unwrap_or(u64::MAX);
        let mut models = self.models.lock().expect("nobody panics while holding the limits");
        if models.len() >= MANY && !models.contains_key(model) {
            models.retain(|_, limit| !limit.is_idle(now));
        }
        act(models.entry(model.to_owned()).or_default(), now)
    }
}

#[cfg(test)]
mod tests;
