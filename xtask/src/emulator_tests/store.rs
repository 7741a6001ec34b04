//! The dictionary on the disk: two boxes that have carried a file are restarted, and carry it again.

use anyhow::{Context, Result, ensure};

use super::Trial;
use super::boxes::{Setup, TestBox};
use super::guest;
use super::pair::{Configs, Pair};
use super::watch::Said;

/// Noise, so that nothing but the dictionary can make it small.
const FILE_BYTES: usize = 3 << 20;
/// What the repeat may take of the line, as a share of the file: connection, copies, confirmations, keep-alives. (It takes
/// about a hundredth: on a slow machine the server's pauses cut the copies short.)
const REPEAT_SHARE: u64 = 25;

/// The same noise each time: xorshift64 (Marsaglia, 2003).
pub fn noise(length: usize) -> Vec<u8> {
    let mut state = 0x2545_f491_4f6c_dd1du64;
    let mut bytes = Vec::with_capacity(length + 8);
    while bytes.len() < length {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_be_bytes());
    }
    bytes.truncate(length);
    bytes
}

/// A counter of the store, as last reported.
fn store(said: &Said, name: &str) -> Option<u64> {
    said.status()?["net"]["store"][name].as_u64()
}

/// Fetches the file and gives the bytes that the line carried for it.
fn fetch(pair: &mut Pair, file: &[u8]) -> Result<u64> {
    pair.is_up()?;
    let mut stations = pair.stations();
    let before = pair.line.bytes();
    let received = pair.fetch(&mut stations, file)?;
    ensure!(
        received == file,
        "WRONG BYTES: {} of {} came, different from {} on",
        received.len(),
        file.len(),
        received
            .iter()
            .zip(file)
            .take_while(|(a, b)| a == b)
            .count()
    );
    Ok(pair.line.bytes() - before)
}

/// Waits until everything that the box has stored is on its disk.
fn is_written(side: &mut TestBox) -> Result<()> {
    side.wait_for("the dictionary to be written", |said| {
        let written = store(said, "store_written_bytes")?;
        (written >= FILE_BYTES as u64).then_some(())
    })?;
    // What came last is written at the first look that finds a pause, and looks are two seconds apart.
    side.goes_on(5)
}

/// What a box says that it found on its disk.
fn warm_mib(side: &mut TestBox) -> Result<f64> {
    let line = side.console("MiB on disk,")?;
    let words: Vec<&str> = line.split_whitespace().collect();
    let at = words
        .iter()
        .position(|word| *word == "warm")
        .with_context(|| format!("no warm bytes in {line:?}"))?;
    let number = at.checked_sub(2).and_then(|at| words.get(at));
    number
        .and_then(|number| number.parse().ok())
        .with_context(|| format!("no warm bytes in {line:?}"))
}

/// A file that has crossed the line costs next to nothing again, though both boxes were restarted: the branch in order, the
/// core by a power cut.
pub fn survives(trial: &mut Trial<'_>) -> Result<()> {
    let file = noise(FILE_BYTES);
    let configs = Configs::matching()?;
    let mut pair = configs.start(trial)?;
    for side in [&mut pair.branch, &mut pair.core] {
        side.console("disk: made partitions")?;
        let warm = warm_mib(side)?;
        ensure!(warm == 0.0, "{warm} MiB are warm on a new disk");
    }
    let cold = fetch(&mut pair, &file)?;
    ensure!(
        cold >= FILE_BYTES as u64,
        "{FILE_BYTES} bytes of noise took only {cold} bytes of the line"
    );
    is_written(&mut pair.core)?;
    guest::takes_no_more(&pair.branch)?;
    guest::takes_no_more(&pair.core)?;
    let Pair { branch, core, line } = pair;
    drop(line);
    let disks = [branch.reset()?, core.unplug()];

    let mut pair = configs.start_from(trial, disks)?;
    for side in [&mut pair.branch, &mut pair.core] {
        let warm = warm_mib(side)?;
        ensure!(
            warm * 1_048_576.0 >= FILE_BYTES as f64 * 0.99,
            "only {warm} MiB are warm after the restart"
        );
        ensure!(
            side.said(|said| !said
                .console
                .iter()
                .any(|line| line.contains("made partitions"))),
            "the second boot made partitions again"
        );
    }
    let again = fetch(&mut pair, &file)?;
    ensure!(
        again <= FILE_BYTES as u64 / REPEAT_SHARE,
        "the repeat took {again} bytes of the line, the first time {cold}"
    );
    Ok(())
}

/// Without a place on the disk the dictionary is in memory, and the box says why.
fn in_memory(trial: &Trial<'_>, name: &str, setup: Setup, problem: &str) -> Result<()> {
    let mut machine = setup.start_as(trial, name)?;
    machine.problem(problem)?;
    machine.console("MiB in memory")?;
    machine.milestone("forwarding")?;
    machine.answers_itself()?;
    machine.goes_on(1)
}

/// A disk without room for the dictionary, and one that cannot be written.
pub fn no_disk(trial: &mut Trial<'_>) -> Result<()> {
    let setup = |problem: &str| -> Result<Setup> {
        let [mut setup, _] = Configs::matching()?.setups();
        setup.problems = vec![problem.to_owned()];
        Ok(setup)
    };
    let mut full = setup("too little for")?;
    full.cut = Some(128 << 20);
    in_memory(trial, "full", full, "too little for")?;
    let mut protected = setup("write-protected")?;
    protected.read_only = true;
    in_memory(trial, "protected", protected, "write-protected")
}

/// A disk that stops to answer costs the dictionary its place, and no flow.
pub fn disk_hangs(trial: &mut Trial<'_>) -> Result<()> {
    let file = noise(FILE_BYTES);
    let [mut branch, core] = Configs::matching()?.setups();
    branch.disk_can_hang = true;
    branch.problems = vec!["the disk does not answer".into()];
    let mut pair = Pair::of(
        branch.start_as(trial, "branch")?,
        core.start_as(trial, "core")?,
    );
    pair.is_up()?;
    pair.branch.hang_disk()?;
    fetch(&mut pair, &file)?;
    pair.branch.problem("the disk does not answer")?;
    pair.branch
        .console("from now on the dictionary is in memory only")?;
    fetch(&mut pair, &file)?;
    let connections = pair
        .branch
        .said(|said| said.status()?["net"]["tunnel"]["connections"].as_u64());
    ensure!(
        connections == Some(1),
        "the tunnel came up {connections:?} times: the disk was waited for too long"
    );
    pair.branch.goes_on(1)
}

/// While a store is opened, which takes a slow disk seconds, frames cross the box.
pub fn disk_slow(trial: &mut Trial<'_>) -> Result<()> {
    let [mut setup, _] = Configs::matching()?.setups();
    setup.disk_requests = Some(60);
    let mut machine = setup.start(trial)?;
    machine.console("store: there is none yet")?;
    machine.crosses(true, 1514)?;
    ensure!(
        machine.said(|said| !said
            .console
            .iter()
            .any(|line| line.contains("MiB on disk,"))),
        "nothing crossed before the store was open"
    );
    machine.console("MiB on disk,")?;
    machine.forwards()?;
    machine.goes_on(1)
}
