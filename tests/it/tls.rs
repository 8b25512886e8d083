//! A Redis that is reached by TLS, with a certificate that its operator alone vouches for.

use std::sync::Arc;

use rcgen::{CertifiedKey, KeyPair, generate_simple_self_signed};
use serde_json::json;
use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::crypto::ring::default_provider;
use tokio_rustls::rustls::pki_types::PrivatePkcs8KeyDer;

use crate::harness::bed::Bed;

/// Takes the TLS off connections and leads them on to `port`; gives its own port. It ends with the test.
async fn terminator(port: u16, certified: &CertifiedKey<KeyPair>) -> u16 {
    let key = PrivatePkcs8KeyDer::from(certified.signing_key.serialize_der());
    let config = ServerConfig::builder_with_provider(Arc::new(default_provider()))
        .with_safe_default_protocol_versions()
        .expect("the provider knows them")
        .with_no_client_auth()
        .with_single_cert(vec![certified.cert.der().clone()], key.into())
        .expect("the key is the certificate's");
    let acceptor = TlsAcceptor::from(Arc::new(config));
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let own = listener.local_addr().expect("it is bound").port();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let acceptor = acceptor.clone();
            tokio::spawn(async move {
                let Ok(mut inside) = acceptor.accept(stream).await else { return };
                let Ok(mut outside) = TcpStream::connect(("127.0.0.1", port)).await else { return };
                let _ = copy_bidirectional(&mut inside, &mut outside).await;
            });
        }
    });
    own
}

#[tokio::test]
async fn a_redis_behind_tls_is_trusted_by_the_certificates_of_the_system() {
    let bed = Bed::new().await;
    let certified = generate_simple_self_signed([String::from("localhost")]).expect("a certificate");
    let port = terminator(bed.server().port(), &certified).await;
    let folder = tempfile::tempdir().expect("a folder");
    let trusted = folder.path().join("ca.pem");
    std::fs::write(&trusted, certified.cert.pem()).expect("it can be written");
    let worker = |id: &str, host: &str| bed.worker(id).env("REDIS_ADDR", format!("rediss://{host}:{port}"));
    let trusting = |id: &str, host: &str| worker(id, host).env("SSL_CERT_FILE", trusted.display().to_string());

    // Neither an unknown certificate nor one of another name is talked to, and why is said.
    for (refused, why) in
        [(worker("w1", "localhost"), "UnknownIssuer"), (trusting("w2", "127.0.0.1"), "not valid for name")]
    {
        let refused = refused.start();
        let said = refused.said("redis does not answer yet").await;
        assert!(said["error"].as_str().is_some_and(|error| error.contains(why)), "{said}");
        refused.answers("/ready", 503).await;
    }

    let _worker = trusting("w3", "localhost").start().ready().await;
    let item = json!({"graph_id": "g", "node_id": "n", "inputs": {},
        "config": {"tool_name": "calculate", "tool_params": {"expression": "6 * 7"}}});
    assert_eq!(bed.run(&item).await.output(), &json!(42));
}
