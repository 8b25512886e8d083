//! What travels with an item while it is ours: its permit, its lease and its cancellation. Dropping it gives all
//! three back, so that no path, a panic included, can leak a slot or renew a lease for nobody.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard};

use prometheus_client::metrics::gauge::Gauge;
use tokio::sync::OwnedSemaphorePermit;

use crate::clients::redis::Held;
use crate::domain::cancel::CancelOrder;
use crate::domain::ids::{EntryId, GraphId, NodeId};
use crate::domain::work::{Delivery, Token};
use crate::ports::{Cancel, CancelReason};

type Key = (Arc<str>, EntryId);

/// The entries that this process holds.
#[derive(Debug, Clone, Default)]
pub struct InFlight {
    entries: Arc<Mutex<HashMap<Key, Entry>>>,
    gauge: Gauge,
}

#[derive(Debug)]
struct Entry {
    deliveries: u64,
    cancel: Cancel,
    opened: bool,
    settling: bool,
    suspect: bool,
    progressed: bool,
    node: Option<(GraphId, NodeId)>,
}

/// A node that runs here and could be told to stop.
#[derive(Debug, Clone)]
pub struct RunningNode {
    key: Key,
    /// The graph and the node.
    pub node: (GraphId, NodeId),
}

/// The permit, the lease and the cancellation of one item.
#[derive(Debug)]
pub struct Custody {
    key: Key,
    in_flight: InFlight,
    /// Tells the work to end before its time.
    pub cancel: Cancel,
    _permit: OwnedSemaphorePermit,
}

impl InFlight {
    /// Nothing held, counted by `gauge`.
    pub fn new(gauge: Gauge) -> Self {
        Self { entries: Arc::default(), gauge }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Key, Entry>> {
        self.entries.lock().expect("nobody panics while holding the table")
    }

    /// Takes an entry into custody. None if it is here already: it is adopted, never started twice.
    pub fn take(
        &self,
        stream: &Arc<str>,
        entry: &EntryId,
        token: &Token,
        permit: OwnedSemaphorePermit,
    ) -> Option<Custody> {
        let key = (Arc::clone(stream), entry.clone());
        let mut entries = self.lock();
        if let Some(known) = entries.get_mut(&key) {
            known.deliveries = token.deliveries;
            return None;
        }
        let cancel = Cancel::new();
        entries.insert(
            key.clone(),
            Entry {
                deliveries: token.deliveries,
                cancel: cancel.clone(),
                opened: false,
                settling: false,
                suspect: false,
                progressed: false,
                node: None,
            },
        );
        drop(entries);
        self.gauge.inc();
        Some(Custody { key, in_flight: self.clone(), cancel, _permit: permit })
    }

    /// Everything held, for a renewal. What is being settled is renewed too.
    pub fn held(&self) -> Vec<Held> {
        self.lock()
            .iter()
            .map(|((stream, entry), held)| Held {
                stream: Arc::clone(stream),
                entry: entry.clone(),
                deliveries: held.deliveries,
            })
            .collect()
    }

    /// The ids held of one stream, so that a takeover skips them.
    pub fn ids(&self, stream: &str) -> Vec<EntryId> {
        self.lock().keys().filter(|(of, _)| of.as_ref() == stream).map(|(_, entry)| entry.clone()).collect()
    }

    /// Whether an entry is held that may be the death of this process.
    pub fn holds_suspect(&self) -> bool {
        self.lock().values().any(|entry| entry.suspect)
    }

    /// What proves now that a delivery is ours: an entry that was claimed again while it ran here has a newer token
    /// than it was started with.
    pub fn token(&self, delivery: &Delivery) -> Token {
        let key = (Arc::clone(&delivery.stream), delivery.entry.clone());
        let deliveries = self.lock().get(&key).map_or(delivery.token.deliveries, |entry| entry.deliveries);
        Token { deliveries, ..delivery.token.clone() }
    }

    /// The run was opened for this delivery.
    pub fn opened(&self, delivery: &Delivery) {
        if let Some(entry) = self.lock().get_mut(&(Arc::clone(&delivery.stream), delivery.entry.clone())) {
            entry.opened = true;
        }
    }

    /// The node has come further than it ever was: what died with it before was not its fault.
    pub fn progressed(&self, delivery: &Delivery) {
        if let Some(entry) = self.lock().get_mut(&(Arc::clone(&delivery.stream), delivery.entry.clone())) {
            entry.progressed = true;
        }
    }

    /// How many are held.
    pub fn len(&self) -> usize {
        self.lock().len()
    }

    /// Whether nothing is held.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// A renewal found the lease lost. Ignored once a settle is sent, and until the run was opened: only their answers
    /// decide then, and an entry whose run is done is acknowledged by the opening itself. Says whether the work was told.
    pub fn lost(&self, held: &Held) -> bool {
        let entries = self.lock();
        match entries.get(&(Arc::clone(&held.stream), held.entry.clone())) {
            Some(entry) if entry.opened && !entry.settling && entry.deliveries == held.deliveries => {
                entry.cancel.cancel(CancelReason::Lost);
                true
            }
            _ => false,
        }
    }

    /// The nodes that an order to stop would reach: understood, not being settled, and not told to end already.
    pub fn running(&self) -> Vec<RunningNode> {
        let entries = self.lock();
        let reachable = entries.iter().filter(|(_, entry)| !entry.settling && entry.cancel.reason().is_none());
        reachable.filter_map(|(key, entry)| Some(RunningNode { key: key.clone(), node: entry.node.clone()? })).collect()
    }

    /// Somebody gave the order to stop this node. A settle that was sent wins. Says whether the work was told.
    pub fn request(&self, running: &RunningNode, order: CancelOrder) -> bool {
        match self.lock().get(&running.key) {
            Some(entry) if !entry.settling && entry.cancel.reason().is_none() => {
                entry.cancel.request(order);
                true
            }
            _ => false,
        }
    }

    /// Ends everything that is not being settled, because the worker stops.
    pub fn stop_all(&self) {
        for entry in self.lock().values().filter(|entry| !entry.settling) {
            entry.cancel.cancel(CancelReason::Stopping);
        }
    }
}

impl Custody {
    /// The entry is about this node, so that an order to stop it is heeded.
    pub fn concerns(&self, graph: &GraphId, node: &NodeId) {
        if let Some(entry) = self.in_flight.lock().get_mut(&self.key) {
            entry.node = Some((graph.clone(), node.clone()));
        }
    }

