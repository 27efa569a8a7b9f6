//! The devices of one stream.

use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::Arc;

use ahash::HashMap;
use iot_schemas::position::Frontier;
use serde::{Deserialize, Serialize, Serializer};

use super::link::Link;
use super::seen::Seen;

/// What a device takes up beyond its name, about.
pub(super) const FIXED_BYTES: usize = 300;

/// The devices of one stream.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(super) struct Fleet {
    /// Rows up to here were in the raw table when the registry began with it.
    #[serde(default)]
    pub(super) seeded: Frontier,
    pub(super) devices: Devices,
}

/// One device in one stream.
#[derive(Debug, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct Device {
    /// `None`: it has only said whether it is there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) seen: Option<Seen>,
    #[serde(default)]
    pub(super) link: Link,
}

/// Devices, each with a place that it keeps. Written as a map by name.
#[derive(Debug, Default, Deserialize)]
#[serde(from = "BTreeMap<Arc<str>, Device>")]
pub(super) struct Devices {
    all: Vec<Device>,
    places: HashMap<Arc<str>, usize>,
    /// The places in the order of names.
    sorted: BTreeMap<Arc<str>, usize>,
}

impl Devices {
    pub(super) fn len(&self) -> usize {
        self.all.len()
    }

    /// Where a device is. One hash.
    pub(super) fn find(&self, name: &str) -> Option<usize> {
        self.places.get(name).copied()
    }

    /// A new device, about which nothing is known.
    pub(super) fn add(&mut self, name: Arc<str>) -> usize {
        self.insert(name, Device::default())
    }

    /// The device at a place that [`Self::find`] or [`Self::add`] has given.
    pub(super) fn at(&mut self, place: usize) -> &mut Device {
        &mut self.all[place]
    }

    /// Names and devices in the order of names.
    pub(super) fn iter(&self) -> impl Iterator<Item = (&Arc<str>, &Device)> {
        self.sorted.iter().map(|(name, place)| (name, &self.all[*place]))
    }

    /// Does `change` to every device whose name begins with `prefix`. Costs nothing for the others.
    pub(super) fn with_prefix(&mut self, prefix: &str, mut change: impl FnMut(&mut Device)) {
        let from = (Bound::Included(prefix), Bound::Unbounded);
        let range = self.sorted.range::<str, _>(from).take_while(|(name, _)| name.starts_with(prefix));
        range.for_each(|(_, place)| change(&mut self.all[*place]));
    }

    fn insert(&mut self, name: Arc<str>, device: Device) -> usize {
        let place = self.all.len();
        self.all.push(device);
        self.places.insert(name.clone(), place);
        self.sorted.insert(name, place);
        place
    }
}

impl From<BTreeMap<Arc<str>, Device>> for Devices {
    fn from(map: BTreeMap<Arc<str>, Device>) -> Self {
        let mut devices = Self::default();
        for (name, device) in map {
            devices.insert(name, device);
        }
        devices
    }
}

impl Serialize for Devices {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.iter())
    }
}

/// The room that all devices share.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(super) struct Room {
    pub(super) bytes: usize,
    /// Events and status messages of devices that did not fit.
    pub(super) unregistered: u64,
    #[serde(skip)]
    pub(super) limit: Option<usize>,
}

/// What all devices together may take up: their names, and [`FIXED_BYTES`] each. That is about 200,000 of them.
pub(super) const MAX_BYTES: usize = 64 << 20;

impl Room {
    /// The place of a device in a fleet, which is registered if it is new and there is room.
    pub(super) fn place(&mut self, devices: &mut Devices, name: &str) -> Option<usize> {
        devices.find(name).or_else(|| {
            let bytes = self.bytes + name.len() + FIXED_BYTES;
            let fits = bytes <= self.limit.unwrap_or(MAX_BYTES);
            fits.then(|| {
                self.bytes = bytes;
                devices.add(name.into())
            })
        })
    }
}
