use proptest::prelude::*;

use super::*;

const HOUR_US: i64 = 3_600_000_000;

fn interval(text: &str) -> IntervalMonthDayNano {
    parse_interval_month_day_nano(text).unwrap()
}

fn text(text: &str) -> ScalarValue {
    ScalarValue::from(text)
}

fn us(time: &str) -> i64 {
    string_to_timestamp_nanos(time).unwrap() / 1_000
}

fn tumble(size: &str, extras: &[ScalarValue]) -> Windows {
    Windows::tumble(interval(size), extras).unwrap()
}

#[track_caller]
fn check(windows: Windows, time: &str, start: &str, end: &str) {
    let shown = |us: i64| naive(us).unwrap().and_utc().to_rfc3339();
    let (found_start, found_end) = windows.bounds(us(time));
    assert_eq!((shown(found_start), shown(found_end)), (shown(us(start)), shown(us(end))), "at {time}");
    assert_eq!((windows.start(us(time)), windows.end(us(time))), (found_start, found_end));
}

#[test]
fn a_window_starts_at_or_before_its_events_also_before_1970() {
    let minute = tumble("1 minute", &[]);
    assert_eq!(minute.start(59_999_999), 0);
    assert_eq!(minute.start(60_000_000), 60_000_000);
    assert_eq!(minute.start(-1), -60_000_000);
    assert_eq!(minute.end(-1), 0);
}

#[test]
fn an_offset_moves_the_boundaries_either_way() {
    let offset = |t: &str| [ScalarValue::IntervalMonthDayNano(Some(interval(t)))];
    check(
        tumble("1 hour", &offset("15 minutes")),
        "2026-01-01T10:14:59Z",
        "2026-01-01T09:15:00Z",
        "2026-01-01T10:15:00Z",
    );
    check(
        tumble("1 hour", &offset("-15 minutes")),
        "2026-01-01T10:45:00Z",
        "2026-01-01T10:45:00Z",
        "2026-01-01T11:45:00Z",
    );
}

#[test]
fn a_day_of_berlin_has_23_or_25_hours() {
    let day = tumble("1 day", &[text("Europe/Berlin")]);
    check(day, "2026-03-29T12:00:00Z", "2026-03-28T23:00:00Z", "2026-03-29T22:00:00Z");
    check(day, "2026-10-25T00:30:00Z", "2026-10-24T22:00:00Z", "2026-10-25T23:00:00Z");
    check(day, "2026-07-01T22:00:00Z", "2026-07-01T22:00:00Z", "2026-07-02T22:00:00Z");
}

#[test]
fn weeks_start_on_monday_and_months_on_the_first() {
    let zone = [text("Europe/Berlin")];
    check(tumble("7 days", &zone), "2026-10-25T12:00:00Z", "2026-10-18T22:00:00Z", "2026-10-25T23:00:00Z");
    check(tumble("1 month", &zone), "2026-03-31T21:59:59Z", "2026-02-28T23:00:00Z", "2026-03-31T22:00:00Z");
    check(tumble("1 year", &zone), "2026-06-01T00:00:00Z", "2025-12-31T23:00:00Z", "2026-12-31T23:00:00Z");
    check(tumble("3 months", &zone), "2026-05-01T00:00:00Z", "2026-03-31T22:00:00Z", "2026-06-30T22:00:00Z");
}

#[test]
fn hours_of_the_clock_are_met_twice_when_it_is_set_back() {
    let hour = tumble("1 hour", &[text("Europe/Berlin")]);
    check(hour, "2026-10-25T00:30:00Z", "2026-10-25T00:00:00Z", "2026-10-25T01:00:00Z");
    check(hour, "2026-10-25T01:30:00Z", "2026-10-25T01:00:00Z", "2026-10-25T02:00:00Z");
    let four = tumble("4 hours", &[text("Europe/Berlin")]);
    check(four, "2026-10-25T01:30:00Z", "2026-10-24T22:00:00Z", "2026-10-25T03:00:00Z");
    check(four, "2026-03-29T01:30:00Z", "2026-03-28T23:00:00Z", "2026-03-29T02:00:00Z");
    // 02:00 is skipped: the window starts when the clock jumps to 03:00.
    let two = tumble("2 hours", &[text("Europe/Berlin")]);
    check(two, "2026-03-29T00:30:00Z", "2026-03-28T23:00:00Z", "2026-03-29T01:00:00Z");
    check(two, "2026-03-29T01:30:00Z", "2026-03-29T01:00:00Z", "2026-03-29T02:00:00Z");
}

#[test]
fn clocks_that_skip_midnight_or_run_on_half_hours_work_too() {
    // Beirut sets its clock forward at midnight: the day starts at one o'clock.
    let day = tumble("1 day", &[text("Asia/Beirut")]);
    check(day, "2022-03-27T12:00:00Z", "2022-03-26T22:00:00Z", "2022-03-27T21:00:00Z");
    let hour = tumble("1 hour", &[text("Asia/Kolkata")]);
    check(hour, "2026-01-01T00:00:00Z", "2025-12-31T23:30:00Z", "2026-01-01T00:30:00Z");
    // Newfoundland set its clock back at one minute past midnight: 23:01 to 24:00 came twice.
    let day = tumble("1 day", &[text("America/St_Johns")]);
    check(day, "2010-11-07T03:00:00Z", "2010-11-07T02:30:00Z", "2010-11-08T03:30:00Z");
}

