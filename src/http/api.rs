//! `/api/tools`: the tools as the worker knows them, and the order to look for them again. What changes something wants
//! the token of the configuration; what the tools are is asked through a trait, so that no actor is known here.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;

use actix_web::body::{BoxBody, MessageBody};
use actix_web::dev::{ServiceRequest, ServiceResponse};
use actix_web::error::InternalError;
use actix_web::http::Method;
use actix_web::http::header::{ALLOW, AUTHORIZATION, WWW_AUTHENTICATE};
use actix_web::middleware::{Next, from_fn};
use actix_web::web::{Data, Query, QueryConfig, ServiceConfig, get, head, post, resource, scope, to};
use actix_web::{Error, HttpResponse, Route};
use secrecy::{ExposeSecret, SecretString};
use serde::Deserialize;
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use crate::http::waits;

/// What the tools have become, still to come.
pub type Refreshed = Pin<Box<dyn Future<Output = Option<Value>> + Send>>;

/// What the API asks about tools.
pub trait ToolCatalogue: Send + Sync {
    /// The tools that are known by now. It asks no server.
    fn tools(&self) -> Value;

    /// Looks for the tools of one server again, or of all. None if there is no such server.
    fn refresh(&self, server: Option<String>) -> Refreshed;
}

/// What opens the API to changes; none keeps it closed.
#[derive(Debug, Clone)]
pub struct AdminToken(Option<SecretString>);

impl AdminToken {
    /// The token as configured.
    pub fn new(token: Option<SecretString>) -> Self {
        Self(token)
    }

    /// Why a request with this header may not change anything.
    fn refusal(&self, header: Option<&[u8]>) -> Option<HttpResponse> {
        let Some(token) = &self.0 else {
            let message = "this is closed until http.admin_token is set";
            return Some(HttpResponse::Forbidden().json(json!({"error": message})));
        };
        let given = header.and_then(bearer).unwrap_or_default();
        // Digests are compared, so that the time it takes says nothing about the token.
        let right = Sha256::digest(given) == Sha256::digest(token.expose_secret());
        let message = "this needs the header `authorization: Bearer` with http.admin_token";
        (!right).then(|| {
            HttpResponse::Unauthorized().insert_header((WWW_AUTHENTICATE, "Bearer")).json(json!({"error": message}))
        })
    }
}

/// The credential of a header of this scheme, whose name is written in any case.
fn bearer(header: &[u8]) -> Option<&[u8]> {
    let (scheme, rest) = header.split_at_checked(b"bearer ".len())?;
    scheme.eq_ignore_ascii_case(b"bearer ").then(|| rest.trim_ascii())
}

/// Adds everything under `/api`. Whatever is added to it is guarded by its method alone: what is no GET, HEAD or OPTIONS
/// wants the token.
pub fn routes(config: &mut ServiceConfig) {
    let tools = resource("/tools").route(get().to(tools)).route(head().to(tools)).default_service(only("GET, HEAD"));
    let refresh = resource("/tools/refresh").route(post().to(refresh)).default_service(only("POST"));
    // Questions show what tools are called with, so even reading them wants the token.
    let waits = scope("/waits")
        .service(resource("").route(get().to(waits::list)).default_service(only("GET")))
        .service(resource("/{wait}").route(get().to(waits::show)).default_service(only("GET")))
        .service(resource("/{wait}/{way}").route(post().to(waits::decide)).default_service(only("POST")))
        .wrap(from_fn(guard_all));
    let api = scope("/api").app_data(queries()).service(tools).service(refresh).service(waits).wrap(from_fn(guard));
    config.service(api);
}

/// A query that cannot be read is answered like every other mistake.
fn queries() -> QueryConfig {
    QueryConfig::default().error_handler(|error, _| {
        let answer = HttpResponse::BadRequest().json(json!({"error": format!("the query cannot be read: {error}")}));
        InternalError::from_response(error, answer).into()
    })
}

/// The answer to methods that a resource does not have.
fn only(methods: &'static str) -> Route {
    to(move || async move { HttpResponse::MethodNotAllowed().insert_header((ALLOW, methods)).finish() })
}

async fn guard(
    request: ServiceRequest,
    next: Next<impl MessageBody + 'static>,
) -> Result<ServiceResponse<BoxBody>, Error> {
    if matches!(*request.method(), Method::GET | Method::HEAD | Method::OPTIONS) {
        return next.call(request).await.map(ServiceResponse::map_into_boxed_body);
    }
    guard_all(request, next).await
}

/// Whatever the method is.
async fn guard_all(
    request: ServiceRequest,
    next: Next<impl MessageBody + 'static>,
) -> Result<ServiceResponse<BoxBody>, Error> {
    let token = request.app_data::<Data<AdminToken>>().expect("the token is part of the application");
    let header = request.headers().get(AUTHORIZATION).map(|value| value.as_bytes());
    match token.refusal(header) {
        Some(refusal) => Ok(request.into_response(refusal)),
        None => next.call(request).await.map(ServiceResponse::map_into_boxed_body),
    }
}

async fn tools(catalogue: Data<Arc<dyn ToolCatalogue>>) -> HttpResponse {
    HttpResponse::Ok().json(catalogue.tools())
}

#[derive(Deserialize)]
struct Which {
    server: Option<String>,
}

