//! The time, passed in instead of looked up, so that tests can hold it still.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

/// Where a component takes the present from: microseconds since 1970, UTC.
#[derive(Clone)]
pub struct Clock(Source);

#[derive(Clone)]
enum Source {
    System,
    Manual(Arc<AtomicI64>),
}

impl Clock {
    /// The machine's clock.
    pub fn system() -> Self {
        Self(Source::System)
    }

    /// A clock that stands at `micros` until whoever holds the handle moves it.
    pub fn manual(micros: i64) -> (Self, Arc<AtomicI64>) {
        let hand = Arc::new(AtomicI64::new(micros));
        (Self(Source::Manual(hand.clone())), hand)
    }

    /// Microseconds since 1970, UTC.
    #[expect(clippy::disallowed_methods, reason = "this is the one place that reads the machine's clock")]
    pub fn now_micros(&self) -> i64 {
        match &self.0 {
            Source::System => chrono::Utc::now().timestamp_micros(),
            Source::Manual(hand) => hand.load(Ordering::Relaxed),
        }
    }
}

impl fmt::Debug for Clock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.0 {
            Source::System => "Clock(system)",
            Source::Manual(_) => "Clock(manual)",
        })
    }
}
