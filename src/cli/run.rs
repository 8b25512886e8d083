//! `run`: the worker.

use crate::cli::{FAILED, Settings, WRONG_CONFIG, causes, complain, exit_code};
use crate::{app, failpoint, telemetry};

/// Loads the configuration, sets up logs and runs until a signal.
pub fn run(settings: &Settings) -> u8 {
    let loaded = match settings.load() {
        Ok(loaded) => loaded,
        Err(code) => return code,
    };
    if let Err(error) = telemetry::init(&loaded.config.log, &loaded.config.worker.id) {
        complain(error);
        return WRONG_CONFIG;
    }
    failpoint::arm();
    for warning in &loaded.warnings {
        tracing::warn!("{warning}");
    }
    match app::run(loaded.config, &settings.functions) {
        Ok(code) => u8::try_from(code).unwrap_or(FAILED),
        Err(error) => {
            tracing::error!("the worker cannot start: {}", causes(&error));
            exit_code(&error)
        }
    }
}
