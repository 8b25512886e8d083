//! A tool list as it is put together from pages: what is read of each tool, what is left out and why, and the bounds.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};

use super::client::{McpTool, ToolListing};
use super::error::{McpError, excerpt};
use super::mirror::{self, Mirrored};
use super::wire::{self, ToolsPage};
use crate::domain::tool::ToolHints;

/// Tools of one server.
const MAX_TOOLS: usize = 20_000;
/// Bytes of all pages of one tool list.
const MAX_LIST_BYTES: usize = 32 * 1024 * 1024;
/// Tools that are left out and told one by one.
const TOLD: usize = 10;
/// The longest time that a server's word on freshness is taken for.
const LONGEST_FRESH: Duration = Duration::from_secs(24 * 3600);

/// The arguments that tools mark, by tool.
pub(super) type Marks = HashMap<String, Arc<[Mirrored]>>;

/// The tools of the pages so far.
pub(super) struct ToolList {
    server: Arc<str>,
    /// Whether the marks of the schemas matter.
    mirrors: bool,
    tools: Vec<McpTool>,
    marks: Marks,
    names: HashSet<String>,
    cursors: HashSet<String>,
    fresh_for: Option<Duration>,
    bytes: usize,
    /// Tools that were left out.
    left_out: usize,
}

impl ToolList {
    /// No tools yet.
    pub(super) fn new(server: Arc<str>, mirrors: bool) -> Self {
        let (names, cursors) = (HashSet::new(), HashSet::new());
        let (tools, marks) = (Vec::new(), Marks::new());
        Self { server, mirrors, tools, marks, names, cursors, fresh_for: None, bytes: 0, left_out: 0 }
    }

    /// Adds a page of `size` bytes; returns where the next one begins.
    pub(super) fn add(&mut self, size: usize, page: ToolsPage) -> Result<Option<String>, McpError> {
        self.bytes += size;
        let too_large = |what, limit| Err(McpError::TooLarge { server: Arc::clone(&self.server), what, limit });
        if self.bytes > MAX_LIST_BYTES {
            return too_large("the tool list", MAX_LIST_BYTES);
        }
        if self.tools.len() + page.tools.len() > MAX_TOOLS {
            return too_large("the number of tools", MAX_TOOLS);
        }
        if let Some(fresh) = page.ttl_ms.map(fresh_for) {
            // The list is as fresh as its stalest page.
            self.fresh_for = Some(self.fresh_for.map_or(fresh, |so_far| so_far.min(fresh)));
        }
        page.tools.into_iter().for_each(|tool| self.add_tool(tool));
        match &page.next_cursor {
            Some(next) if !self.cursors.insert(next.clone()) => Err(McpError::Protocol {
                server: Arc::clone(&self.server),
                problem: String::from("its tool list runs in a circle"),
            }),
            _ => Ok(page.next_cursor),
        }
    }

    /// The whole list.
    pub(super) fn done(self) -> (ToolListing, Marks) {
        (ToolListing { tools: self.tools, fresh_for: self.fresh_for }, self.marks)
    }

    fn add_tool(&mut self, tool: Value) {
        let Some(tool) = read_tool(tool) else {
            return self.leave_out("", "its description cannot be read");
        };
        if self.names.contains(&tool.name) {
            return self.leave_out(&tool.name, "it is listed twice, the first is used");
        }
        if self.mirrors {
            match mirror::marks(&tool.input_schema) {
                Ok(marks) if marks.is_empty() => {}
                Ok(marks) => {
                    self.marks.insert(tool.name.clone(), marks.into());
                }
                Err(problem) => return self.leave_out(&tool.name, &problem),
            }
        }
        self.names.insert(tool.name.clone());
        self.tools.push(tool);
    }

    /// Tells of a tool that is not used. Of a list full of them only the first are worth a line each.
    fn leave_out(&mut self, tool: &str, problem: &str) {
        let server = &*self.server;
        self.left_out += 1;
        match self.left_out {
            ..=TOLD => tracing::warn!(mcp.server = server, tool = %excerpt(tool), problem, "tool left out"),
            count if count == TOLD + 1 => tracing::warn!(mcp.server = server, "more tools are left out than are told"),
            _ => {}
        }
    }
}

fn fresh_for(milliseconds: f64) -> Duration {
    // What is no number or less than nothing is not fresh at all.
    Duration::try_from_secs_f64(milliseconds / 1000.0).unwrap_or_default().min(LONGEST_FRESH)
}

fn read_tool(tool: Value) -> Option<McpTool> {
    let tool: wire::Tool = serde_json::from_value(tool).ok()?;
    let input_schema = tool.input_schema.unwrap_or_else(|| json!({"type": "object"}));
    if tool.name.is_empty() || !input_schema.is_object() {
        return None;
    }
    let annotations = tool.annotations.unwrap_or_default();
    Some(McpTool {
        name: tool.name,
        title: tool.title.or(annotations.title),
        description: tool.description,
        input_schema: Arc::new(input_schema),
        output_schema: tool.output_schema.map(Arc::new),
        hints: ToolHints {
            read_only: annotations.read_only_hint.unwrap_or(false),
            idempotent: annotations.idempotent_hint.unwrap_or(false),
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn page(value: Value) -> ToolsPage {
        serde_json::from_value(value).expect("a page")
    }

    #[test]
    fn a_list_is_as_fresh_as_its_stalest_page() {
        let mut list = ToolList::new(Arc::from("s"), false);
        list.add(10, page(json!({"tools": [], "ttlMs": 5000, "nextCursor": ""}))).expect("a page");
        assert_eq!(list.add(10, page(json!({"tools": [], "ttlMs": 300}))).expect("a page"), None);
        assert_eq!(list.done().0.fresh_for, Some(Duration::from_millis(300)));
        assert_eq!(fresh_for(-1.0), Duration::ZERO);
        assert_eq!(fresh_for(f64::NAN), Duration::ZERO);
        assert_eq!(fresh_for(1e300), Duration::ZERO, "a time without an end is no time");
    }

    #[test]
    fn a_tool_with_a_broken_mark_is_left_out_where_marks_matter() {
        let tools = json!({"tools": [
            {"name": "bad", "inputSchema": {"properties": {"a": {"type": "string", "x-mcp-header": ""}}}},
            {"name": "good", "inputSchema": {"properties": {"a": {"type": "string", "x-mcp-header": "A"}}}},
            {"name": "good", "inputSchema": {}},
            {"inputSchema": {}},
        ]});
        let names = |mirrors| {
            let mut list = ToolList::new(Arc::from("s"), mirrors);
            list.add(10, page(tools.clone())).expect("a page");
            let (listing, marks) = list.done();
            (listing.tools.iter().map(|tool| tool.name.clone()).collect::<Vec<_>>(), marks.len())
        };
        assert_eq!(names(true), (vec![String::from("good")], 1));
        assert_eq!(names(false), (vec![String::from("bad"), String::from("good")], 0));
    }
}
