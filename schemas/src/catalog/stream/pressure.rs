//! What a stream document says about more than can be taken: `on_pressure`, `rate_limit`.

use serde::{Deserialize, Serialize};

/// What happens to messages while more come than can be taken: the queue in front of the log is half full, the log
/// cannot be written, or as much is unsealed as may be.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OnPressure {
    /// Nothing is acknowledged until there is room: gateways and brokers hold what they have. Nothing is lost.
    #[default]
    Wait,
    /// What comes is acknowledged and not stored.
    ShedNewest,
    /// What has waited for a second is acknowledged and not stored, so that what comes is stored sooner.
    ShedOldest,
    /// One of so many messages waits, the others are acknowledged and not stored.
    Sample(u32),
}

/// How many messages of a device are stored.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RateLimit {
    /// Messages per second and device, in the long run. What comes beyond is acknowledged and not stored.
    pub per_device: f64,
    /// So many may come at once; as many as in a second, if absent, and at least one.
    #[serde(default)]
    pub burst: Option<u32>,
}

impl RateLimit {
    /// The time that one message takes up, and the time by which a device may be ahead, in microseconds.
    pub fn interval_and_tolerance(&self) -> (i64, i64) {
        let interval = 1e6 / self.per_device;
        let burst = self.burst.map_or(self.per_device, f64::from).max(1.0);
        (interval as i64, (interval * (burst - 1.0)) as i64)
    }

    pub(super) fn check(&self) -> Result<(), String> {
        if !(self.per_device.is_finite() && self.per_device >= 0.001 && self.per_device <= 1e6) {
            return Err("`rate_limit.per_device` must lie between 0.001 and 1000000 messages a second".into());
        }
        match self.burst {
            Some(0) => Err("`rate_limit.burst` is 0, so nothing would be stored; give at least 1".into()),
            _ => Ok(()),
        }
    }
}

impl OnPressure {
    pub(super) fn check(self) -> Result<(), String> {
        match self {
            Self::Sample(0 | 1) => {
                Err("`on_pressure: {sample: N}` keeps one of N messages; N must be at least 2".into())
            }
            _ => Ok(()),
        }
    }
}
