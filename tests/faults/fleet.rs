//! The worker processes of a run: started, killed, stopped and replaced, all of them ended with their owner.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::os::unix::process::ExitStatusExt as _;
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use da_node_executor::failpoint::MARK;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tempfile::TempDir;

use super::effects::World;
use super::redis_access::{GROUP, PREFIX, STREAM};

/// Nodes that one worker runs at once.
const POOL: usize = 8;
/// Lease of an entry, in milliseconds.
pub const LEASE_MS: u64 = 1500;
/// How often a worker looks for leases that have run out, in milliseconds.
pub const SWEEP_MS: u64 = 250;
/// How long a worker waits for a connection, in milliseconds.
pub const CONNECT_MS: u64 = 1000;
/// How long a worker may finish its nodes after SIGTERM; a slow call takes longer.
const GRACE: &str = "300ms";
/// Deaths after which an item is poison. Far above what chance does to an innocent one.
const MAX_CRASHES: &str = "8";

/// A process of this age may not have come to its own first line yet.
const NEWBORN: Duration = Duration::from_secs(3);

/// How workers are started.
pub struct Fleet {
    env: BTreeMap<String, String>,
    program: PathBuf,
    dir: TempDir,
    slots: Vec<Slot>,
    /// Second workers of the names of others.
    twins: Vec<Process>,
    /// Told to stop, and doing so.
    leaving: Vec<Process>,
    started: usize,
}

struct Slot {
    process: Process,
    port: u16,
    mcp: String,
}

/// One process.
struct Process {
    /// Its `WORKER_ID`, which no other process had, unless it is a twin.
    id: String,
    child: Child,
    since: Instant,
    frozen: bool,
}

impl Process {
    fn signal(&self, signal: Signal) {
        // One that ended meanwhile is not reaped yet, so the number is still its own.
        let _ = kill(Pid::from_raw(i32::try_from(self.child.id()).expect("a pid")), signal);
    }

    /// How it ended, if it has.
    fn ended(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().expect("the process is ours")
    }

    fn end(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.end();
    }
}

impl Fleet {
    /// Starts one worker for each of `ports`, where Redis is for it.
    pub fn start(ports: &[u16], world: &World, more: &[(&str, &str)]) -> Self {
        let mut env: BTreeMap<String, String> = ["PATH", "HOME", "TMPDIR"]
            .into_iter()
            .filter_map(|name| Some((String::from(name), std::env::var(name).ok()?)))
            .collect();
        let [lease, sweep, connect] = [LEASE_MS, SWEEP_MS, CONNECT_MS].map(|limit| format!("{limit}ms"));
        let host = world.host();
        for (key, value) in [
            ("work.streams", STREAM),
            ("work.group", GROUP),
            ("work.block", "200ms"),
            ("work.max_crashes", MAX_CRASHES),
            ("state.prefix", PREFIX),
            ("lease.duration", lease.as_str()),
            ("lease.renew", "250ms"),
            ("lease.sweep", sweep.as_str()),
            ("redis.connect_timeout", connect.as_str()),
            ("redis.command_timeout", "1s"),
            ("pool.size", &POOL.to_string()),
            ("events.maxlen", "10000000"),
            ("events.progress", "node.started"),
            ("retry.initial", "10ms"),
            ("retry.max", "100ms"),
            ("retry.park_after", "250ms"),
            ("limits.inline_output", "2048"),
            ("http.port", "0"),
            ("shutdown.grace", GRACE),
            ("tools.http_request.allow", host.as_str()),
        ] {
            env.insert(format!("EXECUTOR__{}", key.to_uppercase().replace('.', "__")), String::from(value));
        }
        env.insert("LLM_API_KEY".into(), "a key of the suite".into());
        env.insert("LLM_BASE_URL".into(), world.model_url());
        env.insert("LOG_LEVEL".into(), "info".into());
        env.extend(more.iter().map(|(name, value)| (String::from(*name), String::from(*value))));
        let dir = tempfile::Builder::new().prefix("executor-faults-").tempdir().expect("a folder");
        // A run that takes long must not go on with another program because somebody builds meanwhile.
        let program = dir.path().join("executor-worker");
        let built = env!("CARGO_BIN_EXE_executor-worker");
        std::fs::hard_link(built, &program).or_else(|_| std::fs::copy(built, &program).map(drop)).expect("a program");
        let mut fleet =
            Self { env, program, dir, slots: Vec::new(), twins: Vec::new(), leaving: Vec::new(), started: 0 };
        for (slot, port) in ports.iter().enumerate() {
            let mcp = world.servers(slot);
            let process = fleet.launch(slot, *port, &mcp, None);
            fleet.slots.push(Slot { process, port: *port, mcp });
        }
        fleet
    }

