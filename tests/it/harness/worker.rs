//! A real worker process: started with a clean environment, asked over HTTP, disturbed by signals, killed with its
//! owner. Its log is shown when the test fails.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use tempfile::TempDir;

use super::eventually;

/// How a worker is started.
#[derive(Debug, Clone)]
pub struct Spec {
    env: BTreeMap<String, String>,
    file: String,
    arguments: Vec<String>,
    input: Option<String>,
    open_files: Option<u32>,
}

impl Spec {
    /// A worker with the environment that every process has, and nothing else.
    pub fn bare() -> Self {
        let inherited = ["PATH", "HOME", "TMPDIR"];
        let env = inherited.into_iter().filter_map(|name| Some((String::from(name), std::env::var(name).ok()?)));
        Self { env: env.collect(), file: String::new(), arguments: Vec::new(), input: None, open_files: None }
    }

    /// Sets a variable of the environment.
    pub fn env(mut self, name: &str, value: impl Into<String>) -> Self {
        self.env.insert(String::from(name), value.into());
        self
    }

    /// Sets a key by its long name in the environment.
    pub fn set(self, key: &str, value: impl Into<String>) -> Self {
        self.env(&format!("EXECUTOR__{}", key.to_uppercase().replace('.', "__")), value)
    }

    /// Adds lines to the configuration file.
    pub fn file(mut self, toml: &str) -> Self {
        self.file.push_str(toml);
        self.file.push('\n');
        self
    }

    /// Adds an argument.
    pub fn argument(mut self, argument: impl Into<String>) -> Self {
        self.arguments.push(argument.into());
        self
    }

    /// Writes to its stdin, which is empty otherwise.
    pub fn input(mut self, text: impl Into<String>) -> Self {
        self.input = Some(text.into());
        self
    }

    /// Lowers the soft limit of open files that the process starts with.
    pub fn open_files(mut self, limit: u32) -> Self {
        self.open_files = Some(limit);
        self
    }

    /// Starts the process and does not wait for anything.
    pub fn start(self) -> Worker {
        let dir = tempfile::Builder::new().prefix("executor-it-").tempdir().expect("a folder");
        let mut command = match self.open_files {
            None => Command::new(env!("CARGO_BIN_EXE_executor-worker")),
            Some(limit) => {
                let mut shell = Command::new("sh");
                shell.arg("-c").arg(format!("ulimit -Sn {limit}; exec \"$0\" \"$@\""));
                shell.arg(env!("CARGO_BIN_EXE_executor-worker"));
                shell
            }
        };
        command.env_clear().envs(&self.env).args(&self.arguments).current_dir(dir.path());
        if !self.file.is_empty() {
            let path = dir.path().join("worker.toml");
            std::fs::write(&path, &self.file).expect("the folder is ours");
            command.arg("--config").arg(path);
        }
        command.stdin(match self.input {
            Some(_) => Stdio::piped(),
            None => Stdio::null(),
        });
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().expect("the worker can be started");
        if let (Some(text), Some(mut stdin)) = (self.input, child.stdin.take()) {
            // By a thread of its own: a process that does not read would hold the test. One that ended is seen elsewhere.
            std::thread::spawn(move || stdin.write_all(text.as_bytes()));
        }
        let (log, printed) = (Arc::default(), Arc::default());
        let pid = Pid::from_raw(i32::try_from(child.id()).expect("a pid"));
        let readers = [
            collect(child.stdout.take().expect("the pipe was asked for"), [&log, &printed].map(Arc::clone)),
            collect(child.stderr.take().expect("the pipe was asked for"), [Arc::clone(&log)]),
        ];
        Worker { pid, child: RefCell::new(child), log, printed, readers, ended: Cell::new(None), _dir: dir }
    }
}

/// Lines that a process wrote, filled by a thread.
type Lines = Arc<Mutex<Vec<String>>>;

fn collect<const N: usize>(pipe: impl Read + Send + 'static, logs: [Lines; N]) -> JoinHandle<()> {
    std::thread::spawn(move || {
        for line in BufReader::new(pipe).lines().map_while(Result::ok) {
            for log in &logs {
                log.lock().unwrap_or_else(PoisonError::into_inner).push(line.clone());
            }
        }
    })
}

/// A worker process.
pub struct Worker {
    pid: Pid,
    child: RefCell<Child>,
    log: Lines,
    printed: Lines,
    readers: [JoinHandle<()>; 2],
    ended: Cell<Option<ExitStatus>>,
    _dir: TempDir,
}

/// What an endpoint answered.
#[derive(Debug)]
pub struct Answer {
    /// The status.
    pub status: u16,
    /// The content type.
    pub content_type: String,
    /// The body.
    pub text: String,
}

impl Answer {
    /// The body as JSON.
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.text).unwrap_or_else(|error| panic!("{error} in {}", self.text))
    }
}

impl Worker {
    fn lines(&self) -> MutexGuard<'_, Vec<String>> {
        self.log.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What it wrote to stdout: results, without remarks.
    pub fn printed(&self) -> String {
        self.printed.lock().unwrap_or_else(PoisonError::into_inner).join("\n")
    }

    /// Everything it wrote.
    pub fn log(&self) -> String {
        self.lines().join("\n")
    }

