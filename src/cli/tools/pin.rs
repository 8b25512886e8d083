//! `tools pin`: writes down what servers offer now, so that nothing else is offered to models from then on.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use clap::Args;

use crate::cli::tools::{unknown_server, with_tools};
use crate::cli::{
    FAILED, Settings, UNAVAILABLE, WRONG_ARGUMENTS, WRONG_CONFIG, complain, fail, print_line, print_note,
};
use crate::config::Config;
use crate::tools::approval::{Digest, Lock, differences};
use crate::tools::index::ToolIndex;

/// Arguments of `tools pin`.
#[derive(Debug, Args)]
pub(super) struct PinArgs {
    /// The servers; without any, all that have a `pin`.
    #[arg(value_name = "SERVER")]
    servers: Vec<String>,
    /// Write nothing; exit 1 if something differs from what is approved.
    #[arg(long)]
    check: bool,
}

/// Approves what the servers offer; the answer is the exit code.
pub(super) fn run(settings: &Settings, args: &PinArgs) -> u8 {
    let mut config = match settings.config() {
        Ok(config) => config,
        Err(code) => return code,
    };
    let paths = match wanted(&mut config, args) {
        Ok(paths) => paths,
        Err(code) => return code,
    };
    let offered = with_tools(settings, &config, async |running| {
        let asked = running.servers.iter().map(async |server| {
            let tools = server.discover().await;
            let digests = |tools: &ToolIndex| tools.iter().map(|tool| (named(tool), Digest::of(tool))).collect();
            (server.name.clone(), tools.map(|tools| digests(&tools)))
        });
        futures_util::future::join_all(asked).await
    });
    let offered = match offered {
        Ok(offered) => offered,
        Err(code) => return code,
    };
    let mut code = 0;
    for (server, answer) in offered {
        let path = &paths[&server];
        code = code.max(match answer {
            Ok(digests) => approve(&server, path, digests, args.check),
            Err(failure) => {
                complain(format_args!("{server}: {}; what was approved of it stays", failure.message));
                UNAVAILABLE
            }
        });
    }
    code
}

fn named(tool: &crate::domain::tool::ToolSpec) -> String {
    tool.target.name.clone()
}

/// The lock files of the servers that are meant. Those servers alone are left in the configuration, and without their
/// pins: everything that they offer is to be seen.
fn wanted(config: &mut Config, args: &PinArgs) -> Result<BTreeMap<String, PathBuf>, u8> {
    if let Some(name) = args.servers.iter().find(|name| !config.mcp.servers.contains_key(*name)) {
        return Err(unknown_server(config, name));
    }
    let mut paths = BTreeMap::new();
    for (name, server) in &mut config.mcp.servers {
        let meant = args.servers.contains(name);
        match server.pin.take() {
            Some(path) if meant || args.servers.is_empty() => drop(paths.insert(name.clone(), path)),
            None if meant => {
                complain(format_args!(
                    "server `{name}` has no lock file; set `mcp.servers.{name}.pin = \"tools.lock\"` and try again"
                ));
                return Err(WRONG_ARGUMENTS);
            }
            _ => {}
        }
    }
    if paths.is_empty() {
        complain(
            "no server has a lock file; set `mcp.servers.NAME.pin = \"tools.lock\"` for those that should have one",
        );
        return Err(WRONG_CONFIG);
    }
    config.mcp.servers.retain(|name, _| paths.contains_key(name));
    config.mcp.order.retain(|name| paths.contains_key(name));
    Ok(paths)
}

/// Writes the digests of one server, if they differ from those of the file, and tells how.
fn approve(server: &str, path: &Path, digests: BTreeMap<String, Digest>, check: bool) -> u8 {
    let mut lock = match Lock::read(path, server) {
        Ok(lock) => lock.unwrap_or_else(Lock::empty),
        Err(error) => {
            fail(error);
            return WRONG_CONFIG;
        }
    };
    let known = lock.servers.get(server);
    let differing = differences(known.unwrap_or(&BTreeMap::new()), &digests);
    if differing.is_empty() && known.is_some() {
        print_note(format_args!("{server}: {} tools, all as approved", digests.len()));
        return 0;
    }
    for (tool, how) in &differing {
        print_line(format_args!("{how:8} {server}/{tool}"));
    }
    if check {
        print_note(format_args!("{server}: not what {} approves", path.display()));
        return FAILED;
    }
    let count = digests.len();
    lock.servers.insert(server.to_owned(), digests);
    match lock.write(path, server) {
        Ok(()) => {
            print_note(format_args!("{server}: {count} tools approved in {}", path.display()));
            0
        }
        Err(error) => fail(error),
    }
}
