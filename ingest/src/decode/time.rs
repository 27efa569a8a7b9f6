//! Event times: a number in a unit, or RFC 3339 text, to microseconds since 1970.

use iot_schemas::catalog::TimeUnitName;

/// The last instant that an event may have: what nanoseconds in 64 bits can express, in the year 2262.
const MAX_MICROS: i64 = i64::MAX / 1_000;

/// Whether an instant lies between 1970 and 2262.
pub(crate) fn is_plausible(micros: i64) -> bool {
    (0..=MAX_MICROS).contains(&micros)
}

/// An integer in `unit`; `None` if it does not fit.
pub(crate) fn from_integer(value: i64, unit: TimeUnitName) -> Option<i64> {
    match unit {
        TimeUnitName::S => value.checked_mul(1_000_000),
        TimeUnitName::Ms => value.checked_mul(1_000),
        TimeUnitName::Us => Some(value),
        TimeUnitName::Ns => Some(value.div_euclid(1_000)),
    }
}

/// A number with a fraction in `unit`, rounded to the microsecond; `None` if it does not fit.
pub(crate) fn from_float(value: f64, unit: TimeUnitName) -> Option<i64> {
    let micros = match unit {
        TimeUnitName::S => value * 1e6,
        TimeUnitName::Ms => value * 1e3,
        TimeUnitName::Us => value,
        TimeUnitName::Ns => value / 1e3,
    };
    // 2^63 is the first value that does not fit, and a double can express it.
    (micros.abs() < 9_223_372_036_854_775_808.0).then(|| micros.round() as i64)
}

/// RFC 3339 text, with any offset.
pub(crate) fn from_text(text: &str) -> Option<i64> {
    chrono::DateTime::parse_from_rfc3339(text.trim()).ok().map(|time| time.timestamp_micros())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_unit_arrives_at_the_same_instant() {
        let expect = Some(1_700_000_000_123_456);
        assert_eq!(from_float(1_700_000_000.123_456, TimeUnitName::S), expect);
        assert_eq!(from_float(1_700_000_000_123.456, TimeUnitName::Ms), expect);
        assert_eq!(from_integer(1_700_000_000_123_456, TimeUnitName::Us), expect);
        assert_eq!(from_integer(1_700_000_000_123_456_999, TimeUnitName::Ns), expect);
        assert_eq!(from_text("2023-11-14T23:13:20.123456+01:00"), expect);
    }

    #[test]
    fn what_does_not_fit_is_no_time() {
        assert_eq!(from_integer(i64::MAX, TimeUnitName::S), None);
        assert_eq!(from_float(1e300, TimeUnitName::Ns), None);
        assert_eq!(from_float(f64::NAN, TimeUnitName::Ms), None);
        assert_eq!(from_text("yesterday"), None);
        assert!(is_plausible(0) && !is_plausible(-1) && !is_plausible(MAX_MICROS + 1));
    }
}
