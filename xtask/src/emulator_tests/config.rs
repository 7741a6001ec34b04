//! Boxes whose `outpost.toml` has a mistake, or asks for what the box does not have: it is named, and all the rest goes on.

use anyhow::{Result, ensure};

use super::Trial;
use super::boxes::{CONFIG, Setup, config_with_guest};
use super::plain::without_guest;

/// The box says what is wrong in its configuration, and bridges.
fn wrong_config(trial: &mut Trial<'_>, config: String, parts: &[&str]) -> Result<()> {
    let mut setup = Setup::new(config);
    setup.problems = vec!["outpost.toml".into()];
    let mut machine = setup.start(trial)?;
    let problem = machine.problem("outpost.toml")?;
    for part in parts {
        ensure!(problem.contains(part), "{part:?} is not in {problem:?}");
    }
    machine.forwards()?;
    machine.goes_on(1)
}

pub fn unknown_key(trial: &mut Trial<'_>) -> Result<()> {
    wrong_config(
        trial,
        CONFIG.replace(
            "[management]\n",
            "[management]\nadress = \"10.77.1.1/16\"\n",
        ),
        &["line 5", "adress"],
    )
}

pub fn bad_prefix(trial: &mut Trial<'_>) -> Result<()> {
    let peer = "\n[[peer]]\nname = \"head-office\"\npublic_key = \"AQECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=\"\n\
                endpoint = \"10.77.2.1:3301\"\nprefixes = [\"10.77.2.0/33\"]\n";
    wrong_config(
        trial,
        format!("{CONFIG}{peer}"),
        &["line 11", "10.77.2.0/33"],
    )
}

pub fn missing_key(trial: &mut Trial<'_>) -> Result<()> {
    let config: String = CONFIG
        .lines()
        .filter(|line| !line.starts_with("private_key"))
        .map(|line| format!("{line}\n"))
        .collect();
    wrong_config(trial, config, &["private_key", "missing"])
}

pub fn vcpus(trial: &mut Trial<'_>) -> Result<()> {
    wrong_config(
        trial,
        config_with_guest("probe", "vcpus = 17\n"),
        &["line 10", "17", "1 to 16"],
    )
}

pub fn cpus(trial: &mut Trial<'_>) -> Result<()> {
    const WHAT: &str = "[guest] cpus: there is no CPU 9: this box has 2, the first is 0";
    let keys = "debug_exit = true\ncpus = [1, 9]\n";
    let mut setup = Setup::new(config_with_guest("probe", keys));
    setup.slot = Some(trial.stage.probe("hello").slot()?);
    setup.problems = vec![WHAT.into()];
    let mut machine = setup.start(trial)?;
    machine.problem(WHAT)?;
    machine.console("probe: hello: passed")?;
    machine.forwards()
}

pub fn memory(trial: &mut Trial<'_>) -> Result<()> {
    const WHAT: &str = "the guest wants 4096 MiB of memory, the box has";
    let mut setup = Setup::new(config_with_guest("probe", "memory = \"4G\"\n"));
    setup.slot = Some(trial.stage.probe("hello").slot()?);
    setup.problems = vec![WHAT.into()];
    without_guest(setup.start(trial)?, WHAT)
}
