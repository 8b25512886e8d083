//! Reads the paths that a source file names, out of its text: imports with all their groups, and paths in the code.
//! Which of them are allowed is not known here.

use std::collections::HashSet;
use std::iter::Peekable;
use std::str::Chars;

/// The crate as its binary and its tests name it.
const LIB: &str = "da_node_executor";

/// A path that a file names: of this crate from its root, or of another crate.
#[derive(Debug)]
pub struct Named {
    /// Whether it is of this crate.
    pub own: bool,
    pub parts: Vec<String>,
    pub line: usize,
}

/// All paths in a file, imports and others. A name that an import brought in is not followed again.
pub fn paths(tokens: &[Token], module: &[String]) -> Vec<Named> {
    let mut found = Vec::new();
    let mut brought = HashSet::new();
    let mut loose = Vec::new();
    // The modules that are open at this place, and for each open brace whether it opened one.
    let mut module = module.to_vec();
    let mut braces = Vec::new();
    let mut at = 0;
    while at < tokens.len() {
        let text = tokens[at].text.as_str();
        let next = |offset: usize| tokens.get(at + offset).map_or("", |token| token.text.as_str());
        match text {
            "mod" if next(2) == "{" => {
                module.push(next(1).to_owned());
                braces.push(true);
                at += 3;
                continue;
            }
            "mod" => {
                brought.insert(next(1).to_owned());
            }
            "{" => braces.push(false),
            "}" if braces.pop() == Some(true) => drop(module.pop()),
            // `use<'a>` lists what a type captures.
            "use" if next(1) != "<" => {
                let mut imported = Vec::new();
                at = import(tokens, at + 1, &[], &mut imported);
                for (parts, name, line) in imported {
                    if parts.len() > 1 {
                        brought.insert(name);
                    }
                    found.push(resolved(parts, &module, line));
                }
                continue;
            }
            "extern" if next(1) == "crate" => {
                found.push(Named { own: false, parts: vec![next(2).to_owned()], line: tokens[at].line });
                at += 3;
                continue;
            }
            _ if is_name(text) && next(1) == "::" && begins_path(tokens, at) => {
                let line = tokens[at].line;
                let mut parts = vec![text.to_owned()];
                while next_is(tokens, at + 1, "::") && tokens.get(at + 2).is_some_and(|token| is_name(&token.text)) {
                    parts.push(tokens[at + 2].text.clone());
                    at += 2;
                }
                loose.push(resolved(parts, &module, line));
            }
            _ => {}
        }
        at += 1;
    }
    found.extend(loose.into_iter().filter(|path| path.own || !brought.contains(&path.parts[0])));
    found
}

fn next_is(tokens: &[Token], at: usize, text: &str) -> bool {
    tokens.get(at).is_some_and(|token| token.text == text)
}

/// Whether a path begins here: not after a dot, and after `::` only where that stands for the root of all crates.
fn begins_path(tokens: &[Token], at: usize) -> bool {
    let before = |offset: usize| at.checked_sub(offset).map_or("", |at| tokens[at].text.as_str());
    match before(1) {
        "." => false,
        "::" => !is_name(before(2)) && before(2) != ">",
        _ => true,
    }
}

/// Reads one import, groups and all, and gives back where it ends: each path, the name it brings, its line.
fn import(tokens: &[Token], mut at: usize, before: &[String], found: &mut Vec<(Vec<String>, String, usize)>) -> usize {
    let mut parts = before.to_vec();
    while let Some(token) = tokens.get(at) {
        match token.text.as_str() {
            "::" => at += 1,
            "{" => {
                at += 1;
                while tokens.get(at).is_some_and(|token| token.text != "}") {
                    at = import(tokens, at, &parts, found);
                    at += usize::from(next_is(tokens, at, ","));
                }
                return at + 1;
            }
            "as" => {
                let name = tokens.get(at + 1).map_or("", |token| token.text.as_str());
                found.push((parts, name.to_owned(), token.line));
                return at + 2;
            }
            // `use super::{self}` means what stands before the group.
            "self" if !parts.is_empty() => at += 1,
            text if is_name(text) || text == "*" => {
                parts.push(text.to_owned());
                at += 1;
            }
            _ => break,
        }
    }
    let line = tokens.get(at.saturating_sub(1)).map_or(0, |token| token.line);
    let name = parts.last().cloned().unwrap_or_default();
    found.push((parts, name, line));
    at
}

