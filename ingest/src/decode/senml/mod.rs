//! SenML packs (RFC 8428), in JSON and CBOR: records are resolved and gathered to rows.
//!
//! The records of one base name and one time are one event. The base name is the device, unless the topic names
//! it; the names of the records are the columns. What else a record says stands beside its value: the unit of
//! `temperature` in `temperature_unit`, the sum in `temperature_sum`, the update time in `temperature_update_time`.

mod cbor;
mod json;
mod pack;
mod record;

use super::fields::Fields;
use super::staging::Staging;

use pack::Pack;

/// Collects the rows of a pack in JSON, or says why it is no good.
pub(super) fn decode_json(
    payload: &[u8],
    arrival: i64,
    fields: &mut Fields,
    staging: &mut Staging,
) -> Result<(), String> {
    let mut pack = Pack::new(arrival);
    json::read(payload, &mut pack)?;
    pack.store(fields, staging)
}

/// Collects the rows of a pack in CBOR, or says why it is no good.
pub(super) fn decode_cbor(
    payload: &[u8],
    arrival: i64,
    fields: &mut Fields,
    staging: &mut Staging,
) -> Result<(), String> {
    let mut pack = Pack::new(arrival);
    cbor::read(payload, &mut pack)?;
    pack.store(fields, staging)
}
