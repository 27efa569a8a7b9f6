//! Recognises a message that is delivered again because its acknowledgement was lost.
//!
//! A delivery is known by the session that delivers, its packet identifier, and a fingerprint of topic and
//! payload. Only a delivery that *says* it may be a copy (DUP) is ever looked up: packet identifiers are used
//! again, and a sensor may well send the same reading twice.
//!
//! The window is bounded: per session the last deliveries, as many as can be in flight at once, and over all
//! sessions [`MAX_ENTRIES`]; the sessions that have been silent for the longest are forgotten first. No I/O
//! here: the log writer feeds it, and saves [`Redelivery::encode`] before it trims the log.

use std::collections::VecDeque;

use ahash::HashMap;

use iot_schemas::position::Seq;

/// Deliveries that may be unacknowledged per session: what both sources announce as their receive maximum.
pub(crate) const RECEIVE_MAXIMUM: u16 = 10_000;
/// Deliveries that are remembered per session: all that can be unacknowledged.
pub(crate) const MAX_PER_CLIENT: usize = RECEIVE_MAXIMUM as usize;
/// Deliveries that are remembered over all sessions, about 50 bytes each.
pub(crate) const MAX_ENTRIES: usize = 1_000_000;

const MAGIC: [u8; 8] = *b"IOTDUP\0\x01";

/// The window of remembered deliveries.
#[derive(Debug)]
pub(crate) struct Redelivery {
    clients: HashMap<Box<str>, Client>,
    entries: usize,
    max_per_client: usize,
    max_entries: usize,
}

#[derive(Debug, Default)]
struct Client {
    by_packet: HashMap<u16, Known>,
    /// Packet identifiers in the order of arrival; an entry whose number is not that of `by_packet` is stale.
    order: VecDeque<(u16, Seq)>,
    last: Seq,
}

#[derive(Debug, Clone, Copy)]
struct Known {
    fingerprint: u64,
    seq: Seq,
}

impl Default for Redelivery {
    fn default() -> Self {
        Self::with_limits(MAX_PER_CLIENT, MAX_ENTRIES)
    }
}

impl Redelivery {
    pub(crate) fn with_limits(max_per_client: usize, max_entries: usize) -> Self {
        Self { clients: HashMap::default(), entries: 0, max_per_client, max_entries }
    }

    /// The number under which this delivery was stored, if it is remembered.
    pub(crate) fn lookup(&self, client: &str, packet_id: u16, fingerprint: u64) -> Option<Seq> {
        let known = self.clients.get(client)?.by_packet.get(&packet_id)?;
        (known.fingerprint == fingerprint).then_some(known.seq)
    }

    /// Remembers a delivery that was stored under `seq`. Numbers must rise.
    pub(crate) fn remember(&mut self, client: &str, packet_id: u16, fingerprint: u64, seq: Seq) {
        let entry = match self.clients.get_mut(client) {
            Some(entry) => entry,
            None => self.clients.entry(client.into()).or_default(),
        };
        let before = entry.by_packet.len();
        entry.insert(packet_id, Known { fingerprint, seq }, self.max_per_client);
        self.entries = self.entries + entry.by_packet.len() - before;
        if self.entries > self.max_entries {
            self.forget_silent_clients();
        }
    }

    /// How many deliveries are remembered.
    pub(crate) fn len(&self) -> usize {
        self.entries
    }

    /// Makes room for a tenth of the limit, so that this is not done for every message.
    fn forget_silent_clients(&mut self) {
        let mut by_age: Vec<(Seq, Box<str>)> =
            self.clients.iter().map(|(name, client)| (client.last, name.clone())).collect();
        by_age.sort();
        let target = self.max_entries - self.max_entries / 10;
        for (_, name) in by_age {
            if self.entries <= target {
                break;
            }
            if let Some(client) = self.clients.remove(&name) {
                self.entries -= client.by_packet.len();
            }
        }
    }

    /// The window as bytes: magic, the position up to which it is complete, the entries, a checksum.
    pub(crate) fn encode(&self, up_to: Seq) -> Vec<u8> {
        let mut out = Vec::with_capacity(32 + self.entries * 18);
        out.extend_from_slice(&MAGIC);
        out.extend_from_slice(&up_to.to_le_bytes());
        out.extend_from_slice(&(self.clients.len() as u32).to_le_bytes());
        for (name, client) in &self.clients {
            out.extend_from_slice(&(name.len() as u32).to_le_bytes());
            out.extend_from_slice(name.as_bytes());
            out.extend_from_slice(&(client.by_packet.len() as u32).to_le_bytes());
            for (packet_id, known) in client.in_order() {
                out.extend_from_slice(&packet_id.to_le_bytes());
                out.extend_from_slice(&known.fingerprint.to_le_bytes());
                out.extend_from_slice(&known.seq.to_le_bytes());
            }
        }
        let crc = crc32fast::hash(&out);
        out.extend_from_slice(&crc.to_le_bytes());
        out
    }

    /// Reads what [`Self::encode`] wrote; `None` if it is damaged or of another version.
    pub(crate) fn decode(bytes: &[u8]) -> Option<(Self, Seq)> {
        let (content, crc) = bytes.split_at_checked(bytes.len().checked_sub(4)?)?;
        if crc32fast::hash(content).to_le_bytes() != crc {
            return None;
        }
        let mut reader = Reader(content);
        if reader.take(MAGIC.len())? != MAGIC {
            return None;
        }
        let up_to = reader.u64()?;
        let mut window = Self::default();
        for _ in 0..reader.u32()? {
            let length = reader.u32()? as usize;
            let name = std::str::from_utf8(reader.take(length)?).ok()?.to_owned();
            for _ in 0..reader.u32()? {
                let packet_id = reader.take(2).map(|b| u16::from_le_bytes([b[0], b[1]]))?;
                let (fingerprint, seq) = (reader.u64()?, reader.u64()?);
                window.remember(&name, packet_id, fingerprint, seq);
            }
        }
        Some((window, up_to))
    }
}