    /// From here on only the answer to the settle decides whose the entry is.
    pub fn settling(&self) {
        if let Some(entry) = self.in_flight.lock().get_mut(&self.key) {
            entry.settling = true;
        }
    }

    /// Processes have died with this entry more than once.
    pub fn suspected(&self) {
        if let Some(entry) = self.in_flight.lock().get_mut(&self.key) {
            entry.suspect = true;
        }
    }

    /// Whether the node came further than it ever was while it was held.
    pub fn has_progressed(&self) -> bool {
        self.in_flight.lock().get(&self.key).is_some_and(|entry| entry.progressed)
    }

    /// The entry as the lease scripts take it.
    pub fn held(&self) -> Held {
        let deliveries = self.in_flight.lock().get(&self.key).map_or(0, |entry| entry.deliveries);
        Held { stream: Arc::clone(&self.key.0), entry: self.key.1.clone(), deliveries }
    }
}

impl Drop for Custody {
    fn drop(&mut self) {
        self.in_flight.lock().remove(&self.key);
        self.in_flight.gauge.dec();
    }
}

#[cfg(test)]
mod tests {
    use tokio::sync::Semaphore;

    use super::*;
    use crate::domain::ids::WorkId;
    use crate::domain::work::{Meta, WorkItem};

    fn token(deliveries: u64) -> Token {
        Token { consumer: Arc::from("w:1"), deliveries }
    }

    fn take(table: &InFlight, pool: &Arc<Semaphore>, deliveries: u64) -> Option<Custody> {
        let permit = Arc::clone(pool).try_acquire_owned().expect("the pool has room");
        table.take(&Arc::from("s"), &EntryId::new("1-0"), &token(deliveries), permit)
    }

