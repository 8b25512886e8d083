//! An authorization server and an MCP server that wants its tokens. Both do as they are told and remember what they saw.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use da_node_executor::clients::mcp::{CallMeta, Endpoint, McpError, Session};
use da_node_executor::config::{McpAuthConfig, McpServerConfig};
use da_node_executor::domain::ids::{GraphId, NodeId, RunId};
use da_node_executor::domain::outcome::Failure;
use da_node_executor::domain::tool::{Arguments, ToolOutput};
use serde_json::{Value, json};
use url::form_urlencoded;
use wiremock::matchers::any;
use wiremock::{Mock, MockServer, Request, Respond, ResponseTemplate};

/// The most that anything in a test may take.
pub const PATIENCE: Duration = Duration::from_secs(20);
/// What must not be told to anybody but its authorization server.
pub const SECRET: &str = "s3cr3t/of the+client";

/// What the authorization server gives and takes.
pub struct Rules {
    /// How it answers a request for a token instead, if it does: status, body, a header.
    pub instead: Option<ResponseTemplate>,
    /// The life of tokens in seconds.
    pub expires_in: Option<u64>,
    /// Whether refresh tokens come along.
    pub refresh: bool,
    /// Whether refresh tokens are taken.
    pub refreshable: bool,
    /// Scopes that it gives to nobody.
    pub withheld: BTreeSet<String>,
    /// Members of its metadata that are other than usual; null takes one out.
    pub metadata: Value,
    /// What stands in the place of its metadata, if anything does.
    pub metadata_instead: Option<ResponseTemplate>,
    /// Where its metadata is.
    pub metadata_path: String,
    /// Tokens that are good, with their scopes.
    pub good: BTreeMap<String, BTreeSet<String>>,
    /// How many tokens were given.
    pub given: usize,
    /// How long it thinks.
    pub delay: Duration,
}

/// What the MCP server wants.
pub struct Wants {
    /// The scopes that each tool needs.
    pub tools: BTreeMap<String, String>,
    /// Tools that nobody may call, whatever the scopes.
    pub forbidden: BTreeSet<String>,
    /// What it says in `WWW-Authenticate` to strangers; `{base}` is its own address.
    pub challenge: String,
    /// Members of its metadata that are other than usual.
    pub metadata: Value,
    /// What stands in the place of its metadata, if anything does.
    pub metadata_instead: Option<ResponseTemplate>,
    /// Where its metadata is.
    pub metadata_path: String,
    /// Who gives its tokens.
    pub issuers: Vec<String>,
    /// Whether it needs no handshake.
    pub modern: bool,
}

/// One request for a token.
#[derive(Clone, Debug)]
pub struct Asked {
    /// The form.
    pub form: BTreeMap<String, String>,
    /// The `Authorization` header.
    pub authorization: Option<String>,
}

/// An authorization server.
pub struct Id {
    pub http: MockServer,
    state: Arc<IdState>,
}

struct IdState {
    rules: Mutex<Rules>,
    asked: Mutex<Vec<Asked>>,
    base: Mutex<String>,
}

/// An MCP server and the first authorization server it names.
pub struct World {
    pub id: Id,
    pub mcp: MockServer,
    state: Arc<McpState>,
}

struct McpState {
    wants: Mutex<Wants>,
    ids: Mutex<Vec<Arc<IdState>>>,
    base: Mutex<String>,
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Id {
    pub async fn start() -> Self {
        let rules = Rules {
            instead: None,
            expires_in: Some(3600),
            refresh: false,
            refreshable: true,
            withheld: BTreeSet::new(),
            metadata: json!({}),
            metadata_instead: None,
            metadata_path: String::from("/.well-known/oauth-authorization-server"),
            good: BTreeMap::new(),
            given: 0,
            delay: Duration::ZERO,
        };
        let state = IdState { rules: Mutex::new(rules), asked: Mutex::default(), base: Mutex::default() };
        let (http, state) = (MockServer::start().await, Arc::new(state));
        *locked(&state.base) = http.uri();
        Mock::given(any()).respond_with(IdResponder(Arc::clone(&state))).mount(&http).await;
        Self { http, state }
    }

    pub fn rules(&self) -> MutexGuard<'_, Rules> {
        locked(&self.state.rules)
    }

