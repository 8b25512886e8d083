//! Which parts of the state a node's templates name, found without evaluating them, so that one read brings them all.

use std::collections::BTreeSet;

use minijinja::Expression;

use crate::domain::work::WorkItem;
use crate::modes::scope::ENVIRONMENT;
use crate::ports::Wanted;

/// The names that a node's templates use, found without evaluating them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Names {
    /// Exact keys and variables: an input or a node.
    pub(super) either: BTreeSet<String>,
    /// Inputs by `inputs.name`.
    inputs: BTreeSet<String>,
    /// The inputs as a whole, or by a computed name.
    all_inputs: bool,
    /// Nodes by `nodes.id` or `nodes["id"]`.
    nodes: BTreeSet<String>,
    /// The nodes as a whole, or by a computed name.
    all_nodes: bool,
}

impl Names {
    /// What has to be read of the state, given what the item brings itself.
    pub fn wanted(&self, item: &WorkItem) -> Wanted {
        let brought = |name: &String| item.inputs.as_ref().is_some_and(|inputs| inputs.contains_key(name));
        let missing = |names: &BTreeSet<String>| names.iter().any(|name| !brought(name));
        let mut nodes: Vec<String> = self.nodes.iter().cloned().collect();
        nodes.extend(self.either.iter().filter(|name| !brought(name) && !self.nodes.contains(*name)).cloned());
        Wanted {
            inputs: self.all_inputs || missing(&self.inputs) || missing(&self.either),
            nodes: if self.all_nodes { Vec::new() } else { nodes },
            all_nodes: self.all_nodes,
            config: false,
            session: None,
        }
    }

    /// Takes a name away that is made by the node itself.
    pub(super) fn forget(&mut self, input: &str) {
        self.either.remove(input);
        self.inputs.remove(input);
    }

    pub(super) fn add_expression(&mut self, expression: &Expression<'static, 'static>, source: &str) {
        for path in expression.undeclared_variables(true) {
            let mut segments = path.split('.');
            match (segments.next(), segments.next()) {
                (Some("inputs"), None) => self.all_inputs = true,
                (Some("inputs"), Some(name)) => {
                    self.inputs.insert(name.to_owned());
                }
                (Some("nodes"), Some(id)) => {
                    self.nodes.insert(id.to_owned());
                }
                (Some("nodes"), None) => match subscripts(source) {
                    Some(ids) => self.nodes.extend(ids),
                    None => self.all_nodes = true,
                },
                (Some(name), _) if ENVIRONMENT.globals().all(|(global, _)| global != name) => {
                    self.either.insert(name.to_owned());
                }
                _ => {}
            }
        }
    }
}

/// The ids of `nodes["id"]` and `nodes.id` in an expression, or nothing if one of them is computed.
fn subscripts(source: &str) -> Option<Vec<String>> {
    let mut ids = Vec::new();
    let mut rest = source;
    let mut after_dot = false;
    while let Some(first) = rest.chars().next() {
        if first == '"' || first == '\'' {
            rest = skip_string(rest)?.1;
            after_dot = false;
        } else if is_word(first) {
            let (word, behind) = split_word(rest);
            rest = behind.trim_start();
            if word == "nodes" && !after_dot {
                if let Some(behind) = rest.strip_prefix('.') {
                    let (id, behind) = split_word(behind.trim_start());
                    ids.push(id.to_owned());
                    rest = behind;
                } else {
                    let (id, behind) = skip_string(rest.strip_prefix('[')?.trim_start())?;
                    rest = behind.trim_start().strip_prefix(']')?;
                    ids.push(id.to_owned());
                }
            }
            after_dot = false;
        } else {
            after_dot = if first.is_whitespace() { after_dot } else { first == '.' };
            rest = &rest[first.len_utf8()..];
        }
    }
    Some(ids)
}

pub(super) fn is_word(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}

pub(super) fn split_word(text: &str) -> (&str, &str) {
    text.split_at(text.find(|c| !is_word(c)).unwrap_or(text.len()))
}

/// The content of the string literal that `text` begins with and what follows it; none with escapes in it.
fn skip_string(text: &str) -> Option<(&str, &str)> {
    let quote = text.chars().next().filter(|c| *c == '"' || *c == '\'')?;
    let (content, behind) = text[1..].split_once(quote)?;
    (!content.contains('\\')).then_some((content, behind))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::domain::ids::EntryId;
    use crate::modes::template::ValueTemplate;

    fn wanted(template: serde_json::Value, item: &str) -> Wanted {
        let item = WorkItem::parse(item.as_bytes(), "s", &EntryId::new("1-0")).expect("an item");
        let mut names = Names::default();
        ValueTemplate::compile(&template).expect("a template").names(&mut names);
        names.wanted(&item)
    }

    const BARE: &str = r#"{"graph_id":"g","node_id":"n"}"#;

    fn nodes(template: &str) -> Vec<String> {
        wanted(json!(template), BARE).nodes
    }

    #[test]
    fn nothing_is_read_for_strings_without_templates() {
        assert_eq!(wanted(json!({"a": ["x", {"b": "100%"}]}), BARE), Wanted::default());
        assert_eq!(wanted(json!("{% raw %}{{ a }}{% endraw %}"), BARE), Wanted::default());
    }

    #[test]
    fn exact_keys_attributes_and_subscripts_name_nodes() {
        assert!(nodes("{{ step-1.a }}").contains(&String::from("step-1.a")));
        assert!(nodes("{{ nodes.a.output.x | upper }}").contains(&String::from("a")));
        assert!(nodes("{{ search.results[0] }}").contains(&String::from("search")));
        let mixed = nodes("{{ nodes[\"b-c\"].output ~ nodes['d'].status ~ nodes.e.output ~ inputs.nodes }}");
        for id in ["b-c", "d", "e"] {
            assert!(mixed.contains(&String::from(id)), "{id} in {mixed:?}");
        }
        let wanted = wanted(json!("{{ nodes[\"b-c\"].output }}"), BARE);
        assert!(!wanted.all_nodes, "a literal subscript is static: {wanted:?}");
    }

    #[test]
    fn a_computed_name_wants_every_node() {
        for template in ["{{ nodes[inputs.which].output }}", "{{ nodes | length }}", "{{ nodes['a' ~ 'b'].status }}"] {
            assert!(wanted(json!(template), BARE).all_nodes, "{template}");
        }
    }

    #[test]
    fn inputs_that_the_item_brings_are_not_read_from_the_state() {
        let item = r#"{"graph_id":"g","node_id":"n","inputs":{"a":1}}"#;
        assert_eq!(wanted(json!("{{ a }}"), item), Wanted::default());
        assert!(wanted(json!("{{ b }}"), item).inputs);
        assert!(wanted(json!("{{ inputs.b }}"), item).inputs);
        assert!(wanted(json!("{{ inputs | length }}"), item).inputs);
    }
}
