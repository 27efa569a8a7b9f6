//! Who may use the embedded broker, and for what.
//!
//! ```text
//! TLS handshake ── certificate ─┐
//! CONNECT ── user, password ────┼─▶ Access::admit ─▶ Identity: user + grants
//!                               │                         │
//! anonymous ── address ─────────┘       PUBLISH, SUBSCRIBE, will: Grants::may_...
//! ```
//! A name comes from a verified certificate or from a password, never from what a client merely says. Grants are
//! MQTT filters in which `{user}` stands for that name; what no filter covers is refused.

mod guest;
mod topics;
pub mod users;

pub(super) use guest::Guest;
pub(super) use topics::{Grants, is_topic};

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;

use serde::Deserialize;

use iot_schemas::Result;

use self::users::{Users, check_name};

/// What can be set about access to the embedded broker.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct AccessConfig {
    /// Users and the hashes of their passwords, as `iotctl user add` writes them. Changes are seen at the next login.
    pub users_file: Option<PathBuf>,
    /// From where clients without a name may connect. If absent: from this machine, as long as there are neither
    /// users nor client certificates; else from nowhere.
    pub anonymous: Option<Anonymous>,
    /// What users may do who are not in [`Self::user_rights`].
    pub rights: Rights,
    /// What single users may do, instead of [`Self::rights`].
    pub user_rights: BTreeMap<String, Rights>,
    /// What clients without a name may do.
    pub anonymous_rights: Rights,
}

impl Default for AccessConfig {
    fn default() -> Self {
        Self {
            users_file: None,
            anonymous: None,
            rights: Rights::both("devices/{user}/#"),
            user_rights: BTreeMap::new(),
            anonymous_rights: Rights::both("#"),
        }
    }
}

/// From where clients without a name may connect.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Anonymous {
    /// Everybody must log in.
    Nowhere,
    /// From this machine. A proxy or tunnel that ends here makes everybody behind it local.
    Loopback,
    /// From everywhere.
    Anywhere,
}

/// MQTT filters; `{user}` in them is the name of whoever is connected.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Rights {
    /// Topics that may be published to.
    pub publish: Vec<String>,
    /// Topics that may be subscribed to; also by a narrower filter.
    pub subscribe: Vec<String>,
}

impl Rights {
    fn both(filter: &str) -> Self {
        Self { publish: vec![filter.to_owned()], subscribe: vec![filter.to_owned()] }
    }

    fn check(&self) -> Result<()> {
        self.publish.iter().chain(&self.subscribe).try_for_each(|filter| topics::check_filter(filter))
    }

    fn grants(&self, user: Option<&str>) -> Grants {
        Grants::new(&self.publish, &self.subscribe, user)
    }
}

/// The rules in force.
#[derive(Debug)]
pub struct Access {
    users: Option<Users>,
    anonymous: Anonymous,
    config: AccessConfig,
    has_users: bool,
}

/// What a client has shown, or says.
#[derive(Debug)]
pub(super) struct Claim<'a> {
    pub(super) peer: IpAddr,
    /// The name in a verified client certificate.
    pub(super) certificate: Option<&'a str>,
    pub(super) user: Option<&'a str>,
    pub(super) password: Option<&'a [u8]>,
}

/// Who a client is.
#[derive(Debug)]
pub(super) struct Identity {
    /// `None` if it is anonymous.
    pub(super) user: Option<String>,
    pub(super) grants: Grants,
}

/// Why a client is not let in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Denied {
    /// The name or the password is wrong, or they do not fit the certificate.
    Credentials,
    /// It has shown nothing and must.
    Anonymous,
    /// Too many passwords are being checked at this moment.
    Busy,
}

impl Access {
    /// Checks the settings and reads the users. `certificates` says whether a listener asks for client certificates,
    /// `insecure` that strangers are let in from everywhere where nothing else is set.
    pub fn open(config: AccessConfig, certificates: bool, insecure: bool) -> Result<Self> {
        config.rights.check()?;
        config.anonymous_rights.check()?;
        for (user, rights) in &config.user_rights {
            check_name(user)?;
            rights.check()?;
        }
        let has_users = config.users_file.is_some() || certificates;
        let anonymous = config.anonymous.unwrap_or(match (has_users, insecure) {
            (true, _) => Anonymous::Nowhere,
            (false, true) => Anonymous::Anywhere,
            (false, false) => Anonymous::Loopback,
        });
        let users = config.users_file.as_deref().map(Users::open).transpose()?;
        Ok(Self { users, anonymous, config, has_users })
    }

    /// Whether strangers are let in on all addresses.
    pub fn is_open(&self) -> bool {
        self.anonymous == Anonymous::Anywhere
    }

    /// Whether anybody at all could connect to a listener at `addr`.
    pub fn is_useful_on(&self, addr: SocketAddr) -> bool {
        self.has_users || self.is_open() || (addr.ip().is_loopback() && self.anonymous == Anonymous::Loopback)
    }

