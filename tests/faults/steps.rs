//! step tests
