use super::*;

const MILLISECOND: Duration = Duration::from_millis(1);

fn line(settings: &str) -> Line {
    Line::new(&settings.parse().unwrap())
}

fn frame(number: u32, bytes: usize) -> Vec<u8> {
    let mut frame = vec![0; bytes];
    frame[..4].copy_from_slice(&number.to_be_bytes());
    frame
}

fn number(frame: &[u8]) -> u32 {
    u32::from_be_bytes(frame[..4].try_into().unwrap())
}

/// Runs the line until it is empty: when, where and which frame.
fn drain(line: &mut Line) -> Vec<(Duration, Site, u32)> {
    let mut arrivals = Vec::new();
    while let Some(at) = line.next_wakeup() {
        while let Some((site, frame)) = line.poll(at, &mut ()) {
            arrivals.push((at, site, number(&frame)));
        }
    }
    arrivals
}

#[test]
fn a_frame_takes_its_bits_and_half_the_round_trip() {
    let mut line = line("rate=10M,rtt=100ms,loss=0%");
    line.send(Duration::ZERO, Site::Branch, frame(1, 1250));
    line.send(Duration::ZERO, Site::Branch, frame(2, 1250));
    line.send(Duration::ZERO, Site::Core, frame(3, 125));
    assert_eq!(
        drain(&mut line),
        [
            (
                50 * MILLISECOND + Duration::from_micros(100),
                Site::Branch,
                3
            ),
            (51 * MILLISECOND, Site::Core, 1),
            (52 * MILLISECOND, Site::Core, 2),
        ]
    );
    assert_eq!(
        line.counters(Site::Branch),
        Counters {
            frames: 2,
            bytes: 2500,
            ..Counters::default()
        }
    );
    assert_eq!(
        line.counters(Site::Core),
        Counters {
            frames: 1,
            bytes: 125,
            ..Counters::default()
        }
    );
}

#[test]
fn the_queue_drops_its_tail_and_drains_at_the_rate() {
    let mut line = line("rate=10M,rtt=0ms,loss=0,queue=5000");
    for number in 0..10 {
        line.send(Duration::ZERO, Site::Branch, frame(number, 1250));
    }
    assert_eq!(line.counters(Site::Branch).overflowed, 6);
    // After 2 ms two have left, so two more fit.
    while line.poll(2 * MILLISECOND, &mut ()).is_some() {}
    for number in 10..14 {
        line.send(2 * MILLISECOND, Site::Branch, frame(number, 1250));
    }
    let numbers: Vec<_> = drain(&mut line)
        .iter()
        .map(|(_, _, number)| *number)
        .collect();
    assert_eq!(numbers, [2, 3, 10, 11]);
    assert_eq!(line.counters(Site::Branch).overflowed, 8);
    assert_eq!(line.counters(Site::Branch).frames, 6);
}

#[test]
fn an_empty_queue_takes_any_frame() {
    let mut line = line("rate=10M,rtt=0ms,loss=0,queue=100");
    line.send(Duration::ZERO, Site::Branch, frame(1, 1514));
    line.send(Duration::ZERO, Site::Branch, frame(2, 64));
    assert_eq!(drain(&mut line).len(), 1);
}

#[test]
fn an_idle_line_saves_nothing_up() {
    let mut line = line("rate=10M,rtt=0ms,loss=0");
    line.send(1000 * MILLISECOND, Site::Branch, frame(1, 1250));
    assert_eq!(drain(&mut line), [(1001 * MILLISECOND, Site::Core, 1)]);
}

/// Sends `count` frames at once and gives the numbers in order of arrival.
fn arrivals(settings: &str, count: u32) -> (Vec<u32>, Counters) {
    let mut line = line(settings);
    for number in 0..count {
        line.send(Duration::ZERO, Site::Core, frame(number, 1000));
    }
    let numbers = drain(&mut line)
        .iter()
        .map(|(_, _, number)| *number)
        .collect();
    (numbers, line.counters(Site::Core))
}

#[test]
fn the_seed_decides_what_is_lost() {
    let (first, counters) = arrivals("loss=1%,queue=1G,seed=5", 50_000);
    assert_eq!(first.len() as u64, counters.frames - counters.lost);
    assert!((400..600).contains(&counters.lost), "{counters:?}");
    assert_eq!(counters.frames, 50_000);
    assert_eq!(first, arrivals("loss=1%,queue=1G,seed=5", 50_000).0);
    assert_ne!(first, arrivals("loss=1%,queue=1G,seed=6", 50_000).0);
}

