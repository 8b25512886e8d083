//! Tools of our own: the function registry, the built-in functions, and how names that nodes write find their tools.
//! Tools of MCP servers live behind their sessions; here they are only lists of specifications.

pub mod approval;
mod arguments;
mod builtin;
pub mod index;
pub mod registry;
pub mod resolve;

pub use builtin::{BUILTIN_NAMES, InvalidTools};
pub use registry::Registry;
