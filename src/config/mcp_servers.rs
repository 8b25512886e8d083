//! The value of `MCP_SERVERS`: names and addresses of tool servers over HTTP in one line. Servers over stdio stand
//! in the file.

use url::{Host, Url};

/// One server of the list.
#[derive(Clone, PartialEq, Eq)]
pub struct Listed {
    /// Its name, given or taken from its host.
    pub name: String,
    /// Its address as it was written; it may bear a credential, so that there is no `Debug`.
    pub url: String,
}

/// Reads the list, or says what is wrong with which server. The answer never repeats an address.
///
/// The text is cut at commas that are followed by an optional `name=` and `http://` or `https://`, so that commas
/// and equals signs in a query stay where they are.
pub fn parse(text: &str) -> Result<Vec<Listed>, Vec<String>> {
    let mut servers: Vec<Listed> = Vec::new();
    let mut problems = Vec::new();
    for (index, item) in split(text).into_iter().enumerate() {
        match server(item) {
            Err(message) => problems.push(format!("server {}: {message}", index + 1)),
            Ok(new) => match servers.iter().position(|old| old.name == new.name) {
                Some(at) => problems.push(format!(
                    "servers {} and {} are both called `{}`; write `name=` before the address of one of them",
                    at + 1,
                    index + 1,
                    new.name
                )),
                None => servers.push(new),
            },
        }
    }
    if problems.is_empty() { Ok(servers) } else { Err(problems) }
}

/// Whether a text can be the name of a server or a provider.
pub fn is_name(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_' || byte == b'-')
}

fn split(text: &str) -> Vec<&str> {
    let mut items = Vec::new();
    let mut start = 0;
    for (comma, _) in text.match_indices(',') {
        if starts_server(&text[comma + 1..]) {
            items.push(&text[start..comma]);
            start = comma + 1;
        }
    }
    items.push(&text[start..]);
    // An empty place in the list is no part of the address before it.
    let trimmed = items.into_iter().map(|item| item.trim().trim_end_matches(',').trim_end());
    trimmed.filter(|item| !item.is_empty()).collect()
}

/// Whether a server begins here: an optional `name=`, then a scheme.
fn starts_server(text: &str) -> bool {
    let text = text.trim_start();
    has_scheme(text) || text.split_once('=').is_some_and(|(name, rest)| is_name(name) && has_scheme(rest))
}

fn has_scheme(text: &str) -> bool {
    ["http://", "https://"].iter().any(|scheme| {
        text.as_bytes().get(..scheme.len()).is_some_and(|head| head.eq_ignore_ascii_case(scheme.as_bytes()))
    })
}

