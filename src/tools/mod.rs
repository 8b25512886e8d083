//! The function registry and the built-in tools.
