//! A power cut at every write and flush in turn, and at two of them.

use alloc::rc::Rc;
use alloc::vec::Vec;

use super::device::{Cut, Memory, Step, cut};
use super::*;
use crate::dedup::tests::simulation::Rng;

/// What the owner of a store knew at some point.
struct Moment {
    /// Steps of the device until then.
    steps: usize,
    /// What a flush had made safe, in each direction.
    safe: [RangeSet; 2],
    /// The ends of the windows.
    tails: [u64; 2],
}

/// One life of a store: until the power goes.
struct Life {
    steps: Vec<Step>,
    moments: Vec<Moment>,
    /// What was ever written, in each direction.
    written: [RangeSet; 2],
}

/// Both directions are written to, with pauses and flushes between, for `rounds` rounds.
fn live(device: &Rc<Memory>, number: u64, rounds: usize, rng: &mut Rng) -> Life {
    // What is there from earlier, and good.
    let mut good = <[RangeSet; 2]>::default();
    if number > 1 {
        good = [Direction::Sending, Direction::Receiving]
            .map(|direction| read_all(&mut open_log(&device.copy(), direction), |_, _| {}));
    }
    device.record();
    let disk = open_disk(device, number as u8);
    let mut logs = [Direction::Sending, Direction::Receiving]
        .map(|direction| DiskLog::open(&disk, direction, 0, &mut |_| {}));
    logs[1].set_log([5; 16]);
    let (mut safe, mut written) = <([RangeSet; 2], [RangeSet; 2])>::default();
    let mut moments = Vec::new();
    // Blocks that the receiving side is still to get: they come in any order.
    let mut late: Vec<Range<u64>> = Vec::new();
    for round in 0..rounds {
        let [sending, receiving] = &mut logs;
        let len = [40, 3000, 70_000, 262_144][rng.below(4)].min(sending.contiguous(sending.head()));
        let range = sending.head()..sending.head() + len;
        sending.write(range.start, &bytes(number, range.clone()));
        sending.anchor(range.end, rng.next() >> 20);
        good[0].insert(range.clone());
        written[0].insert(range);
        let from = late.last().map_or(receiving.head(), |last| last.end);
        late.push(from..from + 1 + rng.below(200_000) as u64);
        while late.len() > 3 {
            let range = late.swap_remove(rng.below(late.len()));
            receiving.write(range.start, &bytes(number + 100, range.clone()));
            good[1].insert(range.clone());
            written[1].insert(range);
        }
        if rng.below(5) == 0 {
            // A part turns out to be wrong, is given up, and comes again.
            let start = receiving.tail() + rng.below(2 << 20) as u64;
            let range = start..start + rng.below(60_000) as u64;
            receiving.forget(range.clone());
            // What is not to be trusted need not be there later.
            safe[1].remove(range);
        }
        let sync = round % 4 == 3;
        if sync {
            let tickets = logs.each_mut().map(|log| log.sync());
            if rng.below(2) == 0 {
                device.flush().expect("a device that works");
                for (index, (log, ticket)) in logs.iter_mut().zip(tickets).enumerate() {
                    log.flushed(ticket);
                    safe[index] = log.present();
                    safe[index].intersect(&good[index]);
                }
            }
        }
        moments.push(Moment {
            steps: device.count(),
            safe: safe.clone(),
            tails: [logs[0].tail(), logs[1].tail()],
        });
    }
    Life {
        steps: device.steps(),
        moments,
        written,
    }
}

/// Opens what a power cut has left: no wrong byte, and nothing missing that was safe.
fn check(device: &Rc<Memory>, lives: &[(u64, &Life)], at: usize, what: &str) {
    let Some((_, life)) = lives.last() else {
        return;
    };
    // The moment before the cut says what was safe; the one after, what the windows may have left behind.
    let before = life.moments.iter().rev().find(|it| it.steps <= at);
    let after = life.moments.iter().find(|it| it.steps >= at);
    for (index, direction) in [Direction::Sending, Direction::Receiving]
        .into_iter()
        .enumerate()
    {
        let mut log = open_log(device, direction);
        let readable = read_all(&mut log, |position, stored| {
            for (offset, have) in stored.iter().enumerate() {
                let position = position + offset as u64;
                let right = lives.iter().any(|(number, life)| {
                    life.written[index].find(position).is_some()
                        && byte(number + 100 * index as u64, position) == *have
                });
                assert!(right, "{what}: a wrong byte at {position} of {direction:?}");
            }
        });
        let (Some(before), Some(after)) = (before, after) else {
            continue;
        };
        let mut safe = before.safe[index].clone();
        // What was given up in the same round need not be there either.
        safe.intersect(&after.safe[index]);
        safe.trim_below(after.tails[index].max(log.tail()));
        for range in safe.iter() {
            let mut missing = RangeSet::default();
            missing.insert(range.clone());
            for have in readable.iter() {
                missing.remove(have.clone());
            }
            assert!(
                missing.is_empty(),
                "{what}: {missing:?} of {direction:?} was safe, and is gone"
            );
        }
    }
}

const CUTS: [Cut; 4] = [Cut::Lost, Cut::Kept, Cut::Torn, Cut::Reordered];

#[test]
fn a_power_cut_at_every_write_and_flush() {
    let mut rng = Rng::new(11);
    let blank = Memory::new(SMALL);
    let device = blank.copy();
    let life = live(&device, 1, 70, &mut rng);
    assert!(life.steps.len() > 80, "{} steps", life.steps.len());
    assert!(life.moments.last().is_some_and(|it| it.tails[0] > 1 << 20));
    for at in 0..=life.steps.len() {
        for how in CUTS {
            let left = cut(&blank, &life.steps, at, how, &mut rng);
            check(&left, &[(1, &life)], at, &alloc::format!("{how:?} at {at}"));
        }
    }
}

#[test]
fn two_power_cuts_anywhere() {
    let mut rng = Rng::new(12);
    let blank = Memory::new(SMALL);
    let first = live(&blank.copy(), 1, 50, &mut rng);
    for round in 0..40 {
        let at = rng.below(first.steps.len() + 1);
        let how = CUTS[rng.below(4)];
        let left = cut(&blank, &first.steps, at, how, &mut rng);
        let device = left.copy();
        let second = live(&device, 2, 25, &mut rng);
        let again = rng.below(second.steps.len() + 1);
        let how_again = CUTS[rng.below(4)];
        let left = cut(&left, &second.steps, again, how_again, &mut rng);
        let what = alloc::format!("round {round}: {how:?} at {at}, {how_again:?} at {again}");
        check(&left, &[(1, &first), (2, &second)], again, &what);
    }
}
