//! Programs of the folder `examples`, built as they stand now: a test run does not always build them by itself.

use std::path::{Path, PathBuf};
use std::process::Command;

/// Builds an example and gives its path.
pub fn example(name: &str) -> PathBuf {
    let mut cargo = Command::new(env!("CARGO"));
    cargo.args(["build", "--locked", "--quiet", "--example", name]).current_dir(env!("CARGO_MANIFEST_DIR"));
    // What the test runner tells of this package would look to build scripts like a change, and half of the
    // dependencies would be built again.
    let told = |name: &str| {
        ["CARGO_PKG_", "CARGO_MANIFEST_", "CARGO_CRATE_", "CARGO_BIN_"].iter().any(|p| name.starts_with(p))
    };
    for (name, _) in std::env::vars_os() {
        if name.to_str().is_some_and(told) {
            cargo.env_remove(name);
        }
    }
    assert!(cargo.status().expect("cargo runs").success(), "the example `{name}` does not build");
    // This test lies beside the folder of the examples.
    let here = std::env::current_exe().expect("the test has a path");
    let profile = here.parent().and_then(Path::parent).expect("`deps` lies in the folder of the profile");
    profile.join("examples").join(name)
}
