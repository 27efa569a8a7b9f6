use super::*;

const SECOND: i64 = 1_000_000;

fn rates(per_device: f64, burst: Option<u32>) -> Rates {
    Rates::new(RateLimit { per_device, burst })
}

fn taken(rates: &mut Rates, device: &str, at: i64, messages: usize) -> usize {
    (0..messages).filter(|_| rates.take(device, at)).count()
}

#[test]
fn a_device_may_send_a_burst_and_then_at_its_rate() {
    let mut rates = rates(10.0, Some(5));
    assert_eq!(taken(&mut rates, "a", 0, 20), 5);
    assert_eq!(taken(&mut rates, "b", 0, 20), 5, "another device has its own rate");
    assert_eq!(taken(&mut rates, "a", SECOND / 10, 20), 1);
    assert_eq!(taken(&mut rates, "a", 100 * SECOND, 20), 5, "what was not used does not add up");
    let over_a_minute: usize = (0..600).map(|i| taken(&mut rates, "c", i * SECOND / 10, 3)).sum();
    assert_eq!(over_a_minute, 4 + 600);
}

#[test]
fn a_slow_rate_is_kept() {
    let mut rates = rates(0.1, None);
    assert_eq!(taken(&mut rates, "a", 50 * SECOND, 3), 1);
    assert_eq!(taken(&mut rates, "a", 59 * SECOND, 3), 0);
    assert_eq!(taken(&mut rates, "a", 60 * SECOND, 3), 1);
}

#[test]
fn a_clock_that_is_set_back_costs_a_device_one_burst_at_most() {
    for (per_device, burst, back) in
        [(0.1, None, 50), (10.0, Some(5), 36_000), (1.0, Some(1), 1), (5.0, Some(1_000), 86_400)]
    {
        let mut rates = rates(per_device, burst);
        let before = 100_000 * SECOND;
        (0..2_000).for_each(|_| _ = rates.take("a", before));
        let after = before - back * SECOND;
        // As if it had just sent a burst: it waits for one interval, however far back the clock went.
        let interval = (SECOND as f64 / per_device) as i64;
        assert!(rates.take("a", after + interval) || rates.take("a", after + 2 * interval), "{per_device}/s");
        let over_a_while: usize = (3..103).map(|i| taken(&mut rates, "a", after + i * interval, 3)).sum();
        assert!((100..=101).contains(&over_a_while), "{over_a_while} of 100 at {per_device}/s");
    }
}

#[test]
fn the_memory_of_devices_is_bounded() {
    let mut rates = Rates { max_devices: 10, ..rates(1.0, None) };
    for n in 0..1_000 {
        assert!(rates.take(&format!("device-{n}"), n), "each sends for the first time");
        assert!(rates.due.len() <= 10);
    }
}
