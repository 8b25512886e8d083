//! One tool server over all its sessions: connects when it is first needed, again with backoff when the session is lost,
//! and tells how it is. What it offers is in `catalog`, how it is called in `calls`.

use std::sync::{Arc, Mutex as StdMutex, MutexGuard, PoisonError, RwLock};
use std::time::Duration;

use tokio::sync::{Mutex, Semaphore};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::asker::Asker;
use super::catalog::{Catalog, Reading};
use crate::clients::mcp::{AnswerInput, Endpoint, ServerInfo, Session};
use crate::config::{Elicitation, McpServerConfig};
use crate::domain::outcome::{Category, Failure};
use crate::domain::tool_server::{ServerState, ServerStatus};
use crate::health::Health;
use crate::metrics::{EraLabels, Metrics, ServerLabels, TroubleLabels};
use crate::retry::backoff;
use crate::tools::approval::Approval;

const FIRST_PAUSE: Duration = Duration::from_millis(200);
const LONGEST_PAUSE: Duration = Duration::from_secs(30);

/// One server as the actor needs it; kept over its lives.
pub struct Server {
    /// Its configured name.
    pub name: String,
    /// As it is configured.
    pub(super) config: McpServerConfig,
    endpoint: Endpoint,
    /// Who answers what its tools ask, where anybody does.
    pub(super) asker: Option<Arc<Asker>>,
    /// Whether its tools are still what they were.
    pub approval: Approval,
    /// Calls that may be under way at once.
    pub(super) slots: Semaphore,
    link: Mutex<Link>,
    /// The tools as last discovered, readable without asking the actor.
    pub(super) catalog: RwLock<Option<Catalog>>,
    /// Held while the tools are listed: who comes meanwhile waits for that list and asks for none of his own.
    pub(super) listing: Mutex<()>,
    /// How that goes.
    pub(super) reading: StdMutex<Reading>,
    status: Arc<StdMutex<ServerStatus>>,
    health: Arc<Health>,
    /// What is counted.
    pub(super) metrics: Arc<Metrics>,
    /// Fires when the worker stops.
    pub(super) stop: CancellationToken,
}

#[derive(Default)]
struct Link {
    session: Option<Arc<Session>>,
    failures: u32,
    not_before: Option<Instant>,
    last_error: Option<Failure>,
    counted_down: bool,
}

impl Server {
    /// A server that is not connected yet.
    pub fn new(
        name: &str,
        config: McpServerConfig,
        approval: Approval,
        health: Arc<Health>,
        metrics: Arc<Metrics>,
        stop: CancellationToken,
    ) -> Arc<Self> {
        let link = Link { counted_down: config.required, ..Link::default() };
        if config.required {
            health.required_server(true);
        }
        let asker = (config.elicitation == Elicitation::Wait).then(Arc::<Asker>::default);
        let endpoint = Endpoint::new(name, config.clone());
        let endpoint = match &asker {
            Some(asker) => endpoint.answered(Arc::clone(asker) as Arc<dyn AnswerInput>),
            None => endpoint,
        };
        let transport = if config.url.is_some() { "http" } else { "stdio" };
        let status =
            ServerStatus { name: name.to_owned(), transport, required: config.required, ..ServerStatus::default() };
        Arc::new(Self {
            name: name.to_owned(),
            slots: Semaphore::new(config.concurrency.get()),
            endpoint,
            asker,
            config,
            approval,
            link: Mutex::new(link),
            catalog: RwLock::new(None),
            listing: Mutex::default(),
            reading: StdMutex::default(),
            status: health.tool_server(status),
            health,
            metrics,
            stop,
        })
    }

    /// What is known of the server now.
    pub fn status(&self) -> ServerStatus {
        self.status_mut().clone()
    }

    /// The same, to be changed.
    pub(super) fn status_mut(&self) -> MutexGuard<'_, ServerStatus> {
        self.status.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Who the server says it is, while there is a session.
    pub async fn info(&self) -> Option<ServerInfo> {
        self.link.lock().await.session.as_ref().map(|session| session.info().clone())
    }

