//! `cargo xtask run`: two boxes booted from one image, a slow line between them, a real client and a real server.
//!
//! It builds and starts everything, plays the scenario of docs/run.md and says what held. What the boxes do is not decided
//! here, only watched.

mod boxes;
mod client;
mod files;
mod lab;
mod line;
mod live;
mod namespace;
mod observe;
mod panel;
mod picture;
mod report;
mod root;
mod scenario;
mod screen;
mod server;
mod wires;

use std::io::IsTerminal;
use std::path::PathBuf;
use std::sync::mpsc;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};

use crate::process::{self, Graceful};
use crate::setup::{self, Group};
use crate::{image, paths};
use files::Files;
use lab::Lab;
pub use line::Dice;
use line::{LineConfig, Site};
use live::Live;
use report::ImageReport;
use scenario::Scenario;
use screen::Screen;

/// The one network, which the boxes bridge.
const NETWORK: &str = "10.77.0.0/16";
/// The client, on the branch's LAN.
const CLIENT: &str = "10.77.1.10";
/// The branch box's guest.
const GUEST: &str = "10.77.1.5";
/// The branch box itself.
const BRANCH_BOX: &str = "10.77.1.1";
/// The core box itself.
const CORE_BOX: &str = "10.77.2.1";
/// What the branch optimises.
const SERVED_PREFIX: &str = "10.77.2.0/24";
/// The server, on the core's LAN.
const SERVER: &str = "10.77.2.10";
/// The same server at an address that the branch does not optimise: bridged, over the same line and boxes.
const DIRECT: &str = "10.77.3.10";

/// What `cargo xtask run` is told.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// End after the scenario, with status 0 only if everything held
    #[arg(long)]
    once: bool,
    /// Write what was measured to FILE, as JSON
    #[arg(long, value_name = "FILE")]
    report: Option<PathBuf>,
    /// What the line is like: rate, rtt, loss, queue, seed, burst-loss, burst-length, duplicate, reorder, reorder-delay; each
    /// but rtt and seed also for one direction, as up.rate or down.rate [default: rate=10M,rtt=100ms,loss=0.5%,queue=1bdp,seed=1]
    #[arg(
        long,
        value_name = "KEY=VALUE,…",
        default_value = "",
        hide_default_value = true
    )]
    line: LineConfig,
    /// Fetch these two files instead: a version, and the next one
    #[arg(long, num_args = 2, value_names = ["OLD", "NEW"])]
    files: Option<Vec<PathBuf>>,
    /// Copy every frame that the line carries to FILE, for Wireshark or tcpdump (pcap)
    #[arg(long, value_name = "FILE")]
    capture: Option<PathBuf>,
    /// Write a picture of the panel at the end to FILE, as SVG
    #[arg(long, value_name = "FILE")]
    picture: Option<PathBuf>,
    /// Print lines instead of showing the panel
    #[arg(long)]
    plain: bool,
    /// What this program, as the user, has prepared for itself as root
    #[arg(long, hide = true, value_name = "FILE")]
    prepared: Option<PathBuf>,
}

/// What is made before root is needed.
#[derive(Debug, Serialize, Deserialize)]
struct Prepared {
    image: PathBuf,
    facts: ImageReport,
    files: Files,
}

/// Runs the scenario.
///
/// # Errors
/// When something cannot be built or started, or, with `--once`, did not hold.
pub fn run(arguments: Args) -> Result<()> {
    let prepared = match &arguments.prepared {
        Some(path) => serde_json::from_slice(&std::fs::read(path)?)
            .context("the prepared facts are not readable")?,
        None => prepare(&arguments)?,
    };
    if !root::is_root() {
        let path = paths::output()?.join("prepared.json");
        std::fs::write(&path, serde_json::to_vec(&prepared)?)?;
        let path = path
            .to_str()
            .context("the build directory's name is not UTF-8")?;
        match root::again_as_root(&["--prepared", path])? {}
    }
    for leftover in lab::remove_leftovers() {
        eprintln!("removed what an earlier run left behind: {leftover}");
    }
    let graceful = Graceful::new();
    let held = play(&arguments, &prepared)?;
    drop(graceful);
    match held {
        Some(true) => Ok(()),
        Some(false) if arguments.once => bail!("something did not hold: see the lines with ✗"),
        Some(false) => Ok(()),
        None => Err(process::Interrupted.into()),
    }
}

/// Builds the image and fetches the files, as whoever calls.
fn prepare(arguments: &Args) -> Result<Prepared> {
    setup::ensure(&[Group::Emulator, Group::Scenario])?;
    let built = image::build("directory", None, None)?;
    let directory = paths::output()?.join("files");
    std::fs::create_dir_all(&directory)?;
    let files = match arguments.files.as_deref() {
        Some([old, new]) => files::own(old, new, &directory)?,
        _ => files::published(&directory)?,
    };
    Ok(Prepared {
        facts: ImageReport {
            bytes: built.bytes,
            efi_bytes: built.efi_bytes,
            sha256: built.digest.to_string(),
        },
        image: built.path,
        files,
    })
}

