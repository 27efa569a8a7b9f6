//! Which topics and filters a client may use.

use iot_schemas::{Error, Result};

/// Stands for the user's name in a filter.
const USER: &str = "{user}";

/// What one client may do: its filters, with its name in them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(in crate::source) struct Grants {
    publish: Vec<String>,
    subscribe: Vec<String>,
}

impl Grants {
    /// Filters with `{user}` in them are left out where there is no user.
    pub(super) fn new(publish: &[String], subscribe: &[String], user: Option<&str>) -> Self {
        let filled = |filters: &[String]| {
            let fill = |filter: &String| match user {
                Some(user) => Some(filter.replace(USER, user)),
                None => (!filter.contains(USER)).then(|| filter.clone()),
            };
            filters.iter().filter_map(fill).collect()
        };
        Self { publish: filled(publish), subscribe: filled(subscribe) }
    }

    /// Whether a message may be published to `topic`, which must be one: a filter would be covered as well.
    pub(in crate::source) fn may_publish(&self, topic: &str) -> bool {
        is_topic(topic) && self.publish.iter().any(|filter| covers(filter, topic))
    }

    /// Whether everything that `filter` matches may be read. A shared subscription reads what its filter matches.
    pub(in crate::source) fn may_subscribe(&self, filter: &str) -> bool {
        let filter = match filter.strip_prefix("$share/") {
            Some(shared) => match shared.split_once('/') {
                Some((_, filter)) => filter,
                None => return false,
            },
            None => filter,
        };
        self.subscribe.iter().any(|allowed| covers(allowed, filter))
    }
}

/// Whether a message may have this topic at all, whoever sends it.
pub(in crate::source) fn is_topic(topic: &str) -> bool {
    !topic.is_empty() && !topic.contains(['+', '#', '\0'])
}

/// Whether `allowed` matches every topic that `asked` matches. A topic is a filter that matches itself only.
fn covers(allowed: &str, asked: &str) -> bool {
    if asked.starts_with('$') && allowed.starts_with(['+', '#']) {
        return false;
    }
    let mut asked = asked.split('/');
    for level in allowed.split('/') {
        match (level, asked.next()) {
            // Also the level above: `a/#` matches `a`.
            ("#", _) => return true,
            (_, None | Some("#")) => return false,
            ("+", Some(_)) => {}
            (level, Some(asked)) if level == asked => {}
            _ => return false,
        }
    }
    asked.next().is_none()
}

/// Refuses a filter that MQTT would not take.
pub(super) fn check_filter(filter: &str) -> Result<()> {
    let wrong = |why: &str| Err(Error::invalid(format!("access: the filter `{filter}`: {why}")));
    if filter.is_empty() || filter.contains('\0') {
        return wrong("it is empty or contains a NUL");
    }
    let levels: Vec<&str> = filter.split('/').collect();
    for (i, level) in levels.iter().enumerate() {
        if *level == "#" && i + 1 < levels.len() {
            return wrong("`#` may only be the last level");
        }
        if level.len() > 1 && level.contains(['+', '#']) {
            return wrong("a wildcard must take up a whole level");
        }
        if level.replace(USER, "").contains(['{', '}']) {
            return wrong("the only name in braces is `{user}`");
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_filter_covers_what_it_matches_and_no_more() {
        for (allowed, asked, expect) in [
            ("devices/a/#", "devices/a/telemetry", true),
            ("devices/a/#", "devices/a", true),
            ("devices/a/#", "devices/a/#", true),
            ("devices/a/#", "devices/a/+", true),
            ("devices/a/#", "devices/+/telemetry", false),
            ("devices/a/#", "devices/ab/telemetry", false),
            ("devices/a/#", "#", false),
            ("devices/+/x", "devices/+/x", true),
            ("devices/+/x", "devices/#", false),
            ("devices/+", "devices", false),
            ("devices/+", "devices/", true),
            ("devices/+", "devices/a/b", false),
            ("+/+", "#", false),
            ("#", "a/b", true),
            ("#", "$SYS/broker", false),
            ("+/broker", "$SYS/broker", false),
            ("$SYS/#", "$SYS/broker", true),
        ] {
            assert_eq!(covers(allowed, asked), expect, "{allowed} covers {asked}");
        }
    }

    #[test]
    fn a_message_has_a_topic_and_no_filter() {
        let all = ["#", "#write/#"].map(str::to_owned);
        let grants = Grants::new(&all, &all, None);
        assert!(grants.may_publish("devices/a/x") && grants.may_subscribe("devices/a/#"));
        for filter in ["devices/a/#", "devices/+/x", "#write/readings", "#", "", "a\0"] {
            assert!(!grants.may_publish(filter), "{filter:?}");
        }
    }

    #[test]
    fn a_shared_subscription_reads_what_its_filter_reads() {
        let grants = Grants::new(&[], &["devices/{user}/#".to_owned()], Some("a"));
        assert!(grants.may_subscribe("$share/g/devices/a/x"));
        assert!(!grants.may_subscribe("$share/g/devices/b/x"));
        assert!(!grants.may_subscribe("$share/devices"));
    }

    #[test]
    fn a_filter_for_users_is_of_no_use_to_strangers() {
        let filters = ["devices/{user}/#".to_owned(), "open/#".to_owned()];
        let grants = Grants::new(&filters, &[], None);
        assert!(grants.may_publish("open/x") && !grants.may_publish("devices/{user}/x"));
    }
}