async fn refresh(catalogue: Data<Arc<dyn ToolCatalogue>>, which: Query<Which>) -> HttpResponse {
    match catalogue.refresh(which.into_inner().server).await {
        Some(answer) => HttpResponse::Ok().json(answer),
        None => HttpResponse::NotFound().json(json!({"error": "there is no such server"})),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use actix_web::App;
    use actix_web::test::{TestRequest, call_service, init_service, read_body_json};

    use super::*;

    const TOKEN: &str = "0123456789abcdef";

    #[derive(Default)]
    struct Fake {
        refreshed: Arc<Mutex<Vec<Option<String>>>>,
    }

    impl ToolCatalogue for Fake {
        fn tools(&self) -> Value {
            json!({"tools": []})
        }

        fn refresh(&self, server: Option<String>) -> Refreshed {
            self.refreshed.lock().expect("free").push(server.clone());
            Box::pin(async move { (server.as_deref() != Some("nobody")).then(|| json!({"servers": []})) })
        }
    }

    /// Status and body of a request, and what was refreshed.
    async fn asked(token: Option<&str>, request: TestRequest) -> (u16, Value, usize) {
        let fake = Fake::default();
        let refreshed = Arc::clone(&fake.refreshed);
        let catalogue: Arc<dyn ToolCatalogue> = Arc::new(fake);
        let token = AdminToken::new(token.map(SecretString::from));
        let app =
            init_service(App::new().app_data(Data::new(catalogue)).app_data(Data::new(token)).configure(routes)).await;
        let response = call_service(&app, request.to_request()).await;
        let status = response.status().as_u16();
        let body = read_body_json(response).await;
        let refreshed = refreshed.lock().expect("free").len();
        (status, body, refreshed)
    }

    fn refresh() -> TestRequest {
        TestRequest::post().uri("/api/tools/refresh")
    }

    #[actix_web::test]
    async fn what_is_known_of_the_tools_is_open() {
        let (status, body, _) = asked(None, TestRequest::get().uri("/api/tools")).await;
        assert_eq!((status, body), (200, json!({"tools": []})));
    }

    #[actix_web::test]
    async fn each_resource_has_its_methods_alone() {
        let ask = async |method: Method, path: &str| {
            let request = TestRequest::default().method(method).uri(path);
            let request = request.insert_header(("authorization", format!("Bearer {TOKEN}")));
            let token = AdminToken::new(Some(SecretString::from(TOKEN)));
            let catalogue: Arc<dyn ToolCatalogue> = Arc::new(Fake::default());
            let app = App::new().app_data(Data::new(catalogue)).app_data(Data::new(token)).configure(routes);
            call_service(&init_service(app).await, request.to_request()).await.status().as_u16()
        };
        assert_eq!(ask(Method::HEAD, "/api/tools").await, 200);
        assert_eq!(ask(Method::POST, "/api/tools").await, 405);
        assert_eq!(ask(Method::GET, "/api/tools/refresh").await, 405);
        assert_eq!(ask(Method::GET, "/api/nothing").await, 404);
    }

    #[actix_web::test]
    async fn without_a_token_in_the_configuration_nobody_changes_anything() {
        for header in ["", "Bearer ", "Bearer 0123456789abcdef"] {
            let (status, body, refreshed) = asked(None, refresh().insert_header(("authorization", header))).await;
            assert_eq!((status, refreshed), (403, 0), "{header}");
            assert!(body["error"].as_str().is_some_and(|error| error.contains("http.admin_token")), "{body}");
        }
    }

    #[actix_web::test]
    async fn only_the_token_itself_opens() {
        let wrong = [
            "",
            "Bearer",
            "Bearer ",
            "Bearer 0123456789abcde",
            "Bearer 0123456789abcdef0",
            "Basic 0123456789abcdef",
            TOKEN,
        ];
        for header in wrong {
            let (status, body, refreshed) =
                asked(Some(TOKEN), refresh().insert_header(("authorization", header))).await;
            assert_eq!((status, refreshed), (401, 0), "{header}");
            assert!(!body.to_string().contains(TOKEN));
        }
        assert_eq!(asked(Some(TOKEN), refresh()).await.0, 401);
        for header in [format!("Bearer {TOKEN}"), format!("bearer  {TOKEN} ")] {
            let (status, _, refreshed) = asked(Some(TOKEN), refresh().insert_header(("authorization", header))).await;
            assert_eq!((status, refreshed), (200, 1));
        }
    }

    #[actix_web::test]
    async fn one_server_can_be_meant_and_must_exist() {
        let at = |server: &str| {
            let request = TestRequest::post().uri(&format!("/api/tools/refresh?server={server}"));
            request.insert_header(("authorization", format!("Bearer {TOKEN}")))
        };
        assert_eq!(asked(Some(TOKEN), at("somebody")).await.0, 200);
        assert_eq!(asked(Some(TOKEN), at("nobody")).await.0, 404);
    }

    #[actix_web::test]
    async fn what_is_added_later_is_guarded_too() {
        for method in [Method::POST, Method::PUT, Method::DELETE, Method::PATCH] {
            let request = TestRequest::default().method(method).uri("/api/anything");
            assert_eq!(asked(Some(TOKEN), request).await.0, 401);
        }
    }
}
