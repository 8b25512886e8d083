//! Authentication to MCP servers, against an authorization server and an MCP server in this process, over real HTTP:
//! how tokens are found, got, kept, replaced and refused, and that nothing secret is told to anybody else.

#[path = "../examples/conformance/code_grant.rs"]
mod code_grant;
#[path = "mcp_auth/discovery.rs"]
mod discovery;
#[path = "mcp_auth/files.rs"]
mod files;
#[path = "mcp_auth/grants.rs"]
mod grants;
#[path = "mcp_auth/other_grants.rs"]
mod other_grants;
#[path = "mcp_auth/scopes.rs"]
mod scopes;
#[path = "mcp_auth/secrets.rs"]
mod secrets;
#[path = "mcp_auth/tokens.rs"]
mod tokens;
#[path = "mcp_auth/trust.rs"]
mod trust;
#[path = "mcp_auth/world.rs"]
mod world;
