//! Recognises a message that is delivered again because its acknowledgement was lost.
//!
//! A delivery is known by the session that delivers, its packet identifier, and a fingerprint of topic and
//! payload. Only a delivery that *says* it may be a copy (DUP) is ever looked up: packet identifiers are used
//! again, and a sensor may well send the same reading twice.
//!
//! The window is bounded: per session the last [`MAX_PER_CLIENT`] deliveries, over all sessions [`MAX_ENTRIES`]. Where
//! that is too little for all of them, those that have most are cut first. No I/O here: the log writer feeds it, and
//! saves [`Redelivery::encode`] before it trims the log.

use std::collections::VecDeque;

use ahash::HashMap;

use iot_schemas::position::Seq;

/// Deliveries that may be unacknowledged per session: what both sources announce as their receive maximum.
pub(crate) const RECEIVE_MAXIMUM: u16 = 10_000;
/// Deliveries that are remembered per session: half of all packet identifiers.
///
/// A Mosquitto that is stopped in order delivers again up to twice the receive maximum, and a client of MQTT 3.1.1 knows
/// none. With all of the identifiers, another message with the same content as the one that had its identifier a
/// round ago could be taken for a copy of that one.
const MAX_PER_CLIENT: usize = 1 << 15;
/// Deliveries that are remembered over all sessions, about 50 bytes each.
const MAX_ENTRIES: usize = 1_000_000;
/// Deliveries of a session that are not forgotten for the sake of a session that speaks: more than common clients have
/// in flight.
const KEPT_PER_CLIENT: usize = 1_000;

const MAGIC: [u8; 8] = *b"IOTDUP\0\x01";

/// The window of remembered deliveries.
#[derive(Debug)]
pub(crate) struct Redelivery {
    clients: HashMap<Box<str>, Client>,
    entries: usize,
    limits: Limits,
}

/// How many deliveries are remembered.
#[derive(Debug, Clone, Copy)]
struct Limits {
    per_client: usize,
    /// This many of each session, as long as it is remembered.
    kept_per_client: usize,
    total: usize,
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
        Self::with_limits(Limits {
            per_client: MAX_PER_CLIENT,
            kept_per_client: KEPT_PER_CLIENT,
            total: MAX_ENTRIES,
        })
    }
}

impl Redelivery {
    fn with_limits(limits: Limits) -> Self {
        Self { clients: HashMap::default(), entries: 0, limits }
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
        entry.insert(packet_id, Known { fingerprint, seq }, self.limits.per_client);
        self.entries = self.entries + entry.by_packet.len() - before;
        if self.entries > self.limits.total {
            self.make_room();
        }
    }

    /// How many deliveries are remembered.
    pub(crate) fn len(&self) -> usize {
        self.entries
    }

    /// Makes room for a tenth of the limit, so that this is not done for every message.
    fn make_room(&mut self) {
        let target = self.limits.total - self.limits.total / 10;
        let sizes = self.clients.values().map(|client| client.by_packet.len()).collect();
        let share = fair_share(sizes, target).max(self.limits.kept_per_client);
        self.clients.values_mut().for_each(|client| client.cut(share));
        self.entries = self.clients.values().map(|client| client.by_packet.len()).sum();
        if self.entries > target {
            self.forget_silent_clients(target);
        }
    }

    /// Forgets sessions, those first that have been silent for the longest.
    fn forget_silent_clients(&mut self, target: usize) {
        let mut by_age: Vec<(Seq, Box<str>)> =
            self.clients.iter().map(|(name, client)| (client.last, name.clone())).collect();
        by_age.sort();
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
        self.keep_newest(limit);
        // Most clients use few identifiers again and again: do not let stale entries pile up.
        if self.order.len() > 64 + 2 * self.by_packet.len() {
            let by_packet = &self.by_packet;
            self.order.retain(|(id, seq)| by_packet.get(id).is_some_and(|known| known.seq == *seq));
        }
    }

    /// Keeps the newest, and no room for more.
    fn cut(&mut self, limit: usize) {
        if self.by_packet.len() > limit {
            self.keep_newest(limit);
            self.by_packet.shrink_to_fit();
            self.order.shrink_to_fit();
        }
    }