/// What the user asks for with a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Wish {
    /// Unplug the line, or plug it in.
    Plug,
    /// Switch the core off or on.
    Peer,
    /// Fetch the first file.
    Fetch,
    /// Fetch the next version.
    FetchNext,
    /// Fetch the first file bridged.
    FetchBridged,
    /// Search the directory.
    Directory,
}

/// Sets everything up, plays the scenario on a thread of its own, and shows it. Did everything hold? `None`: interrupted before
/// the end.
fn play(arguments: &Args, prepared: &Prepared) -> Result<Option<bool>> {
    let shows_panel =
        !arguments.plain && std::io::stdout().is_terminal() && std::io::stdin().is_terminal();
    let live = Live::new(arguments.line.to_string(), !shows_panel);
    let (wishes, wished) = mpsc::channel();
    std::thread::scope(|scope| {
        let stage_live = live.clone();
        let stage = scope.spawn(move || {
            let result = stage(arguments, prepared, &stage_live, &wished);
            // Whatever happened, the panel must not wait for more.
            stage_live.state().over.get_or_insert(false);
            result
        });
        let mut screen = Screen::new(shows_panel)?;
        while !stage.is_finished() {
            screen.show(&live, &wishes)?;
        }
        let picture = screen.picture(&live);
        drop(screen);
        let result = stage
            .join()
            .unwrap_or_else(|_| bail!("the scenario's thread panicked"));
        if let Some(path) = &arguments.picture {
            picture::write(&picture, path)?;
        }
        if shows_panel {
            summary(&live);
        }
        result
    })
}

/// What stays in the terminal when the panel is gone.
fn summary(live: &Live) {
    let state = live.state();
    for check in &state.checks {
        println!("{check}");
    }
}

/// The scenario from beginning to end, and what the user wishes afterwards.
fn stage(
    arguments: &Args,
    prepared: &Prepared,
    live: &Live,
    wished: &mpsc::Receiver<Wish>,
) -> Result<Option<bool>> {
    let Prepared {
        image,
        facts,
        files,
    } = prepared;
    live.say(format!(
        "line: {}; files: {}, then {}",
        arguments.line, files.old.what, files.new.what
    ));
    let mut lab = Lab::new(
        Some(image),
        files,
        &arguments.line,
        arguments.capture.as_deref(),
        live,
    )?;
    let mut scenario = Scenario::new(&mut lab, files, &arguments.line, facts.clone(), live);
    let played = scenario.play();
    let report = scenario.report();
    if let Some(path) = &arguments.report {
        report.write(path)?;
    }
    if let Some(path) = &arguments.capture {
        root::give_to_user(path);
    }
    match played {
        Err(error) if error.is::<process::Interrupted>() => return Ok(None),
        other => other?,
    }
    live.state().over = Some(report.held);
    live.say(if report.held {
        "everything held"
    } else {
        "something did not hold"
    });
    if !arguments.once {
        let hints = hints(scenario.lab, files);
        if live.prints() {
            hints.iter().for_each(|hint| live.say(hint.as_str()));
            live.say("it all stays up until Ctrl-C");
        }
        live.state().hints = hints;
        fulfil(&mut scenario, live, wished)?;
    }
    Ok(Some(report.held))
}

/// Does what the user wishes, until the end.
fn fulfil(scenario: &mut Scenario, live: &Live, wished: &mpsc::Receiver<Wish>) -> Result<()> {
    while !process::interrupted() {
        let Ok(wish) = wished.recv_timeout(Duration::from_millis(100)) else {
            continue;
        };
        let plugged = scenario.lab.wires.snapshot().plugged;
        let result = match wish {
            Wish::Plug => {
                live.say(if plugged {
                    "the line is unplugged"
                } else {
                    "the line is plugged in"
                });
                scenario.lab.wires.plug(!plugged)
            }
            Wish::Peer if scenario.lab.is_on(Site::Core) => scenario.lab.power_off(Site::Core),
            Wish::Peer => scenario.lab.power_on(Site::Core),
            Wish::Fetch => scenario.fetch_again("fetch", SERVER, false),
            Wish::FetchNext => scenario.fetch_again("fetch next", SERVER, true),
            Wish::FetchBridged => scenario.fetch_again("fetch bridged", DIRECT, false),
            Wish::Directory => scenario.search("as asked").map(drop),
        };
        match result {
            Err(error) if error.is::<process::Interrupted>() => return Ok(()),
            Err(error) => live.say(format!("{error:#}")),
            Ok(()) => {}
        }
    }
    Ok(())
}

