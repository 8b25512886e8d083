//! Against a real server on loopback: what is fetched, what is refused, where redirects may lead, what is tried again.

use std::net::SocketAddr;
use std::num::NonZeroUsize;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use wiremock::matchers::{header, header_exists, method, path};
use wiremock::{Mock, MockServer, ResponseTemplate};

use super::*;
use crate::domain::outcome::{Category, Failure};
use crate::retry::Retry;

const LIMIT: Duration = Duration::from_secs(20);

fn client(allow: &[&str]) -> FetchClient {
    // Another test may have been first; either way there is one.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let config = HttpRequestConfig {
        allow: allow.iter().map(|&entry| entry.to_owned()).collect(),
        timeout: LIMIT,
        max_bytes: NonZeroUsize::new(1000).expect("not zero"),
    };
    FetchClient::new(&config).expect("valid entries")
}

fn get(url: impl Into<String>) -> FetchRequest {
    FetchRequest { url: url.into(), ..FetchRequest::default() }
}

fn post(url: impl Into<String>) -> FetchRequest {
    FetchRequest { method: Method::Post, body: Some(Bytes::from_static(b"order")), ..get(url) }
}

async fn fails(client: &FetchClient, request: FetchRequest) -> FetchError {
    client.fetch(request, LIMIT).await.expect_err("refused")
}

/// A server that accepts, does this to the first connection, and drops it.
async fn serve_raw(answer: impl Into<Vec<u8>>, hold: bool) -> SocketAddr {
    let answer = answer.into();
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let address = listener.local_addr().expect("bound");
    tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.expect("a connection");
        let mut request = [0; 1024];
        let _ = stream.read(&mut request).await;
        let _ = stream.write_all(&answer).await;
        if hold {
            let _ = stream.read(&mut request).await;
        }
    });
    address
}

#[tokio::test]
async fn an_allowed_host_is_asked_and_its_connection_used_again() {
    let server = MockServer::start().await;
    Mock::given(path("/a")).respond_with(ResponseTemplate::new(404).set_body_string("none")).mount(&server).await;
    let client = client(&["127.0.0.1"]);
    for _ in 0..2 {
        let fetched = client.fetch(get(format!("{}/a", server.uri())), LIMIT).await.expect("answered");
        assert_eq!((fetched.status, fetched.body.as_slice(), fetched.truncated), (404, &b"none"[..], false));
    }
    assert_eq!(client.clients.lock().expect("free").len(), 1, "one client serves the runtime");
}

#[tokio::test]
async fn a_host_that_is_not_allowed_is_not_asked() {
    let server = MockServer::start().await;
    let port = server.address().port();
    let client = client(&["example.org", &format!("127.0.0.1:{}", port ^ 1)]);
    let error = fails(&client, get(server.uri())).await;
    assert!(matches!(&error, FetchError::HostNotAllowed { host } if *host == format!("127.0.0.1:{port}")), "{error}");
    assert!(server.received_requests().await.expect("recorded").is_empty());
    assert!(client.clients.lock().expect("free").is_empty(), "nothing is set up before it is needed");
}

#[tokio::test]
async fn a_private_address_is_refused_however_it_is_reached_unless_it_is_allowed_by_name() {
    let server = MockServer::start().await;
    Mock::given(method("GET")).respond_with(ResponseTemplate::new(200)).mount(&server).await;
    let port = server.address().port();
    let anybody = client(&["*", "*.localhost"]);
    for host in
        ["localhost", "127.0.0.1", "2130706433", "0x7f.1", "[::1]", "[::ffff:127.0.0.1]", "0.0.0.0", "169.254.169.254"]
    {
        let error = fails(&anybody, get(format!("http://{host}:{port}/"))).await;
        assert!(matches!(error, FetchError::AddressRefused(_)), "{host}: {error}");
        assert_eq!(Failure::from(error).code, "address_refused");
    }
    assert!(server.received_requests().await.expect("recorded").is_empty());
    for (entry, host) in [("localhost", "localhost"), ("127.0.0.1", "2130706433")] {
        let fetched = client(&[entry, "*"]).fetch(get(format!("http://{host}:{port}/")), LIMIT).await;
        assert_eq!(fetched.expect("allowed by name").status, 200);
    }
}