    fn launch(&mut self, slot: usize, port: u16, mcp: &str, id: Option<String>) -> Process {
        self.started += 1;
        let id = id.unwrap_or_else(|| format!("w{slot}.{}", self.started));
        let child = Command::new(&self.program)
            .env_clear()
            .envs(&self.env)
            .env("WORKER_ID", &id)
            .env("REDIS_ADDR", format!("127.0.0.1:{port}"))
            .env("MCP_SERVERS", mcp)
            .current_dir(self.dir.path())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(self.log(slot))
            .spawn()
            .expect("the worker can be started");
        Process { id, child, since: Instant::now(), frozen: false }
    }

    fn log(&self, slot: usize) -> File {
        OpenOptions::new().create(true).append(true).open(self.log_path(slot)).expect("the folder is ours")
    }

    fn log_path(&self, slot: usize) -> PathBuf {
        self.dir.path().join(format!("slot-{slot}.log"))
    }

    /// The failpoints at which workers of a slot did what they were told, each with the action.
    pub fn reached(&self, slot: usize) -> Vec<String> {
        let log = std::fs::read(self.log_path(slot)).expect("each slot has a log");
        let marks = String::from_utf8_lossy(&log);
        marks.lines().filter_map(|line| Some(String::from(line.strip_prefix(MARK)?.trim()))).collect()
    }

    /// How many slots there are.
    pub fn len(&self) -> usize {
        self.slots.len()
    }

    /// The name of the worker in a slot.
    pub fn id(&self, slot: usize) -> &str {
        &self.slots[slot].process.id
    }

    /// Whether the worker in a slot is frozen.
    pub fn frozen(&self, slot: usize) -> bool {
        self.slots[slot].process.frozen
    }

    /// Kills the worker in a slot, as the system would. The slot is empty until [`Self::replace`].
    pub fn kill(&mut self, slot: usize) {
        self.slots[slot].process.end();
    }

    /// Whether the worker in a slot has ended.
    pub fn dead(&mut self, slot: usize) -> bool {
        self.slots[slot].process.ended().is_some()
    }

    /// Workers that are started from now on have no failpoints.
    pub fn disarm(&mut self) {
        self.env.remove("FAILPOINTS");
    }

    /// Starts another worker in a slot.
    pub fn replace(&mut self, slot: usize) {
        let (port, mcp) = (self.slots[slot].port, self.slots[slot].mcp.clone());
        self.slots[slot].process = self.launch(slot, port, &mcp, None);
    }

    /// Asks the worker in a slot to stop and puts another one in its place; gives the name and the process that leaves.
    pub fn retire(&mut self, slot: usize) -> (String, u32) {
        let (port, mcp) = (self.slots[slot].port, self.slots[slot].mcp.clone());
        let next = self.launch(slot, port, &mcp, None);
        let leaving = std::mem::replace(&mut self.slots[slot].process, next);
        leaving.signal(Signal::SIGTERM);
        let gone = (leaving.id.clone(), leaving.child.id());
        self.leaving.push(leaving);
        gone
    }

