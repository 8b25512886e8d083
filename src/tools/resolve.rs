//! How the names that a node writes find their tools.