    fn keep_newest(&mut self, limit: usize) {
        while self.by_packet.len() > limit {
            let Some((oldest, seq)) = self.order.pop_front() else { break };
            if self.by_packet.get(&oldest).is_some_and(|known| known.seq == seq) {
                self.by_packet.remove(&oldest);
            }
        }
    }

    fn in_order(&self) -> impl Iterator<Item = (u16, Known)> {
        self.order.iter().filter_map(|(id, seq)| {
            self.by_packet.get(id).filter(|known| known.seq == *seq).map(|known| (*id, *known))
        })
    }
}

/// How many each may keep at most so that all together keep `total`: who has less than that keeps all.
fn fair_share(mut sizes: Vec<usize>, total: usize) -> usize {
    sizes.sort_unstable();
    let (mut left, mut others) = (total, sizes.len());
    for size in sizes {
        if size > left / others {
            return left / others;
        }
        left -= size;
        others -= 1;
    }
    usize::MAX
}

/// What identifies the content of a delivery.
pub(crate) fn fingerprint(topic: &str, payload: &[u8]) -> u64 {
    fingerprint_of_cut(topic, payload, payload.len() as u64)
}

/// What identifies the content of a delivery of which `payload` is kept, of `length` bytes. Stable, as it is kept on disk.
pub(crate) fn fingerprint_of_cut(topic: &str, payload: &[u8], length: u64) -> u64 {
    let mut crc = crc32fast::Hasher::new();
    crc.update(topic.as_bytes());
    crc.update(&[0]);
    crc.update(payload);
    (u64::from(crc.finalize()) << 32) | (length & 0xffff_ffff)
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

    fn limits(per_client: usize, kept_per_client: usize, total: usize) -> Limits {
        Limits { per_client, kept_per_client, total }
    }

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
        let mut window = Redelivery::with_limits(limits(10, 10, 100));
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
        let mut window = Redelivery::with_limits(limits(10, 10, 30));
        for seq in 1..=40_u64 {
            window.remember(&format!("gw-{}", (seq - 1) / 10), (seq % 10) as u16, 0, seq);
        }
        assert!(window.len() <= 30);
        assert_eq!(window.lookup("gw-0", 1, 0), None);
        assert_eq!(window.lookup("gw-3", 1, 0), Some(31));
    }

    /// A broker that was stopped in order: see `tests/it/reconnect.rs`.
    #[test]
    fn twice_the_receive_maximum_is_remembered_and_an_identifier_of_the_last_round_is_not() {
        let mut window = Redelivery::default();
        let twice = 2 * u64::from(RECEIVE_MAXIMUM);
        let packet_id = |seq: u64| (seq % u64::from(u16::MAX)) as u16 + 1;
        (1..=100_000).for_each(|seq| window.remember("iot", packet_id(seq), 7, seq));
        assert!((100_001 - twice..=100_000).all(|seq| window.lookup("iot", packet_id(seq), 7) == Some(seq)));
        assert_eq!(window.lookup("iot", packet_id(100_001), 7), None, "the next one has the same content");
    }

    #[test]
    fn who_has_most_makes_room_and_who_has_little_loses_nothing() {
        let mut window = Redelivery::with_limits(limits(100, 10, 200));
        let mut seq = 0;
        let mut remember = |client: &str, packets: std::ops::Range<u16>| {
            for packet_id in packets {
                seq += 1;
                window.remember(client, packet_id, 0, seq);
            }
        };
        remember("silent", 0..20);
        remember("one", 0..100);
        remember("other", 0..81);
        assert_eq!(window.len(), 180);
        assert!((0..20).all(|packet_id| window.lookup("silent", packet_id, 0).is_some()));
        // 80 each.
        assert_eq!((window.lookup("one", 19, 0), window.lookup("other", 0, 0)), (None, None));
        assert!((20..100).all(|packet_id| window.lookup("one", packet_id, 0).is_some()));
        assert!((1..81).all(|packet_id| window.lookup("other", packet_id, 0).is_some()));
    }

    #[test]
    fn shares_are_fair() {
        assert_eq!(fair_share(vec![20, 100, 81], 180), 80);
        assert_eq!(fair_share(vec![5, 5], 180), usize::MAX);
        assert_eq!(fair_share(vec![7; 10], 5), 0);
        assert_eq!(fair_share(vec![], 5), usize::MAX);
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
