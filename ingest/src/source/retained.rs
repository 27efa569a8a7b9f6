//! How many retained messages the embedded broker keeps.
//!
//! The broker has such a limit itself, but refuses a message over it before ingest is asked. What a device says would be
//! lost because it asked for it to be retained, so that limit is off and this one stands in its place.

use std::sync::{Arc, OnceLock, Weak};

use mqtt5::broker::router::MessageRouter;

/// Whether there is room for one more. Messages that arrive at the same moment are not counted against each other, so
/// there may be as many too many as there are clients.
#[derive(Debug)]
pub(super) struct Retained {
    /// 0 stands for no limit, as it does in the broker.
    max: usize,
    /// Known once the router is made, which needs the hook that asks here.
    router: OnceLock<Weak<MessageRouter>>,
}

impl Retained {
    pub(super) fn new(max: usize) -> Arc<Self> {
        Arc::new(Self { max, router: OnceLock::new() })
    }

    /// Counts the messages of this router.
    pub(super) fn count_in(&self, router: &Arc<MessageRouter>) {
        // There is one router, so there is never another answer.
        _ = self.router.set(Arc::downgrade(router));
    }

    /// Whether a message of this topic can be kept: it replaces an older one, or there are not too many yet.
    pub(super) async fn has_room_for(&self, topic: &str) -> bool {
        let Some(router) = self.router.get().and_then(Weak::upgrade) else { return true };
        self.max == 0 || router.retained_count().await < self.max || router.has_retained_message(topic).await
    }
}
