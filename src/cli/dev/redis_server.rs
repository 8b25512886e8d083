//! A Redis server of our own: a child process on a free loopback port that keeps nothing and ends with us.

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use tempfile::TempDir;

use crate::cli::dev::child::{ChildProcess, tied};

/// Names the server's program where it is not on PATH.
const VARIABLE: &str = "EXECUTOR_REDIS_SERVER";
/// Redis, and the fork whose commands are the same.
const NAMES: [&str; 2] = ["redis-server", "valkey-server"];
/// Where `scripts/setup` puts a server that no package manager installed.
const CACHED: &str = ".cache/redis/bin/redis-server";
/// How long a start may take; it is a tenth of a second on an idle machine.
const PATIENCE: Duration = Duration::from_secs(10);
/// How often a port may turn out to be taken between choosing it and using it.
const PORTS: u32 = 5;

/// Why there is no server.
#[derive(Debug, thiserror::Error)]
pub enum RedisServerError {
    /// No program was found.
    #[error(
        "no Redis server was found: neither redis-server nor valkey-server is on PATH, nor is there {CACHED}.\n\
         Any one of these helps:\n  \
         scripts/setup run                  gets one, with or without root\n  \
         apt-get install redis-server       (Debian, Ubuntu; as root)\n  \
         {VARIABLE}=/path/to/redis-server   names one that is elsewhere\n  \
         executor-worker dev --redis URL    uses one that runs already"
    )]
    NotFound,
    /// The variable names something else.
    #[error("{VARIABLE} names {path}, which is no program")]
    NoProgram {
        /// What it names.
        path: String,
    },
    /// Results cannot be written with its commands.
    #[error(
        "{} is version {version}; the worker needs 7.0 or newer. `scripts/setup run` gets one, and {VARIABLE} names one \
         that is elsewhere",
        program.display()
    )]
    TooOld {
        /// The program.
        program: PathBuf,
        /// Its version.
        version: String,
    },
    /// A folder, a log or a process could not be made.
    #[error("a private Redis server cannot be started: {0}")]
    Io(#[from] io::Error),
    /// It ended or stayed silent.
    #[error("{} did not start: {why}", program.display())]
    Failed {
        /// The program.
        program: PathBuf,
        /// What it said last.
        why: String,
    },
}

/// A running server; dropping it ends it and removes its folder. It also ends with the thread that started it.
#[derive(Debug)]
pub struct RedisServer {
    // Before the folder, so that it has ended when the folder goes.
    _process: ChildProcess,
    address: SocketAddr,
    version: String,
    _folder: TempDir,
}