#[tokio::test]
async fn a_redirect_leads_to_allowed_hosts_alone() {
    let server = MockServer::start().await;
    let other = MockServer::start().await;
    let to = |location: &str| ResponseTemplate::new(302).insert_header("location", location);
    Mock::given(path("/near")).respond_with(to("/end?x=1")).mount(&server).await;
    Mock::given(path("/far")).respond_with(to(&other.uri())).mount(&server).await;
    Mock::given(path("/inside")).respond_with(to("http://169.254.169.254/latest/meta-data")).mount(&server).await;
    Mock::given(path("/file")).respond_with(to("file:///etc/passwd")).mount(&server).await;
    Mock::given(path("/broken")).respond_with(to("http://[")).mount(&server).await;
    Mock::given(path("/loop")).respond_with(to("/loop")).mount(&server).await;
    Mock::given(path("/end")).respond_with(ResponseTemplate::new(200)).mount(&server).await;
    let own = server.address().to_string();
    let client = client(&[&own]);
    let at = |path: &str| get(format!("{}{path}", server.uri()));
    assert_eq!(client.fetch(at("/near"), LIMIT).await.expect("followed").status, 200);
    assert!(matches!(fails(&client, at("/far")).await, FetchError::RedirectNotAllowed { .. }));
    assert!(matches!(fails(&client, at("/inside")).await, FetchError::RedirectNotAllowed { .. }));
    assert!(matches!(fails(&client, at("/file")).await, FetchError::InvalidUrl { .. }));
    assert!(matches!(fails(&client, at("/broken")).await, FetchError::InvalidRedirect));
    assert!(matches!(fails(&client, at("/loop")).await, FetchError::TooManyRedirects));
    let asked = server.received_requests().await.expect("recorded");
    assert_eq!(asked.iter().filter(|request| request.url.path() == "/loop").count(), MAX_REDIRECTS + 1);
    assert!(other.received_requests().await.expect("recorded").is_empty());
    let wild = self::client(&[&own, "*"]);
    assert!(matches!(fails(&wild, at("/inside")).await, FetchError::AddressRefused(_)));
}

#[tokio::test]
async fn a_redirect_to_another_host_does_not_learn_the_keys_of_the_first() {
    let server = MockServer::start().await;
    let other = MockServer::start().await;
    let moved = ResponseTemplate::new(307).insert_header("location", other.uri().as_str());
    Mock::given(header("x-api-key", "s3cret")).respond_with(moved).expect(1).mount(&server).await;
    Mock::given(method("POST")).respond_with(ResponseTemplate::new(200)).expect(1).mount(&other).await;
    let client = client(&["127.0.0.1"]);
    let headers = [("X-Api-Key", "s3cret"), ("authorization", "Bearer s3cret"), ("content-type", "text/plain")];
    let headers = headers.map(|(name, value)| (name.to_owned(), value.to_owned())).to_vec();
    let fetched = client.fetch(FetchRequest { headers, ..post(server.uri()) }, LIMIT).await.expect("followed");
    assert_eq!(fetched.status, 200);
    let got = other.received_requests().await.expect("recorded").remove(0);
    assert_eq!((got.body.as_slice(), got.headers["content-type"].as_bytes()), (&b"order"[..], &b"text/plain"[..]));
    assert!(!got.headers.contains_key("x-api-key") && !got.headers.contains_key("authorization"));
}

#[tokio::test]
async fn after_a_303_the_body_is_not_sent_again() {
    let server = MockServer::start().await;
    let seen = ResponseTemplate::new(303).insert_header("location", "/result");
    Mock::given(method("POST")).respond_with(seen).expect(1).mount(&server).await;
    Mock::given(method("GET"))
        .and(path("/result"))
        .and(header_exists("user-agent"))
        .respond_with(ResponseTemplate::new(200))
        .expect(1)
        .mount(&server)
        .await;
    let fetched = client(&["127.0.0.1"]).fetch(post(server.uri()), LIMIT).await.expect("followed");
    assert_eq!(fetched.status, 200);
    assert!(server.received_requests().await.expect("recorded")[1].body.is_empty());
}

#[tokio::test]
async fn a_response_without_end_is_cut_at_the_limit() {
    let chunk = format!("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n400\r\n{}\r\n", "x".repeat(0x400));
    let address = serve_raw(chunk.into_bytes(), true).await;
    let fetched = client(&["127.0.0.1"]).fetch(get(format!("http://{address}/")), LIMIT).await.expect("cut");
    assert_eq!((fetched.body.len(), fetched.truncated), (1000, true));
}

#[tokio::test]
async fn a_refused_connection_is_tried_again_because_nothing_was_sent() {
    let address = TcpListener::bind("127.0.0.1:0").await.and_then(|listener| listener.local_addr()).expect("a port");
    let client = client(&["127.0.0.1"]);
    for request in [get(format!("http://{address}/?key=s3cret")), post(format!("http://{address}/?key=s3cret"))] {
        let error = fails(&client, request).await;
        assert_eq!(error.retry(), Retry::After(None), "{error}");
        let failure = Failure::from(error);
        assert_eq!((failure.category, &*failure.code), (Category::Retriable, "http_connect"));
        assert!(failure.message.contains("127.0.0.1") && !failure.message.contains("s3cret"), "{}", failure.message);
    }
}

