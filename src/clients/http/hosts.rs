//! The list of hosts that may be asked: `host`, `host:port`, `*.domain`, `*`. What an address means is not known here.

use url::Host;

/// How a host came to be allowed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Permission {
    /// By its exact name or address: the operator means it, wherever it leads.
    ByName,
    /// By a wildcard: it may lead to public addresses only.
    ByPattern,
}

/// Why an entry names no host.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{entry}` {reason}; write `host`, `host:port`, `*.domain` or `*`")]
pub struct InvalidHost {
    /// The entry as written.
    pub entry: String,
    /// What is wrong with it.
    pub reason: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Pattern {
    Exact(Host),
    /// A dot and the domain: every name below it, not the domain itself.
    Below(String),
    Any,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Rule {
    pattern: Pattern,
    /// None: any port.
    port: Option<u16>,
}

/// Hosts that may be asked.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct AllowedHosts {
    rules: Vec<Rule>,
}

impl AllowedHosts {
    /// Reads the entries; names are compared without case, in their ASCII form.
    pub fn parse<S: AsRef<str>>(entries: &[S]) -> Result<Self, InvalidHost> {
        let rules = entries.iter().map(|entry| Rule::parse(entry.as_ref())).collect::<Result<_, _>>()?;
        Ok(Self { rules })
    }

    /// Whether this host may be asked at this port, and how it came to that.
    pub fn permission(&self, host: &Host<&str>, port: u16) -> Option<Permission> {
        let fitting = self.rules.iter().filter(|rule| rule.port.is_none_or(|allowed| allowed == port));
        let mut permission = None;
        for rule in fitting {
            match &rule.pattern {
                Pattern::Exact(exact) if same(exact, host) => return Some(Permission::ByName),
                Pattern::Below(suffix) if below(suffix, host) => permission = Some(Permission::ByPattern),
                Pattern::Any => permission = Some(Permission::ByPattern),
                Pattern::Exact(_) | Pattern::Below(_) => {}
            }
        }
        permission
    }
}

/// A name may end with the dot of the root.
fn plain(domain: &str) -> &str {
    domain.strip_suffix('.').unwrap_or(domain)
}

fn same(exact: &Host, host: &Host<&str>) -> bool {
    match (exact, host) {
        (Host::Domain(one), Host::Domain(other)) => one == plain(other),
        (Host::Ipv4(one), Host::Ipv4(other)) => one == other,
        (Host::Ipv6(one), Host::Ipv6(other)) => one == other,
        (Host::Domain(_) | Host::Ipv4(_) | Host::Ipv6(_), _) => false,
    }
}

fn below(suffix: &str, host: &Host<&str>) -> bool {
    matches!(host, Host::Domain(domain) if plain(domain).len() > suffix.len() && plain(domain).ends_with(suffix))
}

impl Rule {
    fn parse(entry: &str) -> Result<Self, InvalidHost> {
        let invalid = |reason| InvalidHost { entry: entry.to_owned(), reason };
        let text = entry.trim();
        if text.is_empty() {
            return Err(invalid("is empty"));
        }
        if text.contains("://") {
            return Err(invalid("is a URL, not a host"));
        }
        if text.contains(['/', '?', '#', '@', ' ']) {
            return Err(invalid("has more than a host and a port"));
        }
        // A bare IPv6 address has colons of its own.
        if let Ok(address) = text.parse() {
            return Ok(Self { pattern: Pattern::Exact(Host::Ipv6(address)), port: None });
        }
        let (name, port) = match text.rsplit_once(':') {
            Some((name, port)) if !port.ends_with(']') => {
                let port = port.parse().ok().filter(|port| *port != 0).ok_or_else(|| invalid("has no valid port"))?;
                (name, Some(port))
            }
            _ => (text, None),
        };
        let host = |name: &str| Host::parse(name).map_err(|_| invalid("is not a host name"));
        let pattern = match name.strip_prefix("*.") {
            _ if name == "*" => Pattern::Any,
            Some(domain) => match host(domain)? {
                Host::Domain(domain) => Pattern::Below(format!(".{}", plain(&domain))),
                Host::Ipv4(_) | Host::Ipv6(_) => return Err(invalid("has a wildcard before an address")),
            },
            None => match host(name)? {
                Host::Domain(domain) if domain.contains('*') => {
                    return Err(invalid("has a wildcard elsewhere than at its beginning"));
                }
                Host::Domain(domain) => Pattern::Exact(Host::Domain(plain(&domain).to_owned())),
                address => Pattern::Exact(address),
            },
        };
        Ok(Self { pattern, port })
    }
}

#[cfg(test)]
mod tests {
    use url::Url;

    use super::*;

    fn permission(entries: &[&str], url: &str) -> Option<Permission> {
        let url = Url::parse(url).expect("a URL");
        let hosts = AllowedHosts::parse(entries).expect("valid entries");
        hosts.permission(&url.host().expect("a host"), url.port_or_known_default().expect("a port"))
    }

    #[test]
    fn an_exact_name_allows_that_host_at_any_port() {
        assert_eq!(permission(&["API.example.org"], "https://api.example.org/x"), Some(Permission::ByName));
        assert_eq!(permission(&["api.example.org"], "http://api.example.org.:8080/"), Some(Permission::ByName));
        assert_eq!(permission(&["api.example.org"], "http://example.org/"), None);
        assert_eq!(permission(&["api.example.org"], "http://api.example.org.evil.net/"), None);
        assert_eq!(permission(&["bücher.example"], "http://xn--bcher-kva.example/"), Some(Permission::ByName));
        assert_eq!(permission(&[], "http://example.org/"), None);
    }

    #[test]
    fn a_port_allows_that_port_alone() {
        assert_eq!(permission(&["example.org:443"], "https://example.org/"), Some(Permission::ByName));
        assert_eq!(permission(&["example.org:443"], "http://example.org/"), None);
        assert_eq!(permission(&["*.example.org:8080"], "http://a.example.org/"), None);
        assert_eq!(permission(&["db.corp:8080", "*.corp"], "http://db.corp:22/"), Some(Permission::ByPattern));
    }

    #[test]
    fn a_wildcard_allows_every_name_below_and_not_the_domain_itself() {
        assert_eq!(permission(&["*.example.org"], "http://a.b.example.org/"), Some(Permission::ByPattern));
        assert_eq!(permission(&["*.example.org"], "http://example.org/"), None);
        assert_eq!(permission(&["*.example.org"], "http://badexample.org/"), None);
        assert_eq!(permission(&["*"], "http://127.0.0.1/"), Some(Permission::ByPattern));
    }

    #[test]
    fn an_address_is_the_same_however_it_is_written() {
        assert_eq!(permission(&["127.0.0.1"], "http://2130706433/"), Some(Permission::ByName));
        assert_eq!(permission(&["127.0.0.1"], "http://0x7f.1:9000/"), Some(Permission::ByName));
        assert_eq!(permission(&["::1"], "http://[0:0:0:0:0:0:0:1]:80/"), Some(Permission::ByName));
        assert_eq!(permission(&["[::1]:8080"], "http://[::1]/"), None);
    }

    #[test]
    fn what_names_no_host_is_refused_with_the_reason() {
        for entry in [
            "",
            "https://example.org",
            "example.org/path",
            "u@example.org",
            "example.org:0",
            "example.org:x",
            "a.*.org",
            "*.127.0.0.1",
            "a b",
        ] {
            let error = AllowedHosts::parse(&[entry]).expect_err(entry);
            assert_eq!(error.entry, entry);
        }
    }
}
