//! The tokens of one server: found out where they come from when the server asks for one, renewed before they end, one
//! request at a time; only who has none that is good waits, and shares its answer. How a token is got is the [`Grant`]'s business.

use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, Instant};

use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use reqwest::Url;
use reqwest::header::HeaderValue;
use tokio::sync::Mutex;

use super::challenge::BearerChallenge;
use super::client_credentials::ClientCredentials;
use super::discovery::{Discovery, Place, configured};
use super::error::AuthError;
use super::fetch::Fetch;
use super::grant::{Ask, Grant};
use super::scopes::Scopes;
use super::token::{Granted, Token};
use super::{Authorize, Challenge};
use crate::clients::mcp::error::McpError;
use crate::config::{McpAuthConfig, McpServerConfig};
use crate::retry::Retry;

/// How long a failure answers everybody: nobody gains by asking again at once, and a client that is refused over and
/// over may be locked out.
const PAUSE_AWAY: Duration = Duration::from_secs(1);
const PAUSE_REFUSED: Duration = Duration::from_secs(15);
/// How long after a refused token a refused successor is taken for proof that more of them help nobody.
const REFUSALS_WITHIN: Duration = Duration::from_secs(15);
/// Times that a server may ask for more scopes, over all of its life: an honest one runs out of them.
const MAX_STEPS: u32 = 32;

/// The tokens of one server.
pub struct OAuth(Arc<Tokens>);

/// Shared with the renewal that runs ahead of a token's end.
struct Tokens {
    server: Arc<str>,
    url: Option<Url>,
    config: McpAuthConfig,
    limit: Duration,
    fetch: Arc<Fetch>,
    grant: Arc<dyn Grant>,
    current: RwLock<Option<Arc<Token>>>,
    renewal: Arc<Mutex<Renewal>>,
}

/// What is known between two renewals.
#[derive(Default)]
struct Renewal {
    place: Option<Place>,
    /// What the server said last about where to look.
    challenge: BearerChallenge,
    /// Scopes asked for so far; they only grow, so that one tool does not cost another its permission.
    asked: Scopes,
    failure: Option<Failed>,
    refused_at: Option<Instant>,
    steps: u32,
    /// Scopes that were not given, and when that was said.
    denied: Option<(Scopes, AuthError, Instant)>,
}

struct Failed {
    error: AuthError,
    at: Instant,
    until: Instant,
}

/// Why a token is wanted.
enum Cause {
    /// There is none, or it ends.
    Ended,
    /// The server wants another, or one at all.
    Refused(BearerChallenge),
    /// The server wants one with more scopes.
    Lacking(BearerChallenge),
}

impl OAuth {
    /// For a server whose client credentials are configured.
    pub(super) fn new(server: Arc<str>, config: &McpServerConfig, auth: &McpAuthConfig) -> Self {
        let fetch = Self::fetch(&server, config, auth);
        let grant = Arc::new(ClientCredentials::new(Arc::clone(&server), auth.clone(), Arc::clone(&fetch)));
        Self::build(server, config, auth, fetch, grant)
    }

    /// For a server whose tokens are got in another way. Of `auth` in the configuration counts what says where from and
    /// what for: `issuer`, `token_endpoint`, `resource`, `scopes`.
    pub fn with_grant(server: &str, config: &McpServerConfig, grant: Arc<dyn Grant>) -> Self {
        let server: Arc<str> = Arc::from(server);
        let auth = config.auth.clone().unwrap_or_default();
        let fetch = Self::fetch(&server, config, &auth);
        Self::build(server, config, &auth, fetch, grant)
    }

    fn fetch(server: &Arc<str>, config: &McpServerConfig, auth: &McpAuthConfig) -> Arc<Fetch> {
        let url = config.url.as_deref().and_then(|url| Url::parse(url).ok());
        Arc::new(Fetch::new(Arc::clone(server), url.as_ref(), config.connect_timeout, auth))
    }

