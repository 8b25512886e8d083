//! What a server offers: its tools as last listed, for how long that list is believed, and what the worker itself has to
//! know of them. Which of them a node gets is not decided here.

use std::collections::HashMap;
use std::sync::{Arc, MutexGuard, OnceLock, PoisonError, Weak};
use std::time::Duration;

use serde_json::Value;
use tokio::time::Instant;

use super::server::Server;
use crate::clients::mcp::{McpError, McpTool, Session, ToolListing};
use crate::domain::outcome::{Category, Failure};
use crate::domain::tool::{ToolSpec, ToolTarget};
use crate::modes::schema::Schema;
use crate::tools::approval::{Change, Review};
use crate::tools::index::ToolIndex;
use crate::tools::resolve::allowed;

/// How long a list counts as current where its server neither tells changes nor says how long.
const ASSUMED_FRESH: Duration = Duration::from_secs(60);
/// How long it counts as current whatever its server says: a list before each call would cost more than it tells.
const LEAST_FRESH: Duration = Duration::from_secs(5);
/// How long a node waits for a newer list where an older one is at hand.
const NEWER_LIST: Duration = Duration::from_secs(1);

/// The tools as last discovered.
#[derive(Clone)]
pub(super) struct Catalog {
    tools: Arc<ToolIndex>,
    /// Names that the server offers too and its configuration hides.
    hidden: Arc<[String]>,
    /// What else is known of them, by name.
    facts: Arc<HashMap<String, ToolFacts>>,
    /// The session and its count of announced changes that the tools were read at.
    session: Weak<Session>,
    changes: u64,
    /// When the list has to be read again, if nobody tells that it changed.
    stale_at: Option<Instant>,
}

/// How reading the list goes, and how it went.
#[derive(Clone, Default)]
pub(super) struct Reading {
    /// When it began, if it is under way.
    since: Option<Instant>,
    /// Why there was no list the last time, and when that was.
    missed: Option<(Failure, Instant)>,
}

impl Reading {
    /// It is under way until the answer is dropped.
    fn begin(server: &Server) -> UnderWay<'_> {
        server.reading().since = Some(Instant::now());
        UnderWay(server)
    }
}

struct UnderWay<'a>(&'a Server);

impl Drop for UnderWay<'_> {
    fn drop(&mut self) {
        self.0.reading().since = None;
    }
}

/// What the worker itself has to know of a tool.
pub(super) struct ToolFacts {
    /// Whether it may run twice.
    pub(super) repeatable: bool,
    /// What its structured answer has to satisfy.
    pub(super) output_schema: Option<Arc<OutputSchema>>,
}

/// What a structured answer has to satisfy: compiled when there is one, and kept as long as it stays the same.
pub(super) struct OutputSchema {
    schema: Arc<Value>,
    compiled: OnceLock<Option<Schema>>,
}

impl OutputSchema {
    fn new(schema: Arc<Value>) -> Arc<Self> {
        Arc::new(Self { schema, compiled: OnceLock::new() })
    }

    /// What is wrong with an answer; nothing where the schema itself cannot be used.
    pub(super) fn problem_of(&self, answer: &Value) -> Option<String> {
        let compiled = self.compiled.get_or_init(|| Schema::compile(Arc::clone(&self.schema)).ok());
        compiled.as_ref()?.check(answer).err()
    }
}

/// How long a list is believed, by what its server says of it; none is until it tells that it changed.
fn fresh_for(said: Option<Duration>, tells_changes: bool) -> Option<Duration> {
    match said {
        Some(fresh) if !fresh.is_zero() => Some(fresh.max(LEAST_FRESH)),
        // It tells when they change; nobody has to ask.
        Some(_) | None if tells_changes => None,
        Some(_) | None => Some(ASSUMED_FRESH),
    }
}

impl Server {
    /// The tools as last discovered, if they are still current.
    pub fn current_tools(&self) -> Option<Arc<ToolIndex>> {
        let catalog = self.catalog.read().expect("nobody panics while holding the catalog");
        let catalog = catalog.as_ref()?;
        let session = catalog.session.upgrade()?;
        // Without a moment it was taken as current because changes would be told.
        let stale = catalog.stale_at.map_or_else(|| !session.tells_changes(), |at| at <= Instant::now());
        let current = !session.is_closed() && session.tools_changed() == catalog.changes && !stale;
        current.then(|| Arc::clone(&catalog.tools))
    }