    /// Decides who a client is. Checking a password takes some ten milliseconds and some memory, so only a few
    /// are checked at a time.
    pub(super) async fn admit(&self, claim: Claim<'_>) -> Result<Identity, Denied> {
        match (claim.certificate, claim.user) {
            (Some(subject), said) => {
                if check_name(subject).is_err() || said.is_some_and(|said| said != subject) {
                    return Err(Denied::Credentials);
                }
                Ok(self.named(subject))
            }
            (None, Some(user)) => match &self.users {
                Some(users) => {
                    users.verify(claim.peer, user, claim.password.unwrap_or_default()).await?;
                    Ok(self.named(user))
                }
                // Nobody can vouch for the name, so it is worth nothing.
                None => self.stranger(claim.peer),
            },
            (None, None) => self.stranger(claim.peer),
        }
    }

    /// Whether a client at `peer` that shows nothing would be let in.
    pub(super) fn welcomes_strangers_from(&self, peer: IpAddr) -> bool {
        match self.anonymous {
            Anonymous::Nowhere => false,
            Anonymous::Loopback => peer.to_canonical().is_loopback(),
            Anonymous::Anywhere => true,
        }
    }

    fn named(&self, user: &str) -> Identity {
        let rights = self.config.user_rights.get(user).unwrap_or(&self.config.rights);
        Identity { user: Some(user.to_owned()), grants: rights.grants(Some(user)) }
    }

    fn stranger(&self, peer: IpAddr) -> Result<Identity, Denied> {
        match self.welcomes_strangers_from(peer) {
            true => Ok(Identity { user: None, grants: self.config.anonymous_rights.grants(None) }),
            false => Err(Denied::Anonymous),
        }
    }
}

/// Where nothing is set: strangers from this machine may do everything, nobody else gets in.
impl Default for Access {
    fn default() -> Self {
        let config = AccessConfig::default();
        Self { users: None, anonymous: Anonymous::Loopback, config, has_users: false }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HERE: IpAddr = IpAddr::V4(std::net::Ipv4Addr::LOCALHOST);
    const ELSEWHERE: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 1));

    fn claim(peer: IpAddr) -> Claim<'static> {
        Claim { peer, certificate: None, user: None, password: None }
    }

    fn access(config: AccessConfig, certificates: bool, insecure: bool) -> Access {
        Access::open(config, certificates, insecure).expect("good settings")
    }

    async fn lets_strangers_in(access: &Access) -> (bool, bool) {
        (access.admit(claim(HERE)).await.is_ok(), access.admit(claim(ELSEWHERE)).await.is_ok())
    }

    #[tokio::test]
    async fn strangers_come_from_this_machine_unless_there_are_users_or_it_is_said() {
        let of = |anonymous| AccessConfig { anonymous, ..AccessConfig::default() };
        let (none, all) = (None, Some(Anonymous::Anywhere));
        assert_eq!(lets_strangers_in(&access(of(none), false, false)).await, (true, false));
        assert_eq!(lets_strangers_in(&access(of(none), false, true)).await, (true, true));
        assert_eq!(lets_strangers_in(&access(of(none), true, true)).await, (false, false));
        assert_eq!(lets_strangers_in(&access(of(all), true, false)).await, (true, true));
        let addr = "192.0.2.1:1883".parse().expect("an address");
        assert!(!access(of(none), false, false).is_useful_on(addr));
        assert!(access(of(none), true, false).is_useful_on(addr));
    }

    #[tokio::test]
    async fn a_certificate_gives_the_name_and_another_name_is_not_believed() {
        let access = access(AccessConfig::default(), true, false);
        let with = |subject, user| Claim { certificate: Some(subject), user, ..claim(ELSEWHERE) };
        let identity = access.admit(with("oven-1", None)).await.expect("let in");
        assert_eq!(identity.user.as_deref(), Some("oven-1"));
        assert!(identity.grants.may_publish("devices/oven-1/telemetry"));
        assert!(!identity.grants.may_publish("devices/oven-2/telemetry"));
        assert!(access.admit(with("oven-1", Some("oven-1"))).await.is_ok());
        assert!(access.admit(with("oven-1", Some("oven-2"))).await.is_err());
        for subject in ["+", "#", "a/b", ""] {
            assert!(access.admit(with(subject, None)).await.is_err(), "{subject}");
        }
    }

    #[tokio::test]
    async fn a_user_with_rights_of_his_own_has_only_those() {
        let rights = Rights { publish: Vec::new(), subscribe: vec!["#".to_owned()] };
        let user_rights = [("wall".to_owned(), rights)].into();
        let access = access(AccessConfig { user_rights, ..AccessConfig::default() }, true, false);
        let claim = Claim { certificate: Some("wall"), ..claim(ELSEWHERE) };
        let identity = access.admit(claim).await.expect("let in");
        assert!(!identity.grants.may_publish("devices/wall/x"));
        assert!(identity.grants.may_subscribe("devices/+/telemetry"));
    }

    #[test]
    fn a_bad_filter_is_refused_at_once() {
        for bad in ["", "a/#/b", "a+/b", "a/{device}"] {
            let rights = Rights { publish: vec![bad.to_owned()], subscribe: Vec::new() };
            let config = AccessConfig { rights, ..AccessConfig::default() };
            assert!(Access::open(config, false, false).is_err(), "{bad:?}");
        }
    }
}
