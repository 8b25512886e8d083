//! Plain HTTP for the `http_request` tool: allowed hosts only, private addresses refused after name resolution.
