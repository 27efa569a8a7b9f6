//! Reading transitions back from disk.

use std::path::Path;

use iot_schemas::Result;
use iot_schemas::alert::{Transition, TransitionId};
use iot_schemas::log::Frames;

/// Up to `limit` transitions with numbers in (`after`, `up_to`], in order, out of frames that `wanted` accepts.
///
/// `up_to` is the newest confirmed number: a frame behind it may be on its way to disk and may yet be taken back.
pub(super) fn range(
    dir: &Path,
    after: TransitionId,
    up_to: TransitionId,
    limit: usize,
    wanted: impl Fn(&str) -> bool,
) -> Result<Vec<Transition>> {
    let mut found = Vec::new();
    for frame in Frames::open(dir, after)? {
        let frame = frame?;
        if frame.first > up_to || found.len() >= limit {
            break;
        }
        if !std::str::from_utf8(&frame.body).is_ok_and(&wanted) {
            continue;
        }
        let transitions = parse(&frame.body).unwrap_or_default().into_iter();
        found.extend(transitions.filter(|t| t.id > after && t.id <= up_to).take(limit - found.len()));
    }
    Ok(found)
}

/// The transitions of a frame; `None` if another version wrote it.
pub(super) fn parse(body: &[u8]) -> Option<Vec<Transition>> {
    serde_json::from_slice(body).ok()
}
