//! What is read from a time series: increases, rates, weighted means and durations, as functions of its points.
//!
//! All take points in the order of time, with one value per time, and look at nothing before the first or after
//! the last point: a group's answer depends on its own events alone. Durations are in seconds.

use super::series::Point;

/// How a value holds between two points.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Between {
    /// The last value holds until the next point (last observation carried forward).
    Locf,
    /// On the straight line between the two.
    Linear,
}

impl Between {
    pub(super) fn parse(text: &str) -> Option<Self> {
        match text {
            "locf" => Some(Self::Locf),
            "linear" => Some(Self::Linear),
            _ => None,
        }
    }
}

/// Neighbours and the seconds between them.
fn steps(points: &[Point]) -> impl Iterator<Item = (f64, f64, f64)> + '_ {
    points.windows(2).map(|pair| (pair[0].value, pair[1].value, seconds(pair[0].time, pair[1].time)))
}

fn seconds(from: i64, to: i64) -> f64 {
    to.abs_diff(from) as f64 / 1e6
}

fn span(points: &[Point]) -> Option<f64> {
    Some(seconds(points.first()?.time, points.last()?.time))
}

/// How much a counter grew: its positive steps, and after each reset the value it has reached since. Prometheus
/// counts so too, but extrapolates to the bounds of its window; this does not. One point: 0.
pub(super) fn increase(points: &[Point]) -> Option<f64> {
    points.first()?;
    Some(steps(points).map(|(a, b, _)| if b < a { b } else { b - a }).sum::<f64>() + 0.0)
}

/// [`increase`] per second between the first and the last point. None for fewer than two points.
pub(super) fn rate(points: &[Point]) -> Option<f64> {
    let span = span(points).filter(|span| *span > 0.0)?;
    Some(increase(points)? / span)
}

/// How often a counter fell.
pub(super) fn counter_resets(points: &[Point]) -> Option<i64> {
    points.first()?;
    Some(steps(points).filter(|(a, b, _)| b < a).count() as i64)
}

/// The mean of the value over the time between the first and the last point. One point: its value.
pub(super) fn time_weighted_avg(points: &[Point], between: Between) -> Option<f64> {
    let only = points.first()?.value;
    let span = span(points)?;
    if span == 0.0 {
        return Some(only);
    }
    let area: f64 = steps(points)
        .map(|(a, b, seconds)| match between {
            Between::Locf => a * seconds,
            Between::Linear => (a + b) / 2.0 * seconds,
        })
        .sum();
    Some(area / span)
}

/// The seconds in which a condition (a value other than 0) held: from each point where it does to the next point.
pub(super) fn state_duration(points: &[Point]) -> Option<f64> {
    points.first()?;
    Some(steps(points).filter(|(a, _, _)| *a != 0.0).map(|(_, _, seconds)| seconds).sum::<f64>() + 0.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn points(points: &[(i64, f64)]) -> Vec<Point> {
        points.iter().map(|(s, value)| Point { time: s * 1_000_000, value: *value }).collect()
    }

    #[test]
    fn a_counter_counts_on_over_its_resets() {
        let counter = points(&[(0, 10.0), (10, 15.0), (20, 3.0), (30, 3.0), (40, 7.0)]);
        assert_eq!(increase(&counter), Some(5.0 + 3.0 + 0.0 + 4.0));
        assert_eq!(rate(&counter), Some(12.0 / 40.0));
        assert_eq!(counter_resets(&counter), Some(1));
    }

    #[test]
    fn one_point_and_none() {
        let one = points(&[(5, 2.0)]);
        assert_eq!((increase(&one), rate(&one), counter_resets(&one)), (Some(0.0), None, Some(0)));
        assert_eq!(time_weighted_avg(&one, Between::Linear), Some(2.0));
        assert_eq!(state_duration(&one), Some(0.0));
        assert_eq!((increase(&[]), rate(&[]), counter_resets(&[])), (None, None, None));
        assert_eq!((time_weighted_avg(&[], Between::Locf), state_duration(&[])), (None, None));
    }

    #[test]
    fn means_weigh_by_time() {
        let uneven = points(&[(0, 1.0), (10, 5.0), (12, 5.0)]);
        assert_eq!(time_weighted_avg(&uneven, Between::Locf), Some((10.0 + 10.0) / 12.0));
        assert_eq!(time_weighted_avg(&uneven, Between::Linear), Some((30.0 + 10.0) / 12.0));
    }

    #[test]
    fn a_state_lasts_until_the_next_point() {
        assert_eq!(state_duration(&points(&[(0, 1.0), (4, 0.0), (9, 1.0), (10, 1.0)])), Some(5.0));
    }
}