#[test]
fn one_impairment_leaves_the_others_as_they_fall() {
    let (plain, _) = arrivals("loss=1%,queue=1G,seed=5", 10_000);
    let (mut doubled, counters) = arrivals("loss=1%,queue=1G,seed=5,duplicate=2%", 10_000);
    assert!((150..250).contains(&counters.duplicated), "{counters:?}");
    assert_eq!(doubled.len(), plain.len() + counters.duplicated as usize);
    doubled.dedup();
    assert_eq!(doubled, plain);
}

#[test]
fn bursts_have_their_share_and_length() {
    let (numbers, counters) = arrivals(
        "loss=0,burst-loss=2%,burst-length=8,queue=1G,seed=3",
        100_000,
    );
    let bursts = numbers
        .windows(2)
        .filter(|pair| pair[1] - pair[0] > 1)
        .count() as f64;
    let share = counters.lost as f64 / 100_000.0;
    assert!((0.015..0.025).contains(&share), "{share}");
    let mean = counters.lost as f64 / bursts;
    assert!((6.5..9.5).contains(&mean), "{mean}");
}

#[test]
fn what_is_held_back_is_overtaken() {
    let (numbers, counters) = arrivals("loss=0,reorder=1%,reorder-delay=10ms,queue=1G", 10_000);
    assert_eq!(numbers.len(), 10_000);
    assert!((60..140).contains(&counters.held_back), "{counters:?}");
    let overtaken = numbers.windows(2).filter(|pair| pair[1] < pair[0]).count() as u64;
    assert!(overtaken > counters.held_back / 2, "{overtaken}");
    let mut sorted = numbers.clone();
    sorted.sort_unstable();
    assert!(sorted.iter().copied().eq(0..10_000));
}

#[test]
fn pulling_the_plug_loses_what_is_on_the_line() {
    let mut line = line("rate=10M,rtt=100ms,loss=0");
    for number in 0..4 {
        line.send(Duration::ZERO, Site::Branch, frame(number, 1250));
    }
    while line.poll(2 * MILLISECOND, &mut ()).is_some() {}
    line.set_plugged(false);
    assert_eq!(line.next_wakeup(), None);
    line.send(3 * MILLISECOND, Site::Core, frame(9, 1250));
    assert_eq!(line.counters(Site::Branch).cut, 4);
    assert_eq!(line.counters(Site::Core).cut, 1);
    line.set_plugged(true);
    line.send(10 * MILLISECOND, Site::Core, frame(10, 1250));
    assert_eq!(drain(&mut line), [(61 * MILLISECOND, Site::Branch, 10)]);
}

#[test]
fn the_observer_sees_what_is_carried_even_if_it_is_lost() {
    struct Sum(u64, Duration);
    impl Observer for Sum {
        fn carried(&mut self, at: Duration, from: Site, frame: &[u8]) {
            assert_eq!(from, Site::Branch);
            assert!(at >= self.1);
            *self = Sum(self.0 + frame.len() as u64, at);
        }
    }
    let mut line = line("rate=10M,rtt=10ms,loss=100%");
    for number in 0..3 {
        line.send(Duration::ZERO, Site::Branch, frame(number, 1250));
    }
    let mut sum = Sum(0, Duration::ZERO);
    assert!(line.poll(Duration::from_secs(1), &mut sum).is_none());
    assert_eq!((sum.0, sum.1), (3750, 3 * MILLISECOND));
    assert_eq!(line.counters(Site::Branch).lost, 3);
}

#[test]
fn the_rate_holds_over_a_long_load() {
    let mut line = line("rate=10M,rtt=100ms,loss=0.5%,seed=2");
    let mut now = Duration::ZERO;
    let mut received = 0u64;
    // Offer twice the rate for ten seconds.
    while now < Duration::from_secs(10) {
        while let Some((_, frame)) = line.poll(now, &mut ()) {
            received += frame.len() as u64;
        }
        line.send(now, Site::Core, frame(0, 1514));
        now += Duration::from_micros(605);
    }
    let rate = received as f64 * 8.0 / 10.0;
    assert!((9.8e6..=10.0e6).contains(&rate), "{rate}");
}
