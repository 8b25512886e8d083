//! Prints the effective configuration with the source of each value, secrets masked.
