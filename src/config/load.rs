//! Puts defaults, file and environment together and refuses what cannot be meant.

use figment::Figment;
use figment::providers::{Format, Toml};

use crate::config::{Config, DEFAULT_TOML};

/// The compiled-in defaults alone.
pub fn defaults() -> Config {
    Figment::from(Toml::string(DEFAULT_TOML)).extract().expect("config/default.toml is complete; a test holds it")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_compiled_in_defaults_are_complete() {
        assert_eq!(defaults().pool.size.get(), 64);
    }
}