impl RedisServer {
    /// Starts one and waits until it answers. `guard` is the `executor-worker` binary, see [`tied`].
    pub fn start(guard: &Path) -> Result<Self, RedisServerError> {
        let program = find(|name| std::env::var_os(name), Path::new(CACHED))?;
        let folder = tempfile::Builder::new().prefix("executor-redis-").tempdir()?;
        let deadline = Instant::now() + PATIENCE;
        let mut failure = String::new();
        for _ in 0..PORTS {
            let address = SocketAddr::from((Ipv4Addr::LOCALHOST, free_port()?));
            let log = folder.path().join("redis.log");
            let mut process = launch(guard, &program, address, folder.path(), &log)?;
            match until_it_answers(&mut process, address, deadline) {
                Ok(version) if is_old(&version) => return Err(RedisServerError::TooOld { program, version }),
                Ok(version) => return Ok(Self { _process: process, address, version, _folder: folder }),
                Err(why) => {
                    let said = std::fs::read_to_string(&log).unwrap_or_default();
                    let said: Vec<&str> = said.lines().rev().take(3).collect();
                    failure = format!("{why}; its log ends with {:?}", said.into_iter().rev().collect::<Vec<_>>());
                }
            }
            if Instant::now() >= deadline {
                break;
            }
        }
        Err(RedisServerError::Failed { program, why: failure })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Its address as a URL.
    pub fn url(&self) -> String {
        format!("redis://{}", self.address)
    }

    /// The version it says it has.
    pub fn version(&self) -> &str {
        &self.version
    }
}

/// A port that nobody uses at this moment.
pub fn free_port() -> io::Result<u16> {
    Ok(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?.port())
}

/// The program: the one that the variable names, else the first on PATH, else the one `scripts/setup` brought.
fn find(variable: impl Fn(&str) -> Option<OsString>, cached: &Path) -> Result<PathBuf, RedisServerError> {
    let path = variable("PATH").unwrap_or_default();
    let folders: Vec<PathBuf> = std::env::split_paths(&path).collect();
    let on_path = |name: &Path| folders.iter().map(|folder| folder.join(name)).find(|file| is_program(file));
    if let Some(named) = variable(VARIABLE).filter(|named| !named.is_empty()) {
        let named = PathBuf::from(named);
        let found = if named.components().count() > 1 { Some(named.clone()) } else { on_path(&named) };
        return found
            .filter(|file| is_program(file))
            .ok_or_else(|| RedisServerError::NoProgram { path: named.display().to_string() });
    }
    let found = NAMES.iter().find_map(|name| on_path(Path::new(name)));
    found.or_else(|| is_program(cached).then(|| cached.to_owned())).ok_or(RedisServerError::NotFound)
}

fn is_old(version: &str) -> bool {
    version.split('.').next().and_then(|major| major.parse().ok()).is_some_and(|major: u32| major < 7)
}

fn is_program(file: &Path) -> bool {
    file.metadata().is_ok_and(|facts| facts.is_file() && facts.permissions().mode() & 0o111 != 0)
}

fn launch(guard: &Path, program: &Path, address: SocketAddr, folder: &Path, log: &Path) -> io::Result<ChildProcess> {
    let output = File::create(log)?;
    let mut command = tied(guard, program);
    command.args(["--bind", &address.ip().to_string(), "--port", &address.port().to_string()]);
    command.args(["--save", "", "--appendonly", "no", "--maxmemory-policy", "noeviction", "--daemonize", "no"]);
    command.arg("--dir").arg(folder);
    command.stdout(output.try_clone()?).stderr(output);
    ChildProcess::start(command)
}

/// Asks until the child itself answers: another server may have got the port first. The answer is its version.
fn until_it_answers(process: &mut ChildProcess, address: SocketAddr, deadline: Instant) -> Result<String, String> {
    let mut silence = String::from("it did not answer in time");
    while Instant::now() < deadline {
        if let Some(status) = process.ended() {
            return Err(format!("it ended with {status}"));
        }
        match ask(address) {
            Ok(facts) => {
                let fact = |name: &str| facts.lines().find_map(|line| line.trim_end().strip_prefix(name));
                match fact("process_id:") {
                    Some(id) if id == process.id().to_string() => {
                        return Ok(fact("redis_version:").unwrap_or("unknown").to_owned());
                    }
                    Some(_) => return Err(format!("another server listens on {address}")),
                    None => silence = String::from("it did not tell its process id"),
                }
            }
            Err(error) => silence = format!("it did not answer in time: {error}"),
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    Err(silence)
}

/// The section `server` of INFO, by hand: one question is no reason for a client.
fn ask(address: SocketAddr) -> io::Result<String> {
    let patience = Duration::from_secs(1);
    let mut stream = TcpStream::connect_timeout(&address, patience)?;
    stream.set_read_timeout(Some(patience))?;
    stream.set_write_timeout(Some(patience))?;
    stream.write_all(b"INFO server\r\nQUIT\r\n")?;
    let mut answer = String::new();
    stream.take(64 * 1024).read_to_string(&mut answer)?;
    Ok(answer)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn program(folder: &Path, name: &str) -> PathBuf {
        let file = folder.join(name);
        std::fs::write(&file, "#!/bin/sh\n").expect("a file can be written");
        std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o755)).expect("it can be made a program");
        file
    }

    #[test]
    fn a_server_before_version_7_is_too_old() {
        assert!(is_old("6.2.14") && !is_old("7.0.15") && !is_old("10.1.0") && !is_old("unknown"));
    }

    #[test]
    fn the_variable_wins_then_redis_then_its_fork() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = |name: &str| (name == "PATH").then(|| folder.path().as_os_str().to_owned());
        let fork = program(folder.path(), "valkey-server");
        let cached = program(folder.path(), "cached-server");
        assert_eq!(find(path, &cached).expect("the fork is there"), fork);
        let redis = program(folder.path(), "redis-server");
        assert_eq!(find(path, &cached).expect("both are there"), redis);
        let both = |name: &str| if name == VARIABLE { Some(fork.clone().into_os_string()) } else { path(name) };
        assert_eq!(find(both, &cached).expect("it is named"), fork);
    }

    #[test]
    fn a_variable_that_names_nothing_is_an_error_and_no_detour() {
        let gone = |name: &str| (name == VARIABLE).then(|| OsString::from("/no/such/server"));
        let error = find(gone, Path::new("/no/such/cache")).expect_err("there is none").to_string();
        assert!(error.contains("EXECUTOR_REDIS_SERVER names /no/such/server"), "{error}");
    }

    #[test]
    fn a_missing_server_names_every_remedy() {
        let folder = tempfile::tempdir().expect("a folder");
        std::fs::write(folder.path().join("redis-server"), "not a program").expect("a file can be written");
        let path = |name: &str| (name == "PATH").then(|| folder.path().as_os_str().to_owned());
        let error = find(path, Path::new("/no/such/cache")).expect_err("there is none").to_string();
        assert!(error.contains("scripts/setup run") && error.contains("apt-get install redis-server"), "{error}");
        let cached = program(folder.path(), "cached-server");
        assert_eq!(find(path, &cached).expect("the cache has one"), cached);
    }
}