    /// The lines of its log that are JSON.
    pub fn records(&self) -> Vec<Value> {
        self.lines().iter().filter_map(|line| serde_json::from_str(line).ok()).collect()
    }

    /// Waits for a line of the log whose message contains `words`.
    pub async fn said(&self, words: &str) -> Value {
        let what = format!("the worker says {words:?}");
        eventually(&what, async || {
            let found = |record: &Value| record["message"].as_str().is_some_and(|message| message.contains(words));
            self.records().into_iter().find(found)
        })
        .await
    }

    /// Where it listens, once it does.
    pub async fn address(&self) -> String {
        let record = self.said("worker started").await;
        String::from(record["address"].as_str().expect("the worker logs its address"))
    }

    /// Asks an endpoint.
    pub async fn get(&self, path: &str) -> Answer {
        let address = self.address().await;
        try_get(&address, path).await.unwrap_or_else(|error| panic!("GET {path}: {error}"))
    }

    /// Waits until it is ready.
    pub async fn ready(self) -> Self {
        let address = self.address().await;
        eventually("the worker is ready", async || {
            assert!(self.poll().is_none(), "the worker ended while it should become ready: {:?}", self.ended.get());
            try_get(&address, "/ready").await.ok().filter(|answer| answer.status == 200)
        })
        .await;
        self
    }

    /// Waits until an endpoint answers with this status, and gives the answer.
    pub async fn answers(&self, path: &str, status: u16) -> Answer {
        let address = self.address().await;
        eventually(&format!("{path} answers {status}"), async || {
            try_get(&address, path).await.ok().filter(|answer| answer.status == status)
        })
        .await
    }

    /// One figure of `/metrics`: the sum of the samples of this name whose labels contain all of `labels`.
    pub async fn metric(&self, name: &str, labels: &[&str]) -> f64 {
        let text = self.get("/metrics").await.text;
        let samples = text.lines().filter(|line| {
            let rest = line.strip_prefix(name);
            rest.is_some_and(|rest| rest.starts_with(['{', ' ']) && labels.iter().all(|label| rest.contains(label)))
        });
        samples
            .map(|line| line.rsplit(' ').next().and_then(|value| value.parse::<f64>().ok()).unwrap_or(f64::NAN))
            .sum()
    }

    /// The most memory that it has held so far, in MiB.
    pub fn peak_memory(&self) -> u64 {
        self.status("VmHWM") / 1024
    }

    /// How many files its table has room for.
    pub fn room_for_files(&self) -> u64 {
        self.status("FDSize")
    }

    /// A number that Linux tells of the process.
    fn status(&self, name: &str) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.pid)).expect("it runs");
        let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':')).expect("Linux tells");
        line.trim().trim_end_matches(" kB").parse().expect("a number")
    }

    fn signal(&self, signal: Signal) {
        assert!(self.poll().is_none(), "the worker ended before it could be sent {signal}: {:?}", self.ended.get());
        kill(self.pid, signal).expect("the process is ours");
    }

    /// Ends it with no chance to do anything.
    pub fn kill(&self) {
        self.signal(Signal::SIGKILL);
        self.ended.set(Some(self.child.borrow_mut().wait().expect("the process is ours")));
    }

    /// Asks it to stop.
    pub fn terminate(&self) {
        self.signal(Signal::SIGTERM);
    }

    /// The same from a terminal.
    pub fn interrupt(&self) {
        self.signal(Signal::SIGINT);
    }

    /// Freezes it.
    pub fn freeze(&self) {
        self.signal(Signal::SIGSTOP);
    }

    /// Lets it go on after [`Self::freeze`].
    pub fn thaw(&self) {
        self.signal(Signal::SIGCONT);
    }

    /// How it ended, if it has.
    pub fn poll(&self) -> Option<ExitStatus> {
        if self.ended.get().is_none() {
            self.ended.set(self.child.borrow_mut().try_wait().expect("the process is ours"));
        }
        self.ended.get()
    }

    /// Waits until it ends by itself; gives the exit code and everything it wrote.
    pub async fn ends(&self) -> (Option<i32>, String) {
        let status = eventually("the worker ends", async || self.poll()).await;
        eventually("its pipes close", async || self.readers.iter().all(JoinHandle::is_finished).then_some(())).await;
        (status.code(), self.log())
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        if self.ended.get().is_none() {
            let child = self.child.get_mut();
            let _ = child.kill();
            let _ = child.wait();
        }
        if std::thread::panicking() {
            eprintln!("--- log of worker {} ---\n{}\n---", self.pid, self.log());
        }
    }
}

async fn try_get(address: &str, path: &str) -> Result<Answer, reqwest::Error> {
    // The one TLS provider of a process; a second call says that it is there already.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let client = reqwest::Client::builder().no_proxy().timeout(super::PATIENCE).build()?;
    let response = client.get(format!("http://{address}{path}")).send().await?;
    let status = response.status().as_u16();
    let content_type = response.headers().get("content-type").and_then(|value| value.to_str().ok());
    let content_type = content_type.unwrap_or_default().to_owned();
    Ok(Answer { status, content_type, text: response.text().await? })
}
