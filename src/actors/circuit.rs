//! The circuit breakers of one provider, one for each model, in this process. They are not shared: a host that cannot
//! reach a provider must not stop those that can, and a probe of each process costs the provider nothing.

use std::collections::HashMap;
use std::num::NonZeroU32;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::time::Instant;

use crate::config::ProviderConfig;
use crate::domain::breaker::{Admission, Breaker, BreakerPolicy, Sign};
use crate::domain::outcome::Failure;
use crate::metrics::{DeferLabels, Metrics, ProviderLabels};

/// Models whose failures are counted at once; what comes beyond is let through.
const MANY: usize = 256;

/// The breakers of one provider.
pub struct Circuits {
    provider: String,
    policy: Option<BreakerPolicy>,
    /// Breakers of models that failed since they last answered.
    breakers: Mutex<HashMap<String, Breaker>>,
    metrics: Arc<Metrics>,
}

impl Circuits {
    /// The breakers of the provider called `name`; none open where `breaker_failures` is 0.
    pub fn new(name: &str, config: &ProviderConfig, metrics: Arc<Metrics>) -> Self {
        let policy = NonZeroU32::new(config.breaker_failures).map(|failures| BreakerPolicy {
            failures,
            pause: config.breaker_pause,
            max_pause: config.breaker_max_pause,
        });
        Self { provider: name.to_owned(), policy, breakers: Mutex::default(), metrics }
    }

    /// Fails where a call could not begin now.
    pub fn check(&self, model: &str) -> Result<(), Failure> {
        let Some(policy) = &self.policy else { return Ok(()) };
        let wait = self.with(|breakers| breakers.get(model)?.refuses(policy, now()));
        wait.map_or(Ok(()), |wait| Err(self.refusal(model, policy, wait)))
    }

    /// Lets a call begin. Its end must be told; one that is given up tells nothing.
    pub fn enter<'a>(&'a self, model: &'a str) -> Result<Passage<'a>, Failure> {
        let Some(policy) = &self.policy else { return Ok(Passage { circuits: self, model, probe: false }) };
        let admission = self.with(|breakers| match breakers.get_mut(model) {
            Some(breaker) => breaker.admit(policy, now()),
            None => Admission::Free,
        });
        match admission {
            Admission::Free => Ok(Passage { circuits: self, model, probe: false }),
            Admission::Probe => {
                tracing::info!(llm.provider = self.provider, llm.model = model, "one call tries the provider again");
                Ok(Passage { circuits: self, model, probe: true })
            }
            Admission::Refused(wait) => Err(self.refusal(model, policy, wait)),
        }
    }

    fn ended(&self, model: &str, probe: bool, sign: Sign) {
        let Some(policy) = &self.policy else { return };
        let (before, opened, open) = self.with(|breakers| {
            let before = breakers.get(model).is_some_and(Breaker::is_open);
            if sign == Sign::Sick && breakers.len() < MANY {
                breakers.entry(model.to_owned()).or_default();
            }
            let opened = breakers.get_mut(model).is_some_and(|breaker| breaker.ended(policy, now(), probe, sign));
            if breakers.get(model).is_some_and(Breaker::is_idle) {
                breakers.remove(model);
            }
            (before, opened, breakers.values().filter(|breaker| breaker.is_open()).count())
        });
        if opened && !before {
            tracing::warn!(
                llm.provider = self.provider,
                llm.model = model,
                failures = policy.failures,
                "the provider keeps failing and is left alone for a while"
            );
        }
        if before && sign == Sign::Well {
            tracing::info!(llm.provider = self.provider, llm.model = model, "the provider answers again");
        }
        let labels = ProviderLabels { provider: self.provider.clone() };
        self.metrics.llm_circuits_open.get_or_create(&labels).set(i64::try_from(open).unwrap_or(i64::MAX));
    }

    fn refusal(&self, model: &str, policy: &BreakerPolicy, wait: Duration) -> Failure {
        let labels = DeferLabels { provider: self.provider.clone(), cause: "circuit" };
        self.metrics.llm_deferred.get_or_create(&labels).inc();
        let message = format!(
            "the model {model:?} of the provider {:?} failed {} times in a row and is left alone for now; it is tried \
             again by one call at a time",
            self.provider, policy.failures
        );
        Failure::retriable("circuit_open", message).with_retry_after(Some(wait))
    }

    fn with<T>(&self, act: impl FnOnce(&mut HashMap<String, Breaker>) -> T) -> T {
        act(&mut self.breakers.lock().expect("nobody panics while holding the breakers"))
    }
}

/// A call that has begun.
#[must_use = "its end decides about the calls after it"]
pub struct Passage<'a> {
    circuits: &'a Circuits,
    model: &'a str,
    probe: bool,
}

impl Passage<'_> {
    /// Tells what its end says of the provider.
    pub fn ended(mut self, sign: Sign) {
        self.circuits.ended(self.model, self.probe, sign);
        self.probe = false;
    }
}

impl Drop for Passage<'_> {
    fn drop(&mut self) {
        // Only the end of a probe is waited for.
        if self.probe {
            self.circuits.ended(self.model, true, Sign::None);
        }
    }
}

fn now() -> std::time::Instant {
    Instant::now().into_std()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn circuits(failures: u32) -> Circuits {
        let config = ProviderConfig { breaker_failures: failures, ..ProviderConfig::default() };
        Circuits::new("p", &config, Arc::new(Metrics::new("w")))
    }

    fn call(circuits: &Circuits, model: &str, sign: Sign) -> Result<(), Failure> {
        circuits.enter(model).map(|passage| passage.ended(sign))
    }

    #[tokio::test(start_paused = true)]
    async fn a_model_that_keeps_failing_is_left_alone_and_the_others_are_not() {
        let circuits = circuits(3);
        for _ in 0..3 {
            call(&circuits, "m", Sign::Sick).expect("it is closed");
        }
        let refused = call(&circuits, "m", Sign::Well).expect_err("it is open");
        assert_eq!((refused.code.as_ref(), refused.retry_after), ("circuit_open", Some(Duration::from_secs(5))));
        assert!(refused.needs_time(), "another provider may be asked at once");
        assert!(circuits.check("m").is_err());
        call(&circuits, "other", Sign::Well).expect("it never failed");
        let text = circuits.metrics.encode();
        assert!(text.contains(r#"executor_llm_circuits_open{provider="p"} 1"#), "{text}");
        assert!(text.contains(r#"executor_llm_deferred_total{provider="p",cause="circuit"} 2"#), "{text}");

        tokio::time::advance(Duration::from_secs(5)).await;
        circuits.check("m").expect("one may try");
        let probe = circuits.enter("m").expect("the probe");
        assert!(circuits.enter("m").is_err() && circuits.check("m").is_err(), "one at a time");
        // A probe that is given up makes room for another.
        drop(probe);
        call(&circuits, "m", Sign::Well).expect("another probe");
        call(&circuits, "m", Sign::Well).expect("it is closed");
        assert!(circuits.metrics.encode().contains(r#"executor_llm_circuits_open{provider="p"} 0"#));
        assert!(circuits.with(|breakers| breakers.is_empty()), "nothing is remembered of it");
    }

    #[tokio::test(start_paused = true)]
    async fn without_a_number_of_failures_nothing_opens() {
        let circuits = circuits(0);
        for _ in 0..100 {
            call(&circuits, "m", Sign::Sick).expect("it is always closed");
        }
    }
}
