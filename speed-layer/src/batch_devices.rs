//! Whose rows they are: the devices of one micro-batch, found once for everything that is kept per device.

use ahash::HashMap;
use arrow::array::{Array, AsArray, RecordBatch};
use iot_schemas::layout::DEVICE_ID;

/// The devices of a micro-batch, each with a slot from 0 on, in the order of their first rows.
///
/// Costs a comparison for a row of the same device as the row before, a look-up for others.
#[derive(Debug, Default)]
pub(crate) struct BatchDevices<'a> {
    names: Vec<&'a str>,
    slots: Vec<u32>,
}

impl<'a> BatchDevices<'a> {
    /// Those of a batch with a column of device ids; of another, none.
    pub(crate) fn of(rows: &'a RecordBatch) -> Self {
        let column = rows.column_by_name(DEVICE_ID).and_then(|column| column.as_string_opt::<i32>());
        let mut devices = Self::default();
        let Some(column) = column else { return devices };
        let mut known: HashMap<&str, u32> = HashMap::default();
        devices.slots.reserve_exact(column.len());
        let mut slot = 0;
        for row in 0..rows.num_rows() {
            let name = column.value(row);
            if devices.names.get(slot as usize).is_none_or(|before| *before != name) {
                let next = devices.names.len() as u32;
                slot = *known.entry(name).or_insert(next);
                if slot == next {
                    devices.names.push(name);
                }
            }
            devices.slots.push(slot);
        }
        devices
    }

    /// The name of each slot's device.
    pub(crate) fn names(&self) -> &[&'a str] {
        &self.names
    }

    /// Each row's slot. Empty if the rows tell no devices.
    pub(crate) fn slots(&self) -> &[u32] {
        &self.slots
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use arrow::array::{Int64Array, StringArray};

    use super::*;

    #[test]
    fn each_device_has_one_slot_in_the_order_of_first_rows() {
        let ids = StringArray::from(vec!["b", "b", "a", "b", "", "a", "a"]);
        let rows = RecordBatch::try_from_iter([(DEVICE_ID, Arc::new(ids) as _)]).expect("rows");
        let devices = BatchDevices::of(&rows);
        assert_eq!(devices.names(), ["b", "a", ""]);
        assert_eq!(devices.slots(), [0, 0, 1, 0, 2, 1, 1]);
    }

    #[test]
    fn rows_that_tell_no_devices_have_none() {
        let numbers = Int64Array::from(vec![1, 2]);
        for name in ["other", DEVICE_ID] {
            let rows = RecordBatch::try_from_iter([(name, Arc::new(numbers.clone()) as _)]).expect("rows");
            assert!(BatchDevices::of(&rows).slots().is_empty(), "{name}");
        }
    }
}