    /// Requests for tokens so far.
    pub fn asked(&self) -> Vec<Asked> {
        locked(&self.state.asked).clone()
    }

    /// Takes back all tokens that were given.
    pub fn revoke(&self) {
        self.rules().good.clear();
    }
}

impl World {
    pub async fn start() -> Self {
        let id = Id::start().await;
        let wants = Wants {
            tools: BTreeMap::new(),
            forbidden: BTreeSet::new(),
            challenge: String::from(
                "Bearer resource_metadata=\"{base}/.well-known/oauth-protected-resource/mcp\", scope=\"read\"",
            ),
            metadata: json!({}),
            metadata_instead: None,
            metadata_path: String::from("/.well-known/oauth-protected-resource/mcp"),
            issuers: vec![id.http.uri()],
            modern: false,
        };
        let ids = Mutex::new(vec![Arc::clone(&id.state)]);
        let state = Arc::new(McpState { wants: Mutex::new(wants), ids, base: Mutex::default() });
        let mcp = MockServer::start().await;
        *locked(&state.base) = mcp.uri();
        Mock::given(any()).respond_with(McpResponder(Arc::clone(&state))).mount(&mcp).await;
        Self { id, mcp, state }
    }

    pub fn wants(&self) -> MutexGuard<'_, Wants> {
        locked(&self.state.wants)
    }

    /// Moves the MCP server to another authorization server, whose tokens it takes from now on.
    pub fn move_to(&self, id: &Id) {
        *locked(&self.state.ids) = vec![Arc::clone(&id.state)];
        self.wants().issuers = vec![id.http.uri()];
    }

    pub fn url(&self) -> String {
        format!("{}/mcp", self.mcp.uri())
    }

    /// A client with a secret.
    pub fn auth(&self) -> McpAuthConfig {
        McpAuthConfig {
            client_id: Some(String::from("me")),
            client_secret: Some(SECRET.into()),
            ..McpAuthConfig::default()
        }
    }

    pub fn endpoint(&self, auth: McpAuthConfig) -> Endpoint {
        self.endpoint_with(auth, PATIENCE)
    }

    pub fn endpoint_with(&self, auth: McpAuthConfig, connect_timeout: Duration) -> Endpoint {
        let config = McpServerConfig { url: Some(self.url()), auth: Some(auth), connect_timeout, ..Default::default() };
        Endpoint::new("crm", config)
    }

    /// An open session of a client with a secret.
    pub async fn session(&self) -> Session {
        open(&self.endpoint(self.auth())).await
    }

    /// Requests that the MCP server saw at its endpoint.
    pub async fn served(&self) -> Vec<Request> {
        let requests = self.mcp.received_requests().await.expect("they are kept");
        requests.into_iter().filter(|request| request.url.path() == "/mcp").collect()
    }
}

pub async fn open(endpoint: &Endpoint) -> Session {
    endpoint.connect().await.unwrap_or_else(|error| panic!("{error}"))
}

/// Why no session can be opened, as a node would tell it.
pub async fn refusal(endpoint: &Endpoint) -> Failure {
    match endpoint.connect().await {
        Ok(_) => panic!("a session was opened"),
        Err(error) => Failure::from(error),
    }
}

pub async fn call(session: &Session, tool: &str) -> Result<ToolOutput, McpError> {
    let meta = CallMeta {
        graph_id: GraphId::new("g-1").expect("an id"),
        node_id: NodeId::new("n-1").expect("an id"),
        run_id: RunId::new("r-1").expect("an id"),
        idempotency_key: String::from("r-1/0/1/0"),
        traceparent: None,
        timeout: None,
        progress: None,
        deadline: Instant::now() + PATIENCE,
    };
    session.call_tool(tool, &Arguments::default(), meta).await
}

/// The scopes that tools need.
pub fn needs(tools: &[(&str, &str)]) -> BTreeMap<String, String> {
    tools.iter().map(|(tool, scopes)| ((*tool).to_owned(), (*scopes).to_owned())).collect()
}

