//! `scripted-model`: serves a script of turns over HTTP, so that the real client has something to speak to without
//! a key and without a network.

use std::path::PathBuf;
use std::sync::Arc;

use clap::Args;

use crate::cli::{fail, print_line};
use crate::clients::llm::script::ScriptedModel;
use crate::http::scripted_model;

/// Arguments of `scripted-model`.
#[derive(Debug, Args)]
pub struct ScriptedModelArgs {
    /// The script, YAML or JSON.
    script: PathBuf,
    /// Port to listen on, on loopback; 0 takes a free one and prints it.
    #[arg(long, default_value_t = 0)]
    port: u16,
}

/// Serves until a signal.
pub fn run(args: &ScriptedModelArgs) -> u8 {
    let served = actix_rt::System::new().block_on(async {
        let model = Arc::new(ScriptedModel::load(&args.script)?);
        let listening = scripted_model::serve(model, ("127.0.0.1", args.port))?;
        print_line(listening.base_url());
        let handle = listening.handle();
        actix_rt::spawn(async move {
            let _ = tokio::signal::ctrl_c().await;
            handle.stop(true).await;
        });
        listening.server.await?;
        anyhow::Ok(())
    });
    match served {
        Ok(()) => 0,
        Err(error) => fail(error),
    }
}
