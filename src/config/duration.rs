//! Durations in configuration: humantime texts such as `"1m 30s"`, never bare numbers, so that no unit is guessed.

use std::time::Duration;

use serde::{Deserialize, Deserializer};

/// Reads one duration.
pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
    let text = String::deserialize(deserializer)?;
    humantime::parse_duration(&text)
        .map_err(|error| serde::de::Error::custom(format!("not a duration such as \"30s\" or \"1m 30s\": {error}")))
}

/// Durations that may be absent.
pub mod option {
    use super::{Deserializer, Duration};

    /// Reads a duration that is there.
    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Duration>, D::Error> {
        super::deserialize(deserializer).map(Some)
    }
}
