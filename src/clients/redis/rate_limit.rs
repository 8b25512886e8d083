//! Limits of models that all workers share: one script before a call, one after it. What they reckon is
//! [`crate::domain::rate`]'s; who waits, and for what, is not decided here.
//!
//! Hash `{prefix}limit:{provider}:{model}`, gone by itself once its allowances are full.

use std::sync::LazyLock;

use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;

use crate::clients::redis::error::RedisError;
use crate::clients::redis::keys::Keys;
use crate::clients::redis::link::Link;
use crate::clients::redis::reply;
use crate::clients::redis::script::Script;
use crate::domain::outcome::Failure;
use crate::domain::rate::{Amendment, Demand, GRACE, LINE, MOMENT, SHORTEST, SPREAD, Verdict, micros};
use crate::ports::SharedLimits;

static RESERVE: LazyLock<Script> = LazyLock::new(|| Script::new(include_str!("scripts/reserve.lua")));
static AMEND: LazyLock<Script> = LazyLock::new(|| Script::new(include_str!("scripts/amend.lua")));

/// The longest wait that a script is told; microseconds beyond it would lose digits.
const LONGEST: u64 = 1 << 50;

/// The limits on one server.
#[derive(Debug, Clone)]
pub struct RateLimits {
    link: Link,
    keys: Keys,
}

impl RateLimits {
    /// The limits under these keys.
    pub fn new(link: Link, keys: Keys) -> Self {
        Self { link, keys }
    }

    async fn ask(&self, provider: &str, model: &str, demand: &Demand) -> Result<Verdict, RedisError> {
        let what = "a place under a shared limit";
        let Demand { who, request, tokens, patience, returns } = demand;
        let key = self.keys.limit(provider, model);
        let mut call = RESERVE.call(1, key.len() + 160);
        call.arg(key).arg((*patience).min(LONGEST)).arg(request.cost).arg(request.burst);
        call.arg(tokens.cost).arg(tokens.burst).arg(format!("{who:x}")).arg((*returns).min(LONGEST));
        call.arg(micros(SPREAD)).arg(LINE).arg(micros(GRACE)).arg(micros(SHORTEST)).arg(micros(MOMENT));
        let answer = reply::list(self.link.eval(&RESERVE, &call).await?, what)?;
        let numbers: Option<Vec<u64>> = answer.iter().map(reply::number).collect();
        match numbers.as_deref() {
            Some([1, wait, era]) => Ok(Verdict::Go { wait: *wait, era: *era }),
            Some([0, wait]) => Ok(Verdict::Later { wait: *wait }),
            _ => Err(RedisError::Unexpected { what }),
        }
    }

    async fn tell(&self, provider: &str, model: &str, amendment: &Amendment) -> Result<(), RedisError> {
        let Amendment { era, tokens, closed, requests_full, tokens_full } = amendment;
        let key = self.keys.limit(provider, model);
        let mut call = AMEND.call(1, key.len() + 96);
        call.arg(key).arg(era).arg(tokens).arg(closed).arg(requests_full).arg(tokens_full);
        self.link.eval(&AMEND, &call).await.map(drop)
    }
}

impl SharedLimits for RateLimits {
    fn reserve<'a>(
        &'a self,
        provider: &'a str,
        model: &'a str,
        demand: &'a Demand,
    ) -> BoxFuture<'a, Result<Verdict, Failure>> {
        self.ask(provider, model, demand).map(|answer| answer.map_err(Failure::from)).boxed()
    }

    fn amend<'a>(
        &'a self,
        provider: &'a str,
        model: &'a str,
        amendment: &'a Amendment,
    ) -> BoxFuture<'a, Result<(), Failure>> {
        self.tell(provider, model, amendment).map(|answer| answer.map_err(Failure::from)).boxed()
    }
}
