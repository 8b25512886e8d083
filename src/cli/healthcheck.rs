//! `healthcheck`: asks a running worker's `/live`, for containers that have neither shell nor curl.

use std::io::{Read as _, Write as _};
use std::net::{TcpStream, ToSocketAddrs as _};
use std::time::Duration;

use clap::Args;

use crate::cli::{FAILED, Settings, complain};

/// Time for everything: a probe that hangs is a probe that failed.
const PATIENCE: Duration = Duration::from_secs(3);

/// Arguments of `healthcheck`.
#[derive(Debug, Args)]
pub struct HealthcheckArgs {
    /// Ask `/ready` instead of `/live`.
    #[arg(long)]
    ready: bool,
}

/// Exit 0 if the worker answers 200.
pub fn run(settings: &Settings, args: &HealthcheckArgs) -> u8 {
    let config = match settings.config() {
        Ok(config) => config.http,
        Err(code) => return code,
    };
    // A worker that listens everywhere is asked on loopback.
    let host = match config.bind.as_str() {
        "0.0.0.0" => "127.0.0.1",
        "::" => "::1",
        bind => bind,
    };
    let path = if args.ready { "/ready" } else { "/live" };
    match ask(host, config.port, path) {
        Ok((200, _)) => 0,
        Ok((status, body)) => {
            complain(format_args!("{path} answered {status}: {body}"));
            FAILED
        }
        Err(error) => {
            complain(format_args!(
                "no worker answers {path} on {host}:{} ({error}); HEALTH_PORT or `http.port` says where it listens",
                config.port
            ));
            FAILED
        }
    }
}

/// One request in the plainest HTTP; a client library would cost more start-up time than the answer takes.
pub(crate) fn ask(host: &str, port: u16, path: &str) -> std::io::Result<(u16, String)> {
    let address = (host, port).to_socket_addrs()?.next().ok_or_else(|| std::io::Error::other("no address"))?;
    let mut stream = TcpStream::connect_timeout(&address, PATIENCE)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    write!(stream, "GET {path} HTTP/1.0\r\nhost: {host}\r\n\r\n")?;
    let mut answer = String::new();
    stream.take(64 * 1024).read_to_string(&mut answer)?;
    let status = answer.split(' ').nth(1).and_then(|status| status.parse().ok());
    let body = answer.split_once("\r\n\r\n").map_or("", |(_, body)| body);
    match status {
        Some(status) => Ok((status, body.trim().to_owned())),
        None => Err(std::io::Error::other("the answer is not HTTP")),
    }
}
