//! What is made of a tool's schema, once for all nodes that are offered the tool: the one that models are told, and the
//! one that arguments are checked by. Which tools a node is offered is not decided here.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use serde_json::Value;

use crate::domain::tool::ToolTarget;
use crate::modes::portable::Portable;
use crate::modes::schema::Schema;

/// Schemas of one generation; two of them are kept.
const GENERATION: usize = 4096;

/// A tool's schema.
#[derive(Debug)]
pub(super) struct ToolSchema {
    /// As its server wrote it.
    pub written: Arc<Value>,
    /// As models are told it.
    pub portable: Portable,
    /// Compiled when a call is first checked; none where it cannot be compiled.
    compiled: OnceLock<Option<Schema>>,
}

impl ToolSchema {
    fn of(written: &Arc<Value>) -> Self {
        Self { written: Arc::clone(written), portable: Portable::of(written), compiled: OnceLock::new() }
    }

    /// What arguments are checked by, if anything can.
    pub fn compiled(&self, tool: &ToolTarget) -> Option<&Schema> {
        let compile = || {
            Schema::compile(Arc::clone(&self.written))
                .inspect_err(|error| {
                    tracing::warn!(%tool, %error, "the tool's input schema cannot be compiled, arguments go unchecked");
                })
                .ok()
        };
        self.compiled.get_or_init(compile).as_ref()
    }
}

/// The schemas that nodes were offered last. A list of tools that is read again keeps the schemas that are as before, so
/// each is known by its place in memory, which is its own as long as it is kept here.
#[derive(Default)]
pub struct ToolSchemas(Mutex<Kept>);

/// Who is asked for again moves from the old generation to the young one, and when that is full, it takes the place of
/// the old one: what nobody asked for meanwhile is gone.
#[derive(Default)]
struct Kept {
    young: HashMap<usize, Arc<ToolSchema>>,
    old: HashMap<usize, Arc<ToolSchema>>,
}

impl ToolSchemas {
    /// What was made of a schema, or is now.
    pub(super) fn of(&self, written: &Arc<Value>) -> Arc<ToolSchema> {
        let place = Arc::as_ptr(written) as usize;
        if let Some(known) = self.kept().find(place) {
            return known;
        }
        // Made beside the lock: others need not wait for it, and who makes the same twice loses little.
        let made = Arc::new(ToolSchema::of(written));
        self.kept().add(place, &made);
        made
    }

    fn kept(&self) -> MutexGuard<'_, Kept> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Kept {
    fn find(&mut self, place: usize) -> Option<Arc<ToolSchema>> {
        if let Some(known) = self.young.get(&place) {
            return Some(Arc::clone(known));
        }
        let known = self.old.remove(&place)?;
        self.add(place, &known);
        Some(known)
    }

    fn add(&mut self, place: usize, schema: &Arc<ToolSchema>) {
        if self.young.len() >= GENERATION {
            self.old = std::mem::take(&mut self.young);
        }
        self.young.insert(place, Arc::clone(schema));
    }
}

impl fmt::Debug for ToolSchemas {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kept = self.kept();
        write!(out, "ToolSchemas({})", kept.young.len() + kept.old.len())
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn schema(name: usize) -> Arc<Value> {
        let properties = json!({format!("a{name}"): {"$ref": "#/$defs/b"}});
        Arc::new(json!({"type": "object", "properties": properties, "$defs": {"b": {"type": "integer"}}}))
    }

    #[test]
    fn what_is_made_of_a_schema_is_made_once_for_all_who_have_it() {
        let schemas = ToolSchemas::default();
        let (one, other) = (schema(1), schema(1));
        let made = schemas.of(&one);
        assert!(Arc::ptr_eq(&made, &schemas.of(&Arc::clone(&one))));
        assert!(!Arc::ptr_eq(&made, &schemas.of(&other)), "an equal schema of another list is made anew");
        assert!(Arc::ptr_eq(&made.written, &one));
        let tool = ToolTarget { server: None, name: String::from("t") };
        let compiled = made.compiled(&tool).expect("it can be compiled");
        assert!(std::ptr::eq(compiled, schemas.of(&one).compiled(&tool).expect("it is there")));
    }

    #[test]
    fn a_schema_that_is_gone_never_lends_its_place_to_another() {
        let schemas = ToolSchemas::default();
        for name in 0..100 {
            // Dropped at once: without being kept, its memory would be the next one's.
            let schema = schema(name);
            assert_eq!(schemas.of(&schema).written, schema);
        }
    }

    #[test]
    fn what_is_asked_for_stays_and_the_rest_is_forgotten_in_time() {
        let schemas = ToolSchemas::default();
        let plain = || Arc::new(json!({"type": "object"}));
        let asked = plain();
        let made = schemas.of(&asked);
        let forgotten = Arc::downgrade(&schemas.of(&plain()));
        for others in 0..3 * GENERATION {
            schemas.of(&plain());
            assert!(Arc::ptr_eq(&made, &schemas.of(&asked)), "after {others}");
        }
        assert!(forgotten.upgrade().is_none());
        let kept = schemas.kept();
        assert!(kept.young.len() + kept.old.len() <= 2 * GENERATION);
    }
}
