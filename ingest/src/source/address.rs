//! Where a broker is: `mqtt://[user[:password]@]host[:port]`, `mqtts://` for TLS, or only `host[:port]`.

use std::fmt;
use std::str::FromStr;

use url::Url;

use iot_schemas::{Error, Result};

use super::secret::Secret;

/// A broker's address, taken apart. Printing it leaves the password out.
#[derive(Clone, PartialEq, Eq)]
pub struct BrokerUrl {
    /// A name or an IP address, an IPv6 one without brackets.
    pub host: String,
    /// 1883 or, over TLS, 8883 unless it says otherwise.
    pub port: u16,
    /// Whether to speak TLS.
    pub tls: bool,
    /// The user name.
    pub user: Option<String>,
    /// The password. Prefer files and the environment: other users of a machine can read command lines.
    pub password: Option<Secret>,
}

impl FromStr for BrokerUrl {
    type Err = Error;

    /// The error does not repeat the text, which may hold a password.
    fn from_str(text: &str) -> Result<Self> {
        let wrong = |why: &str| {
            Error::invalid(format!("the broker address: {why}; write mqtt://host:1883 or mqtts://host:8883"))
        };
        let with_scheme = if text.contains("://") { text.to_owned() } else { format!("mqtt://{text}") };
        let url = Url::parse(&with_scheme).map_err(|e| wrong(&e.to_string()))?;
        let tls = match url.scheme() {
            "mqtt" | "tcp" => false,
            "mqtts" | "ssl" | "tls" => true,
            other => return Err(wrong(&format!("the scheme `{other}` is not supported"))),
        };
        let host =
            url.host_str().filter(|host| !host.is_empty()).ok_or_else(|| wrong("the host is missing"))?;
        let host = host.trim_start_matches('[').trim_end_matches(']').to_owned();
        if host.contains(char::is_whitespace) || host.contains('%') {
            return Err(wrong("the host has characters that no host has"));
        }
        let user = (!url.username().is_empty()).then(|| unescape(url.username()));
        let password = url.password().map(|password| Secret::new(unescape(password)));
        Ok(Self { host, port: url.port().unwrap_or(if tls { 8883 } else { 1883 }), tls, user, password })
    }
}

impl fmt::Display for BrokerUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.tls { "mqtts://" } else { "mqtt://" })?;
        if let Some(user) = &self.user {
            write!(f, "{user}@")?;
        }
        match self.host.contains(':') {
            true => write!(f, "[{}]:{}", self.host, self.port),
            false => write!(f, "{}:{}", self.host, self.port),
        }
    }
}

impl fmt::Debug for BrokerUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "BrokerUrl({self})")
    }
}

/// Undoes the `%` escapes of a URL.
fn unescape(text: &str) -> String {
    let query = format!("x={}", text.replace('+', "%2B").replace('&', "%26"));
    let mut pairs = url::form_urlencoded::parse(query.as_bytes());
    pairs.next().map(|(_, value)| value.into_owned()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(text: &str, expect: (&str, u16, bool)) {
        let url: BrokerUrl = text.parse().expect("an address");
        assert_eq!((url.host.as_str(), url.port, url.tls), expect, "{text}");
    }

    #[test]
    fn an_address_may_be_short_or_a_url() {
        check("127.0.0.1:1884", ("127.0.0.1", 1884, false));
        check("broker", ("broker", 1883, false));
        check("mqtts://broker", ("broker", 8883, true));
        check("mqtt://[::1]:1", ("::1", 1, false));
        for bad in ["", "http://x:1", "a b", "mqtt://", "mqtt://h:99999"] {
            assert!(bad.parse::<BrokerUrl>().is_err(), "{bad}");
        }
    }

    #[test]
    fn a_password_is_read_and_never_shown() {
        let url: BrokerUrl = "mqtt://us%40er:p+w%26@h:1".parse().expect("an address");
        assert_eq!(url.user.as_deref(), Some("us@er"));
        assert_eq!(url.password.as_ref().map(Secret::expose), Some("p+w&"));
        assert_eq!(format!("{url} {url:?}"), "mqtt://us@er@h:1 BrokerUrl(mqtt://us@er@h:1)");
        let error = "mqtt://u:hunter2@h:99999".parse::<BrokerUrl>().expect_err("no port").to_string();
        assert!(!error.contains("hunter2"), "{error}");
    }
}
