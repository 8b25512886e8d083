//! `/health`, `/live`, `/ready`, `/metrics` and `/api/mcp`: all of it read from shared values, nobody is asked.

use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;

use actix_web::dev::Server;
use actix_web::web::{Data, get, head, resource, to};
use actix_web::{App, Handler, HttpResponse, HttpServer, Resource};
use serde_json::json;

use crate::config::HttpConfig;
use crate::health::Health;
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

/// Starts the server on a thread of its own; the address tells the port that was taken where the configured one is 0.
pub fn serve(config: &HttpConfig, facts: Facts) -> std::io::Result<(Server, SocketAddr)> {
    let listener = TcpListener::bind((config.bind.as_str(), config.port))?;
    let address = listener.local_addr()?;
    let facts = Data::new(facts);
    let server = HttpServer::new(move || {
        App::new()
            .app_data(facts.clone())
            .service(readable("/health", health))
            .service(readable("/live", live))
            .service(readable("/ready", ready))
            .service(readable("/metrics", metrics))
            .service(readable("/api/mcp", tool_servers))
    })
    .workers(1)
    // The worker itself decides what a signal means, and in which order things stop.
    .disable_signals()
    .shutdown_timeout(1)
    .listen(listener)?
    .run();
    Ok((server, address))
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
