//! Redis in every kind of trouble under a running worker: it stays alive, is not ready, fetches nothing, holds what it
//! has, and goes on within two seconds after Redis answers, without a restart and without flooding its log.

use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};

use crate::harness::bed::{Bed, Event, GROUP, POOL};
use crate::harness::eventually;
use crate::harness::gate::Gate;
use crate::harness::proxy::Proxy;
use crate::harness::worker::{Spec, Worker};

/// How soon after Redis answers work goes on.
const SOON: Duration = Duration::from_secs(2);
/// Lines that one outage may cost, its end included.
const LINES: usize = 12;
/// Everything that was answered is on disk.
const DURABLE: &[&str] = &["--appendonly", "yes", "--appendfsync", "always"];

fn item(node: &str, config: &Value) -> Value {
    json!({"graph_id": "g", "node_id": node, "run_id": node, "config": config, "inputs": {}})
}

fn spec(bed: &Bed, gate: &Gate) -> Spec {
    bed.worker("w1")
        .set("tools.http_request.allow", gate.host())
        .set("redis.connect_timeout", "500ms")
        .set("redis.command_timeout", "1s")
        // Longer than any outage here: what is executed twice was not held well.
        .set("lease.duration", "30s")
}

/// A worker in the middle of a node that ends when its door opens.
async fn in_the_middle(bed: &Bed, gate: &Gate, spec: Spec) -> Worker {
    let worker = spec.start().ready().await;
    bed.submit(&item("held", &gate.node("held"))).await;
    gate.arrived("held", 1).await;
    worker
}

/// The same beside a node whose call may not be made twice, and whose end is put on record before its result.
async fn in_the_middle_of_two(bed: &Bed, gate: &Gate, spec: Spec) -> Worker {
    let worker = in_the_middle(bed, gate, spec).await;
    bed.submit(&item("kept", &gate.call("kept"))).await;
    gate.arrived("kept", 1).await;
    worker
}

/// What runs ends in the middle of the trouble; the worker lives, is not ready and holds the results.
async fn holds(worker: &Worker, gate: &Gate) {
    gate.open_all();
    worker.answers("/ready", 503).await;
    assert_eq!(worker.get("/live").await.status, 200);
}

/// Redis answers again since `since`: what was held is written soon, once, and new work is done.
async fn goes_on(bed: &Bed, gate: &Gate, worker: &Worker, since: Instant) -> Vec<Event> {
    let ran = ["held", "kept"].into_iter().filter(|node| gate.arrivals(node) > 0).count();
    eventually("what was held is written", async || (bed.count().await == ran).then_some(())).await;
    assert!(since.elapsed() < SOON, "the results were written only after {:?}", since.elapsed());
    worker.answers("/ready", 200).await;
    assert!(since.elapsed() < SOON, "the worker was ready only after {:?}", since.elapsed());
    bed.submit(&item("later", &gate.node("later"))).await;
    let events = bed.ended(ran + 1).await;
    for event in &events {
        assert_eq!(event["type"], "node.completed", "trouble of Redis is no fault of a node: {event:#?}");
    }
    for node in ["held", "kept", "later"] {
        assert!(gate.arrivals(node) <= 1, "{node} is executed twice");
    }
    assert!(worker.poll().is_none(), "the worker lives on");
    events
}

