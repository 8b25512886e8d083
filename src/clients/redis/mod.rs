//! Redis: streams, leases, state, settling. The only module that imports the redis crate.
