//! `reconcile`: tells the ends of a graph's nodes again, out of its state, for consumers that lost events.

use clap::Args;
use serde_json::json;

use crate::cli::{FAILED, Settings, block_on, complain, fail, print_line, print_note, redis_failed};
use crate::clients::redis::{Keys, Link, Reconciler, StateError};
use crate::config::Config;
use crate::domain::ids::{GraphId, NodeId};
use crate::domain::republish::{Copy, NoCopy, copy_of};

/// Arguments of `reconcile`.
#[derive(Debug, Args)]
pub struct ReconcileArgs {
    /// The graph.
    graph: GraphId,
    /// Only this node. Can be given several times.
    #[arg(long = "node", value_name = "NODE")]
    nodes: Vec<NodeId>,
    /// Only tell what would be sent.
    #[arg(long)]
    dry_run: bool,
    /// Print one JSON object an event.
    #[arg(long)]
    json: bool,
}

/// What came of a graph's nodes.
#[derive(Debug, Default)]
struct Counts {
    sent: usize,
    not_ended: usize,
    not_ours: usize,
}

/// Sends the events; exit 1 if there is no state to take them from.
pub fn run(settings: &Settings, args: &ReconcileArgs) -> u8 {
    let config = match settings.config() {
        Ok(config) => config,
        Err(code) => return code,
    };
    match block_on(work(&config, args)) {
        Ok(counts) => {
            let verb = if args.dry_run { "would be sent" } else { "sent" };
            print_note(format_args!(
                "{} events {verb}; {} nodes have not ended, {} were not ended by a worker",
                counts.sent, counts.not_ended, counts.not_ours
            ));
            0
        }
        // The worker's advice, to send what creates the state, would not help here.
        Err(StateError::Missing { key }) => {
            complain(format_args!("there is no state `{key}` to take events from"));
            FAILED
        }
        Err(StateError::Redis(error)) => redis_failed(error, &config),
        Err(error @ (StateError::WrongType { .. } | StateError::NoJournal { .. } | StateError::Corrupt { .. })) => {
            fail(error)
        }
    }
}

async fn work(config: &Config, args: &ReconcileArgs) -> Result<Counts, StateError> {
    let reconciler = Reconciler::new(Link::new(&config.redis)?, Keys::new(&config.state.prefix), config.state.ttl);
    let mut states = reconciler.nodes(&args.graph).await?;
    let mut counts = Counts::default();
    loop {
        let page = states.next().await?;
        if page.is_empty() {
            return Ok(counts);
        }
        for (id, state) in page {
            let Ok(node) = NodeId::new(id) else {
                counts.not_ours += 1;
                continue;
            };
            if !args.nodes.is_empty() && !args.nodes.contains(&node) {
                continue;
            }
            match copy_of(&args.graph, &node, &state) {
                Ok(copy) => {
                    let seq = match args.dry_run {
                        true => None,
                        false => Some(reconciler.publish(&args.graph, copy.event, &copy.event_json).await?),
                    };
                    counts.sent += 1;
                    tell(args, &node, &copy, seq);
                }
                Err(NoCopy::NotEnded) => counts.not_ended += 1,
                Err(NoCopy::NotOurs) => counts.not_ours += 1,
            }
        }
    }
}

fn tell(args: &ReconcileArgs, node: &NodeId, copy: &Copy, seq: Option<u64>) {
    let kind = copy.event.as_str();
    let line = if args.json {
        json!({"type": kind, "node_id": node, "id": copy.event_id, "seq": seq}).to_string()
    } else {
        let seq = seq.map(|seq| format!(" as number {seq}")).unwrap_or_default();
        format!("{kind} {node} {}{seq}", copy.event_id)
    };
    print_line(line);
}
