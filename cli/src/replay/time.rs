//! Times as files write them.

use chrono::{DateTime, NaiveDate, NaiveDateTime};
use clap::ValueEnum;

use super::row::Value;

/// The unit of a time that is a number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum TimeUnit {
    /// Seconds since 1970.
    S,
    /// Milliseconds since 1970.
    Ms,
    /// Microseconds since 1970.
    Us,
    /// Nanoseconds since 1970.
    Ns,
}

/// Date and time with an offset, in other forms than RFC 3339.
const WITH_OFFSET: [&str; 2] = ["%Y-%m-%d %H:%M:%S%.f%z", "%Y-%m-%dT%H:%M:%S%.f%z"];
/// Date and time without a zone, which means UTC.
const WITHOUT_ZONE: [&str; 6] = [
    "%Y-%m-%d %H:%M:%S%.f",
    "%Y-%m-%dT%H:%M:%S%.f",
    "%Y-%m-%d %H:%M",
    "%Y-%m-%dT%H:%M",
    "%Y/%m/%d %H:%M:%S%.f",
    "%Y/%m/%d %H:%M",
];

impl TimeUnit {
    /// The unit in which a number of this size lies between 1973 and 5138.
    fn of(number: f64) -> Self {
        match number.abs() {
            n if n < 1e11 => Self::S,
            n if n < 1e14 => Self::Ms,
            n if n < 1e17 => Self::Us,
            _ => Self::Ns,
        }
    }

    fn micros(self) -> f64 {
        match self {
            Self::S => 1e6,
            Self::Ms => 1e3,
            Self::Us => 1.0,
            Self::Ns => 1e-3,
        }
    }
}

/// The time in microseconds since 1970, or `None` if the value is none. A zone that is not given is UTC.
pub(super) fn micros(value: &Value, unit: Option<TimeUnit>) -> Option<i64> {
    let text = value.text().trim();
    if let Ok(number) = text.parse::<f64>() {
        return number_micros(text, number, unit.unwrap_or_else(|| TimeUnit::of(number)));
    }
    text_micros(text)
}

fn number_micros(text: &str, number: f64, unit: TimeUnit) -> Option<i64> {
    if let Ok(whole) = text.parse::<i64>() {
        return match unit {
            TimeUnit::Ns => Some(whole.div_euclid(1000)),
            unit => whole.checked_mul(unit.micros() as i64),
        };
    }
    let micros = (number * unit.micros()).round();
    (micros.is_finite() && micros.abs() < i64::MAX as f64).then_some(micros as i64)
}

fn text_micros(text: &str) -> Option<i64> {
    if let Ok(time) = DateTime::parse_from_rfc3339(text) {
        return Some(time.timestamp_micros());
    }
    let with_offset = WITH_OFFSET.iter().find_map(|form| DateTime::parse_from_str(text, form).ok());
    if let Some(time) = with_offset {
        return Some(time.timestamp_micros());
    }
    let text = text.trim_end_matches(" UTC");
    let naive = WITHOUT_ZONE.iter().find_map(|form| NaiveDateTime::parse_from_str(text, form).ok());
    let naive = naive.or_else(|| NaiveDate::parse_from_str(text, "%Y-%m-%d").ok()?.and_hms_opt(0, 0, 0));
    Some(naive?.and_utc().timestamp_micros())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(text: &str, expect: Option<i64>) {
        assert_eq!(micros(&Value::Text(text.to_owned()), None), expect, "{text}");
    }

    #[test]
    fn a_number_is_read_in_the_unit_that_makes_sense() {
        const EXPECT: Option<i64> = Some(1_451_606_400_000_000);
        for text in ["1451606400", "1451606400000", "1451606400000000", "1451606400000000000", "1451606400.0"]
        {
            check(text, EXPECT);
        }
        assert_eq!(micros(&Value::Literal("5".into()), Some(TimeUnit::Ms)), Some(5_000));
    }

    #[test]
    fn a_zone_that_is_not_given_is_utc() {
        const EXPECT: Option<i64> = Some(1_423_072_260_000_000);
        for text in [
            "2015-02-04 17:51:00",
            "2015-02-04T17:51:00",
            "2015-02-04 17:51",
            "2015-02-04 17:51:00 UTC",
            "2015-02-04T17:51:00Z",
            "2015-02-04T18:51:00+01:00",
            "2015-02-04 18:51:00+0100",
            "2015/02/04 17:51:00.000",
        ] {
            check(text, EXPECT);
        }
        check("1970-01-02", Some(86_400_000_000));
        check("1970-01-01T00:00:00.000001", Some(1));
    }

    #[test]
    fn what_is_no_time_is_none() {
        for text in ["", "Monday", "2015-13-01", "nan", "12:30"] {
            check(text, None);
        }
    }
}
