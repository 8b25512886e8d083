//! Which addresses belong to the public internet, and a resolver that answers with no others. The address that is
//! checked is the address that is used: a name cannot change between the check and the connection.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use reqwest::dns::{Addrs, Name, Resolve, Resolving};

/// A host that is allowed by a pattern alone leads to an address that is not public.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{host}` leads to {address}, a {kind} address; allow the host by its exact name if that is meant")]
pub struct AddressRefused {
    /// The host as asked for.
    pub host: String,
    /// Where it leads.
    pub address: IpAddr,
    /// What that is.
    pub kind: &'static str,
}

/// Why an address is not for everybody; none for a public one.
pub fn refused(address: IpAddr) -> Option<&'static str> {
    match address {
        IpAddr::V4(address) => refused_v4(address),
        IpAddr::V6(address) => refused_v6(address),
    }
}

/// After the IANA special-purpose registry, and the one metadata address that lies in public space.
fn refused_v4(address: Ipv4Addr) -> Option<&'static str> {
    let [a, b, c, _] = address.octets();
    match (a, b, c) {
        (0, ..) => Some("unspecified"),
        (127, ..) => Some("loopback"),
        (10, ..) | (172, 16..=31, _) | (192, 168, _) => Some("private"),
        (100, 64..=127, _) => Some("carrier-internal"),
        (169, 254, _) => Some("link-local"),
        (192, 0, 0) | (192, 0, 2) | (198, 51, 100) | (203, 0, 113) | (192, 88, 99) | (198, 18..=19, _) => {
            Some("reserved")
        }
        (224..=239, ..) => Some("multicast"),
        (240..=255, ..) => Some("reserved"),
        _ if address == Ipv4Addr::new(168, 63, 129, 16) => Some("metadata"),
        _ => None,
    }
}

/// Only global unicast is public, and an address that carries an IPv4 address is as public as that one.
fn refused_v6(address: Ipv6Addr) -> Option<&'static str> {
    if let Some(inner) = address.to_ipv4_mapped() {
        return refused_v4(inner);
    }
    let [a, b, c, d, e, f, g, h] = address.segments();
    let v4 = |high: u16, low: u16| Ipv4Addr::from(u32::from(high) << 16 | u32::from(low));
    match (a, b) {
        _ if address.is_loopback() => Some("loopback"),
        _ if address.is_unspecified() => Some("unspecified"),
        (0x0064, 0xff9b) if (c, d, e, f) == (0, 0, 0, 0) => refused_v4(v4(g, h)),
        (0x2002, _) => refused_v4(v4(b, c)),
        (0x2001, 0x0000..=0x01ff | 0x0db8) | (0x3fff, 0x0000..=0x0fff) => Some("reserved"),
        (0xfc00..=0xfdff, _) => Some("private"),
        (0xfe80..=0xfebf, _) => Some("link-local"),
        (0xff00..=0xffff, _) => Some("multicast"),
        (0x2000..=0x3fff, _) => None,
        _ => Some("reserved"),
    }
}

/// Resolves names by the system and keeps the public addresses.
#[derive(Debug)]
pub(super) struct PublicOnly;

impl Resolve for PublicOnly {
    fn resolve(&self, name: Name) -> Resolving {
        Box::pin(async move {
            let found: Vec<SocketAddr> = tokio::net::lookup_host((name.as_str(), 0)).await?.collect();
            Ok(Box::new(public_of(name.as_str(), found)?.into_iter()) as Addrs)
        })
    }
}

/// The public addresses among those of a host; an error if it has others alone.
fn public_of(host: &str, found: Vec<SocketAddr>) -> Result<Vec<SocketAddr>, AddressRefused> {
    let first = found.first().map(SocketAddr::ip);
    let public: Vec<SocketAddr> = found.into_iter().filter(|at| refused(at.ip()).is_none()).collect();
    match first.and_then(|address| Some((address, refused(address)?))) {
        Some((address, kind)) if public.is_empty() => Err(AddressRefused { host: host.to_owned(), address, kind }),
        _ => Ok(public),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kind(address: &str) -> Option<&'static str> {
        refused(address.parse().expect("an address"))
    }

    #[test]
    fn public_addresses_pass() {
        for address in
            ["1.1.1.1", "172.15.0.1", "172.32.0.1", "100.63.0.1", "100.128.0.1", "192.1.0.1", "223.255.255.255"]
        {
            assert_eq!(kind(address), None, "{address}");
        }
        for address in
            ["2606:4700:4700::1111", "2a00:1450:4001::1", "::ffff:1.1.1.1", "64:ff9b::101:101", "2002:101:101::1"]
        {
            assert_eq!(kind(address), None, "{address}");
        }
    }

    #[test]
    fn addresses_of_this_machine_and_of_its_network_are_refused() {
        for (address, expected) in [
            ("127.0.0.1", "loopback"),
            ("127.255.255.254", "loopback"),
            ("0.0.0.0", "unspecified"),
            ("10.1.2.3", "private"),
            ("172.16.0.1", "private"),
            ("172.31.255.255", "private"),
            ("192.168.1.1", "private"),
            ("169.254.169.254", "link-local"),
            ("100.100.100.200", "carrier-internal"),
            ("168.63.129.16", "metadata"),
            ("192.0.0.192", "reserved"),
            ("198.18.0.1", "reserved"),
            ("224.0.0.1", "multicast"),
            ("255.255.255.255", "reserved"),
            ("::", "unspecified"),
            ("::1", "loopback"),
            ("fc00::1", "private"),
            ("fd00:ec2::254", "private"),
            ("fe80::1", "link-local"),
            ("ff02::1", "multicast"),
            ("2001:db8::1", "reserved"),
            ("2001::1", "reserved"),
            ("64:ff9b:1::1", "reserved"),
        ] {
            assert_eq!(kind(address), Some(expected), "{address}");
        }
    }

    #[test]
    fn a_name_with_public_and_inner_addresses_leads_to_the_public_ones_alone() {
        let at = |addresses: &[&str]| -> Vec<SocketAddr> {
            addresses.iter().map(|address| SocketAddr::new(address.parse().expect("an address"), 0)).collect()
        };
        let public = public_of("h", at(&["169.254.169.254", "1.1.1.1", "::1", "2606:4700::1111", "10.0.0.1"]));
        assert_eq!(public, Ok(at(&["1.1.1.1", "2606:4700::1111"])));
        let refused = public_of("inner", at(&["10.0.0.1", "::1"])).expect_err("none is public");
        assert_eq!((refused.host.as_str(), refused.kind), ("inner", "private"));
        assert_eq!(public_of("nobody", Vec::new()), Ok(Vec::new()), "no address is the connection's to report");
    }

    #[test]
    fn an_ipv4_address_in_ipv6_clothes_is_judged_by_what_it_is() {
        assert_eq!(kind("::ffff:127.0.0.1"), Some("loopback"));
        assert_eq!(kind("::ffff:169.254.169.254"), Some("link-local"));
        assert_eq!(kind("::127.0.0.1"), Some("reserved"));
        assert_eq!(kind("64:ff9b::a9fe:a9fe"), Some("link-local"));
        assert_eq!(kind("2002:7f00:1::1"), Some("loopback"));
    }
}
