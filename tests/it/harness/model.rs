//! The scripted model over HTTP in this process, so that the worker's real client is what runs.

use std::sync::Arc;

use da_node_executor::clients::llm::script::{Calls, ScriptedModel};
use da_node_executor::http::scripted_model;

/// A model that listens; it ends with its owner.
pub struct Model {
    model: Arc<ScriptedModel>,
    base_url: String,
    handle: actix_web::dev::ServerHandle,
}

impl Model {
    /// Serves a script in YAML.
    pub fn start(script: &str) -> Self {
        let model = ScriptedModel::parse(script, "the test's script").unwrap_or_else(|error| panic!("{error}"));
        let model = Arc::new(model);
        let served = Arc::clone(&model);
        let (send, receive) = std::sync::mpsc::channel();
        std::thread::spawn(move || {
            actix::System::new().block_on(async move {
                let listening = scripted_model::serve(served, ("127.0.0.1", 0)).expect("a free port");
                send.send((listening.base_url(), listening.handle())).expect("the test waits");
                let _ = listening.server.await;
            });
        });
        let (base_url, handle) = receive.recv().expect("the model listens");
        Self { model, base_url, handle }
    }

    /// Where it is.
    pub fn base_url(&self) -> &str {
        &self.base_url
    }

    /// What it was asked so far.
    pub fn calls(&self) -> Calls {
        self.model.log()
    }
}

impl Drop for Model {
    fn drop(&mut self) {
        // Sends the order at once; the server's own thread carries it out.
        drop(self.handle.stop(false));
    }
}