/// A path as it is seen from the root of its crate.
fn resolved(mut parts: Vec<String>, module: &[String], line: usize) -> Named {
    let head = parts.first().map_or("", String::as_str);
    let own = match head {
        "crate" | LIB => {
            parts.remove(0);
            true
        }
        "self" | "super" => {
            let up = parts.iter().take_while(|part| *part == "super" || *part == "self").count();
            let supers = parts[..up].iter().filter(|part| *part == "super").count();
            let kept = module.len().saturating_sub(supers);
            parts.splice(..up, module[..kept].iter().cloned());
            true
        }
        _ => false,
    };
    Named { own, parts, line }
}

fn is_name(text: &str) -> bool {
    text.starts_with(|first: char| first.is_alphabetic() || first == '_')
}

/// A name, a `::`, or any other character that is no white space; comments and literals are left out.
#[derive(Debug)]
pub struct Token {
    pub text: String,
    pub line: usize,
}

pub fn tokens(text: &str) -> Vec<Token> {
    let mut reader = Reader { rest: text.chars().peekable(), line: 1, tokens: Vec::new() };
    while let Some(character) = reader.next() {
        reader.take(character);
    }
    reader.tokens
}

struct Reader<'a> {
    rest: Peekable<Chars<'a>>,
    line: usize,
    tokens: Vec<Token>,
}

impl Reader<'_> {
    fn next(&mut self) -> Option<char> {
        let next = self.rest.next();
        self.line += usize::from(next == Some('\n'));
        next
    }

    fn next_if(&mut self, wanted: char) -> bool {
        self.rest.peek() == Some(&wanted) && self.next().is_some()
    }

    fn push(&mut self, text: impl Into<String>) {
        self.tokens.push(Token { text: text.into(), line: self.line });
    }

    fn take(&mut self, character: char) {
        match character {
            '/' if self.rest.peek() == Some(&'/') => while self.next().is_some_and(|next| next != '\n') {},
            '/' if self.next_if('*') => self.block_comment(),
            '"' => self.string(),
            '\'' => self.character_or_lifetime(),
            ':' if self.next_if(':') => self.push("::"),
            first if first.is_alphanumeric() || first == '_' => self.word(first),
            other if !other.is_whitespace() => self.push(other),
            _ => {}
        }
    }

    fn word(&mut self, first: char) {
        let mut word = String::from(first);
        while let Some(next) = self.rest.peek().copied().filter(|next| next.is_alphanumeric() || *next == '_') {
            word.push(next);
            self.next();
        }
        let literal = matches!(word.as_str(), "r" | "br" | "cr") && matches!(self.rest.peek(), Some('"' | '#'));
        match (word.as_str(), self.rest.peek()) {
            _ if literal => self.raw(),
            // The letter before `"…"` or `'…'` belongs to the literal that follows.
            ("b" | "c", Some('"' | '\'')) => {}
            _ => self.push(word),
        }
    }

    /// A raw string, or a raw name such as `r#type`.
    fn raw(&mut self) {
        let mut hashes = 0;
        while self.next_if('#') {
            hashes += 1;
        }
        if !self.next_if('"') {
            return;
        }
        let mut closing = None;
        while let Some(next) = self.next() {
            closing = match (next, closing) {
                ('"', _) => Some(0),
                ('#', Some(seen)) => Some(seen + 1),
                _ => None,
            };
            if closing == Some(hashes) {
                return;
            }
        }
    }

    fn string(&mut self) {
        while let Some(next) = self.next() {
            match next {
                '\\' => drop(self.next()),
                '"' => return,
                _ => {}
            }
        }
    }

    fn character_or_lifetime(&mut self) {
        match self.next() {
            Some('\\') => {
                self.next();
                while self.next().is_some_and(|next| next != '\'') {}
            }
            // One character and a quote is a literal, a name without one is a lifetime.
            Some(first) if !self.next_if('\'') && (first.is_alphanumeric() || first == '_') => {
                while self.rest.peek().is_some_and(|next| next.is_alphanumeric() || *next == '_') {
                    self.next();
                }
            }
            _ => {}
        }
    }

    fn block_comment(&mut self) {
        let mut depth = 1;
        while depth > 0 {
            match self.next() {
                Some('/') if self.next_if('*') => depth += 1,
                Some('*') if self.next_if('/') => depth -= 1,
                Some(_) => {}
                None => return,
            }
        }
    }
}