impl Client {
    fn insert(&mut self, packet_id: u16, known: Known, limit: usize) {
        self.by_packet.insert(packet_id, known);
        self.order.push_back((packet_id, known.seq));
        self.last = known.seq;
        while self.by_packet.len() > limit {
            let Some((oldest, seq)) = self.order.pop_front() else { break };
            if self.by_packet.get(&oldest).is_some_and(|known| known.seq == seq) {
                self.by_packet.remove(&oldest);
            }
        }
        // Most clients use few identifiers again and again: do not let stale entries pile up.
        if self.order.len() > 64 + 2 * self.by_packet.len() {
            let by_packet = &self.by_packet;
            self.order.retain(|(id, seq)| by_packet.get(id).is_some_and(|known| known.seq == *seq));
        }
    }

    fn in_order(&self) -> impl Iterator<Item = (u16, Known)> {
        self.order.iter().filter_map(|(id, seq)| {
            self.by_packet.get(id).filter(|known| known.seq == *seq).map(|known| (*id, *known))
        })
    }
}

/// What identifies the content of a delivery. Stable, as it is kept on disk.
pub(crate) fn fingerprint(topic: &str, payload: &[u8]) -> u64 {
    let mut crc = crc32fast::Hasher::new();
    crc.update(topic.as_bytes());
    crc.update(&[0]);
    crc.update(payload);
    (u64::from(crc.finalize()) << 32) | (payload.len() as u64 & 0xffff_ffff)
}

struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, n: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(n)?;
        self.0 = rest;
        Some(taken)
    }

    fn u32(&mut self) -> Option<u32> {
        self.take(4)?.try_into().ok().map(u32::from_le_bytes)
    }

    fn u64(&mut self) -> Option<u64> {
        self.take(8)?.try_into().ok().map(u64::from_le_bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_delivery_is_recognised_and_another_is_not() {
        let mut window = Redelivery::default();
        let print = fingerprint("t", b"payload");
        window.remember("gw", 7, print, 41);
        assert_eq!(window.lookup("gw", 7, print), Some(41));
        assert_eq!(window.lookup("gw", 8, print), None);
        assert_eq!(window.lookup("other", 7, print), None);
        assert_eq!(window.lookup("gw", 7, fingerprint("t", b"payloae")), None);
        assert_ne!(fingerprint("ab", b"c"), fingerprint("a", b"bc"));
    }

    #[test]
    fn a_packet_id_that_is_used_again_stands_for_the_newer_message() {
        let mut window = Redelivery::default();
        window.remember("gw", 7, 1, 41);
        window.remember("gw", 7, 2, 42);
        assert_eq!((window.lookup("gw", 7, 1), window.lookup("gw", 7, 2)), (None, Some(42)));
        assert_eq!(window.len(), 1);
    }

    #[test]
    fn a_session_remembers_its_last_deliveries_only() {
        let mut window = Redelivery::with_limits(10, 100);
        for seq in 1..=25_u64 {
            window.remember("gw", seq as u16, 0, seq);
        }
        assert_eq!(window.len(), 10);
        assert_eq!((window.lookup("gw", 15, 0), window.lookup("gw", 16, 0)), (None, Some(16)));
    }

    #[test]
    fn one_packet_id_used_for_ever_takes_no_room() {
        let mut window = Redelivery::default();
        window.remember("gw", 1, 0, 1);
        (2..100_000_u64).for_each(|seq| window.remember("gw", 2, 0, seq));
        assert_eq!(window.len(), 2);
        assert!(window.clients["gw"].order.len() < 100);
        assert_eq!(window.lookup("gw", 1, 0), Some(1));
    }

    #[test]
    fn the_session_that_was_silent_longest_is_forgotten_first() {
        let mut window = Redelivery::with_limits(10, 30);
        for seq in 1..=40_u64 {
            window.remember(&format!("gw-{}", (seq - 1) / 10), (seq % 10) as u16, 0, seq);
        }
        assert!(window.len() <= 30);
        assert_eq!(window.lookup("gw-0", 1, 0), None);
        assert_eq!(window.lookup("gw-3", 1, 0), Some(31));
    }

    #[test]
    fn the_window_survives_on_disk_and_damage_is_noticed() {
        let mut window = Redelivery::default();
        (1..=50_u64).for_each(|seq| window.remember("gw", seq as u16, seq * 3, seq));
        window.remember("other", 1, 9, 51);
        let bytes = window.encode(51);
        let (read, up_to) = Redelivery::decode(&bytes).expect("undamaged");
        assert_eq!((up_to, read.len()), (51, 51));
        assert_eq!((read.lookup("gw", 50, 150), read.lookup("other", 1, 9)), (Some(50), Some(51)));
        for at in 0..bytes.len() {
            let mut damaged = bytes.clone();
            damaged[at] ^= 0x10;
            assert!(Redelivery::decode(&damaged).is_none(), "byte {at}");
        }
        assert!(Redelivery::decode(&[]).is_none() && Redelivery::decode(&bytes[..10]).is_none());
    }
}
