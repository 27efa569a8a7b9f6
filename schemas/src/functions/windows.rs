//! Windows of time: where they start, also by the clock of a place.
//!
//! [`Windows`] cuts the time line into half-open pieces that neither overlap nor leave a gap: a time on a
//! boundary starts the next window. Without a time zone a boundary is a multiple of the width from an origin.
//! With one, a boundary is an instant at which the local clock shows such a multiple, so a day has 23, 24 or
//! 25 hours and a month whatever it has.
//!
//! Where the clock is set back, boundaries of windows shorter than a day are met twice and start a window both
//! times (the hour from 2 to 3 makes two windows of one hour); a day or month starts only once. Where the clock
//! is set forward, a boundary that it skips lies at the instant of the change.

use arrow::compute::kernels::cast_utils::{parse_interval_month_day_nano, string_to_timestamp_nanos};
use arrow::datatypes::IntervalMonthDayNano;
use chrono::offset::{LocalResult, Offset, TimeZone};
use chrono::{DateTime, NaiveDateTime};
use chrono_tz::Tz;
use datafusion::common::{Result, ScalarValue, plan_datafusion_err, plan_err};

const DAY_US: i64 = 86_400_000_000;
/// Monday 2000-01-03T00:00:00Z, the origin of TimescaleDB's and DuckDB's `time_bucket`.
const MONDAY_US: i64 = 946_857_600_000_000;
/// January 2000 in months since year 0.
const JANUARY_2000: i64 = 2000 * 12;

/// A layout of windows. Cheap to copy.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Windows {
    width: Width,
    /// Where a boundary lies: microseconds on the clock of `zone`; for months, what is added to their starts.
    origin_us: i64,
    zone: Option<Tz>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Width {
    Micros(i64),
    /// `n` months, counted from the month `origin` (in months since year 0).
    Months {
        n: i64,
        origin: i64,
    },
}

/// What may follow time and width in a call.
#[derive(Debug, Clone, Copy)]
enum Extra {
    Offset(IntervalMonthDayNano),
    Origin(i64),
    Zone(Tz),
}

impl Windows {
    /// The windows of `tumble(t, size, extras...)`: from 1970-01-01T00:00:00Z, or with a time zone by its
    /// calendar. `extras` are an interval (an offset) or a text (the name of a time zone), or both.
    pub fn tumble(size: IntervalMonthDayNano, extras: &[ScalarValue]) -> Result<Self> {
        let extras = Extras::parse("tumble", extras)?;
        if size.months != 0 && extras.zone.is_none() {
            return plan_err!(
                "the size of tumble() must have a fixed length; months and years have one only in a time zone: \
                 tumble(t, INTERVAL '1 month', 'UTC')"
            );
        }
        if extras.origin.is_some() {
            return plan_err!("tumble() takes an offset or a time zone, no origin; time_bucket() takes one");
        }
        let whole_weeks = |us: i64| extras.zone.is_some() && us % (7 * DAY_US) == 0;
        Self::new("tumble", size, &extras, |us| if whole_weeks(us) { MONDAY_US } else { 0 })
    }

    /// The windows of `time_bucket(size, t, extras...)`: from Monday 2000-01-03 or, for months, from January
    /// 2000. `extras` are an interval (an offset), a timestamp (an origin) and a text (the name of a time zone).
    pub fn time_bucket(size: IntervalMonthDayNano, extras: &[ScalarValue]) -> Result<Self> {
        Self::new("time_bucket", size, &Extras::parse("time_bucket", extras)?, |_| MONDAY_US)
    }

    fn new(
        function: &str,
        size: IntervalMonthDayNano,
        extras: &Extras,
        origin: impl Fn(i64) -> i64,
    ) -> Result<Self> {
        let offset_us = match extras.offset {
            Some(offset) => fixed_micros(function, "offset", offset)?,
            None => 0,
        };
        let zone = extras.zone;
        let origin_us = extras.origin.map(|us| zone.map_or(us, |zone| clock(zone, us)));
        if size.months != 0 {
            if size.days != 0 || size.nanoseconds != 0 || size.months < 0 {
                return plan_err!(
                    "the size of {function}() must be either whole months or a length of time, and positive"
                );
            }
            let origin = origin_us.map_or(JANUARY_2000, month_of);
            let width = Width::Months { n: size.months.into(), origin };
            return Ok(Self { width, origin_us: offset_us, zone });
        }
        let us = fixed_micros(function, "size", size)?;
        if us <= 0 {
            return plan_err!("the size of {function}() must be positive");
        }
        let origin_us = origin_us.unwrap_or_else(|| origin(us)).saturating_add(offset_us);
        Ok(Self { width: Width::Micros(us), origin_us, zone })
    }

    /// The start of the window that `time_us` lies in, microseconds since 1970.
    pub fn start(&self, time_us: i64) -> i64 {
        match self.zone {
            None => self.boundary(self.index(time_us)),
            Some(zone) => self.zoned(zone, time_us).0,
        }
    }