    /// The delivery of the one entry that the tests take.
    fn delivery() -> Delivery {
        let entry = EntryId::new("1-0");
        Delivery {
            stream: Arc::from("s"),
            token: token(1),
            meta: Meta::default(),
            crashes: 0,
            work_id: WorkId::new("s", &entry),
            item: WorkItem::parse(br#"{"graph_id":"g","node_id":"n"}"#, "s", &entry).expect("well formed"),
            entry,
        }
    }

    #[test]
    fn dropping_the_custody_gives_the_permit_and_the_lease_back() {
        let (table, pool) = (InFlight::default(), Arc::new(Semaphore::new(2)));
        let custody = take(&table, &pool, 1).expect("the entry is new");
        assert_eq!((table.held().len(), pool.available_permits()), (1, 1));
        drop(custody);
        assert_eq!((table.held().len(), pool.available_permits()), (0, 2));
    }

    #[test]
    fn progress_is_noted_where_the_entry_is_held() {
        let (table, pool) = (InFlight::default(), Arc::new(Semaphore::new(1)));
        let custody = take(&table, &pool, 1).expect("the entry is new");
        assert!(!custody.has_progressed());
        table.progressed(&delivery());
        assert!(custody.has_progressed());
    }

    #[test]
    fn an_entry_that_is_here_already_is_adopted_with_its_new_token() {
        let (table, pool) = (InFlight::default(), Arc::new(Semaphore::new(2)));
        let custody = take(&table, &pool, 1).expect("the entry is new");
        assert!(take(&table, &pool, 2).is_none());
        assert_eq!(custody.held().deliveries, 2);
        assert_eq!(pool.available_permits(), 1, "the second permit went back");
        assert_eq!(table.token(&delivery()), token(2), "what it began with proves nothing any more");
        drop(custody);
        assert_eq!(table.token(&delivery()), token(1));
    }

    #[test]
    fn a_suspect_is_known_for_as_long_as_it_is_held() {
        let (table, pool) = (InFlight::default(), Arc::new(Semaphore::new(2)));
        let custody = take(&table, &pool, 1).expect("the entry is new");
        assert!(!table.holds_suspect());
        custody.suspected();
        assert!(table.holds_suspect());
        drop(custody);
        assert!(!table.holds_suspect());
    }

    #[test]
    fn an_order_to_stop_reaches_a_node_that_runs_and_none_that_is_being_settled() {
        use crate::domain::cancel::{CancelOrder, CancelScope};
        let (table, pool) = (InFlight::default(), Arc::new(Semaphore::new(2)));
        let custody = take(&table, &pool, 1).expect("the entry is new");
        assert!(table.running().is_empty(), "what is not understood yet has no node");
        custody.concerns(&GraphId::new("g").expect("an id"), &NodeId::new("n").expect("an id"));
        let running = table.running().pop().expect("the node runs");
        assert_eq!((running.node.0.as_str(), running.node.1.as_str()), ("g", "n"));

        custody.settling();
        assert!(table.running().is_empty());
        assert!(!table.request(&running, CancelOrder::bare(CancelScope::Node)), "a settle that was sent wins");
        drop(custody);
        assert!(!table.request(&running, CancelOrder::bare(CancelScope::Node)), "the node has ended");

        let custody = take(&table, &pool, 1).expect("the entry is new again");
        custody.concerns(&running.node.0, &running.node.1);
        let order = CancelOrder { by: Some(String::from("ann")), ..CancelOrder::bare(CancelScope::Graph) };
        assert!(table.request(&running, order.clone()));
        assert_eq!((custody.cancel.reason(), custody.cancel.order()), (Some(CancelReason::Requested), Some(&order)));
        assert!(table.running().is_empty() && !table.request(&running, order), "it was told already");
    }

    #[test]
    fn a_lost_lease_cancels_the_work_unless_it_is_being_settled_or_renewed_since() {
        let (table, pool) = (InFlight::default(), Arc::new(Semaphore::new(2)));
        let custody = take(&table, &pool, 1).expect("the entry is new");
        assert!(!table.lost(&custody.held()), "the opening says whose it is");
        table.opened(&delivery());
        assert!(!table.lost(&Held { deliveries: 7, ..custody.held() }), "an older or newer token says nothing");
        custody.settling();
        assert!(!table.lost(&custody.held()));
        assert_eq!(custody.cancel.reason(), None);
        drop(custody);
        let custody = take(&table, &pool, 1).expect("the entry is new again");
        table.opened(&delivery());
        assert!(table.lost(&custody.held()));
        assert_eq!(custody.cancel.reason(), Some(CancelReason::Lost));
    }
}