    fn build(
        server: Arc<str>,
        config: &McpServerConfig,
        auth: &McpAuthConfig,
        fetch: Arc<Fetch>,
        grant: Arc<dyn Grant>,
    ) -> Self {
        Self(Arc::new(Tokens {
            server,
            url: config.url.as_deref().and_then(|url| Url::parse(url).ok()),
            config: auth.clone(),
            // Less than opening a session may take, so that what is told is who did not answer.
            limit: config.connect_timeout.mul_f64(0.75),
            fetch,
            grant,
            current: RwLock::new(None),
            renewal: Arc::default(),
        }))
    }
}

impl Tokens {
    fn current(&self) -> Option<Arc<Token>> {
        self.current.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn set(&self, token: Option<Arc<Token>>) {
        *self.current.write().unwrap_or_else(PoisonError::into_inner) = token;
    }

    /// A token other than the one that was seen, and good for the cause: by whoever was here first, else by us.
    async fn renew(&self, seen: Option<&HeaderValue>, cause: Cause) -> Result<Arc<Token>, AuthError> {
        let arrived = Instant::now();
        let mut state = self.renewal.lock().await;
        self.renew_in(&mut state, arrived, seen, cause).await
    }

    /// The same for who has the lock, and came at `arrived` for it.
    async fn renew_in(
        &self,
        state: &mut Renewal,
        arrived: Instant,
        seen: Option<&HeaderValue>,
        cause: Cause,
    ) -> Result<Arc<Token>, AuthError> {
        let current = self.current();
        let other = current.as_ref().filter(|token| token.is_fresh() && Some(&token.header) != seen);
        match (&cause, other) {
            (Cause::Ended | Cause::Refused(_), Some(other)) => return Ok(Arc::clone(other)),
            (Cause::Lacking(challenge), Some(other))
                if challenge.scopes.as_ref().is_some_and(|scopes| other.scopes.contain(scopes)) =>
            {
                return Ok(Arc::clone(other));
            }
            _ => {}
        }
        if let Some(failed) = &state.failure
            && (failed.at >= arrived || Instant::now() < failed.until)
        {
            return Err(failed.error.clone().waiting(failed.until.saturating_duration_since(Instant::now())));
        }
        match cause {
            Cause::Ended => self.replace(state, current.as_deref()).await,
            Cause::Refused(challenge) => {
                if current.is_some() && seen.is_some() {
                    if state.refused_at.is_some_and(|at| at.elapsed() < REFUSALS_WITHIN) {
                        let remedy = String::from(
                            "it was given fresh ones; see what it expects of their issuer, audience and scopes",
                        );
                        return Err(AuthError::TokenRefused { server: Arc::clone(&self.server), remedy });
                    }
                    state.refused_at = Some(Instant::now());
                }
                if challenge != BearerChallenge::default() {
                    state.challenge = challenge;
                }
                // It may have moved to another authorization server.
                state.place = None;
                // The first token is asked for by other rules, and what the operator chose is not widened by a 401.
                if let Some(scopes) = state.challenge.scopes.as_ref()
                    && !state.asked.is_empty()
                    && self.config.scopes.is_empty()
                {
                    state.asked = state.asked.union(scopes);
                }
                self.replace(state, current.as_deref()).await
            }
            Cause::Lacking(challenge) => self.step_up(state, challenge).await,
        }
    }

    /// A new token with the scopes asked for so far.
    async fn replace(&self, state: &mut Renewal, old: Option<&Token>) -> Result<Arc<Token>, AuthError> {
        let deadline = Instant::now() + self.limit;
        let scopes = state.asked.clone();
        match self.obtain(state, scopes, old, deadline).await {
            Ok(token) => Ok(token),
            Err(error) => {
                // What was known of the place may be the reason.
                state.place = None;
                let now = Instant::now();
                let pause = match error.retry() {
                    Retry::After(asked) => asked.unwrap_or(PAUSE_AWAY),
                    Retry::Never => PAUSE_REFUSED,
                };
                state.failure = Some(Failed { error: error.clone(), at: now, until: now + pause });
                Err(error)
            }
        }
    }

    /// A token with more scopes, beside those asked for so far.
    async fn step_up(&self, state: &mut Renewal, challenge: BearerChallenge) -> Result<Arc<Token>, AuthError> {
        let wanted = challenge.scopes.unwrap_or_default();
        let insufficient = |problem: &str| AuthError::InsufficientScope {
            server: Arc::clone(&self.server),
            wanted: wanted.to_string(),
            problem: problem.to_owned(),
        };
        if wanted.is_empty() {
            return Err(insufficient("the server does not say which scope it wants"));
        }
        if state.asked.contain(&wanted) {
            return Err(insufficient("they were asked for and not given"));
        }
        if state.steps >= MAX_STEPS {
            return Err(insufficient("the server asked for more again and again"));
        }
        let union = state.asked.union(&wanted);
        if let Some((denied, error, at)) = &state.denied
            && union.contain(denied)
            && at.elapsed() < PAUSE_REFUSED
        {
            return Err(error.clone());
        }
        state.steps += 1;
        let deadline = Instant::now() + self.limit;
        match self.obtain(state, union.clone(), None, deadline).await {
            Ok(token) => Ok(token),
            // The old token is as good as before for everything else.
            Err(error) if error.retry() == Retry::Never => {
                let error = insufficient(&error.to_string());
                state.denied = Some((union, error.clone(), Instant::now()));
                Err(error)
            }
            Err(error) => {
                // For those who wait already; the next one may try again.
                let now = Instant::now();
                state.failure = Some(Failed { error: error.clone(), at: now, until: now });
                Err(error)
            }
        }
    }

    async fn obtain(
        &self,
        state: &mut Renewal,
        scopes: Scopes,
        old: Option<&Token>,
        deadline: Instant,
    ) -> Result<Arc<Token>, AuthError> {
        let place = match &state.place {
            Some(place) => place.clone(),
            None => self.find(&state.challenge, deadline).await?,
        };
        let scopes = if scopes.is_empty() { self.first_scopes(&state.challenge, &place) } else { scopes };
        let asked_at = Instant::now();
        let ask = Ask { server: &place.server, resource: &place.resource, scopes: &scopes, deadline };
        // A refresh token belongs to who gave it.
        let refresh = old.filter(|old| old.issuer == place.server.issuer).and_then(|old| old.refresh.as_ref());
        let granted = match refresh {
            Some(refresh) => match self.grant.refresh(ask, refresh).await {
                // A server that turns none in keeps the old one good.
                Ok(granted) => Granted { refresh_token: granted.refresh_token.or(Some(refresh.clone())), ..granted },
                Err(AuthError::Refused { error, .. }) => {
                    tracing::debug!(mcp.server = %self.server, error, "refresh token refused, asking for a new token");
                    self.grant.obtain(ask).await?
                }
                Err(error) => return Err(error),
            },
            None => self.grant.obtain(ask).await?,
        };
        let life = granted.expires_in;
        let token = Token::new(granted, &place.server.issuer, scopes.clone(), asked_at).ok_or_else(|| {
            AuthError::Malformed {
                server: Arc::clone(&self.server),
                what: String::from("the token"),
                problem: String::from("it cannot be sent in a header"),
            }
        })?;
        tracing::debug!(
            mcp.server = %self.server,
            issuer = place.server.issuer,
            scopes = %scopes,
            expires_in_s = life.map(|life| life.as_secs()),
            elapsed_ms = asked_at.elapsed().as_millis() as u64,
            "token obtained"
        );
        let token = Arc::new(token);
        self.set(Some(Arc::clone(&token)));
        (state.place, state.asked, state.failure) = (Some(place), scopes, None);
        Ok(token)
    }

    async fn find(&self, challenge: &BearerChallenge, deadline: Instant) -> Result<Place, AuthError> {
        let url = self.url.as_ref().ok_or_else(|| AuthError::Undiscovered {
            server: Arc::clone(&self.server),
            problem: String::from("it has no address"),
        })?;
        let discovery = Discovery { name: &self.server, url, config: &self.config, fetch: &self.fetch, deadline };
        discovery.find(challenge).await
    }

    /// What the operator wants, else what the server asked for, else all that the resource knows, else the choice of the
    /// authorization server.
    fn first_scopes(&self, challenge: &BearerChallenge, place: &Place) -> Scopes {
        if !self.config.scopes.is_empty() {
            return self.config.scopes.iter().map(String::as_str).collect();
        }
        challenge.scopes.clone().or_else(|| place.scopes.clone()).unwrap_or_default()
    }

    async fn header(self: &Arc<Self>) -> Result<Option<HeaderValue>, AuthError> {
        let seen = match self.current() {
            Some(token) if token.is_fresh() => return Ok(Some(token.header.clone())),
            Some(token) if token.is_valid() => {
                self.renew_ahead(&token);
                return Ok(Some(token.header.clone()));
            }
            Some(token) => Some(token),
            // Where tokens come from, the server tells when it refuses a request; unless the operator has told already.
            None if self.url.as_ref().is_none_or(|url| configured(url, &self.config).is_none()) => return Ok(None),
            None => None,
        };
        let token = self.renew(seen.as_ref().map(|token| &token.header), Cause::Ended).await?;
        Ok(Some(token.header.clone()))
    }

    /// Gets the next token while this one still serves, unless somebody is at it: nobody waits, and it goes on if
    /// whoever noticed gives up.
    fn renew_ahead(self: &Arc<Self>, token: &Arc<Token>) {
        let Ok(mut state) = Arc::clone(&self.renewal).try_lock_owned() else { return };
        if state.failure.as_ref().is_some_and(|failed| Instant::now() < failed.until) {
            return;
        }
        let (this, token) = (Arc::clone(self), Arc::clone(token));
        tokio::spawn(async move {
            let renewed = this.renew_in(&mut state, Instant::now(), Some(&token.header), Cause::Ended).await;
            if let Err(error) = renewed {
                tracing::warn!(mcp.server = %this.server, %error, "the next token cannot be had yet");
            }
        });
    }

    async fn challenged(&self, challenge: Challenge<'_>) -> Result<bool, AuthError> {
        let bearer = BearerChallenge::of(&challenge.www_authenticate);
        let cause = match challenge.status {
            401 => Cause::Refused(bearer),
            403 if bearer.lacks_scope() => Cause::Lacking(bearer),
            _ => return Ok(false),
        };
        self.renew(challenge.sent, cause).await?;
        Ok(true)
    }
}

impl Authorize for OAuth {
    fn header(&self) -> BoxFuture<'_, Result<Option<HeaderValue>, McpError>> {
        async { Ok(self.0.header().await?) }.boxed()
    }

