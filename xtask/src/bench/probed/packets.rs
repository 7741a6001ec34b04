//! Frames through the box, from the LAN's wire to the WAN's: how long one takes, and how many go through in a second. What the guest does meanwhile is
//! the figures' business.

use std::time::{Duration, Instant};

use anyhow::{Result, bail, ensure};

use super::ProbedBox;
use crate::emulator_tests::frames;
use crate::process;

/// Frames of each box for latency, at a time.
const FRAMES: usize = 250;
/// For the rate: frames under way at most, their length, and how long it is measured.
const WINDOW: usize = 32;
/// In bytes, without the check sequence.
pub const LENGTH: usize = 1514;
const SPAN: Duration = Duration::from_millis(500);
/// What a machine that was held still makes up for in its CPUs' shares is over by then: in the first tenth of a second a guest that spins has up to an eighth of CPU 0,
/// probably because the time that passed meanwhile counts as had by who ran.
const WARM_UP: Duration = Duration::from_millis(200);
/// A frame that has not come by then is lost.
const LOST: Duration = Duration::from_secs(2);

fn frame(number: usize, length: usize) -> Vec<u8> {
    // Always as long, so that what a frame of another number looks like is known.
    let tag = format!("outpost bench {number:010}        ");
    frames::raw(
        frames::LAN_STATION,
        frames::WAN_STATION,
        tag.as_bytes(),
        length,
    )
}

/// Waits until frames cross in both directions, so that the box has learnt where both stations are.
///
/// # Errors
/// None does, or the user interrupts.
pub fn reaches(machine: &mut ProbedBox) -> Result<()> {
    let back = frames::raw(
        frames::WAN_STATION,
        frames::LAN_STATION,
        b"outpost bench back",
        60,
    );
    let there = frame(usize::MAX >> 40, 60);
    for (from, to, frame) in [
        (&machine.wan, &machine.lan, &back),
        (&machine.lan, &machine.wan, &there),
    ] {
        let deadline = Instant::now() + super::PATIENCE;
        loop {
            process::check_interrupted()?;
            from.send(frame);
            if to.wait(Duration::from_millis(100))? && drain(|| to.receive(), frame) {
                break;
            }
            if Instant::now() > deadline {
                bail!("no frame crosses the box");
            }
        }
    }
    // Those that were sent more than once.
    while machine.wan.wait(Duration::from_millis(50))? {
        let _ = machine.wan.receive();
    }
    Ok(())
}

/// Takes what has come. True if `wanted` was there.
fn drain(mut receive: impl FnMut() -> Option<Vec<u8>>, wanted: &[u8]) -> bool {
    let mut found = false;
    while let Some(frame) = receive() {
        found |= frame == wanted;
    }
    found
}

/// How long each of some frames takes, in milliseconds. They come at times that no slice knows.
///
/// # Errors
/// One was lost, or the user interrupts.
pub fn latencies(machine: &mut ProbedBox, number: &mut usize) -> Result<Vec<f64>> {
    let mut all = Vec::new();
    let mut state = 0x9e37_79b9_u32;
    for _ in 0..FRAMES {
        process::check_interrupted()?;
        // xorshift32 (Marsaglia, 2003)
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        std::thread::sleep(Duration::from_micros(500 + u64::from(state % 4_000)));
        *number += 1;
        let frame = frame(*number, 100);
        let sent = Instant::now();
        machine.lan.send(&frame);
        loop {
            if machine.wan.wait(Duration::from_millis(100))?
                && machine.wan.receive().is_some_and(|it| it == frame)
            {
                break;
            }
            ensure!(
                sent.elapsed() < LOST,
                "a frame went in and did not come out"
            );
        }
        all.push(sent.elapsed().as_secs_f64() * 1e3);
    }
    Ok(all)
}

/// How many frames go through in a second while [`WINDOW`] of them are always under way, measured for as long as a span lasts.
///
/// # Errors
/// The user interrupts.
pub fn frames_a_second(machine: &mut ProbedBox) -> Result<f64> {
    let frame = frame(0, LENGTH);
    let mut buffer = vec![0; 2048];
    let (mut under_way, mut came) = (0, 0);
    let begin = Instant::now() + WARM_UP;
    let end = begin + SPAN;
    while Instant::now() < end {
        process::check_interrupted()?;
        while under_way < WINDOW && machine.lan.try_send(&frame) {
            under_way += 1;
        }
        let mut new = 0;
        while machine.wan.receive_into(&mut buffer) == Some(LENGTH) {
            new += 1;
        }
        if Instant::now() >= begin {
            came += new;
        }
        under_way = under_way.saturating_sub(new);
        // Lost ones are not waited for.
        if new == 0 && !machine.wan.wait(Duration::from_millis(20))? {
            under_way = 0;
        }
    }
    let rate = f64::from(u32::try_from(came)?) / begin.elapsed().as_secs_f64();
    while machine.wan.wait(Duration::from_millis(50))? {
        let _ = machine.wan.receive();
    }
    Ok(rate)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_differ_by_their_number_only() {
        assert_eq!(frame(1, LENGTH).len(), LENGTH);
        assert_ne!(frame(1, 100), frame(2, 100));
        assert_eq!(
            frame(7, 100)[frames::TAGGED..],
            frame(8, 100)[frames::TAGGED..]
        );
    }
}
