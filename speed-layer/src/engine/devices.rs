//! The registry of devices in the engine: what each group does to it, and who is told.

use std::sync::Arc;

use arrow::array::RecordBatch;
use iot_schemas::catalog::DeviceDef;
use iot_schemas::micro_batch::LogGroup;

use super::{Engine, SpeedLayer};
use crate::batch_devices::BatchDevices;
use crate::devices;
use crate::error::Result;

impl SpeedLayer {
    /// The table `devices` as it is now, of one device id only if one is given. Columns: [`crate::device_schema`].
    ///
    /// Costs a row per device that has been seen or declared.
    pub fn device_rows(&self, device: Option<&str>) -> RecordBatch {
        let now = self.clock.now_micros();
        self.declared.read().rows(&self.registry.read(), &*self.raw, device, now)
    }

    /// Declares a device, or declares it otherwise.
    pub fn put_device(&self, def: Arc<DeviceDef>) {
        self.declared.write().put(def);
    }

    /// Takes a declaration back. What the device has sent stays.
    pub fn remove_device(&self, name: &str) {
        self.declared.write().remove(name);
    }
}

impl Engine {
    /// Declares a device before the line runs.
    pub fn put_device(&mut self, def: Arc<DeviceDef>) {
        self.shared.put_device(def);
    }

    /// Takes up the registry of devices where the last process left it. Streams that it does not know begin with
    /// what their raw tables hold, so call it before anything is replayed.
    pub async fn restore_devices(&mut self) -> Result<()> {
        let mut registry = devices::load(&self.config.checkpoint_path)?;
        devices::seed(&mut registry, &*self.raw).await?;
        *self.shared.registry.write() = registry;
        self.save_devices()
    }

    /// Takes a group in. `devices` are those of each of its batches.
    pub(super) fn register(&self, group: &LogGroup, devices: &[BatchDevices<'_>]) {
        let declared = self.shared.declared.read();
        self.shared.registry.write().take(group, devices, &declared.terms(&*self.raw));
    }

    pub(super) fn save_devices(&self) -> Result<()> {
        devices::save(&self.config.checkpoint_path, &mut self.shared.registry.write())
    }
}
