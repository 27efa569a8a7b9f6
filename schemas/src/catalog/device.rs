//! `kind: device`

use std::collections::BTreeMap;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::{Kind, duration_text};

/// Bytes of a device's name. Longer ones come from mistakes, not from fleets.
const MAX_NAME_BYTES: usize = 512;

/// A device that is known before it sends anything, and what people want to know about it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DeviceDef {
    /// Always [`Kind::Device`]; present because the document carries it.
    pub kind: Kind,
    /// The device id, as it stands in the column `device_id`. Other than the names of streams, views and rules it
    /// may have any characters but control characters.
    pub name: String,
    /// The stream that it belongs to. Absent: whichever it sends to.
    #[serde(default)]
    pub stream: Option<String>,
    /// What people tell devices apart by.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
    /// The expected interval between its events; that of its stream if absent.
    #[serde(default, with = "duration_text")]
    pub cadence: Option<Duration>,
    /// What it is.
    #[serde(default)]
    pub description: Option<String>,
}

impl DeviceDef {
    /// Whether the declaration is about the device of this name in that stream.
    pub fn is_in(&self, stream: &str) -> bool {
        self.stream.as_deref().is_none_or(|own| own == stream)
    }

    pub(super) fn check(&self) -> Result<(), String> {
        match self.cadence {
            Some(cadence) if cadence.is_zero() => Err("`cadence` is zero; leave it out instead".into()),
            _ => Ok(()),
        }
    }
}

/// Whether a device may be called so.
pub(super) fn check_name(name: &str) -> Result<(), String> {
    if name.is_empty() || name.len() > MAX_NAME_BYTES {
        return Err(format!("the name of a device has 1 to {MAX_NAME_BYTES} bytes, this has {}", name.len()));
    }
    match name.chars().find(|c| c.is_control()) {
        Some(c) => Err(format!("the name of a device cannot contain the control character {c:?}")),
        None => Ok(()),
    }
}
