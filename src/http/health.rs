//! `/health`, `/live`, `/ready`, `/metrics` and `/api/mcp`, all of it read from shared values, and the server that has
//! them and the rest of the API.

use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;

use actix_web::dev::Server;
use actix_web::web::{Data, get, head, resource, to};
use actix_web::{App, Handler, HttpResponse, HttpServer, Resource};
use serde_json::json;

use crate::config::HttpConfig;
use crate::health::Health;
use crate::http::api::{self, AdminToken, ToolCatalogue};
use crate::http::waits::WaitDesk;
use crate::metrics::Metrics;

/// What the handlers read.
pub struct Facts {
    /// The worker's name.
    pub worker_id: String,
    /// What the worker knows about itself.
    pub health: Arc<Health>,
    /// What is counted.
    pub metrics: Arc<Metrics>,
}

/// Takes the port; the address tells which, where the configured one is 0.
pub fn listen(config: &HttpConfig) -> std::io::Result<(TcpListener, SocketAddr)> {
    let listener = TcpListener::bind((config.bind.as_str(), config.port))?;
    let address = listener.local_addr()?;
    Ok((listener, address))
}

/// Starts the server on a thread of its own.
pub fn serve(
    listener: TcpListener,
    config: &HttpConfig,
    facts: Facts,
    catalogue: Arc<dyn ToolCatalogue>,
    desk: Arc<dyn WaitDesk>,
) -> std::io::Result<Server> {
    let facts = Data::new(facts);
    let (token, catalogue) = (Data::new(AdminToken::new(config.admin_token.clone())), Data::new(catalogue));
    let desk = Data::new(desk);
    let server = HttpServer::new(move || {
        App::new()
            .app_data(facts.clone())
            .app_data(token.clone())
            .app_data(catalogue.clone())
            .app_data(desk.clone())
            .service(readable("/health", health))
            .service(readable("/live", live))
            .service(readable("/ready", ready))
            .service(readable("/metrics", metrics))
            .service(readable("/api/mcp", tool_servers))
            .configure(api::routes)
    })
    .workers(1)
    // The worker itself decides what a signal means, and in which order things stop.
    .disable_signals()
    .shutdown_timeout(1)
    .listen(listener)?
    .run();
    Ok(server)
}

/// A page that is there to be read: by GET, by HEAD where the status is enough, and by nothing else.
fn readable<H>(path: &str, page: H) -> Resource
where
    H: Handler<(Data<Facts>,), Output = HttpResponse> + Clone,
{
    let refused = || async { HttpResponse::MethodNotAllowed().insert_header(("allow", "GET, HEAD")).finish() };
    resource(path).route(get().to(page.clone())).route(head().to(page)).default_service(to(refused))
}

async fn health(facts: Data<Facts>) -> HttpResponse {
    let redis = facts.health.redis();
    let healthy = redis && facts.health.live();
    let body = json!({
        "status": if healthy { "healthy" } else { "unhealthy" },
        "worker_id": facts.worker_id,
        "redis": if redis { "connected" } else { "disconnected" },
        "last_processed": facts.health.last_processed(),
    });
    if healthy { HttpResponse::Ok().json(body) } else { HttpResponse::ServiceUnavailable().json(body) }
}

async fn live(facts: Data<Facts>) -> HttpResponse {
    if facts.health.live() {
        HttpResponse::Ok().json(json!({"live": true}))
    } else {
        HttpResponse::ServiceUnavailable().json(json!({"live": false}))
    }
}

async fn ready(facts: Data<Facts>) -> HttpResponse {
    let reasons = facts.health.not_ready();
    let body = json!({"ready": reasons.is_empty(), "reasons": reasons});
    if reasons.is_empty() { HttpResponse::Ok().json(body) } else { HttpResponse::ServiceUnavailable().json(body) }
}

async fn tool_servers(facts: Data<Facts>) -> HttpResponse {
    HttpResponse::Ok()
        .insert_header(("cache-control", "no-store"))
        .json(json!({"servers": facts.health.tool_servers()}))
}

async fn metrics(facts: Data<Facts>) -> HttpResponse {
    HttpResponse::Ok()
        .content_type("application/openmetrics-text; version=1.0.0; charset=utf-8")
        .insert_header(("cache-control", "no-store"))
        .body(facts.metrics.encode())
}
