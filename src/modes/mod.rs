//! The work itself, generic over the ports: which mode, its templates, its deadline, its outcome.

pub mod mapping;
pub mod names;
pub mod schema;
pub mod scope;
pub mod step;
pub mod template;
