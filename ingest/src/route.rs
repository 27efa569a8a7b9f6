//! Which streams want a topic.

use std::sync::Arc;

use ahash::HashMap;

use iot_schemas::catalog::StreamDef;
use iot_schemas::topic::TopicPattern;

use crate::message::WRITTEN;

/// Topics whose routes are remembered. A fleet with more topics resolves them more often, that is all.
const MAX_CACHED_TOPICS: usize = 65_536;

/// Whether `pattern` matches `topic`. As in MQTT, a wildcard does not match a first level that begins with `$`.
pub(crate) fn matches(pattern: &TopicPattern, topic: &str) -> bool {
    if topic.starts_with('$') && !pattern.to_string().starts_with('$') {
        return false;
    }
    pattern.capture(topic).is_some()
}

/// The patterns of all streams: decides whether a message is taken at all.
#[derive(Debug, Default)]
pub(crate) struct Matcher {
    patterns: Vec<TopicPattern>,
    /// The names of the streams, to which events can be written.
    streams: Vec<String>,
}

impl Matcher {
    pub(crate) fn new<'a>(defs: impl IntoIterator<Item = &'a Arc<StreamDef>>) -> Self {
        let (mut patterns, mut streams) = (Vec::new(), Vec::new());
        for def in defs {
            patterns.extend(def.topics.iter().cloned());
            patterns.extend(def.status.iter().flat_map(|status| status.topics.iter().cloned()));
            streams.push(def.name.clone());
        }
        Self { patterns, streams }
    }

    pub(crate) fn wants(&self, topic: &str) -> bool {
        if let Some(stream) = topic.strip_prefix(WRITTEN) {
            return self.streams.iter().any(|name| name == stream);
        }
        self.patterns.iter().any(|pattern| matches(pattern, topic))
    }

    /// The MQTT filters, each once.
    pub(crate) fn filters(&self) -> Vec<String> {
        let mut filters: Vec<String> = self.patterns.iter().map(TopicPattern::filter).collect();
        filters.sort();
        filters.dedup();
        filters
    }
}

/// A bounded memory of what was found out about topics.
#[derive(Debug)]
pub(crate) struct TopicCache<T> {
    routes: HashMap<Box<str>, Arc<T>>,
}

impl<T> Default for TopicCache<T> {
    fn default() -> Self {
        Self { routes: HashMap::default() }
    }
}

impl<T> TopicCache<T> {
    pub(crate) fn get(&self, topic: &str) -> Option<Arc<T>> {
        self.routes.get(topic).cloned()
    }

    /// Remembers `route`; when there are too many, all others are forgotten.
    pub(crate) fn put(&mut self, topic: &str, route: T) -> Arc<T> {
        if self.routes.len() >= MAX_CACHED_TOPICS {
            self.routes.clear();
        }
        let route = Arc::new(route);
        self.routes.insert(topic.into(), route.clone());
        route
    }

    pub(crate) fn clear(&mut self) {
        self.routes.clear();
    }
}