/// The trouble cost no more than a few lines.
fn was_quiet(worker: &Worker, before: usize) {
    let lines = worker.records().len() - before;
    assert!(lines <= LINES, "{lines} lines for one outage:\n{}", worker.log());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restart_with_its_log_costs_nothing() {
    let (mut bed, gate) = (Bed::with_own_redis(DURABLE).await, Gate::start().await);
    let worker = in_the_middle_of_two(&bed, &gate, spec(&bed, &gate)).await;
    let lines = worker.records().len();
    bed.own_server().kill();
    holds(&worker, &gate).await;
    bed.own_server().start_again();
    let since = Instant::now();
    bed.reconnect().await;
    goes_on(&bed, &gate, &worker, since).await;
    was_quiet(&worker, lines);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restart_without_a_log_loses_its_work_and_nothing_that_comes_later() {
    let (mut bed, gate) = (Bed::with_own_redis(&[]).await, Gate::start().await);
    let worker = in_the_middle(&bed, &gate, spec(&bed, &gate)).await;
    let lines = worker.records().len();
    bed.own_server().kill();
    holds(&worker, &gate).await;
    bed.own_server().start_again();
    let since = Instant::now();
    bed.reconnect().await;
    worker.answers("/ready", 200).await;
    assert!(since.elapsed() < SOON, "the worker was ready only after {:?}", since.elapsed());
    bed.submit(&item("later", &gate.node("later"))).await;
    let events = bed.ended(1).await;
    assert_eq!(events[0]["node_id"], "later", "the first item is gone with its server, and nobody invents an event");
    assert_eq!(worker.metric("executor_items_total", &["lost"]).await, 1.0);
    was_quiet(&worker, lines);
}

async fn process(bed: &Bed) -> Pid {
    let info: String = bed.ask(&["INFO", "server"]).await;
    let pid = info.lines().find_map(|line| line.strip_prefix("process_id:")?.trim().parse().ok());
    Pid::from_raw(pid.expect("the server tells its process"))
}

#[tokio::test]
async fn a_server_that_is_frozen_for_a_while_is_waited_for() {
    let (bed, gate) = (Bed::with_own_redis(&[]).await, Gate::start().await);
    let worker = in_the_middle_of_two(&bed, &gate, spec(&bed, &gate)).await;
    let lines = worker.records().len();
    let server = process(&bed).await;
    kill(server, Signal::SIGSTOP).expect("the process is ours");
    holds(&worker, &gate).await;
    worker.said("a result cannot be written yet").await;
    kill(server, Signal::SIGCONT).expect("the process is ours");
    goes_on(&bed, &gate, &worker, Instant::now()).await;
    was_quiet(&worker, lines);
}

#[tokio::test]
async fn a_wire_that_swallows_answers_is_given_up_for_another() {
    let (bed, gate) = (Bed::with_own_redis(&[]).await, Gate::start().await);
    let proxy = Proxy::to(bed.server().port()).await;
    let address = String::from(proxy.url().trim_start_matches("redis://"));
    let worker = in_the_middle_of_two(&bed, &gate, spec(&bed, &gate).env("REDIS_ADDR", address)).await;
    let lines = worker.records().len();
    proxy.swallow_answers();
    holds(&worker, &gate).await;
    worker.said("a result cannot be written yet").await;
    proxy.heal();
    let since = Instant::now();
    // The settlement was applied although its answer never came; what counts is when the worker knows.
    worker.answers("/ready", 200).await;
    goes_on(&bed, &gate, &worker, since).await;
    was_quiet(&worker, lines);
}

/// How often the server was asked for something.
async fn calls(bed: &Bed, command: &str) -> usize {
    let stats: String = bed.ask(&["INFO", "commandstats"]).await;
    let name = format!("cmdstat_{command}:calls=");
    let calls = stats.lines().find_map(|line| line.strip_prefix(&name)?.split(',').next()?.parse().ok());
    calls.unwrap_or_default()
}

#[tokio::test]
async fn a_server_without_memory_is_not_asked_for_more_work() {
    let (bed, gate) = (Bed::with_own_redis(&[]).await, Gate::start().await);
    let worker = in_the_middle(&bed, &gate, spec(&bed, &gate)).await;
    let lines = worker.records().len();
    bed.submit_all((0..100).map(|n| item(&format!("n{n}"), &gate.node("later")))).await;
    // Every slot is taken by a node that runs.
    gate.arrived("later", POOL - 1).await;
    bed.ask::<()>(&["CONFIG", "SET", "maxmemory", "1"]).await;
    gate.open("held");
    // The result is taken, and what is read in its place cannot begin.
    worker.answers("/ready", 503).await;
    assert_eq!(worker.get("/live").await.status, 200);
    gate.open_all();
    // All others end, and although there is room for them, none are fetched that could not begin either.
    bed.pending_is(1).await;
    let (reads, tries) = (calls(&bed, "xreadgroup").await, calls(&bed, "evalsha").await);
    let tried = async || (calls(&bed, "evalsha").await >= tries + 2).then_some(());
    eventually("the run that may not begin is tried again", tried).await;
    assert_eq!((calls(&bed, "xreadgroup").await, bed.pending().await.len()), (reads, 1), "more work was fetched");
    assert_eq!(bed.count().await, POOL, "the results are taken");
    bed.ask::<()>(&["CONFIG", "SET", "maxmemory", "0"]).await;
    let since = Instant::now();
    worker.answers("/ready", 200).await;
    assert!(since.elapsed() < SOON, "the worker was ready only after {:?}", since.elapsed());
    let events = bed.ended(101).await;
    assert!(events.iter().all(|event| event["type"] == "node.completed"));
    assert!(worker.records().len() - lines <= LINES, "{}", worker.log());
}

#[tokio::test]
async fn a_server_that_cannot_save_is_waited_for() {
    let (bed, gate) = (Bed::with_own_redis(&[]).await, Gate::start().await);
    let worker = in_the_middle_of_two(&bed, &gate, spec(&bed, &gate)).await;
    let lines = worker.records().len();
    let (_, dir): (String, String) = bed.ask(&["CONFIG", "GET", "dir"]).await;
    // The snapshot cannot take the place of a folder.
    let blocked = std::path::Path::new(&dir).join("dump.rdb");
    std::fs::create_dir(&blocked).expect("the folder is ours");
    bed.ask::<()>(&["CONFIG", "SET", "save", "3600 1000000"]).await;
    bed.ask::<()>(&["BGSAVE"]).await;
    let refuses = async || bed.try_ask::<()>(&["SET", "probe", "1"]).await.err();
    let error = eventually("writes are refused", refuses).await;
    assert_eq!(error.code(), Some("MISCONF"));
    holds(&worker, &gate).await;
    std::fs::remove_dir(&blocked).expect("the folder is ours");
    bed.ask::<()>(&["BGSAVE"]).await;
    eventually("writes are taken", async || bed.try_ask::<()>(&["SET", "probe", "1"]).await.ok()).await;
    goes_on(&bed, &gate, &worker, Instant::now()).await;
    was_quiet(&worker, lines);
}

#[tokio::test]
async fn a_server_that_misses_its_replicas_is_waited_for() {
    let (bed, gate) = (Bed::with_own_redis(&[]).await, Gate::start().await);
    let worker = in_the_middle_of_two(&bed, &gate, spec(&bed, &gate)).await;
    let lines = worker.records().len();
    bed.ask::<()>(&["CONFIG", "SET", "min-replicas-to-write", "1"]).await;
    let error = bed.try_ask::<()>(&["SET", "probe", "1"]).await.expect_err("writes are refused");
    assert_eq!(error.code(), Some("NOREPLICAS"));
    holds(&worker, &gate).await;
    worker.said("a result cannot be written yet").await;
    assert!(worker.log().contains("misses the replicas it needs for a write (NOREPLICAS)"), "{}", worker.log());
    assert_eq!(bed.count().await, 0);
    bed.ask::<()>(&["CONFIG", "SET", "min-replicas-to-write", "0"]).await;
    goes_on(&bed, &gate, &worker, Instant::now()).await;
    was_quiet(&worker, lines);
}

#[tokio::test]
async fn a_server_that_holds_its_answers_back_is_waited_for() {
    let (bed, gate) = (Bed::with_own_redis(&[]).await, Gate::start().await);
    let worker = in_the_middle_of_two(&bed, &gate, spec(&bed, &gate)).await;
    let lines = worker.records().len();
    bed.ask::<()>(&["CLIENT", "PAUSE", "6000", "ALL"]).await;
    holds(&worker, &gate).await;
    worker.said("a result cannot be written yet").await;
    // Nobody is answered before the pause is over.
    bed.ask::<()>(&["PING"]).await;
    goes_on(&bed, &gate, &worker, Instant::now()).await;
    was_quiet(&worker, lines);
}

#[tokio::test]
async fn a_primary_that_becomes_a_replica_for_a_while_is_waited_for() {
    let (bed, gate) = (Bed::with_own_redis(&[]).await, Gate::start().await);
    let worker = in_the_middle_of_two(&bed, &gate, spec(&bed, &gate)).await;
    let lines = worker.records().len();
    // A port where nobody is: the server serves what it has, for reading alone.
    bed.ask::<()>(&["REPLICAOF", "127.0.0.1", "1"]).await;
    holds(&worker, &gate).await;
    bed.ask::<()>(&["REPLICAOF", "NO", "ONE"]).await;
    goes_on(&bed, &gate, &worker, Instant::now()).await;
    was_quiet(&worker, lines);
}

#[tokio::test]
async fn a_group_that_is_destroyed_is_made_again_and_what_runs_is_not_run_twice() {
    let (bed, gate) = (Bed::with_own_redis(&[]).await, Gate::start().await);
    let worker = in_the_middle(&bed, &gate, spec(&bed, &gate)).await;
    let lines = worker.records().len();
    bed.ask::<()>(&["XGROUP", "DESTROY", &bed.stream, GROUP]).await;
    let since = Instant::now();
    gate.open_all();
    goes_on(&bed, &gate, &worker, since).await;
    was_quiet(&worker, lines);
}

#[tokio::test]
async fn scripts_that_are_forgotten_are_loaded_again() {
    let (bed, gate) = (Bed::with_own_redis(&[]).await, Gate::start().await);
    let worker = in_the_middle_of_two(&bed, &gate, spec(&bed, &gate)).await;
    let lines = worker.records().len();
    bed.ask::<()>(&["SCRIPT", "FLUSH"]).await;
    gate.open_all();
    goes_on(&bed, &gate, &worker, Instant::now()).await;
    was_quiet(&worker, lines);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_loads_its_data_is_waited_for() {
    // Every key that is loaded takes a millisecond, and the server looks up from its work now and then.
    let slow = ["--key-load-delay", "1000", "--loading-process-events-interval-bytes", "1024"];
    let mut bed = Bed::with_own_redis(&[DURABLE, &slow].concat()).await;
    let gate = Gate::start().await;
    let worker = in_the_middle_of_two(&bed, &gate, spec(&bed, &gate)).await;
    let mut fill = redis::pipe();
    for key in 0..1500 {
        fill.cmd("SET").arg(bed.key(&format!("filler:{key}"))).arg("some text that has to be read").ignore();
    }
    bed.pipeline(&fill).await;
    // Without a rewrite the log is replayed as commands, which are not delayed.
    bed.ask::<()>(&["BGREWRITEAOF"]).await;
    eventually("the log is rewritten", async || {
        let info: String = bed.ask(&["INFO", "persistence"]).await;
        (info.contains("aof_rewrite_in_progress:0") && info.contains("aof_rewrite_scheduled:0")).then_some(())
    })
    .await;
    let lines = worker.records().len();
    bed.own_server().kill();
    holds(&worker, &gate).await;
    let url = bed.server().url();
    let watch = std::thread::spawn(move || {
        let client = redis::Client::open(url).expect("an address");
        let deadline = Instant::now() + Duration::from_secs(10);
        while Instant::now() < deadline {
            let answer = client.get_connection().and_then(|mut connection| redis::cmd("PING").exec(&mut connection));
            match answer {
                Err(error) if error.code() == Some("LOADING") => return true,
                Err(_) => std::thread::sleep(Duration::from_millis(2)),
                Ok(()) => return false,
            }
        }
        false
    });
    bed.own_server().start_again();
    let since = Instant::now();
    assert!(watch.join().expect("the watch ends"), "the server was never seen loading");
    bed.reconnect().await;
    goes_on(&bed, &gate, &worker, since).await;
    was_quiet(&worker, lines);
}

#[tokio::test]
async fn a_server_that_is_frozen_for_longer_than_a_lease_does_not_make_anyone_run_a_node_twice() {
    let (bed, gate) = (Bed::with_own_redis(&[]).await, Gate::start().await);
    let lease = Duration::from_millis(1500);
    let short = |id: &str| {
        let spec = spec(&bed, &gate).env("WORKER_ID", id).set("lease.duration", "1500ms");
        spec.set("lease.renew", "250ms").set("lease.sweep", "100ms")
    };
    let first = in_the_middle(&bed, &gate, short("w1")).await;
    let second = short("w2").start().ready().await;
    let lines = [first.records().len(), second.records().len()];
    let server = process(&bed).await;
    kill(server, Signal::SIGSTOP).expect("the process is ours");
    let frozen = Instant::now();
    second.answers("/ready", 503).await;
    eventually("the pause outlives the lease", async || (frozen.elapsed() > lease * 2).then_some(())).await;
    kill(server, Signal::SIGCONT).expect("the process is ours");
    let since = Instant::now();
    for worker in [&first, &second] {
        worker.answers("/ready", 200).await;
    }
    assert!(since.elapsed() < SOON, "the workers were ready only after {:?}", since.elapsed());
    // The entry has been silent for longer than a lease by the server's own clock, and its owner lives.
    eventually("a lease has passed since", async || (since.elapsed() > lease * 2).then_some(())).await;
    gate.open_all();
    let event = &bed.ended(1).await[0];
    assert_eq!((event.worker(), gate.arrivals("held")), ("w1", 1), "its owner ends it, and nobody else began it");
    was_quiet(&first, lines[0]);
    was_quiet(&second, lines[1]);
}

#[tokio::test]
async fn connections_that_are_dead_and_do_not_know_it_are_given_up_for_new_ones() {
    let (bed, gate) = (Bed::with_own_redis(&[]).await, Gate::start().await);
    let proxy = Proxy::to(bed.server().port()).await;
    let address = String::from(proxy.url().trim_start_matches("redis://"));
    let spec = spec(&bed, &gate).set("work.block", "500ms").env("REDIS_ADDR", address);
    let worker = in_the_middle(&bed, &gate, spec).await;
    let lines = worker.records().len();
    proxy.deaden_connections();
    let since = Instant::now();
    gate.open_all();
    bed.submit(&item("later", &gate.node("later"))).await;
    bed.ended(2).await;
    // No answer within the limit of a command, or of a blocking read, is what tells that a connection is dead.
    let noticed = Duration::from_millis(1500);
    assert!(since.elapsed() < noticed + SOON, "work went on only after {:?}", since.elapsed());
    worker.answers("/ready", 200).await;
    assert_eq!((gate.arrivals("held"), gate.arrivals("later")), (1, 1), "nothing is executed twice");
    was_quiet(&worker, lines);
}

mod failover {
    //! A replica takes over from a primary that is gone; what it had not received yet is lost with the primary.

    use super::*;
    use crate::harness::redis::{RedisServer, connect};

    /// A primary, a replica of it behind a wire, and a worker that comes to whichever is in charge.
    struct Pair {
        bed: Bed,
        gate: Gate,
        replica: RedisServer,
        /// The way of the replication.
        stream: Proxy,
        /// The way of the worker.
        front: Proxy,
    }

    impl Pair {
        async fn start() -> Self {
            let (bed, gate) = (Bed::with_own_redis(&[]).await, Gate::start().await);
            let stream = Proxy::to(bed.server().port()).await;
            let port = stream.url().rsplit(':').next().expect("a port").to_owned();
            let replica =
                RedisServer::start_with(&["--replicaof", "127.0.0.1", &port, "--repl-diskless-sync-delay", "0"]);
            let front = Proxy::to(bed.server().port()).await;
            let pair = Self { bed, gate, replica, stream, front };
            pair.caught_up().await;
            pair
        }

        fn spec(&self) -> Spec {
            let address = String::from(self.front.url().trim_start_matches("redis://"));
            spec(&self.bed, &self.gate).env("REDIS_ADDR", address)
        }

        /// The replica has everything that the primary had when this was asked.
        async fn caught_up(&self) {
            let offset = |info: &str, name: &str| {
                info.lines().find_map(|line| line.strip_prefix(name)?.trim().parse::<u64>().ok())
            };
            let primary: String = self.bed.ask(&["INFO", "replication"]).await;
            let wanted = offset(&primary, "master_repl_offset:").expect("the primary tells its offset");
            let mut replica = self.replica.connect().await;
            eventually("the replica has caught up", async || {
                let info: String = redis::cmd("INFO").arg("replication").query_async(&mut replica).await.ok()?;
                let up = info.contains("master_link_status:up");
                (up && offset(&info, "slave_repl_offset:") >= Some(wanted)).then_some(())
            })
            .await;
        }

        /// The primary dies, and everybody is led to the replica, which does not write for anybody yet.
        async fn primary_dies(&mut self) {
            self.front.lead_to(self.replica.port());
            self.bed.own_server().kill();
        }

        async fn promote(mut self) -> (Bed, Gate, Proxy) {
            let mut replica = connect(&self.replica.url()).await;
            redis::cmd("REPLICAOF").arg("NO").arg("ONE").exec_async(&mut replica).await.expect("it is ours");
            self.bed.move_to(self.replica).await;
            (self.bed, self.gate, self.front)
        }
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_replica_that_takes_over_is_waited_for_while_it_only_reads() {
        let mut pair = Pair::start().await;
        let worker = in_the_middle_of_two(&pair.bed, &pair.gate, pair.spec()).await;
        pair.caught_up().await;
        let lines = worker.records().len();
        pair.primary_dies().await;
        holds(&worker, &pair.gate).await;
        worker.said("a result cannot be written yet").await;
        assert!(worker.log().contains("this Redis is a read-only replica"), "{}", worker.log());
        let (bed, gate, _front) = pair.promote().await;
        goes_on(&bed, &gate, &worker, Instant::now()).await;
        was_quiet(&worker, lines);
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_result_that_the_replica_did_not_get_is_written_again_under_its_id() {
        let mut pair = Pair::start().await;
        let worker = in_the_middle(&pair.bed, &pair.gate, pair.spec()).await;
        pair.caught_up().await;
        // From here on the replica hears nothing and does not know it.
        pair.stream.swallow_answers();
        pair.gate.open_all();
        let before = pair.bed.ended(1).await.remove(0);
        pair.primary_dies().await;
        let (bed, gate, _front) = pair.promote().await;
        assert_eq!(bed.pending().await.len(), 1, "the replica knows of the delivery, and of no result");
        worker.said("failed over").await;
        let after = bed.ended(1).await.remove(0);
        for member in ["id", "run_id", "node_id", "data"] {
            assert_eq!(before[member], after[member], "{member}");
        }
        bed.submit(&item("later", &gate.node("later"))).await;
        bed.ended(2).await;
        assert_eq!((gate.arrivals("held"), gate.arrivals("later")), (1, 1), "no node was worked out again");
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn of_many_results_on_their_way_none_is_lost_and_none_ends_twice() {
        const NODES: usize = 60;
        let mut pair = Pair::start().await;
        let worker = pair.spec().start().ready().await;
        pair.gate.open_all();
        pair.bed.submit_all((0..NODES).map(|n| item(&format!("n{n}"), &pair.gate.node(&format!("n{n}"))))).await;
        pair.caught_up().await;
        let some = async || (pair.bed.count().await >= NODES / 3).then_some(());
        eventually("some nodes have ended", some).await;
        pair.stream.swallow_answers();
        let seen = pair.bed.events().await;
        pair.primary_dies().await;
        let (bed, _gate, _front) = pair.promote().await;
        let after = bed.ended(NODES).await;
        let id = |event: &Event| (event["node_id"].to_string(), event["id"].to_string());
        let ids: std::collections::HashSet<_> = after.iter().map(id).collect();
        assert_eq!(ids.len(), NODES, "each node has one terminal event");
        assert!(seen.iter().all(|event| ids.contains(&id(event))), "what was told before the failover keeps its id");
        assert!(worker.poll().is_none(), "the worker lives on");
    }
}

mod rollback {
    //! Redis comes back without its last writes: results that it had taken are written again and not worked out again.

    use super::*;

    /// The one event, as it is now.
    async fn event(bed: &Bed) -> Event {
        eventually("one terminal event", async || (bed.count().await == 1).then_some(())).await;
        bed.settled().await;
        let mut events = bed.events().await;
        assert_eq!(events.len(), 1);
        events.remove(0)
    }

    async fn restart(bed: &mut Bed) {
        bed.own_server().kill();
        bed.own_server().start_again();
        bed.reconnect().await;
    }

    fn same(before: &Event, after: &Event) {
        for member in ["id", "run_id", "node_id", "data"] {
            assert_eq!(before[member], after[member], "{member}");
        }
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_result_that_was_lost_while_its_entry_was_ours_is_written_again() {
        let (mut bed, gate) = (Bed::with_own_redis(&[]).await, Gate::start().await);
        let worker = in_the_middle(&bed, &gate, spec(&bed, &gate)).await;
        bed.ask::<()>(&["SAVE"]).await;
        gate.open_all();
        let before = event(&bed).await;
        restart(&mut bed).await;
        worker.said("failed over").await;
        same(&before, &event(&bed).await);
        assert_eq!(gate.arrivals("held"), 1, "the node was worked out again");
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_result_that_was_lost_together_with_the_delivery_is_written_again() {
        let (mut bed, gate) = (Bed::with_own_redis(&[]).await, Gate::start().await);
        let spec = spec(&bed, &gate);
        bed.ask::<()>(&["XGROUP", "CREATE", &bed.stream, GROUP, "0", "MKSTREAM"]).await;
        bed.submit(&item("held", &gate.node("held"))).await;
        bed.ask::<()>(&["SAVE"]).await;
        let worker = spec.start().ready().await;
        gate.open_all();
        let before = event(&bed).await;
        restart(&mut bed).await;
        worker.said("failed over").await;
        same(&before, &event(&bed).await);
        assert_eq!(gate.arrivals("held"), 1, "the node was worked out again");
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_result_that_is_held_is_written_although_the_delivery_was_lost() {
        let (mut bed, gate) = (Bed::with_own_redis(&[]).await, Gate::start().await);
        let spec = spec(&bed, &gate);
        bed.ask::<()>(&["XGROUP", "CREATE", &bed.stream, GROUP, "0", "MKSTREAM"]).await;
        bed.submit(&item("held", &gate.node("held"))).await;
        bed.ask::<()>(&["SAVE"]).await;
        let worker = spec.start().ready().await;
        gate.arrived("held", 1).await;
        bed.own_server().kill();
        holds(&worker, &gate).await;
        bed.own_server().start_again();
        bed.reconnect().await;
        event(&bed).await;
        assert_eq!(gate.arrivals("held"), 1, "the node was worked out again");
    }
}
