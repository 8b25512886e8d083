//! `cancel`: gives the order to stop a node or a whole graph, or takes it back. The workers heed it.

use clap::Args;
use console::style;

use crate::cli::{FAILED, Settings, block_on, print_line, print_note, redis_failed};
use crate::clients::redis::{CancelOrders, Keys, Link, RedisError, StateStore, WaitingRoom};
use crate::config::Config;
use crate::domain::cancel::{CancelOrder, CancelScope};
use crate::domain::ids::{GraphId, NodeId};
use crate::domain::node::nearest;

/// Arguments of `cancel`.
#[derive(Debug, Args)]
pub struct CancelArgs {
    /// The graph.
    graph: GraphId,
    /// The node; without one, every node of the graph, those that are submitted later included.
    node: Option<NodeId>,
    /// Why, for the error that the node ends with.
    #[arg(long, value_name = "TEXT")]
    note: Option<String>,
    /// Who gives the order.
    #[arg(long, value_name = "NAME", env = "USER", hide_env = true)]
    by: Option<String>,
    /// Take the order back, so that nodes submitted from now on run. What it has ended stays ended.
    #[arg(long, conflicts_with_all = ["note"])]
    undo: bool,
}

/// Gives or takes back the order; exit 1 if there was none to take back.
pub fn run(settings: &Settings, args: &CancelArgs) -> u8 {
    let config = match settings.config() {
        Ok(config) => config,
        Err(code) => return code,
    };
    match block_on(work(&config, args)) {
        Ok(code) => code,
        Err(error) => redis_failed(error, &config),
    }
}

async fn work(config: &Config, args: &CancelArgs) -> Result<u8, RedisError> {
    let (link, keys) = (Link::new(&config.redis)?, Keys::new(&config.state.prefix));
    let orders = CancelOrders::new(link.clone(), keys.clone(), config.state.ttl);
    let what = match &args.node {
        Some(node) => format!("node {node} of graph {}", args.graph),
        None => format!("graph {}", args.graph),
    };
    if args.undo {
        if orders.take_back(&args.graph, args.node.as_ref()).await? {
            print_line(format_args!("the order to stop {what} is taken back"));
            return Ok(0);
        }
        print_note(format_args!("there is no order to stop {what}"));
        return Ok(FAILED);
    }
    let scope = if args.node.is_some() { CancelScope::Node } else { CancelScope::Graph };
    let order = CancelOrder { scope, by: args.by.clone(), note: args.note.clone() };
    orders.give(&args.graph, args.node.as_ref(), &order).await?;
    print_line(format_args!(
        "{what} is cancelled: what runs ends within {}, what comes later at once, for {}",
        humantime::format_duration(config.lease.renew()),
        humantime::format_duration(config.state.ttl),
    ));
    // Workers find the order by themselves, but look at many waiting nodes in turns.
    let woken = WaitingRoom::new(link.clone(), keys.clone(), config).wake(&args.graph, args.node.as_ref()).await?;
    if woken > 0 {
        tell(&format!("{woken} of its nodes waited for a decision; they end now"));
    }
    let streams = config.work.streams.iter().map(|stream| stream.as_str().into());
    let states = StateStore::new(link, keys, &config.state, streams, &config.work.group);
    // The order stands either way: a graph may be cancelled before its first node comes.
    match states.node_ids(&args.graph).await {
        Ok(known) => doubt(args, &known),
        Err(error) => tell(&format!("the state could not be looked at: {error}")),
    }
    Ok(0)
}

/// A name that nobody knows may be a slip.
fn doubt(args: &CancelArgs, known: &[String]) {
    if known.is_empty() {
        return tell("no state of this graph is known; check its name");
    }
    let Some(node) = &args.node else { return };
    if !known.iter().any(|id| id == node.as_str()) {
        let near = nearest(node.as_str(), known.iter().map(String::as_str));
        let hint = near.map(|near| format!("; did you mean {near}?")).unwrap_or_default();
        tell(&format!("the state knows no node {node}{hint}"));
    }
}

fn tell(remark: &str) {
    print_note(format_args!("{} {remark}", style("note:").for_stderr().yellow()));
}
