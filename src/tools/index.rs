//! The tools of one place, found by their names in one step: a node that names one tool of thousands does not look at
//! the others. What a name means where several places have it is `resolve`'s.

use std::collections::HashMap;
use std::ops::Deref;

use crate::domain::tool::ToolSpec;

/// The tools of a server, or the functions of the registry, in their order.
#[derive(Debug, Clone, Default)]
pub struct ToolIndex {
    tools: Vec<ToolSpec>,
    /// Where the tools of each name stand; a server may list a name twice.
    places: HashMap<String, Vec<usize>>,
}

impl ToolIndex {
    /// Indexes tools by the names that they have at their place.
    pub fn new(tools: Vec<ToolSpec>) -> Self {
        let mut places: HashMap<String, Vec<usize>> = HashMap::with_capacity(tools.len());
        for (place, tool) in tools.iter().enumerate() {
            places.entry(tool.target.name.clone()).or_default().push(place);
        }
        Self { tools, places }
    }

    /// The tools of exactly this name.
    pub fn named(&self, name: &str) -> impl Iterator<Item = &ToolSpec> {
        self.places.get(name).into_iter().flatten().map(|place| &self.tools[*place])
    }
}

impl Deref for ToolIndex {
    type Target = [ToolSpec];

    fn deref(&self) -> &[ToolSpec] {
        &self.tools
    }
}