fn server(item: &str) -> Result<Listed, String> {
    let (name, address) = match item.split_once('=') {
        _ if has_scheme(item) => (None, item),
        Some((name, rest)) if is_name(name) && has_scheme(rest) => (Some(name), rest),
        Some((_, rest)) if has_scheme(rest) => {
            return Err(String::from("its name must be of letters, digits, `_` and `-`"));
        }
        _ => {
            return Err(String::from(
                "must be `http(s)://…` or `name=http(s)://…`; a server over stdio stands in the file",
            ));
        }
    };
    if address.contains(|c: char| c.is_whitespace() || c.is_control()) {
        return Err(String::from("its address has a space in it"));
    }
    let url = Url::parse(address).map_err(|error| format!("its address cannot be read: {error}"))?;
    // A comma is good in a path, but what follows it here was meant as the next server.
    let place = address.split(['?', '#']).next().unwrap_or_default();
    if place.split_once(',').is_some_and(|(_, rest)| rest.contains("://")) {
        return Err(String::from("after the comma must follow `http(s)://…` or `name=http(s)://…`"));
    }
    let name = match name {
        Some(name) => name.to_owned(),
        None => match url.host() {
            Some(Host::Domain(host)) => host.split('.').next().unwrap_or_default().to_owned(),
            // An address has no labels: any part of it alone would be that of its neighbours too.
            Some(Host::Ipv4(address)) => address.to_string().replace('.', "-"),
            // The eight groups in full, for `::1` would begin with hyphens as a flag does.
            Some(Host::Ipv6(address)) => address.segments().map(|group| format!("{group:x}")).join("-"),
            None => String::new(),
        },
    };
    if !is_name(&name) {
        return Err(String::from("its host gives no name; write `name=` before the address"));
    }
    Ok(Listed { name, url: address.to_owned() })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pairs(text: &str) -> Vec<(String, String)> {
        parse(text).expect("a good list").into_iter().map(|server| (server.name, server.url)).collect()
    }

    fn problem(text: &str) -> String {
        parse(text).err().expect("a bad list").join(" | ")
    }

    fn owned(list: &[(&str, &str)]) -> Vec<(String, String)> {
        list.iter().map(|(name, url)| (name.to_string(), url.to_string())).collect()
    }

    #[test]
    fn an_unnamed_server_takes_the_first_label_of_its_host() {
        assert_eq!(
            pairs("http://tools-server:8080,https://search.example.com/mcp"),
            owned(&[("tools-server", "http://tools-server:8080"), ("search", "https://search.example.com/mcp")])
        );
    }

    #[test]
    fn an_unnamed_server_at_an_address_takes_all_of_it() {
        assert_eq!(
            pairs("http://10.0.0.1/mcp,http://10.0.0.2:9/mcp"),
            owned(&[("10-0-0-1", "http://10.0.0.1/mcp"), ("10-0-0-2", "http://10.0.0.2:9/mcp")])
        );
        assert!(problem("http://10.0.0.1:1/,http://10.0.0.1:2/").contains("both called `10-0-0-1`"));
        assert_eq!(
            pairs("http://[::1]:80/,http://[2001:DB8::a:1]/mcp"),
            owned(&[("0-0-0-0-0-0-0-1", "http://[::1]:80/"), ("2001-db8-0-0-0-0-a-1", "http://[2001:DB8::a:1]/mcp")])
        );
        assert!(problem("http://[::1]:1/,http://[0::0:1]:2/").contains("both called `0-0-0-0-0-0-0-1`"));
    }

    #[test]
    fn commas_and_equals_signs_of_a_query_stay_in_it() {
        let one = "http://a/mcp?tags=x,y=z,w&next=http://b/";
        assert_eq!(pairs(one), owned(&[("a", one)]));
        assert_eq!(pairs(&format!("{one},b_2=HTTPS://c/?q=1,2")), owned(&[("a", one), ("b_2", "HTTPS://c/?q=1,2")]));
        assert_eq!(pairs("n=http://a/x,y/mcp"), owned(&[("n", "http://a/x,y/mcp")]));
    }

    #[test]
    fn spaces_and_empty_places_between_servers_mean_nothing() {
        assert_eq!(
            pairs(" a=http://x/mcp ,, b=http://y/mcp, "),
            owned(&[("a", "http://x/mcp"), ("b", "http://y/mcp")])
        );
        assert_eq!(pairs(" , "), owned(&[]));
    }

    #[test]
    fn a_name_taken_twice_is_refused() {
        assert!(problem("http://a.one/,http://a.two/").contains("servers 1 and 2 are both called `a`"));
        assert!(problem("a=http://x/,http://a:81/").contains("both called `a`"));
    }

    #[test]
    fn what_is_no_server_is_refused_with_its_place() {
        assert!(problem("a:8080").starts_with("server 1: must be `http(s)://"));
        assert!(problem("x=node server.js").contains("stdio"));
        assert!(problem("a b=http://x/").contains("its name must be"));
        assert!(
            problem("http://x/,http://tööls.example/,http://[::1/").contains("server 3: its address cannot be read")
        );
        assert!(problem("http://x/,http://a.b/,http://a%21b/").contains("server 3: its host gives no name"));
        assert!(problem("http://").contains("cannot be read"));
        assert!(problem("http://a/mcp,ftp://b/mcp").contains("after the comma"));
        assert!(problem("http://a/mcp,b d=http://b/mcp").contains("space"));
    }
}
