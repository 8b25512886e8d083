//! What a server says in `WWW-Authenticate` when it refuses a request: RFC 9110 §11.6.1, RFC 6750 §3, RFC 9728 §5.1.
//! What follows from it is not decided here.

use super::scopes::Scopes;

/// Bytes of all challenges of one answer that are read.
const MAX_CHALLENGES: usize = 16 * 1024;

/// The challenge for bearer tokens.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct BearerChallenge {
    /// Where the metadata of the protected resource is said to be.
    pub(super) resource_metadata: Option<String>,
    /// The scopes that the request needs.
    pub(super) scopes: Option<Scopes>,
    /// Why the token was refused, such as `insufficient_scope`.
    pub(super) error: Option<String>,
}

impl BearerChallenge {
    /// The bearer challenge of an answer; an empty one if there is none.
    pub(super) fn of(values: &[&str]) -> Self {
        let mut found: Vec<Self> = Vec::new();
        let mut budget = MAX_CHALLENGES;
        for text in values {
            if text.len() > budget {
                continue;
            }
            budget -= text.len();
            found.extend(bearer_challenges(text));
        }
        // Several may stand side by side, one for each profile; the one that leads on is the one that helps.
        let at = found.iter().position(|challenge| challenge.resource_metadata.is_some()).unwrap_or(0);
        if found.is_empty() { Self::default() } else { found.swap_remove(at) }
    }

    /// Whether the token lacks a scope.
    pub(super) fn lacks_scope(&self) -> bool {
        self.error.as_deref() == Some("insufficient_scope")
    }
}

fn bearer_challenges(text: &str) -> Vec<BearerChallenge> {
    let mut challenges = Vec::new();
    let mut reader = Reader(text);
    let mut in_bearer = false;
    while let Some(word) = reader.word() {
        match reader.value() {
            Some(value) if in_bearer => {
                let Some(BearerChallenge { resource_metadata, scopes, error }) = challenges.last_mut() else {
                    continue;
                };
                match word.to_ascii_lowercase().as_str() {
                    "resource_metadata" => *resource_metadata = Some(value),
                    "scope" => *scopes = Some(Scopes::parse(&value)).filter(|scopes| !scopes.is_empty()),
                    "error" => *error = Some(value),
                    _ => {}
                }
            }
            Some(_) => {}
            // A word without a value begins the next challenge.
            None => {
                in_bearer = word.eq_ignore_ascii_case("bearer");
                if in_bearer {
                    challenges.push(BearerChallenge::default());
                }
            }
        }
    }
    challenges
}

struct Reader<'a>(&'a str);

impl<'a> Reader<'a> {
    /// The next token. What is none, as the padding of a `token68`, is skipped.
    fn word(&mut self) -> Option<&'a str> {
        let is_token = |c: char| c.is_ascii_alphanumeric() || "!#$%&'*+-.^_`|~/".contains(c);
        let start = self.0.find(is_token)?;
        let rest = &self.0[start..];
        let end = rest.find(|c| !is_token(c)).unwrap_or(rest.len());
        let (word, rest) = rest.split_at(end);
        self.0 = rest;
        Some(word)
    }

    /// The value behind `=`, if there is one.
    fn value(&mut self) -> Option<String> {
        let rest = self.0.trim_start().strip_prefix('=')?.trim_start();
        if let Some(quoted) = rest.strip_prefix('"') {
            let mut value = String::new();
            let mut chars = quoted.char_indices();
            while let Some((at, c)) = chars.next() {
                match c {
                    '"' => {
                        self.0 = &quoted[at + 1..];
                        return Some(value);
                    }
                    '\\' => value.extend(chars.next().map(|(_, c)| c)),
                    c => value.push(c),
                }
            }
            self.0 = "";
            return Some(value);
        }
        let end = rest.find([',', ' ', '\t']).unwrap_or(rest.len());
        let (value, rest) = rest.split_at(end);
        self.0 = rest;
        Some(value.to_owned())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn of(values: &[&str]) -> BearerChallenge {
        BearerChallenge::of(values)
    }

    #[test]
    fn the_parameters_of_a_bearer_challenge_are_read() {
        let challenge = of(&[
            r#"Bearer error="insufficient_scope", scope="files:write  files:read", resource_metadata="https://m/x?a=1,2", error_description="say \"please\"""#,
        ]);
        assert_eq!(challenge.resource_metadata.as_deref(), Some("https://m/x?a=1,2"));
        assert_eq!(challenge.scopes, Some(Scopes::parse("files:read files:write")));
        assert!(challenge.lacks_scope());
    }

    #[test]
    fn other_schemes_beside_it_do_not_confuse() {
        for text in [
            r#"Negotiate YII==, Basic realm="bearer, scope=x", bearer realm=y, Resource_Metadata = https://m/x"#,
            r#"Bearer, Digest scope="no", resource_metadata="no", Bearer resource_metadata="https://m/x""#,
        ] {
            let challenge = of(&[text]);
            assert_eq!(challenge.resource_metadata.as_deref(), Some("https://m/x"), "{text}");
            assert_eq!(challenge.scopes, None, "{text}");
        }
        let two = of(&["Basic realm=a", "Bearer scope=\"b\"", "Bearer resource_metadata=\"https://m/x\""]);
        assert_eq!(two.resource_metadata.as_deref(), Some("https://m/x"));
        assert_eq!(of(&["Basic realm=a"]), BearerChallenge::default());
        assert_eq!(of(&[]), BearerChallenge::default());
    }

    #[test]
    fn a_quote_that_never_ends_is_read_to_the_end() {
        assert_eq!(of(&["Bearer scope=\"a b"]).scopes, Some(Scopes::parse("a b")));
        assert_eq!(of(&["Bearer scope=\"\""]).scopes, None);
        assert_eq!(of(&["Bearer scope=\"a\\"]).scopes, Some(Scopes::parse("a")));
    }

    proptest! {
        #[test]
        fn no_text_makes_it_panic(text in "[ -~äß]{0,200}") {
            let _ = bearer_challenges(&text);
        }

        #[test]
        fn what_was_quoted_comes_back(value in "[ -~]{0,80}") {
            let quoted = value.replace('\\', "\\\\").replace('"', "\\\"");
            let found = bearer_challenges(&format!("Basic x, Bearer a=b, resource_metadata=\"{quoted}\", error=z"));
            prop_assert_eq!(found[0].resource_metadata.as_deref(), Some(value.as_str()));
            prop_assert_eq!(found[0].error.as_deref(), Some("z"));
        }
    }
}