/// What a tool answered.
pub async fn answer(session: &Session, tool: &str) -> String {
    call(session, tool).await.unwrap_or_else(|error| panic!("{error}")).text()
}

/// How a call failed, as a node would tell it.
pub async fn failure(session: &Session, tool: &str) -> Failure {
    match call(session, tool).await {
        Ok(output) => panic!("it answered {}", output.text()),
        Err(error) => Failure::from(error),
    }
}

fn path_of(request: &Request) -> String {
    request.url.path().to_owned()
}

fn with_changes(mut document: Value, changes: &Value) -> ResponseTemplate {
    for (name, value) in changes.as_object().into_iter().flatten() {
        match value {
            Value::Null => {
                document.as_object_mut().expect("an object").remove(name);
            }
            value => document[name] = value.clone(),
        }
    }
    ResponseTemplate::new(200).set_body_json(document)
}

struct IdResponder(Arc<IdState>);

impl Respond for IdResponder {
    fn respond(&self, request: &Request) -> ResponseTemplate {
        let (mut rules, base) = (locked(&self.0.rules), locked(&self.0.base).clone());
        let delay = rules.delay;
        let path = path_of(request);
        if path == rules.metadata_path {
            if let Some(instead) = &rules.metadata_instead {
                return instead.clone();
            }
            let usual = json!({
                "issuer": base,
                "token_endpoint": format!("{base}/token"),
                "authorization_endpoint": format!("{base}/authorize"),
                "registration_endpoint": format!("{base}/register"),
                "code_challenge_methods_supported": ["S256"],
                "authorization_response_iss_parameter_supported": true,
                "token_endpoint_auth_methods_supported": ["client_secret_basic", "client_secret_post", "private_key_jwt"],
                "grant_types_supported": ["client_credentials", "refresh_token"],
            });
            return with_changes(usual, &rules.metadata);
        }
        match path.as_str() {
            "/token" => {}
            // Whoever comes is known by the address of who registered it.
            "/register" => {
                return ResponseTemplate::new(201)
                    .set_body_json(json!({"client_id": base, "client_secret": "r3g1stered"}));
            }
            // Nobody has to log in here.
            "/authorize" => {
                let query: BTreeMap<String, String> = request.url.query_pairs().into_owned().collect();
                let mut back = url::Url::parse(&query["redirect_uri"]).expect("an address");
                back.query_pairs_mut()
                    .append_pair("code", "c0de")
                    .append_pair("iss", &base)
                    .append_pair("state", &query["state"]);
                return ResponseTemplate::new(302).insert_header("location", back.as_str());
            }
            _ => return ResponseTemplate::new(404),
        }
        let form: BTreeMap<String, String> = form_urlencoded::parse(&request.body).into_owned().collect();
        let authorization = request.headers.get("authorization").and_then(|value| value.to_str().ok());
        let asked = Asked { form: form.clone(), authorization: authorization.map(str::to_owned) };
        locked(&self.0.asked).push(asked.clone());
        if let Some(instead) = &rules.instead {
            return instead.clone().set_delay(delay);
        }
        let refused = |error: &str| ResponseTemplate::new(400).set_body_json(json!({"error": error}));
        if !knows(&asked, &base) {
            return ResponseTemplate::new(401).set_body_json(json!({"error": "invalid_client"}));
        }
        match form.get("grant_type").map(String::as_str) {
            Some("client_credentials") if !form.contains_key("assertion") => {}
            Some("urn:ietf:params:oauth:grant-type:jwt-bearer") if form.contains_key("assertion") => {}
            Some("authorization_code") if form.get("code").map(String::as_str) == Some("c0de") => {}
            Some("refresh_token") if rules.refreshable => {}
            Some("refresh_token") => return refused("invalid_grant"),
            _ => return refused("unsupported_grant_type"),
        }
        let scopes = form.get("scope").map(String::as_str).unwrap_or_default().split_whitespace();
        let scopes: BTreeSet<String> = scopes.map(str::to_owned).collect();
        if !scopes.is_disjoint(&rules.withheld) {
            return refused("invalid_scope");
        }
        rules.given += 1;
        let token = format!("t0k3n-{}-{}", rules.given, base.rsplit(':').next().unwrap_or_default());
        rules.good.insert(token.clone(), scopes);
        let mut answer = json!({"access_token": token, "token_type": "Bearer"});
        if let Some(seconds) = rules.expires_in {
            answer["expires_in"] = json!(seconds);
        }
        if rules.refresh {
            answer["refresh_token"] = json!(format!("r3fr3sh-{}", rules.given));
        }
        ResponseTemplate::new(200).set_body_json(answer).set_delay(delay)
    }
}

