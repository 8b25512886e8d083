//! The workers of `dev`: child processes of the same binary, which are killed and replaced like real ones.

use std::ffi::OsString;
use std::fs::File;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::ExitStatus;
use std::time::{Duration, Instant};

use crate::cli::dev::child::{ChildProcess, tied};
use crate::cli::dev::redis_server::free_port;
use crate::cli::healthcheck;

/// What workers get of the environment: nothing that configures a worker, and no proxy between it and the model here.
const ENVIRONMENT: [&str; 9] =
    ["PATH", "HOME", "USER", "LANG", "LC_ALL", "TZ", "TMPDIR", "LD_LIBRARY_PATH", "RUST_BACKTRACE"];
/// What else a model far away may need.
const NETWORK: [&str; 10] = [
    "HTTP_PROXY",
    "HTTPS_PROXY",
    "ALL_PROXY",
    "NO_PROXY",
    "http_proxy",
    "https_proxy",
    "all_proxy",
    "no_proxy",
    "SSL_CERT_FILE",
    "SSL_CERT_DIR",
];
/// How long workers may take to stop; more than the grace time that [`crate::cli::dev::stage`] gives them.
const STOPPING: Duration = Duration::from_secs(6);
/// Workers that may end by themselves before `dev` gives up.
const ACCIDENTS: u32 = 5;

/// How workers are started.
#[derive(Debug)]
pub struct WorkerPlan {
    /// The `executor-worker` binary.
    pub program: PathBuf,
    /// Their configuration file.
    pub config: PathBuf,
    /// Where their logs go.
    pub folder: PathBuf,
    /// Keys that the user set on the command line of `dev`.
    pub set: Vec<(String, String)>,
    /// The key of a real model, by variable, so that it stands in no file.
    pub secrets: Vec<(&'static str, OsString)>,
}

/// One worker.
#[derive(Debug)]
struct Worker {
    name: String,
    health: SocketAddr,
    process: ChildProcess,
}

/// A worker that ended although nobody asked it to.
#[derive(Debug)]
pub struct Accident {
    /// Its name.
    pub worker: String,
    /// How it ended.
    pub status: ExitStatus,
}

/// The running workers.
#[derive(Debug)]
pub struct Workers {
    plan: WorkerPlan,
    running: Vec<Worker>,
    started: u32,
    accidents: u32,
}

impl Workers {
    /// None yet.
    pub fn new(plan: WorkerPlan) -> Self {
        Self { plan, running: Vec::new(), started: 0, accidents: 0 }
    }

    /// Starts one more and gives its name. It ends with the thread that calls this.
    pub fn start_one(&mut self) -> io::Result<String> {
        self.started += 1;
        let name = format!("worker-{}", self.started);
        let port = free_port()?;
        let plan = &self.plan;
        let log = File::create(self.log(&name))?;
        let mut command = tied(&plan.program, &plan.program);
        command.arg("--config").arg(&plan.config);
        for (key, value) in &plan.set {
            command.arg("--set").arg(format!("{key}={value}"));
        }
        command.arg("run");
        command.env_clear().env("WORKER_ID", &name).env("HEALTH_PORT", port.to_string());
        let network: &[&str] = if plan.secrets.is_empty() { &[] } else { &NETWORK };
        for variable in ENVIRONMENT.iter().chain(network) {
            if let Some(value) = std::env::var_os(variable) {
                command.env(variable, value);
            }
        }
        command.envs(plan.secrets.iter().map(|(variable, value)| (variable, value)));
        command.stdout(log.try_clone()?).stderr(log);
        let process = ChildProcess::start(command)?;
        self.running.push(Worker {
            name: name.clone(),
            health: SocketAddr::from((Ipv4Addr::LOCALHOST, port)),
            process,
        });
        Ok(name)
    }

    /// Waits until all of them are ready; the error names the worker and says what its log ends with.
    pub async fn ready_by(&mut self, deadline: Instant) -> Result<(), String> {
        let Self { plan, running, .. } = self;
        for worker in running.iter_mut() {
            loop {
                if let Some(status) = worker.process.ended() {
                    let said = last_lines(&plan.folder.join(format!("{}.log", worker.name)));
                    return Err(format!("{} ended with {status}:\n{said}", worker.name));
                }
                let address = worker.health;
                let ask = move || healthcheck::ask(&address.ip().to_string(), address.port(), "/ready");
                let answer = tokio::task::spawn_blocking(ask).await;
                let reason = match answer {
                    Ok(Ok((200, _))) => break,
                    Ok(Ok((_, body))) => body,
                    Ok(Err(error)) => error.to_string(),
                    Err(error) => error.to_string(),
                };
                if Instant::now() >= deadline {
                    let said = last_lines(&plan.folder.join(format!("{}.log", worker.name)));
                    return Err(format!("{} is not ready in time: {reason}\n{said}", worker.name));
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        }
        Ok(())
    }

    /// Kills a worker with SIGKILL and starts another in its place, whose name is given; nothing if it is gone already.
    pub fn kill_and_replace(&mut self, name: &str) -> io::Result<Option<String>> {
        let Some(at) = self.running.iter().position(|worker| worker.name == name) else { return Ok(None) };
        self.running.swap_remove(at).process.kill();
        self.start_one().map(Some)
    }

    /// Replaces workers that ended by themselves; an error when it happens too often to go on.
    pub fn replace_the_dead(&mut self) -> Result<Vec<Accident>, String> {
        let mut accidents = Vec::new();
        let mut at = 0;
        while at < self.running.len() {
            match self.running[at].process.ended() {
                Some(status) => accidents.push(Accident { worker: self.running.swap_remove(at).name, status }),
                None => at += 1,
            }
        }
        for accident in &accidents {
            self.accidents += 1;
            if self.accidents > ACCIDENTS {
                let said = last_lines(&self.log(&accident.worker));
                return Err(format!(
                    "workers keep ending; {} last, with {}:\n{said}",
                    accident.worker, accident.status
                ));
            }
            self.start_one().map_err(|error| format!("a worker cannot be started: {error}"))?;
        }
        Ok(accidents)
    }

    /// Names and addresses of those that run.
    pub fn addresses(&self) -> impl Iterator<Item = (&str, SocketAddr)> {
        self.running.iter().map(|worker| (worker.name.as_str(), worker.health))
    }

    /// Has all of them stop in order, together; those that take too long are killed.
    pub fn stop(mut self) {
        for worker in &mut self.running {
            worker.process.ask_to_stop();
        }
        let deadline = Instant::now() + STOPPING;
        for worker in &mut self.running {
            worker.process.end_by(deadline);
        }
    }

    fn log(&self, name: &str) -> PathBuf {
        self.plan.folder.join(format!("{name}.log"))
    }
}

/// The end of a log, for an error.
fn last_lines(log: &Path) -> String {
    let text = std::fs::read_to_string(log).unwrap_or_default();
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(5)..].join("\n")
}