    /// The open session, or a new one. After a failure the next attempt waits; until then the last error answers.
    pub(super) async fn session(&self) -> Result<Arc<Session>, Failure> {
        let mut link = self.link.lock().await;
        if let Some(session) = &link.session {
            if !session.is_closed() {
                return Ok(Arc::clone(session));
            }
            tracing::warn!(mcp.server = self.name, "the session is gone, connecting again");
            link.session = None;
            self.mark(&mut link, false);
        }
        if let (Some(until), Some(error)) = (link.not_before, &link.last_error)
            && Instant::now() < until
        {
            let wait = until.duration_since(Instant::now());
            return Err(match error.category {
                Category::Retriable => error.clone().with_retry_after(error.retry_after.or(Some(wait))),
                _ => error.clone(),
            });
        }
        match self.endpoint.connect().await {
            Ok(session) => {
                let info = session.info();
                tracing::info!(
                    mcp.server = self.name,
                    mcp.version = info.protocol_version,
                    server = info.name,
                    "connected to a tool server"
                );
                let (info_era, version) = (info.era.as_str(), info.protocol_version.clone());
                let own_name = format!("{} {}", info.name, info.version).trim().to_owned();
                let session = Arc::new(session);
                *link =
                    Link { session: Some(Arc::clone(&session)), counted_down: link.counted_down, ..Link::default() };
                self.mark(&mut link, true);
                {
                    let mut status = self.status_mut();
                    status.transport = session.transport();
                    status.era = Some(info_era);
                    status.protocol_version = Some(version.clone());
                    status.server = Some(own_name);
                    status.connects += 1;
                }
                let era = EraLabels { server: self.name.clone(), era: info_era, version };
                self.metrics.mcp_era.get_or_create(&era).set(1);
                self.metrics.mcp_connects.get_or_create(&self.labels()).inc();
                Ok(session)
            }
            Err(error) => {
                let failure = Failure::from(error);
                link.failures += 1;
                let pause = backoff(FIRST_PAUSE, LONGEST_PAUSE, link.failures, 0.5 + fastrand::f64() / 2.0);
                if link.failures == 1 {
                    tracing::warn!(mcp.server = self.name, error = %failure, "a tool server cannot be reached");
                }
                link.not_before = Some(Instant::now() + pause);
                link.last_error = Some(failure.clone());
                self.failed(&failure);
                self.mark(&mut link, false);
                Err(failure)
            }
        }
    }

    /// Something went wrong with the server.
    pub(super) fn failed(&self, failure: &Failure) {
        self.status_mut().failed(failure);
        let labels = TroubleLabels { server: self.name.clone(), code: failure.code.to_string() };
        self.metrics.mcp_errors.get_or_create(&labels).inc();
    }

    /// The server answered.
    pub(super) fn answered(&self, took: Duration) {
        self.status_mut().answered(took);
        self.metrics.mcp_latency.get_or_create(&self.labels()).set(took.as_secs_f64());
    }

    fn mark(&self, link: &mut Link, up: bool) {
        let spoken = {
            let mut status = self.status_mut();
            status.state = if up { ServerState::Up } else { ServerState::Down };
            status.era.zip(status.protocol_version.clone())
        };
        if let Some((era, version)) = spoken {
            self.metrics.mcp_era.remove(&EraLabels { server: self.name.clone(), era, version });
        }
        self.metrics.mcp_up.get_or_create(&self.labels()).set(i64::from(up));
        if self.config.required && link.counted_down == up {
            self.health.required_server(!up);
            link.counted_down = !up;
        }
    }

    /// Its name on a metric.
    pub(super) fn labels(&self) -> ServerLabels {
        ServerLabels { server: self.name.clone() }
    }

    /// Gives up a session whose server no longer knows it.
    pub(super) async fn forget(&self, session: &Arc<Session>) {
        let mut link = self.link.lock().await;
        if link.session.as_ref().is_some_and(|present| Arc::ptr_eq(present, session)) {
            link.session = None;
            self.mark(&mut link, false);
        }
    }

    /// Whether the server still answers: a session over HTTP does not notice by itself that nobody is there any more.
    pub(super) async fn look_after(&self) {
        let open = self.link.lock().await.session.clone().filter(|session| !session.is_closed());
        let Some(session) = open else {
            // The failure was logged and counted where it happened.
            let _ = self.discover().await;
            return;
        };
        // A list that has to be read anyway is as good a sign of life as any.
        let alive = match self.current_tools() {
            Some(_) => self.ping(&session).await,
            None => self.discover().await.map(drop),
        };
        if let Err(failure) = alive {
            tracing::warn!(mcp.server = self.name, error = %failure, "a required tool server does not answer any more");
            self.forget(&session).await;
        }
    }

    async fn ping(&self, session: &Session) -> Result<(), Failure> {
        let started = Instant::now();
        match session.ping().await {
            Ok(()) => {
                self.answered(started.elapsed());
                Ok(())
            }
            Err(error) => {
                let failure = Failure::from(error);
                self.failed(&failure);
                Err(failure)
            }
        }
    }

    /// Ends the session, its child process included.
    pub async fn close(&self) {
        let session = self.link.lock().await.session.take();
        if let Some(session) = session {
            session.close().await;
        }
    }
}