    fn challenged<'a>(&'a self, challenge: Challenge<'a>) -> BoxFuture<'a, Result<bool, McpError>> {
        async move { Ok(self.0.challenged(challenge).await?) }.boxed()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use secrecy::SecretString;
    use tokio::sync::Semaphore;

    use super::*;

    /// Counts who wants a token, and answers when it is let.
    struct Counter {
        answer: Result<&'static str, AuthError>,
        asked: AtomicUsize,
        gate: Semaphore,
    }

    impl Grant for Counter {
        fn obtain<'a>(&'a self, _: Ask<'a>) -> BoxFuture<'a, Result<Granted, AuthError>> {
            self.asked.fetch_add(1, Ordering::Relaxed);
            async {
                self.gate.acquire().await.expect("it is never closed").forget();
                self.answer.clone().map(granted)
            }
            .boxed()
        }

        fn refresh<'a>(&'a self, ask: Ask<'a>, _: &'a SecretString) -> BoxFuture<'a, Result<Granted, AuthError>> {
            self.obtain(ask)
        }
    }

    impl Counter {
        fn asked(&self) -> usize {
            self.asked.load(Ordering::Relaxed)
        }
    }

    fn granted(token: &str) -> Granted {
        Granted { access_token: token.into(), expires_in: Some(Duration::from_secs(100)), refresh_token: None }
    }

    /// Tokens of a server whose last one was asked for so many seconds ago and lives for 100.
    fn with_token_of_age(age: u64, answer: Result<&'static str, AuthError>) -> (OAuth, Arc<Counter>) {
        let counter = Arc::new(Counter { answer, asked: AtomicUsize::new(0), gate: Semaphore::new(0) });
        let auth = McpAuthConfig { token_endpoint: Some(String::from("https://id/token")), ..Default::default() };
        let config =
            McpServerConfig { url: Some(String::from("https://crm/mcp")), auth: Some(auth), ..Default::default() };
        let oauth = OAuth::with_grant("crm", &config, Arc::clone(&counter) as Arc<dyn Grant>);
        let asked = Instant::now().checked_sub(Duration::from_secs(age)).expect("the machine runs for longer");
        oauth.0.set(Token::new(granted("old"), "https://id/token", Scopes::default(), asked).map(Arc::new));
        (oauth, counter)
    }

    fn unavailable() -> AuthError {
        let (what, cause) = (String::from("a token"), String::from("HTTP status 503"));
        AuthError::Unavailable { server: Arc::from("crm"), what, cause, retry_after: None }
    }

    async fn header(oauth: &OAuth) -> HeaderValue {
        oauth.0.header().await.unwrap_or_else(|error| panic!("{error}")).expect("a header")
    }

    #[tokio::test]
    async fn a_token_that_is_about_to_end_serves_on_while_the_next_is_asked_for_once() {
        let (oauth, counter) = with_token_of_age(95, Ok("new"));
        for _ in 0..100 {
            assert_eq!(header(&oauth).await, "Bearer old", "nobody waits for an answer that does not come");
            tokio::task::yield_now().await;
        }
        assert_eq!(counter.asked(), 1);
        counter.gate.add_permits(1);
        // Until whoever asks has put it in its place.
        drop(oauth.0.renewal.lock().await);
        assert_eq!(header(&oauth).await, "Bearer new");
        assert_eq!(counter.asked(), 1);
    }

    #[tokio::test]
    async fn who_needs_a_token_waits_for_the_one_that_is_being_asked_for() {
        let (oauth, counter) = with_token_of_age(95, Ok("new"));
        assert_eq!(header(&oauth).await, "Bearer old");
        tokio::task::yield_now().await;
        // The old one ends meanwhile.
        let asked = Instant::now().checked_sub(Duration::from_secs(101)).expect("the machine runs for longer");
        oauth.0.set(Token::new(granted("old"), "https://id/token", Scopes::default(), asked).map(Arc::new));
        let waiting = futures_util::future::join_all((0..10).map(|_| header(&oauth)));
        counter.gate.add_permits(1);
        assert!(waiting.await.iter().all(|header| header == "Bearer new"));
        assert_eq!(counter.asked(), 1);
    }

    #[tokio::test]
    async fn a_token_serves_to_its_end_and_no_longer_while_no_other_can_be_had() {
        let refused = AuthError::TokenRefused { server: Arc::from("crm"), remedy: String::new() };
        for error in [unavailable(), refused] {
            let (oauth, counter) = with_token_of_age(95, Err(error.clone()));
            counter.gate.add_permits(10);
            for _ in 0..3 {
                assert_eq!(header(&oauth).await, "Bearer old");
                tokio::task::yield_now().await;
                drop(oauth.0.renewal.lock().await);
            }
            assert_eq!(counter.asked(), 1, "the failure answers for a while");
            let (oauth, counter) = with_token_of_age(101, Err(error.clone()));
            counter.gate.add_permits(10);
            assert_eq!(oauth.0.header().await, Err(error));
        }
    }

    #[tokio::test]
    async fn a_fresh_token_is_at_hand_without_asking_anybody() {
        let (oauth, counter) = with_token_of_age(10, Err(unavailable()));
        assert!(header(&oauth).await.is_sensitive());
        assert_eq!(counter.asked(), 0);
    }
}
