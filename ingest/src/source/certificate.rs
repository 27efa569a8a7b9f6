//! Who a client certificate is about: its common name, or else its first DNS name.
//!
//! The certificate has been verified before anybody asks, so this reads only the few fields that it needs
//! (RFC 5280, DER) and takes whatever it does not understand for "nobody".

const SEQUENCE: u8 = 0x30;
const SET: u8 = 0x31;
const OID: u8 = 0x06;
const OCTET_STRING: u8 = 0x04;
const UTF8_STRING: u8 = 0x0c;
const PRINTABLE_STRING: u8 = 0x13;
const IA5_STRING: u8 = 0x16;
/// `[0]`: the version of a certificate.
const VERSION: u8 = 0xa0;
/// `[3]`: the extensions of a certificate.
const EXTENSIONS: u8 = 0xa3;
/// `[2]` of a subject alternative name: a DNS name.
const DNS_NAME: u8 = 0x82;
/// 2.5.4.3
const COMMON_NAME: &[u8] = &[0x55, 0x04, 0x03];
/// 2.5.29.17
const SUBJECT_ALT_NAME: &[u8] = &[0x55, 0x1d, 0x11];

/// The name in a DER certificate.
pub(super) fn subject(der: &[u8]) -> Option<String> {
    let (certificate, _) = expect(der, SEQUENCE)?;
    let (mut fields, _) = expect(certificate, SEQUENCE)?;
    if let Some((_, rest)) = expect(fields, VERSION) {
        fields = rest;
    }
    // Serial number, algorithm, issuer, validity.
    for _ in 0..4 {
        fields = take(fields)?.2;
    }
    let (subject, rest) = expect(fields, SEQUENCE)?;
    common_name(subject).or_else(|| dns_name(rest))
}

fn common_name(mut names: &[u8]) -> Option<String> {
    while let Some((set, rest)) = expect(names, SET) {
        names = rest;
        let (pair, _) = expect(set, SEQUENCE)?;
        let (oid, value) = expect(pair, OID)?;
        let (tag, text, _) = take(value)?;
        if oid == COMMON_NAME && [UTF8_STRING, PRINTABLE_STRING, IA5_STRING].contains(&tag) {
            return std::str::from_utf8(text).ok().map(str::to_owned);
        }
    }
    None
}

/// `fields` begins after the subject.
fn dns_name(mut fields: &[u8]) -> Option<String> {
    let mut extensions = loop {
        let (tag, content, rest) = take(fields)?;
        if tag == EXTENSIONS {
            break expect(content, SEQUENCE)?.0;
        }
        fields = rest;
    };
    while let Some((extension, rest)) = expect(extensions, SEQUENCE) {
        extensions = rest;
        let (oid, mut value) = expect(extension, OID)?;
        if oid != SUBJECT_ALT_NAME {
            continue;
        }
        // The flag `critical` may stand before the value.
        let (mut tag, mut content, mut rest) = take(value)?;
        while tag != OCTET_STRING {
            value = rest;
            (tag, content, rest) = take(value)?;
        }
        let (mut names, _) = expect(content, SEQUENCE)?;
        while let Some((tag, name, rest)) = take(names) {
            if tag == DNS_NAME {
                return std::str::from_utf8(name).ok().map(str::to_owned);
            }
            names = rest;
        }
    }
    None
}

/// The content of a value with this tag, and what follows it.
fn expect(bytes: &[u8], tag: u8) -> Option<(&[u8], &[u8])> {
    take(bytes).filter(|(found, _, _)| *found == tag).map(|(_, content, rest)| (content, rest))
}

/// The tag and the content of the first value, and what follows it.
fn take(bytes: &[u8]) -> Option<(u8, &[u8], &[u8])> {
    let (&tag, rest) = bytes.split_first()?;
    let (&first, rest) = rest.split_first()?;
    let (length, rest) = match first {
        0..=0x7f => (usize::from(first), rest),
        0x81..=0x84 => {
            let (digits, rest) = rest.split_at_checked(usize::from(first & 0x7f))?;
            (digits.iter().fold(0, |length, digit| (length << 8) | usize::from(*digit)), rest)
        }
        _ => return None,
    };
    let (content, rest) = rest.split_at_checked(length)?;
    Some((tag, content, rest))
}

#[cfg(test)]
mod tests {
    use rcgen::{CertificateParams, DnType, KeyPair};

    use super::*;

    fn certificate(common_name: Option<&str>, dns: &[&str]) -> Vec<u8> {
        let dns: Vec<String> = dns.iter().map(ToString::to_string).collect();
        let mut params = CertificateParams::new(dns).expect("names");
        params.distinguished_name = rcgen::DistinguishedName::new();
        params.distinguished_name.push(DnType::OrganizationName, "plant");
        if let Some(name) = common_name {
            params.distinguished_name.push(DnType::CommonName, name);
        }
        let key = KeyPair::generate().expect("a key");
        params.self_signed(&key).expect("a certificate").der().to_vec()
    }

    #[test]
    fn the_common_name_is_the_user_or_else_the_first_dns_name() {
        assert_eq!(subject(&certificate(Some("oven-1"), &["x.example"])).as_deref(), Some("oven-1"));
        assert_eq!(subject(&certificate(None, &["a.example", "b.example"])).as_deref(), Some("a.example"));
        assert_eq!(subject(&certificate(None, &[])), None);
    }

    #[test]
    fn damage_is_nobody_and_never_a_panic() {
        let whole = certificate(Some("oven-1"), &["x.example"]);
        for at in 0..whole.len() {
            let mut damaged = whole.clone();
            damaged[at] = 0xff;
            _ = subject(&damaged);
            _ = subject(&whole[..at]);
        }
        assert_eq!(subject(&[]), None);
    }
}