    /// The end of the window that `time_us` lies in, which is the start of the next one.
    pub fn end(&self, time_us: i64) -> i64 {
        match self.zone {
            None => self.boundary(self.index(time_us).saturating_add(1)),
            Some(zone) => self.zoned(zone, time_us).1,
        }
    }

    /// Start and end of the window that `time_us` lies in.
    pub fn bounds(&self, time_us: i64) -> (i64, i64) {
        match self.zone {
            None => (self.start(time_us), self.end(time_us)),
            Some(zone) => self.zoned(zone, time_us),
        }
    }

    /// At least as long as any of the windows, in microseconds.
    pub fn longest_micros(&self) -> i64 {
        let width = match self.width {
            Width::Micros(us) => us,
            Width::Months { n, .. } => n.saturating_mul(31 * DAY_US),
        };
        // No clock has been set back by more than a day.
        if self.zone.is_some() { width.saturating_add(DAY_US) } else { width }
    }

    /// How many windows touch `[from_us, to_us)`; with a time zone or months, about.
    pub fn count(&self, from_us: i64, to_us: i64) -> i64 {
        let from = self.index(from_us);
        self.index(to_us.saturating_sub(1)).saturating_sub(from).saturating_add(1)
    }

    /// The number of the window that a clock reading lies in.
    fn index(&self, clock_us: i64) -> i64 {
        let since = clock_us.saturating_sub(self.origin_us);
        match self.width {
            Width::Micros(us) => since.div_euclid(us),
            Width::Months { n, origin } => (month_of(since) - origin).div_euclid(n),
        }
    }

    /// What the clock shows when window `index` starts.
    fn boundary(&self, index: i64) -> i64 {
        match self.width {
            Width::Micros(us) => self.origin_us.saturating_add(index.saturating_mul(us)),
            Width::Months { n, origin } => {
                let month = origin.saturating_add(index.saturating_mul(n));
                month_start(month).saturating_add(self.origin_us)
            }
        }
    }

    fn zoned(&self, zone: Tz, time_us: i64) -> (i64, i64) {
        match self.width {
            Width::Micros(us) if us % DAY_US != 0 => self.by_clock(zone, time_us),
            _ => self.by_calendar(zone, time_us),
        }
    }

    /// Whole days and months: every boundary is met once.
    fn by_calendar(&self, zone: Tz, time_us: i64) -> (i64, i64) {
        let at = |index| first_showing(zone, self.boundary(index));
        let mut index = self.index(clock(zone, time_us));
        // A clock that is set back across midnight shows the day before once more.
        for _ in 0..2 {
            if at(index) > time_us {
                index -= 1;
            } else if at(index.saturating_add(1)) <= time_us {
                index = index.saturating_add(1);
            }
        }
        (at(index), at(index.saturating_add(1)))
    }

    /// Less than a day: the last instant at which the clock showed a boundary, and the next one.
    fn by_clock(&self, zone: Tz, time_us: i64) -> (i64, i64) {
        let shift = utc_offset(zone, time_us);
        let index = self.index(time_us.saturating_add(shift));
        let mut start = self.boundary(index).saturating_sub(shift);
        if utc_offset(zone, start) != shift {
            let change = change_between(zone, start, time_us);
            let before = utc_offset(zone, change - 1);
            let skipped_from = change.saturating_add(before);
            let boundary = self.boundary(index);
            start = if shift > before && boundary >= skipped_from {
                change
            } else {
                self.boundary(self.index(skipped_from - 1)).saturating_sub(before)
            };
        }
        let boundary = self.boundary(index.saturating_add(1));
        let mut end = boundary.saturating_sub(shift);
        let after = utc_offset(zone, end);
        if after != shift {
            let change = change_between(zone, time_us, end);
            let shown = change.saturating_add(after);
            end = if after > shift && boundary < shown {
                change
            } else {
                // The first boundary at or after what the clock shows once it was changed.
                self.boundary(self.index(shown - 1).saturating_add(1)).saturating_sub(after)
            };
        }
        (start, end)
    }
}

/// The end of the window that starts at `start_us`, in microseconds since 1970.
///
/// `size` and `extras` (an offset or the name of a time zone) are those of the call of `tumble` that made it.
/// An error says what is wrong with them.
pub fn tumble_end_micros(start_us: i64, size: IntervalMonthDayNano, extras: &[ScalarValue]) -> Result<i64> {
    Ok(Windows::tumble(size, extras)?.end(start_us))
}

#[derive(Debug, Default)]
struct Extras {
    offset: Option<IntervalMonthDayNano>,
    origin: Option<i64>,
    zone: Option<Tz>,
}

impl Extras {
    fn parse(function: &str, values: &[ScalarValue]) -> Result<Self> {
        let mut extras = Self::default();
        for value in values {
            let Some(extra) = Extra::parse(function, value)? else { continue };
            let twice = match extra {
                Extra::Offset(offset) => extras.offset.replace(offset).is_some(),
                Extra::Origin(origin) => extras.origin.replace(origin).is_some(),
                Extra::Zone(zone) => extras.zone.replace(zone).is_some(),
            };
            if twice {
                return plan_err!("{function}() was given two of a kind; `{value}` is the second");
            }
        }
        Ok(extras)
    }
}

