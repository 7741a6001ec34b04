//! Many connections at once beside one that carries the same bytes: the CPU time of both, taken in turn, and for so long that what
//! the machine does meanwhile hardly shows in their ratio.

use std::path::Path;
use std::time::Duration;

use anyhow::Result;

use super::offices::{Line, Measured, Offices};

/// How many connections are many.
pub const MANY: usize = 50;
/// The CPU time of the busier program that either way is measured over, at least.
const ENOUGH: Duration = Duration::from_millis(500);

/// Payload for each CPU-second, either way.
#[derive(Clone, Copy, Debug)]
pub struct Speeds {
    /// Over one connection.
    pub one: f64,
    /// Over [`MANY`] at once.
    pub many: f64,
}

/// All of `bytes`, and [`MANY`] parts of them.
fn ways(bytes: &[u8]) -> [Vec<&[u8]>; 2] {
    let part = bytes.len().div_ceil(MANY).max(1);
    [vec![bytes], bytes.chunks(part).collect()]
}

/// What was measured so far, each way.
struct Totals([Measured; 2]);

impl Totals {
    fn new() -> Totals {
        let nothing = Measured {
            payload: 0,
            line: None,
            cpu: [Duration::ZERO; 2],
        };
        Totals([nothing; 2])
    }

    fn are_enough(&self) -> bool {
        self.0.iter().all(|total| total.busier() >= ENOUGH)
    }

    fn speeds(&self) -> Speeds {
        let [one, many] = self.0.map(|total| total.speed());
        Speeds { one, many }
    }
}

fn add(total: &mut Measured, payload: u64, cpu: [Duration; 2]) {
    total.payload += payload;
    total.cpu = [0, 1].map(|end| total.cpu[end] + cpu[end]);
}

/// To programs that have seen nothing yet: each time new ones.
///
/// # Errors
/// A program fails, or wrong bytes came out.
pub fn cold(program: &Path, bytes: &[u8]) -> Result<Speeds> {
    let ways = ways(bytes);
    let mut totals = Totals::new();
    while !totals.are_enough() {
        for (way, total) in ways.iter().zip(&mut totals.0) {
            let measured = Offices::new(program, Line::Direct)?.carry(way, true)?;
            add(total, measured.payload, measured.cpu);
        }
    }
    Ok(totals.speeds())
}

/// What the programs have carried before in the same way: once, and again and again.
///
/// # Errors
/// As for [`cold`].
pub fn again(program: &Path, bytes: &[u8]) -> Result<Speeds> {
    let mut sides = Vec::new();
    for way in ways(bytes) {
        let mut offices = Offices::new(program, Line::Direct)?;
        offices.carry(&way, true)?;
        let before = offices.cpu_times()?;
        sides.push((way, offices, before));
    }
    let mut totals = Totals::new();
    while !totals.are_enough() {
        for ((way, offices, before), total) in sides.iter_mut().zip(&mut totals.0) {
            offices.transfer(way, true)?;
            total.payload += bytes.len() as u64;
            total.cpu = offices.cpu_since(*before)?;
        }
    }
    for ((_, offices, before), total) in sides.iter().zip(&mut totals.0) {
        offices.wait_until_quiet()?;
        total.cpu = offices.cpu_since(*before)?;
    }
    Ok(totals.speeds())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_ways_carry_the_same() {
        let bytes: Vec<u8> = (0..1_003).map(|at| at as u8).collect();
        let [one, many] = ways(&bytes);
        assert_eq!((one.len(), many.len()), (1, 48));
        assert_eq!(one.concat(), many.concat());
        assert_eq!(ways(&bytes[..100])[1].len(), MANY);
    }

    #[test]
    fn the_program_that_was_busier_in_all_counts() {
        let mut totals = Totals::new();
        let ms = Duration::from_millis;
        // Each was the busier once; the second is in all.
        add(&mut totals.0[1], 30, [ms(300), ms(200)]);
        assert!(!totals.are_enough());
        add(&mut totals.0[1], 30, [ms(200), ms(400)]);
        add(&mut totals.0[0], 50, [ms(500), ms(100)]);
        assert!(totals.are_enough());
        let Speeds { one, many } = totals.speeds();
        assert_eq!((one, many), (100.0, 100.0));
    }
}