/// Whether the client has said who it is. Signatures are checked where they are made.
fn knows(asked: &Asked, base: &str) -> bool {
    let encode = |text: &str| form_urlencoded::byte_serialize(text.as_bytes()).collect::<String>();
    let basic =
        |id, secret| Some(format!("Basic {}", BASE64_STANDARD.encode(format!("{}:{}", encode(id), encode(secret)))));
    let form = |name: &str| asked.form.get(name).map(String::as_str);
    asked.authorization == basic("me", SECRET)
        || asked.authorization == basic(base, "r3g1stered")
        || (form("client_id") == Some("me") && form("client_secret") == Some(SECRET))
        || form("client_assertion").is_some()
        || form("client_id") == Some("public")
        || form("assertion").is_some_and(|assertion| assertion.starts_with("eyJ"))
}

struct McpResponder(Arc<McpState>);

impl Respond for McpResponder {
    fn respond(&self, request: &Request) -> ResponseTemplate {
        let (wants, base) = (locked(&self.0.wants), locked(&self.0.base).clone());
        let path = path_of(request);
        if path == wants.metadata_path {
            if let Some(instead) = &wants.metadata_instead {
                return instead.clone();
            }
            let usual = json!({"resource": format!("{base}/mcp"), "authorization_servers": wants.issuers});
            return with_changes(usual, &wants.metadata);
        }
        if path != "/mcp" {
            return ResponseTemplate::new(404);
        }
        let token = request.headers.get("authorization").and_then(|value| value.to_str().ok());
        let token = token.and_then(|value| value.strip_prefix("Bearer ")).unwrap_or_default();
        let scopes = locked(&self.0.ids).iter().find_map(|id| locked(&id.rules).good.get(token).cloned());
        let Some(scopes) = scopes else {
            let challenge = wants.challenge.replace("{base}", &base);
            let refusal = ResponseTemplate::new(401);
            return if challenge.is_empty() { refusal } else { refusal.insert_header("www-authenticate", &*challenge) };
        };
        let body: Value = serde_json::from_slice(&request.body).unwrap_or_default();
        let Some(id) = body.get("id") else {
            let status = if request.method.as_str() == "POST" { 202 } else { 405 };
            return ResponseTemplate::new(status);
        };
        let result = match body["method"].as_str() {
            Some("initialize") => json!({
                "protocolVersion": "2025-11-25",
                "capabilities": {"tools": {}},
                "serverInfo": {"name": "crm", "version": "1"},
            }),
            Some("tools/call") => {
                let tool = body["params"]["name"].as_str().unwrap_or_default();
                if wants.forbidden.contains(tool) {
                    let challenge = "Bearer error=\"invalid_request\", scope=\"more\"";
                    return ResponseTemplate::new(403).insert_header("www-authenticate", challenge);
                }
                let needed = wants.tools.get(tool).map(String::as_str).unwrap_or_default();
                if needed.split_whitespace().any(|scope| !scopes.contains(scope)) {
                    let challenge = format!("Bearer error=\"insufficient_scope\", scope=\"{needed}\"");
                    return ResponseTemplate::new(403).insert_header("www-authenticate", &*challenge);
                }
                let scopes = scopes.into_iter().collect::<Vec<_>>().join(" ");
                json!({"content": [{"type": "text", "text": scopes}]})
            }
            Some("server/discover") if wants.modern => json!({
                "resultType": "complete", "supportedVersions": ["2026-07-28"], "capabilities": {"tools": {}},
            }),
            // A server of the years before `server/discover`.
            _ => return ResponseTemplate::new(400),
        };
        ResponseTemplate::new(200).set_body_json(json!({"jsonrpc": "2.0", "id": id, "result": result}))
    }
}