impl Extra {
    fn parse(function: &str, value: &ScalarValue) -> Result<Option<Self>> {
        match value {
            value if value.is_null() => Ok(None),
            ScalarValue::IntervalMonthDayNano(Some(offset)) => Ok(Some(Self::Offset(*offset))),
            ScalarValue::TimestampMicrosecond(Some(origin), _) => Ok(Some(Self::Origin(*origin))),
            ScalarValue::Utf8(Some(text)) | ScalarValue::Utf8View(Some(text)) => {
                let zone = text.parse().ok().map(Self::Zone);
                let origin =
                    || string_to_timestamp_nanos(text).ok().map(|ns| Self::Origin(ns.div_euclid(1_000)));
                let offset = || parse_interval_month_day_nano(text).ok().map(Self::Offset);
                let extra = zone.or_else(origin).or_else(offset);
                let extra = extra.ok_or_else(|| {
                    plan_datafusion_err!(
                        "`{text}` is no time zone that {function}() knows; zones are named like 'Europe/Berlin' or 'UTC'"
                    )
                })?;
                Ok(Some(extra))
            }
            other => {
                plan_err!("{function}() takes an interval or a time zone after time and size, not `{other}`")
            }
        }
    }
}

/// The length of an interval that has one: days of 24 hours are fine, months are not.
fn fixed_micros(function: &str, what: &str, interval: IntervalMonthDayNano) -> Result<i64> {
    if interval.months != 0 {
        return plan_err!("the {what} of {function}() must have a fixed length; months and years do not");
    }
    if interval.nanoseconds % 1_000 != 0 {
        return plan_err!("the {what} of {function}() must be a whole number of microseconds");
    }
    Ok(i64::from(interval.days) * DAY_US + interval.nanoseconds / 1_000)
}

/// What the clock of a zone shows at an instant.
fn clock(zone: Tz, time_us: i64) -> i64 {
    time_us.saturating_add(utc_offset(zone, time_us))
}

/// Microseconds that a zone is ahead of UTC at an instant; none for instants beyond the calendar's range.
fn utc_offset(zone: Tz, time_us: i64) -> i64 {
    naive(time_us).map_or(0, |utc| seconds(zone.offset_from_utc_datetime(&utc)))
}

fn seconds(offset: impl Offset) -> i64 {
    i64::from(offset.fix().local_minus_utc()) * 1_000_000
}

fn naive(us: i64) -> Option<NaiveDateTime> {
    DateTime::from_timestamp_micros(us).map(|time| time.naive_utc())
}

/// The first instant at which the clock of a zone shows `clock_us`, or skips it.
fn first_showing(zone: Tz, clock_us: i64) -> i64 {
    let Some(local) = naive(clock_us) else { return clock_us };
    match zone.offset_from_local_datetime(&local) {
        LocalResult::Single(offset) => clock_us - seconds(offset),
        LocalResult::Ambiguous(a, b) => clock_us - seconds(a).max(seconds(b)),
        LocalResult::None => {
            let (mut before, mut at) = (clock_us.saturating_sub(DAY_US), clock_us.saturating_add(DAY_US));
            while at - before > 1 {
                let middle = before + (at - before) / 2;
                if clock(zone, middle) >= clock_us { at = middle } else { before = middle }
            }
            at
        }
    }
}

/// The first instant after `from_us` at which the zone's offset is that of `to_us`.
fn change_between(zone: Tz, from_us: i64, to_us: i64) -> i64 {
    let offset = utc_offset(zone, to_us);
    let (mut before, mut at) = (from_us, to_us);
    while at - before > 1 {
        let middle = before + (at - before) / 2;
        if utc_offset(zone, middle) == offset { at = middle } else { before = middle }
    }
    at
}

/// The month that a clock reading lies in, in months since year 0 of the proleptic Gregorian calendar
/// (Howard Hinnant, "chrono-compatible low-level date algorithms", `civil_from_days`).
fn month_of(clock_us: i64) -> i64 {
    let days = clock_us.div_euclid(DAY_US) + 719_468;
    let era = days.div_euclid(146_097);
    let day_of_era = days.rem_euclid(146_097);
    let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let from_march = (5 * day_of_year + 2) / 153;
    // The algorithm's years start in March.
    (year_of_era + era * 400) * 12 + from_march + 2
}

/// What the clock shows when a month starts (`days_from_civil` of the same source).
fn month_start(month: i64) -> i64 {
    let from_march = month.saturating_sub(2);
    let year = from_march.div_euclid(12);
    let era = year.div_euclid(400);
    let year_of_era = year.rem_euclid(400);
    let day_of_year = (153 * from_march.rem_euclid(12) + 2) / 5;
    let day_of_era = year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year;
    era.saturating_mul(146_097).saturating_add(day_of_era - 719_468).saturating_mul(DAY_US)
}

#[cfg(test)]
mod tests;