/// How to reach each part.
fn hints(lab: &Lab, files: &Files) -> Vec<String> {
    let inside = |name: &str| format!("sudo ip netns exec {name}");
    let (client, server) = (inside(lab.client.name()), inside(lab.server_name()));
    let console = |site: Site| {
        boxes::console_log(lab.directory(), site)
            .display()
            .to_string()
    };
    let mut hints = vec![
        format!(
            "fetch      {client} curl -o /dev/null {}",
            client::url(SERVER, &files.old)
        ),
        format!(
            "bridged    {client} curl -o /dev/null {}",
            client::url(DIRECT, &files.old)
        ),
        format!("directory  {client} ldapsearch -x -H ldap://{GUEST} -b dc=branch,dc=example"),
        format!(
            "consoles   tail -f {} {}",
            console(Site::Branch),
            console(Site::Core)
        ),
    ];
    // These are nice to have, and not installed for the run.
    for (program, hint) in [
        (
            "ping",
            format!("boxes      {client} ping {BRANCH_BOX} (the core: {CORE_BOX})"),
        ),
        (
            "tcpdump",
            format!("server     {server} tcpdump -ni {}", namespace::CARD),
        ),
    ] {
        if process::find_program(program).is_some() {
            hints.push(hint);
        }
    }
    hints
}

/// Everything but boxes: needs root and the scenario's programs.
#[cfg(test)]
mod tests {
    use super::*;
    use files::Served;
    use std::os::unix::fs::PermissionsExt;
    use std::path::Path;

    fn small_files(directory: &Path) -> Files {
        let (old, new) = (directory.join("a"), directory.join("b"));
        std::fs::write(&old, "some text over a line, ".repeat(20_000)).unwrap();
        std::fs::write(&new, "other text").unwrap();
        std::fs::set_permissions(directory, std::fs::Permissions::from_mode(0o755)).unwrap();
        files::own(&old, &new, directory).unwrap()
    }

    #[test]
    fn a_file_passes_over_the_line_between_boxes_that_are_off() {
        let programs = ["ip", "nginx", "curl", "ldapsearch"];
        if !root::is_root()
            || programs
                .iter()
                .any(|program| process::find_program(program).is_none())
        {
            eprintln!("skipped: needs root, and {}", programs.join(", "));
            return;
        }
        let directory = tempfile::tempdir().unwrap();
        let files = small_files(directory.path());
        let line: LineConfig = "rate=50M,rtt=10ms,loss=0.1%".parse().unwrap();
        let live = Live::new(line.to_string(), false);
        let lab = Lab::new(None, &files, &line, None, &live).unwrap();
        let fetch = |address: &str, file: &Served, seconds: u64| {
            lab.fetch(address, file, Duration::from_secs(seconds))
                .unwrap()
                .finish(|_| ())
                .unwrap()
        };

        lab.wires
            .look_for(Some(observe::PlainText::new(
                std::fs::read(&files.old.path).unwrap().into(),
            )))
            .unwrap();
        let fetched = fetch(DIRECT, &files.old, 60);
        assert!(fetched.sha256_ok, "{fetched:?}");
        let (frames, found) = lab.wires.look_for(None).unwrap().unwrap().result();
        assert!(frames > found && found > 300, "{frames} {found}");
        let snapshot = lab.wires.snapshot();
        assert!(
            (files.old.bytes..files.old.bytes * 11 / 10).contains(&snapshot.line_bytes()),
            "{snapshot:?}"
        );
        assert!(
            snapshot.cards[0].received_bytes > files.old.bytes,
            "{snapshot:?}"
        );

        let wrong = Served {
            sha256: "0".repeat(64),
            ..files.new.clone()
        };
        assert!(!fetch(SERVER, &wrong, 60).sha256_ok);

        lab.wires.plug(false).unwrap();
        // 28: the time ran out.
        let fetched = fetch(SERVER, &files.old, 1);
        assert_eq!((fetched.exit, fetched.bytes), (Some(28), 0));
        assert_eq!(client::search(&lab.client, GUEST).unwrap().entries, 0);
        lab.wires.plug(true).unwrap();
        assert!(fetch(SERVER, &files.new, 60).sha256_ok);

        // An expectation is recorded while the scenario is played, and only said afterwards.
        let mut lab = lab;
        let mut scenario = Scenario::new(&mut lab, &files, &line, ImageReport::default(), &live);
        assert!(!scenario.search("no guest").unwrap());
        scenario.fetch_again("again", SERVER, true).unwrap();
        assert!(!scenario.report().held, "no step was played");
        let checks = scenario.report().checks;
        assert_eq!(
            checks.iter().map(|check| check.held).collect::<Vec<_>>(),
            [false, true]
        );
        live.state().over = Some(false);
        assert!(!scenario.search("no guest").unwrap());
        assert_eq!(scenario.report().checks.len(), 2);

        let names = [lab.client.name().to_owned(), lab.server_name().to_owned()];
        let scratch = lab.directory().to_owned();
        drop(lab);
        assert!(!scratch.exists());
        assert!(
            names
                .iter()
                .all(|name| !Path::new("/run/netns").join(name).exists())
        );
    }
}