    /// Starts a second worker with the name of the one in a slot; gives its process. It leaves when it is told to with
    /// [`Self::retire_twin`].
    pub fn twin(&mut self, slot: usize) -> u32 {
        let (port, mcp, id) =
            (self.slots[slot].port, self.slots[slot].mcp.clone(), self.slots[slot].process.id.clone());
        let twin = self.launch(slot, port, &mcp, Some(id));
        let process = twin.child.id();
        self.twins.push(twin);
        process
    }

    /// Asks a twin to stop, if it is still there; gives its name.
    pub fn retire_twin(&mut self, process: u32) -> Option<String> {
        let at = self.twins.iter().position(|twin| twin.child.id() == process)?;
        let twin = self.twins.swap_remove(at);
        twin.signal(Signal::SIGTERM);
        let id = twin.id.clone();
        self.leaving.push(twin);
        Some(id)
    }

    /// Whether some process of this name is alive.
    pub fn lives(&self, id: &str) -> bool {
        let slots = self.slots.iter().map(|slot| &slot.process);
        slots.chain(&self.twins).chain(&self.leaving).any(|process| process.id == id)
    }

    /// Stops the process in a slot in the middle of whatever it does.
    pub fn freeze(&mut self, slot: usize) {
        self.slots[slot].process.signal(Signal::SIGSTOP);
        self.slots[slot].process.frozen = true;
    }

    /// Lets it go on.
    pub fn thaw(&mut self, slot: usize) {
        self.slots[slot].process.signal(Signal::SIGCONT);
        self.slots[slot].process.frozen = false;
    }

    /// Workers that ended although nobody told them to, and workers that left with another code than 0. Takes note of
    /// each once; a slot that lost its worker gets another one.
    pub fn accidents(&mut self) -> Vec<String> {
        let mut found = Vec::new();
        for slot in 0..self.slots.len() {
            if let Some(status) = self.slots[slot].process.ended() {
                found.push(format!("worker {} ended by itself: {status}", self.slots[slot].process.id));
                self.replace(slot);
            }
        }
        self.twins.retain_mut(|process| match process.ended() {
            None => true,
            Some(status) => {
                found.push(format!("second worker {} ended by itself: {status}", process.id));
                false
            }
        });
        self.leaving.retain_mut(|process| match process.ended() {
            None => true,
            Some(status) => {
                // One that was still being loaded has no hand for the signal yet, and no work either.
                let newborn = status.signal() == Some(Signal::SIGTERM as i32) && process.since.elapsed() < NEWBORN;
                if !status.success() && !newborn {
                    found.push(format!("worker {} was told to stop and ended with {status}", process.id));
                }
                false
            }
        });
        found
    }

    /// How many are still leaving.
    pub fn leaving(&self) -> usize {
        self.leaving.len()
    }

    /// Whether a process that was told to stop is still there.
    pub fn is_leaving(&self, process: u32) -> bool {
        self.leaving.iter().any(|leaving| leaving.child.id() == process)
    }

    /// How many processes there have been.
    pub fn started(&self) -> usize {
        self.started
    }

    /// Resident bytes of the worker in a slot.
    pub fn memory(&self, slot: usize) -> Option<u64> {
        let statm = std::fs::read_to_string(format!("/proc/{}/statm", self.slots[slot].process.child.id())).ok()?;
        let pages: u64 = statm.split(' ').nth(1)?.parse().ok()?;
        Some(pages * 4096)
    }

    /// What the workers warned of, and whose work they took over, for whoever cannot reach the logs.
    pub fn warnings(&self) -> Vec<String> {
        let told = |line: &str| {
            [r#""level":"WARN""#, r#""level":"ERROR""#, "is taken over"].iter().any(|it| line.contains(it))
        };
        let logs = (0..self.slots.len()).map(|slot| std::fs::read_to_string(self.log_path(slot)).unwrap_or_default());
        logs.flat_map(|log| log.lines().filter(|line| told(line)).map(String::from).collect::<Vec<_>>()).collect()
    }

    /// Keeps the logs and tells where they are.
    pub fn keep_logs(&mut self) -> PathBuf {
        self.dir.disable_cleanup(true);
        self.dir.path().to_owned()
    }
}
