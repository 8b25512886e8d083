//! The scripted model over HTTP in the wire format of the Anthropic Messages API, so that demos and tests run the real
//! client. `GET /_calls` tells what was asked, for counting completions.

use std::io;
use std::net::{SocketAddr, ToSocketAddrs};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use actix_web::dev::{Server, ServerHandle};
use actix_web::http::StatusCode;
use actix_web::web::{self, Bytes, Data, PayloadConfig, ServiceConfig};
use actix_web::{App, HttpRequest, HttpResponse, HttpServer};
use serde_json::Value;

use crate::clients::llm::script::{ApiError, ScriptedModel};

/// Bytes of a request, as the real service takes.
const MAX_REQUEST: usize = 32 * 1024 * 1024;
/// Seconds that open requests have when the server stops.
const STOP_SECONDS: u64 = 1;

/// A server that listens.
pub struct Listening {
    /// Where: with port 0 asked for, the port that was free.
    pub address: SocketAddr,
    /// Runs until it is stopped; it must be awaited or spawned to serve at all.
    pub server: Server,
}

impl Listening {
    /// A handle that stops the server from elsewhere.
    pub fn handle(&self) -> ServerHandle {
        self.server.handle()
    }

    /// The base URL for a provider's configuration.
    pub fn base_url(&self) -> String {
        format!("http://{}", self.address)
    }
}

/// Serves `model` at `address` with one thread of its own. Signals stay with the caller.
pub fn serve(model: Arc<ScriptedModel>, address: impl ToSocketAddrs) -> io::Result<Listening> {
    let state = Data::new(Service { model, served: AtomicU64::new(0) });
    let server = HttpServer::new(move || App::new().configure(|config| routes(config, state.clone())))
        .workers(1)
        // A client that goes away has cancelled its call: its completion must not count.
        .h1_allow_half_closed(false)
        .disable_signals()
        .shutdown_timeout(STOP_SECONDS)
        .bind(address)?;
    let address = server.addrs().first().copied().ok_or_else(|| io::Error::other("no address was bound"))?;
    Ok(Listening { address, server: server.run() })
}

/// Adds the routes to an application of the caller's own.
pub fn configure(config: &mut ServiceConfig, model: Arc<ScriptedModel>) {
    routes(config, Data::new(Service { model, served: AtomicU64::new(0) }));
}

struct Service {
    model: Arc<ScriptedModel>,
    served: AtomicU64,
}

fn routes(config: &mut ServiceConfig, state: Data<Service>) {
    config
        .app_data(state)
        .app_data(PayloadConfig::new(MAX_REQUEST))
        .route("/v1/messages", web::post().to(messages))
        .route("/_calls", web::get().to(calls));
}

async fn messages(request: HttpRequest, body: Bytes, service: Data<Service>) -> HttpResponse {
    let request_id = format!("req_scripted_{:06}", service.served.fetch_add(1, Ordering::Relaxed));
    let answer = match accept(&request, &body) {
        Ok((version, body)) => {
            let pending = service.model.answer(&body, version);
            tokio::time::sleep(pending.delay).await;
            service.model.finish(pending)
        }
        Err(error) => Err(error),
    };
    match answer {
        Ok(message) => HttpResponse::Ok().insert_header(("request-id", request_id)).json(message),
        Err(error) => {
            let status = StatusCode::from_u16(error.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
            let mut response = HttpResponse::build(status);
            response.insert_header(("request-id", request_id.as_str()));
            if let Some(wait) = error.retry_after {
                response.insert_header(("retry-after", seconds(wait)));
                response.insert_header(("retry-after-ms", wait.as_millis().to_string()));
            }
            response.json(error.body(&request_id))
        }
    }
}

/// Checks what the real service checks before it reads the body.
fn accept<'a>(request: &'a HttpRequest, body: &Bytes) -> Result<(&'a str, Value), ApiError> {
    let header = |name: &str| request.headers().get(name).and_then(|value| value.to_str().ok());
    let unauthorised = |message: &str| ApiError {
        status: 401,
        kind: String::from("authentication_error"),
        message: message.to_owned(),
        retry_after: None,
    };
    let key = header("x-api-key").filter(|key| !key.is_empty());
    let bearer = header("authorization").and_then(|value| value.strip_prefix("Bearer ")).filter(|key| !key.is_empty());
    match (key, bearer) {
        (None, None) => return Err(unauthorised("x-api-key header is required")),
        (Some(_), Some(_)) => return Err(unauthorised("both x-api-key and authorization are present; send one")),
        _ => {}
    }
    let version = header("anthropic-version").filter(|version| !version.is_empty());
    let version = version.ok_or_else(|| ApiError::invalid("anthropic-version: header is required"))?;
    let body = serde_json::from_slice(body)
        .map_err(|error| ApiError::invalid(format!("the request body is not valid JSON: {error}")))?;
    Ok((version, body))
}

async fn calls(service: Data<Service>) -> HttpResponse {
    HttpResponse::Ok().json(service.model.log())
}

/// Whole seconds, rounded up, as the header wants them.
fn seconds(wait: Duration) -> String {
    wait.as_millis().div_ceil(1000).to_string()
}
