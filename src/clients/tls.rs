//! Builders of HTTP clients that share one TLS configuration. What a client does with redirects, proxies and time is its
//! own file's.

use std::sync::OnceLock;

use reqwest::{Client, ClientBuilder};
use rustls::ClientConfig;
use rustls::crypto::ring;
use rustls_platform_verifier::ConfigVerifierExt as _;

/// Made once: to read the system's certificates takes some ten milliseconds, which the first request would wait for.
static CONFIGURATION: OnceLock<Option<ClientConfig>> = OnceLock::new();

/// Begins a client that trusts what the system trusts.
pub fn client() -> ClientBuilder {
    // The binary has done this first thing; where the library is used alone, building a client would panic.
    let _ = ring::default_provider().install_default();
    match configuration() {
        Some(tls) => Client::builder().tls_backend_preconfigured(tls.clone()),
        // Its own attempt meets the same trouble and has words for it.
        None => Client::builder(),
    }
}

/// Reads the certificates now, for a client that is sure to come.
pub fn prepare() {
    let _ = ring::default_provider().install_default();
    configuration();
}

fn configuration() -> Option<&'static ClientConfig> {
    let made = CONFIGURATION.get_or_init(|| {
        let mut tls = ClientConfig::with_platform_verifier().ok()?;
        tls.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        Some(tls)
    });
    made.as_ref()
}