    /// The tools as last discovered, however long ago: what is known of a server that is away.
    pub fn last_known_tools(&self) -> Option<Arc<ToolIndex>> {
        let catalog = self.catalog.read().expect("nobody panics while holding the catalog");
        catalog.as_ref().map(|catalog| Arc::clone(&catalog.tools))
    }

    /// Why a tool that the server offers is not there, if its configuration hides it.
    pub fn why_hidden(&self, tool: &str) -> Option<String> {
        let catalog = self.catalog.read().expect("nobody panics while holding the catalog");
        let hidden = catalog.as_ref()?.hidden.iter().any(|name| name == tool);
        hidden.then(|| format!("`{0}/{tool}` is hidden by `mcp.servers.{0}.allow` or `deny`", self.name))
    }

    /// The tools, discovered anew where they may have changed.
    pub async fn discover(&self) -> Result<Arc<ToolIndex>, Failure> {
        if let Some(tools) = self.current_tools() {
            return Ok(tools);
        }
        let arrived = Instant::now();
        let _listing = self.listing.lock().await;
        // Somebody else may have listed them while we waited, or have tried to.
        if let Some(tools) = self.current_tools() {
            return Ok(tools);
        }
        if let Some((failure, _)) = self.reading().missed.as_ref().filter(|(_, at)| *at >= arrived) {
            return Err(failure.clone());
        }
        let _reading = Reading::begin(self);
        let listed = self.list().await;
        self.reading().missed = listed.as_ref().err().map(|failure| (failure.clone(), Instant::now()));
        listed
    }

    /// Asks the server for its tools.
    async fn list(&self) -> Result<Arc<ToolIndex>, Failure> {
        let mut session = self.session().await?;
        let mut changes = session.tools_changed();
        let mut started = Instant::now();
        let listed = match session.list_tools().await {
            Err(McpError::SessionLost { .. }) => {
                self.forget(&session).await;
                session = self.session().await?;
                (changes, started) = (session.tools_changed(), Instant::now());
                session.list_tools().await
            }
            listed => listed,
        };
        let listing = listed.map_err(|error| {
            let failure = Failure::from(error);
            self.failed(&failure);
            failure
        })?;
        self.answered(started.elapsed());
        Ok(self.keep(&session, changes, listing))
    }

    fn reading(&self) -> MutexGuard<'_, Reading> {
        self.reading.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Keeps a list that was just read.
    fn keep(&self, session: &Arc<Session>, changes: u64, listing: ToolListing) -> Arc<ToolIndex> {
        let fresh = fresh_for(listing.fresh_for, session.tells_changes());
        let before = self.catalog.read().expect("nobody panics while holding the catalog").clone();
        let (listed, hidden): (Vec<_>, Vec<_>) =
            listing.tools.into_iter().partition(|tool| allowed(&self.config, &tool.name));
        let hidden = hidden.into_iter().map(|tool| tool.name).collect();
        let mut facts = HashMap::new();
        let mut tools = Vec::new();
        for tool in listed {
            let repeatable = tool.hints.read_only || tool.hints.idempotent;
            let output_schema = tool.output_schema.clone().map(|schema| {
                let known = before.as_ref().and_then(|before| before.facts.get(&tool.name)?.output_schema.clone());
                known.filter(|known| known.schema == schema).unwrap_or_else(|| OutputSchema::new(schema))
            });
            facts.insert(tool.name.clone(), ToolFacts { repeatable, output_schema });
            let mut spec = self.spec(tool);
            let same = |known: &&ToolSpec| known.input_schema == spec.input_schema;
            if let Some(known) = before.as_ref().and_then(|before| before.tools.named(&spec.target.name).find(same)) {
                // What was made of it for models serves on.
                spec.input_schema = Arc::clone(&known.input_schema);
            }
            tools.push(spec);
        }
        tracing::debug!(mcp.server = self.name, tools = tools.len(), "discovered tools");
        let tools = Arc::new(ToolIndex::new(self.reviewed(tools)));
        {
            let mut status = self.status_mut();
            status.tools = Some(tools.len());
            status.listed_at = Some(jiff::Timestamp::now());
        }
        let count = i64::try_from(tools.len()).unwrap_or(i64::MAX);
        self.metrics.mcp_tools.get_or_create(&self.labels()).set(count);
        let catalog = Catalog {
            tools: Arc::clone(&tools),
            hidden,
            facts: Arc::new(facts),
            session: Arc::downgrade(session),
            changes,
            stale_at: fresh.and_then(|fresh| Instant::now().checked_add(fresh)),
        };
        *self.catalog.write().expect("nobody panics while holding the catalog") = Some(catalog);
        tools
    }