#[test]
fn a_shift_day_starts_at_six_by_the_clock() {
    let shift = tumble(
        "1 day",
        &[text("Europe/Berlin"), ScalarValue::IntervalMonthDayNano(Some(interval("6 hours")))],
    );
    check(shift, "2026-03-29T03:59:00Z", "2026-03-28T05:00:00Z", "2026-03-29T04:00:00Z");
    check(shift, "2026-03-29T04:00:00Z", "2026-03-29T04:00:00Z", "2026-03-30T04:00:00Z");
}

#[test]
fn time_bucket_has_the_origins_of_timescaledb() {
    let bucket = |size: &str, extras: &[ScalarValue]| Windows::time_bucket(interval(size), extras).unwrap();
    // The values were asked of DuckDB.
    check(bucket("7 days", &[]), "2026-01-01T00:00:00Z", "2025-12-29T00:00:00Z", "2026-01-05T00:00:00Z");
    check(bucket("5 days", &[]), "2026-01-01T00:00:00Z", "2026-01-01T00:00:00Z", "2026-01-06T00:00:00Z");
    check(bucket("5 months", &[]), "2026-01-01T00:00:00Z", "2025-11-01T00:00:00Z", "2026-04-01T00:00:00Z");
    check(bucket("1 month", &[]), "1969-12-31T23:00:00Z", "1969-12-01T00:00:00Z", "1970-01-01T00:00:00Z");
    let origin = [ScalarValue::TimestampMicrosecond(Some(us("2026-01-01T00:07:00Z")), None)];
    check(bucket("1 hour", &origin), "2026-01-01T05:00:00Z", "2026-01-01T04:07:00Z", "2026-01-01T05:07:00Z");
}

#[test]
fn what_has_no_length_or_no_zone_is_refused() {
    let refused =
        |size: &str, extras: &[ScalarValue]| Windows::tumble(interval(size), extras).unwrap_err().to_string();
    assert!(refused("1 month", &[]).contains("fixed length"));
    assert!(refused("0 seconds", &[]).contains("positive"));
    assert!(refused("-1 hour", &[]).contains("positive"));
    assert!(refused("1 month 1 day", &[text("UTC")]).contains("whole months"));
    assert!(refused("1 day", &[text("Europe/Berlitz")]).contains("no time zone"));
    assert!(refused("1 day", &[text("UTC"), text("UTC")]).contains("two of a kind"));
}

proptest! {
    #[test]
    fn windows_follow_each_other_without_gap_or_overlap(
        time in us("1915-01-01T00:00:00Z")..us("2060-01-01T00:00:00Z"),
        size in prop::sample::select(vec![
            "7 minutes", "15 minutes", "1 hour", "90 minutes", "150 minutes", "3 hours", "5 hours", "12 hours",
            "36 hours", "1 day", "3 days", "7 days", "14 days", "1 month", "5 months", "1 year",
        ]),
        zone in prop::sample::select(vec![
            "UTC", "Europe/Berlin", "America/New_York", "America/St_Johns", "Australia/Lord_Howe", "Asia/Kolkata",
            "America/Havana", "Asia/Beirut", "Pacific/Chatham",
        ]),
    ) {
        let windows = tumble(size, &[text(zone)]);
        let (start, end) = windows.bounds(time);
        prop_assert!(start <= time && time < end, "{start} {time} {end}");
        prop_assert!(end - start <= windows.longest_micros());
        prop_assert_eq!(windows.bounds(start), (start, end));
        prop_assert_eq!(windows.bounds(end - 1), (start, end));
        prop_assert_eq!(windows.start(end), end);
    }

    #[test]
    fn no_instant_is_too_extreme(time in any::<i64>(), size in prop::sample::select(vec!["1 hour", "1 day", "1 month"])) {
        for extras in [vec![], vec![text("Europe/Berlin")]] {
            let windows = Windows::time_bucket(interval(size), &extras).unwrap();
            let _ = windows.bounds(time);
            let _ = windows.bounds(i64::MAX);
            let _ = windows.bounds(i64::MIN);
        }
    }

    #[test]
    fn months_are_those_of_chrono(time in us("1700-01-01T00:00:00Z")..us("2200-01-01T00:00:00Z")) {
        use chrono::Datelike;
        let date = naive(time).unwrap();
        prop_assert_eq!(month_of(time), i64::from(date.year()) * 12 + i64::from(date.month0()));
        prop_assert_eq!(month_of(month_start(month_of(time))), month_of(time));
        prop_assert!(time - month_start(month_of(time)) < 31 * 24 * HOUR_US);
    }
}
