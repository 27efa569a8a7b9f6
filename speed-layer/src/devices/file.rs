//! The file that keeps the registry, `devices.ckpt` beside the checkpoint of the rules.
//!
//! It is replaced as a whole, before the log that it was made from may be trimmed. One that is damaged, or of another
//! version, is set aside: counts then come from the raw tables, and states from what comes next.

use std::path::Path;

use super::registry::Registry;
use crate::checkpoint_file::{read_checked, write_checked};
use crate::error::Result;

const FILE: &str = "devices.ckpt";
const HEAD: &str = "iot-devices 1";

/// Writes the registry, if it has changed.
pub(crate) fn save(checkpoint: &Path, registry: &mut Registry) -> Result<()> {
    if registry.is_dirty {
        write_checked(&checkpoint.with_file_name(FILE), HEAD, registry)?;
        registry.is_dirty = false;
    }
    Ok(())
}

/// Reads it; an empty one if there is none that can be used.
pub(crate) fn load(checkpoint: &Path) -> Result<Registry> {
    let path = checkpoint.with_file_name(FILE);
    Ok(read_checked(&path, HEAD, "devices are taken from the raw tables")?.unwrap_or_default())
}
