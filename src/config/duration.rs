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

/// Durations by name.
pub mod map {
    use std::collections::BTreeMap;

    use serde::Deserialize;

    use super::{Deserializer, Duration};

    #[derive(Deserialize)]
    struct Entry(#[serde(with = "super")] Duration);

    /// Reads the durations of a table.
    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<BTreeMap<String, Duration>, D::Error> {
        let entries = BTreeMap::<String, Entry>::deserialize(deserializer)?;
        Ok(entries.into_iter().map(|(name, Entry(duration))| (name, duration)).collect())
    }
}
