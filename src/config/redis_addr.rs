//! The address of the Redis server: `host:port`, `redis://` or `rediss://`, with a password taken out of it so that
//! what is left may be shown. Connecting is not done here.

use url::Url;

/// Schemes that people have for things this worker cannot speak to yet.
const LATER: &[(&str, &str)] = &[
    ("redis+cluster", "a Redis cluster"),
    ("rediss+cluster", "a Redis cluster"),
    ("redis-cluster", "a Redis cluster"),
    ("rediss-cluster", "a Redis cluster"),
    ("redis+sentinel", "Redis Sentinel"),
    ("rediss+sentinel", "Redis Sentinel"),
    ("redis-sentinel", "Redis Sentinel"),
    ("rediss-sentinel", "Redis Sentinel"),
    ("sentinel", "Redis Sentinel"),
    ("redis+unix", "a Unix socket"),
    ("redis+socket", "a Unix socket"),
    ("unix", "a Unix socket"),
];

const REMEDY: &str = "must be the address of one server: host:port, redis://host:port or rediss://host:port";

/// An address that can be connected to. There is no `Debug`, for the password's sake.
pub struct RedisAddress {
    /// The address without a password.
    pub url: String,
    /// The password that stood in it.
    pub password: Option<String>,
}

/// An address as people write it, `host:port` or a URL, as a URL. The answer never repeats the text.
pub fn to_url(text: &str) -> Result<String, String> {
    let text = text.trim();
    if text.contains("://") {
        return Ok(text.to_owned());
    }
    let port =
        text.rsplit_once(':').filter(|(host, _)| !host.is_empty()).and_then(|(_, port)| port.parse::<u16>().ok());
    if port.is_some() && !text.contains([',', '/', '@']) {
        Ok(format!("redis://{text}"))
    } else {
        Err(REMEDY.to_owned())
    }
}

/// Reads an address. The answer never repeats it.
pub fn parse(text: &str) -> Result<RedisAddress, String> {
    let text = to_url(text)?;
    let scheme = text.split_once("://").map(|(scheme, _)| scheme.to_lowercase());
    let scheme = scheme.as_deref().unwrap_or_default();
    if let Some((scheme, what)) = LATER.iter().find(|(later, _)| *later == scheme) {
        return Err(format!("{scheme}:// is {what}, which is not supported yet; it {REMEDY}"));
    }
    if !["redis", "rediss"].contains(&scheme) {
        return Err(REMEDY.to_owned());
    }
    let mut url = Url::parse(&text).map_err(|error| format!("{error}; it {REMEDY}"))?;
    let host = url.host_str().unwrap_or_default();
    if host.is_empty() || host.contains(',') {
        return Err(REMEDY.to_owned());
    }
    let database = url.path().trim_matches('/');
    if !database.is_empty() && database.parse::<u32>().is_err() {
        return Err(String::from("what follows the port must be a database number, such as redis://host:6379/0"));
    }
    let password = match url.password() {
        None => None,
        Some(encoded) => Some(decode(encoded).ok_or("its password is not percent-encoded UTF-8")?),
    };
    if password.is_none() {
        return Ok(RedisAddress { url: text, password });
    }
    url.set_password(None).map_err(|()| REMEDY.to_owned())?;
    Ok(RedisAddress { url: url.into(), password })
}

fn decode(text: &str) -> Option<String> {
    let mut bytes = text.bytes();
    let mut decoded = Vec::with_capacity(text.len());
    while let Some(byte) = bytes.next() {
        if byte == b'%' {
            let high = char::from(bytes.next()?).to_digit(16)?;
            let low = char::from(bytes.next()?).to_digit(16)?;
            decoded.push((high * 16 + low) as u8);
        } else {
            decoded.push(byte);
        }
    }
    String::from_utf8(decoded).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_password_leaves_the_address_decoded() {
        let Ok(address) = parse("rediss://me:p%40s%2Bs+%C3%A4@cache:6380/3") else { panic!("it is an address") };
        assert_eq!(address.url, "rediss://me@cache:6380/3");
        assert_eq!(address.password.as_deref(), Some("p@s+s+ä"));
        let Ok(address) = parse("redis://:only@cache:6379") else { panic!("it is an address") };
        assert_eq!(address.url, "redis://cache:6379");
    }

    #[test]
    fn host_and_port_become_a_url() {
        assert_eq!(to_url("localhost:6379").as_deref(), Ok("redis://localhost:6379"));
        assert_eq!(to_url(" [::1]:6379").as_deref(), Ok("redis://[::1]:6379"));
        assert_eq!(parse("cache:6380").map(|address| address.url).as_deref(), Ok("redis://cache:6380"));
        for bad in ["localhost", ":6379", "h:x", "a:1,b:2", "user:pass@h:1", "h:1/2", "h:70000"] {
            assert!(to_url(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn what_is_not_one_server_is_refused_by_name() {
        let problem = |text: &str| parse(text).err().unwrap_or_else(|| panic!("{text} is no address"));
        assert!(problem("redis+cluster://a:1").contains("a Redis cluster"));
        assert!(problem("rediss+sentinel://a:1/m").contains("Redis Sentinel"));
        assert!(problem("unix:///run/redis").contains("Unix socket"));
        assert!(problem("http://a:1").contains("redis://host:port"));
        assert!(problem("redis://a:1,b:2").contains("one server"));
        assert!(problem("redis://").contains("one server"));
        assert!(problem("redis://h:1/x").contains("database number"));
    }
}
