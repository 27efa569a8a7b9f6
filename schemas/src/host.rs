//! Host names as a request carries them, `host[:port]`: whom a browser believes it talks to.
//!
//! A web page can make its own name lead to this machine (DNS rebinding), but it cannot make a browser call this
//! machine `localhost`. So whoever trusts connections from here looks at the name as well.

use std::net::IpAddr;

/// The host without its port; an IPv6 address keeps its brackets.
pub fn host_of(authority: &str) -> &str {
    match authority.rsplit_once(':') {
        Some((host, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => host,
        _ => authority,
    }
}

/// Whether it is `localhost` or a loopback address, with any port.
pub fn is_loopback(authority: &str) -> bool {
    let host = host_of(authority);
    let address = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
    host.eq_ignore_ascii_case("localhost")
        || address.parse().is_ok_and(|address: IpAddr| address.to_canonical().is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_names_that_nobody_else_can_have_are_this_machine() {
        for here in [
            "localhost",
            "LocalHost:8080",
            "127.0.0.1",
            "127.0.0.1:80",
            "127.8.0.1:1",
            "[::1]",
            "[::1]:8080",
            "[::ffff:127.0.0.1]:1",
        ] {
            assert!(is_loopback(here), "{here}");
        }
        for elsewhere in [
            "",
            ":80",
            "evil.example",
            "evil.example:8080",
            "localhost.evil.example",
            "127.0.0.1.evil.example:1",
            "192.0.2.1:80",
            "[::2]:80",
            "[::1]evil.example",
            "0.0.0.0:80",
            "localhost:80@evil.example",
        ] {
            assert!(!is_loopback(elsewhere), "{elsewhere}");
        }
    }

    #[test]
    fn a_port_is_no_part_of_the_host() {
        for (authority, host) in [("a:1", "a"), ("a", "a"), ("[::1]:2", "[::1]"), ("[::1]", "[::1]")] {
            assert_eq!(host_of(authority), host);
        }
    }
}