/// Sends something to a server that gives up waiting at once. Both are in one thread: the server speaks and closes in the
/// turn in which the connection is made, before the client hears that it is.
pub(in crate::clients) async fn given_up<T>(send: impl AsyncFnOnce(SocketAddr) -> T) -> T {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
    listener.set_nonblocking(true).expect("the system can");
    let address = listener.local_addr().expect("bound");
    let server = async {
        let mut stream = loop {
            match listener.accept() {
                Ok((stream, _)) => break stream,
                Err(_) => tokio::task::yield_now().await,
            }
        };
        let goodbye = b"HTTP/1.1 408 Request Timeout\r\ncontent-length: 0\r\nconnection: close\r\n\r\n";
        std::io::Write::write_all(&mut stream, goodbye).expect("the client is there");
    };
    tokio::join!(send(address), server).0
}

#[tokio::test]
async fn a_connection_that_ends_before_the_request_is_sent_leaves_nothing_in_doubt() {
    let client = client(&["127.0.0.1"]);
    let error = given_up(async |address| fails(&client, post(format!("http://{address}/"))).await).await;
    assert_eq!(error.retry(), Retry::After(None), "{error}");
    let failure = Failure::from(error);
    assert_eq!((failure.category, &*failure.code), (Category::Retriable, "http_connect"), "{}", failure.message);
    assert!(failure.message.contains("unexpected message"), "it was another end: {}", failure.message);
}

#[tokio::test]
async fn a_broken_connection_is_tried_again_only_where_that_does_no_harm() {
    for (request, expected) in [(get(""), Category::Retriable), (post(""), Category::Permanent)] {
        let address = serve_raw(b"HTTP/1.1 200 OK\r\ncontent-length: 500\r\n\r\nhalf", false).await;
        let client = client(&["127.0.0.1"]);
        let error = fails(&client, FetchRequest { url: format!("http://{address}/"), ..request }).await;
        assert!(matches!(error, FetchError::Broken { .. }), "{error}");
        let failure = Failure::from(error);
        assert_eq!((failure.category, &*failure.code), (expected, "http_broken"), "{}", failure.message);
    }
}

#[tokio::test]
async fn a_silent_server_runs_into_the_callers_limit() {
    for (request, expected) in [(get(""), Category::Retriable), (post(""), Category::Permanent)] {
        let address = serve_raw(b"", true).await;
        let request = FetchRequest { url: format!("http://{address}/"), ..request };
        let error = client(&["127.0.0.1"]).fetch(request, Duration::from_millis(50)).await.expect_err("too slow");
        assert!(matches!(error, FetchError::TimedOut { limit, .. } if limit == Duration::from_millis(50)), "{error}");
        assert_eq!(Failure::from(error).category, expected);
    }
}

#[tokio::test]
async fn an_unknown_name_is_a_failed_connection() {
    let error = fails(&client(&["no-such-host.invalid"]), get("http://no-such-host.invalid/")).await;
    assert!(matches!(error, FetchError::Connect { .. }), "{error:?}");
    let error = fails(&client(&["*.invalid"]), get("http://no-such-host.invalid/")).await;
    assert!(matches!(error, FetchError::Connect { .. }), "{error:?}");
}

#[tokio::test]
async fn a_request_that_the_server_did_not_get_is_no_answer() {
    let gone = "HTTP/1.1 408 Request Timeout\r\ncontent-length: 0\r\nconnection: close\r\n\r\n";
    let kept = "HTTP/1.1 408 Request Timeout\r\ncontent-length: 0\r\n\r\n";
    let client = client(&["127.0.0.1"]);
    let at = async |answer: &str| format!("http://{}/", serve_raw(answer, false).await);
    for request in [get(at(gone).await), post(at(gone).await), get(at(kept).await)] {
        let error = fails(&client, request).await;
        assert!(matches!(error, FetchError::NotReceived { .. }), "{error}");
        assert_eq!(error.retry(), Retry::After(None));
        let failure = Failure::from(error);
        assert_eq!((failure.category, failure.code.as_ref()), (Category::Retriable, "http_not_received"));
    }
    // Where the order was taken and its page is not heard, the order is not sent again.
    let lost = at(gone).await;
    let taken = format!("HTTP/1.1 303 See Other\r\nlocation: {lost}\r\ncontent-length: 0\r\n\r\n");
    assert_eq!(client.fetch(post(at(&taken).await), LIMIT).await.expect("an answer").status, 408);
    // The order may have been taken by something behind a server that keeps the connection.
    assert_eq!(client.fetch(post(at(kept).await), LIMIT).await.expect("an answer").status, 408);
}
