//! Buckets of doubles, a sketch's bytes, and percentiles from them.

use datafusion::common::{Result, exec_err};

use crate::aggregates::STATE_VERSION;
use crate::aggregates::bytes::{Reader, put, unzigzag, zigzag};

/// The largest relative error of a percentile.
pub const RELATIVE_ERROR: f64 = 1.0 / 128.0;

/// Bits of a double's mantissa that its bucket ignores: 52 minus the six that count 64 steps.
const IGNORED_BITS: u32 = 46;
/// The key of the smallest normal double. Below lie the subnormal numbers, which count as zero.
const SMALLEST: i32 = 1 << 6;
/// The key of infinity.
const INFINITE: i32 = 2047 << 6;

/// The bucket of a value that is not NaN. Keys are in the order of values.
pub(super) fn key(value: f64) -> i32 {
    let size = (value.abs().to_bits() >> IGNORED_BITS) as i32;
    match size {
        ..SMALLEST => 0,
        size if value < 0.0 => -size,
        size => size,
    }
}

/// The value that a bucket answers with: its middle, and for the outermost two infinity.
fn middle(key: i32) -> f64 {
    let size = match key.abs() {
        0 => 0.0,
        INFINITE.. => f64::INFINITY,
        size => f64::from_bits(((size as u64) << IGNORED_BITS) | (1 << (IGNORED_BITS - 1))),
    };
    if key < 0 { -size } else { size }
}

/// Writes a sketch: version, total count, then per key its distance from the last (times two, plus one if a count
/// other than 1 follows). About one byte per value while values are few, two per bucket afterwards.
pub(super) fn encode(counts: &[(i32, u64)], out: &mut Vec<u8>) {
    out.clear();
    out.push(STATE_VERSION);
    put(out, counts.iter().map(|(_, count)| *count).sum());
    let mut last = None;
    for (key, count) in counts {
        let step = match last {
            None => zigzag(i64::from(*key)),
            Some(last) => (i64::from(*key) - i64::from(last)) as u64,
        };
        put(out, (step << 1) | u64::from(*count != 1));
        if *count != 1 {
            put(out, *count);
        }
        last = Some(*key);
    }
}

/// A sketch that is read key by key.
#[derive(Debug)]
pub(super) struct Buckets<'a> {
    reader: Reader<'a>,
    total: u64,
    last: Option<i32>,
}

impl<'a> Buckets<'a> {
    pub(super) fn open(sketch: &'a [u8]) -> Result<Self> {
        let mut reader = Reader::open("percentile sketch", sketch, STATE_VERSION)?;
        Ok(Self { total: reader.next()?, reader, last: None })
    }

    pub(super) fn next(&mut self) -> Result<Option<(i32, u64)>> {
        if self.reader.is_empty() {
            return Ok(None);
        }
        let entry = self.reader.next()?;
        let key = match self.last {
            None => unzigzag(entry >> 1),
            Some(last) => i64::from(last).saturating_add_unsigned(entry >> 1),
        };
        if !(-i64::from(INFINITE)..=i64::from(INFINITE)).contains(&key) {
            return exec_err!("a percentile sketch names the bucket {key}, which does not exist");
        }
        let count = if entry & 1 == 1 { self.reader.next()? } else { 1 };
        self.last = Some(key as i32);
        Ok(Some((key as i32, count)))
    }
}

/// The value below which the share `q` (0 to 1) of the values lies: that of rank `floor(q * (n - 1))`, from 0.
/// None of an empty sketch.
pub(in crate::aggregates) fn percentile(sketch: &[u8], q: f64) -> Result<Option<f64>> {
    let mut buckets = Buckets::open(sketch)?;
    let rank = (q * buckets.total.saturating_sub(1) as f64).floor() as u64;
    let mut below = 0u64;
    while let Some((key, count)) = buckets.next()? {
        below = below.saturating_add(count);
        if below > rank {
            return Ok(Some(middle(key)));
        }
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::aggregates::counts::Counts;

    #[test]
    fn a_bucket_answers_within_the_stated_error_at_every_size() {
        let mut value = f64::MIN_POSITIVE;
        while value < f64::MAX / 2.0 {
            for value in [value, -value] {
                let error = (middle(key(value)) - value).abs() / value.abs();
                assert!(error <= RELATIVE_ERROR, "{value}: {error}");
            }
            value *= 1.0037;
        }
        for exact in [0.0, f64::INFINITY, f64::NEG_INFINITY] {
            assert_eq!(middle(key(exact)), exact);
        }
        assert_eq!(key(-0.0), key(0.0));
        assert_eq!(middle(key(1e-310)), 0.0);
        assert!(middle(key(f64::MAX)).is_finite());
    }

    #[test]
    fn bytes_that_are_no_sketch_are_refused() {
        for bytes in [&[][..], &[9], &[1], &[1, 3, 0x80], &[1, 1, 0xfe, 0xff, 0xff, 0x7f]] {
            assert!(percentile(bytes, 0.5).is_err(), "{bytes:?}");
        }
        assert_eq!(percentile(&[1, 0], 0.5).expect("an empty sketch"), None);
    }

    proptest! {
        #[test]
        fn keys_are_in_the_order_of_values(a: f64, b: f64) {
            prop_assume!(!a.is_nan() && !b.is_nan());
            prop_assert!(a <= b && key(a) <= key(b) || a >= b && key(a) >= key(b));
        }

        #[test]
        fn any_percentile_is_within_the_stated_error(
            mut values in prop::collection::vec(prop_oneof![-1e9f64..1e9, -1.0f64..1.0, Just(0.0), Just(20.5)], 1..400),
            q in 0.0f64..=1.0,
        ) {
            let mut counts = Counts::default();
            counts.resize(1);
            values.iter().for_each(|v| counts.add(0, key(*v)));
            let mut sketch = Vec::new();
            counts.each(1, |_, keys| encode(keys, &mut sketch));
            values.sort_by(f64::total_cmp);
            let exact = values[(q * (values.len() - 1) as f64).floor() as usize];
            let answer = percentile(&sketch, q).expect("reads").expect("not empty");
            prop_assert!((answer - exact).abs() <= exact.abs() * RELATIVE_ERROR, "{} for {}", answer, exact);
        }
    }
}
