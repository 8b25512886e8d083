//! The worker as a process of its own, and what the system says about processes: CPU time and memory.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use redis::aio::MultiplexedConnection;
use tempfile::NamedTempFile;

use crate::PATIENCE;

/// A running worker. It is killed with its owner.
pub struct Worker {
    child: Child,
    port: u16,
    started: Instant,
}

impl Worker {
    /// Starts a worker in its default configuration but for the address of Redis, its own port, and `settings`.
    pub fn start(program: &Path, redis: &str, settings: &[&str]) -> Self {
        // Another process may take the port before the worker does; then the worker ends and the run with it.
        let probe = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let port = probe.local_addr().expect("an address").port();
        drop(probe);
        let mut command = Command::new(program);
        // The environment may hold settings of a worker.
        command.env_clear().env("WORKER_ID", "bench").env("REDIS_ADDR", redis).env("HEALTH_PORT", port.to_string());
        for setting in settings {
            command.arg("--set").arg(setting);
        }
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let started = Instant::now();
        Self { child: command.spawn().expect("the worker can be run"), port, started }
    }

    /// Waits for `/ready` to answer 200; gives the time since the process was started.
    pub fn ready(&mut self) -> Duration {
        loop {
            if self.answers_ready() {
                return self.started.elapsed();
            }
            if let Ok(Some(status)) = self.child.try_wait() {
                panic!("the worker ended instead of becoming ready: {status}");
            }
            assert!(self.started.elapsed() < PATIENCE, "the worker did not become ready");
            std::thread::sleep(Duration::from_micros(500));
        }
    }

    fn answers_ready(&self) -> bool {
        let ask = || -> std::io::Result<Vec<u8>> {
            let address = SocketAddr::from(([127, 0, 0, 1], self.port));
            let mut stream = TcpStream::connect(address)?;
            stream.set_read_timeout(Some(Duration::from_secs(1)))?;
            stream.write_all(b"GET /ready HTTP/1.1\r\nhost: worker\r\nconnection: close\r\n\r\n")?;
            let mut status = vec![0; 12];
            stream.read_exact(&mut status)?;
            Ok(status)
        };
        ask().is_ok_and(|status| status.ends_with(b" 200"))
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Ends it as an operator would, and waits for that.
    pub fn stop(mut self) {
        let pid = Pid::from_raw(i32::try_from(self.pid()).expect("process ids are small"));
        kill(pid, Signal::SIGTERM).expect("the worker runs");
        let asked = Instant::now();
        while self.child.try_wait().expect("the worker is our child").is_none() {
            assert!(asked.elapsed() < PATIENCE, "the worker did not end after SIGTERM");
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The program's scripted model, served over HTTP by a process of its own. It is killed with its owner.
pub struct ScriptedModel {
    child: Child,
    /// Where it is.
    pub base_url: String,
    _script: NamedTempFile,
}

impl ScriptedModel {
    /// Serves this script.
    pub fn start(program: &Path, script: &str) -> Self {
        let mut file = NamedTempFile::with_suffix(".yaml").expect("a file");
        file.write_all(script.as_bytes()).expect("the file is ours");
        let mut command = Command::new(program);
        command.env_clear().arg("scripted-model").arg(file.path()).stdin(Stdio::null()).stdout(Stdio::piped());
        let mut child = command.spawn().expect("the model can be run");
        let mut first = String::new();
        let stdout = child.stdout.take().expect("the pipe was asked for");
        BufReader::new(stdout).read_line(&mut first).expect("the model tells its address");
        Self { child, base_url: first.trim().to_owned(), _script: file }
    }
}

impl Drop for ScriptedModel {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// CPU time that a process has used, in user and kernel mode.
pub fn cpu(pid: u32) -> Duration {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).expect("the process runs");
    // The name in parentheses may have spaces; user and system time are the 12th and 13th field behind it.
    let fields = stat.rsplit_once(')').expect("the name is in parentheses").1;
    let ticks: u64 =
        fields.split_whitespace().skip(11).take(2).map(|field| field.parse::<u64>().expect("a number")).sum();
    // The kernel tells it in hundredths of a second on every architecture.
    Duration::from_millis(ticks * 10)
}

/// Memory of a process that is resident, in bytes.
pub fn resident(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("the process runs");
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("a process has memory");
    let kibibytes: u64 = line.trim().trim_end_matches(" kB").parse().expect("a number");
    kibibytes * 1024
}

/// The process id of a Redis server.
pub async fn server_pid(redis: &mut MultiplexedConnection) -> u32 {
    let info: String = redis::cmd("INFO").arg("server").query_async(redis).await.expect("the server answers");
    let line = info.lines().find_map(|line| line.strip_prefix("process_id:")).expect("a server knows its process id");
    line.trim().parse().expect("a number")
}