    /// The tools for a node. It waits for a newer list only as long as that is quick, if there is an older one, or if the
    /// server did not answer the last time and the node does not name it: with a server that hangs, nobody waits for
    /// long who may do without it. What was waited for goes on.
    pub(super) async fn offer(self: &Arc<Self>, named: bool) -> Result<Arc<ToolIndex>, Failure> {
        let Reading { since, missed } = self.reading().clone();
        // What cannot be used now could not be used in a moment either, and may be large.
        let in_vain = missed
            .as_ref()
            .is_some_and(|(failure, at)| failure.category != Category::Retriable && at.elapsed() < LEAST_FRESH);
        let instead = match (self.last_known_tools(), missed) {
            (Some(known), _) => Ok(known),
            (None, Some((failure, _))) if !named => Err(failure),
            (None, _) => return self.discover().await,
        };
        let patience = NEWER_LIST.saturating_sub(since.map_or(Duration::ZERO, |since| since.elapsed()));
        if in_vain || patience.is_zero() {
            return instead;
        }
        let server = Arc::clone(self);
        let listing = tokio::spawn(async move { server.discover().await });
        match tokio::time::timeout(patience, listing).await {
            Ok(Ok(Ok(tools))) => Ok(tools),
            // The failure was noted where it happened.
            Ok(Ok(Err(failure))) => instead.map_err(|_| failure),
            Ok(Err(_)) | Err(_) => instead,
        }
    }

    /// What of the tools may be offered; what changed is told.
    fn reviewed(&self, tools: Vec<ToolSpec>) -> Vec<ToolSpec> {
        let Review { offered, changes, withheld } = self.approval.review(tools);
        for Change { tool, old, new } in changes {
            tracing::warn!(mcp.server = self.name, tool, %old, %new, "a tool is described differently than before");
            self.metrics.mcp_tool_changes.get_or_create(&self.labels()).inc();
        }
        for held in withheld {
            let (tool, code) = (&held.spec.target.name, held.code());
            tracing::warn!(mcp.server = self.name, tool, code, offered = %held.offered, "a tool that was not approved is withheld");
        }
        offered
    }

    /// Lets the next discovery ask the server, whatever is known, and judge by what is approved by now.
    pub fn outdate(&self) -> Result<(), Failure> {
        self.approval.reload().map_err(|error| Failure::configuration("lock_file", error.to_string()))?;
        if let Some(catalog) = self.catalog.write().expect("nobody panics while holding the catalog").as_mut() {
            // It is still what is known of the server if that is away.
            catalog.session = Weak::new();
        }
        self.reading().missed = None;
        Ok(())
    }

    fn spec(&self, tool: McpTool) -> ToolSpec {
        ToolSpec {
            name: tool.name.clone(),
            target: ToolTarget { server: Some(self.name.clone()), name: tool.name },
            description: tool.description.or(tool.title),
            input_schema: tool.input_schema,
            hints: tool.hints,
        }
    }

    /// Something that is known of a tool.
    pub(super) fn fact<T>(&self, tool: &str, fact: impl FnOnce(&ToolFacts) -> T) -> Option<T> {
        let catalog = self.catalog.read().expect("nobody panics while holding the catalog");
        let facts = Arc::clone(&catalog.as_ref()?.facts);
        drop(catalog);
        facts.get(tool).map(fact)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_server_makes_us_list_its_tools_before_each_call() {
        let milliseconds = |ms| Some(Duration::from_millis(ms));
        assert_eq!(fresh_for(milliseconds(1), false), Some(LEAST_FRESH));
        assert_eq!(fresh_for(milliseconds(1), true), Some(LEAST_FRESH));
        assert_eq!(fresh_for(milliseconds(90_000), true), milliseconds(90_000));
        assert_eq!(fresh_for(milliseconds(0), false), Some(ASSUMED_FRESH), "it says nothing of use");
        assert_eq!(fresh_for(None, false), Some(ASSUMED_FRESH));
        assert_eq!(fresh_for(None, true), None, "it would tell");
    }
}
