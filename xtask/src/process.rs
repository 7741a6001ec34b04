//! Child processes that never outlive `xtask`, and what happens on Ctrl-C.
//!
//! Each child leads a process group of its own, is killed by the kernel if `xtask` dies (`PR_SET_PDEATHSIG`, set by
//! `setpriv`, since doing it here would need `unsafe`), and is killed with its whole group when its [`Process`] is
//! dropped or the user interrupts. Not a shell: nothing here parses command lines.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStderr, ChildStdout, Command, ExitStatus};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError, mpsc};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;

/// Process groups that are alive.
static GROUPS: Mutex<BTreeSet<i32>> = Mutex::new(BTreeSet::new());
/// What must be undone before the program ends, newest last.
static CLEANUPS: Mutex<BTreeMap<u64, Cleanup>> = Mutex::new(BTreeMap::new());
static NEXT_CLEANUP: AtomicU64 = AtomicU64::new(0);
static INTERRUPTED: AtomicBool = AtomicBool::new(false);
static GRACEFUL: AtomicUsize = AtomicUsize::new(0);

type Cleanup = Box<dyn FnOnce() + Send>;

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Catches SIGINT, SIGTERM, SIGHUP and SIGQUIT from now on. Without a [`Graceful`] guard, or at the second signal, every
/// child is killed, every [`AtExit`] runs, and the program ends with status 128 + signal.
///
/// # Errors
/// When the handlers cannot be set.
pub fn catch_signals() -> Result<()> {
    use signal_hook::consts::{SIGHUP, SIGINT, SIGQUIT, SIGTERM};
    let mut signals = signal_hook::iterator::Signals::new([SIGINT, SIGTERM, SIGHUP, SIGQUIT])
        .context("cannot catch signals")?;
    std::thread::Builder::new()
        .name("signals".into())
        .spawn(move || {
            for signal in signals.forever() {
                let first = !INTERRUPTED.swap(true, Ordering::SeqCst);
                if !(first && GRACEFUL.load(Ordering::SeqCst) > 0) {
                    exit_now(128 + signal);
                }
            }
        })?;
    Ok(())
}

/// Kills every child, runs every [`AtExit`] and ends the program.
pub fn exit_now(status: i32) -> ! {
    kill_all();
    let cleanups = std::mem::take(&mut *lock(&CLEANUPS));
    for (_, cleanup) in cleanups.into_iter().rev() {
        cleanup();
    }
    std::process::exit(status)
}

fn kill_all() {
    for &group in lock(&GROUPS).iter() {
        let _ = killpg(Pid::from_raw(group), Signal::SIGKILL);
    }
}

/// True once the user has asked for the end.
pub fn interrupted() -> bool {
    INTERRUPTED.load(Ordering::SeqCst)
}

/// An error if the user has asked for the end: for use in loops that wait.
///
/// # Errors
/// [`Interrupted`].
pub fn check_interrupted() -> Result<()> {
    if interrupted() {
        Err(Interrupted.into())
    } else {
        Ok(())
    }
}

/// The user pressed Ctrl-C (or a signal asked for the end).
#[derive(Debug)]
pub struct Interrupted;

impl std::fmt::Display for Interrupted {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("interrupted")
    }
}

impl std::error::Error for Interrupted {}

/// While one of these lives, the first signal only makes [`interrupted`] true, and the caller ends in its own time.
#[must_use]
pub struct Graceful(());

impl Graceful {
    /// Begins it.
    pub fn new() -> Graceful {
        GRACEFUL.fetch_add(1, Ordering::SeqCst);
        Graceful(())
    }
}

impl Drop for Graceful {
    fn drop(&mut self) {
        GRACEFUL.fetch_sub(1, Ordering::SeqCst);
    }
}

/// Runs a closure once: when dropped, or when the program is forced to end.
#[must_use]
pub struct AtExit(u64);

impl AtExit {
    /// Registers `cleanup`.
    pub fn new(cleanup: impl FnOnce() + Send + 'static) -> AtExit {
        let id = NEXT_CLEANUP.fetch_add(1, Ordering::SeqCst);
        lock(&CLEANUPS).insert(id, Box::new(cleanup));
        AtExit(id)
    }
}

impl Drop for AtExit {
    fn drop(&mut self) {
        let cleanup = lock(&CLEANUPS).remove(&self.0);
        if let Some(cleanup) = cleanup {
            cleanup();
        }
    }
}

/// A directory that is removed when dropped, and when the program is forced to end.
pub struct Scratch {
    path: PathBuf,
    _remove: AtExit,
}

impl Scratch {
    /// Makes a new empty directory under the system's directory for temporary files (short paths: Unix sockets live there).
    ///
    /// # Errors
    /// When the directory cannot be made.
    pub fn new(purpose: &str) -> Result<Scratch> {
        let path = tempfile::Builder::new()
            .prefix(&format!("outpost-{purpose}-"))
            .tempdir()
            .context("cannot make a temporary directory")?
            .keep();
        let doomed = path.clone();
        Ok(Scratch {
            path,
            _remove: AtExit::new(move || {
                let _ = std::fs::remove_dir_all(doomed);
            }),
        })
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

/// Finds `program` in `PATH`, and also in the places for administrators' programs that an ordinary user's `PATH` lacks.
pub fn find_program(program: &str) -> Option<PathBuf> {
    if program.contains('/') {
        // A file that is not a program counts as well: `setup` asks for both.
        return Path::new(program).exists().then(|| program.into());
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(["/usr/sbin".into(), "/sbin".into()])
        .map(|directory| directory.join(program))
        .find(|candidate| {
            nix::unistd::access(candidate, nix::unistd::AccessFlags::X_OK).is_ok()
                && candidate.is_file()
        })
}

/// A command for [`Process::start`].
///
/// # Errors
/// When `program` is not installed; the message says what to do.
pub fn command(program: impl AsRef<OsStr>) -> Result<Command> {
    let name = program.as_ref().to_string_lossy();
    let Some(path) = find_program(&name) else {
        bail!("{name} is not installed; `cargo xtask setup` installs what is needed");
    };
    match find_program("setpriv") {
        Some(setpriv) => {
            let mut command = Command::new(setpriv);
            command.args(["--pdeathsig", "KILL", "--"]).arg(path);
            Ok(command)
        }
        None => Ok(Command::new(path)),
    }
}

/// A running child.
pub struct Process {
    name: String,
    child: Child,
    status: Option<ExitStatus>,
}

impl Process {
    /// Starts a command that [`command`] made. `name` is for messages.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn start(mut command: Command, name: &str) -> Result<Process> {
        command.process_group(0);
        let child =
            spawn_on_lasting_thread(command).with_context(|| format!("cannot start {name}"))?;
        Ok(Process {
            name: name.to_owned(),
            child,
            status: None,
        })
    }

    /// Its process id.
    pub fn id(&self) -> Pid {
        group_of(&self.child)
    }

    /// Asks it to end: SIGTERM to its group.
    pub fn terminate(&self) {
        let _ = killpg(self.id(), Signal::SIGTERM);
    }

    /// Its standard output, if piped and not yet taken.
    pub fn take_stdout(&mut self) -> Option<ChildStdout> {
        self.child.stdout.take()
    }

    /// Its standard error, if piped and not yet taken.
    pub fn take_stderr(&mut self) -> Option<ChildStderr> {
        self.child.stderr.take()
    }

    /// The exit status if it has ended; what is left of its group is then killed.
    ///
    /// # Errors
    /// When the kernel does not say.
    pub fn try_wait(&mut self) -> Result<Option<ExitStatus>> {
        if self.status.is_none() {
            let mut groups = lock(&GROUPS);
            self.status = self
                .child
                .try_wait()
                .with_context(|| format!("cannot wait for {}", self.name))?;
            if self.status.is_some() {
                let group = group_of(&self.child);
                let _ = killpg(group, Signal::SIGKILL);
                groups.remove(&group.as_raw());
            }
        }
        Ok(self.status)
    }

    /// Waits up to `limit` for the end; `None` if it still runs then.
    ///
    /// # Errors
    /// [`Interrupted`], or when the kernel does not say.
    pub fn wait_for(&mut self, limit: Duration) -> Result<Option<ExitStatus>> {
        let deadline = Instant::now() + limit;
        loop {
            if let Some(status) = self.try_wait()? {
                return Ok(Some(status));
            }
            check_interrupted()?;
            if Instant::now() >= deadline {
                return Ok(None);
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Waits for the end.
    ///
    /// # Errors
    /// [`Interrupted`], or when the kernel does not say.
    pub fn wait(&mut self) -> Result<ExitStatus> {
        loop {
            if let Some(status) = self.wait_for(Duration::from_secs(3600))? {
                return Ok(status);
            }
        }
    }

    /// Kills the group at once and reaps the child.
    pub fn kill(&mut self) {
        if self.status.is_some() {
            return;
        }
        let group = group_of(&self.child);
        let _ = killpg(group, Signal::SIGKILL);
        self.status = self.child.wait().ok();
        lock(&GROUPS).remove(&group.as_raw());
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
    }
}

fn group_of(child: &Child) -> Pid {
    // A process id fits an i32 on Linux (PID_MAX_LIMIT is 2^22).
    Pid::from_raw(child.id().cast_signed())
}

/// `PR_SET_PDEATHSIG` fires when the *thread* that started the child ends, so one thread that lasts as long as the program
/// starts them all.
fn spawn_on_lasting_thread(command: Command) -> Result<Child> {
    type Request = (Command, mpsc::Sender<std::io::Result<Child>>);
    static SPAWNER: OnceLock<Mutex<mpsc::Sender<Request>>> = OnceLock::new();
    let spawner = SPAWNER.get_or_init(|| {
        let (sender, receiver) = mpsc::channel::<Request>();
        std::thread::spawn(move || {
            for (mut command, reply) in receiver {
                // The lock is held so that an interrupt between the start and the registration cannot miss the child.
                let mut groups = lock(&GROUPS);
                let child = command.spawn();
                if let Ok(child) = &child {
                    groups.insert(group_of(child).as_raw());
                }
                drop(groups);
                let _ = reply.send(child);
            }
        });
        Mutex::new(sender)
    });
    let (reply, answer) = mpsc::channel();
    lock(spawner)
        .send((command, reply))
        .map_err(|_| anyhow!("the thread that starts programs has died"))?;
    Ok(answer
        .recv()
        .context("the thread that starts programs has died")??)
}

/// Runs a command that [`command`] made to its end and gives its standard output.
///
/// # Errors
/// When it cannot be started, or fails: the message ends with what it wrote to standard error.
pub fn output(mut command: Command, name: &str) -> Result<Vec<u8>> {
    use std::io::Read;
    use std::process::Stdio;
    command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut process = Process::start(command, name)?;
    let mut errors = process.take_stderr().context("no standard error")?;
    let errors = std::thread::spawn(move || {
        let mut text = Vec::new();
        let _ = errors.read_to_end(&mut text);
        text
    });
    let mut output = Vec::new();
    process
        .take_stdout()
        .context("no standard output")?
        .read_to_end(&mut output)?;
    let status = process.wait()?;
    let errors = errors.join().unwrap_or_default();
    if !status.success() {
        bail!(
            "{name} failed ({status}): {}",
            String::from_utf8_lossy(&errors).trim()
        );
    }
    Ok(output)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{BufRead, BufReader};
    use std::process::Stdio;

    fn alive(pid: i32) -> bool {
        // A zombie no longer runs, whoever has yet to reap it.
        std::fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| {
            !stat
                .rsplit(')')
                .next()
                .unwrap_or("")
                .trim_start()
                .starts_with('Z')
        })
    }

    #[test]
    fn dropping_kills_grandchildren() {
        let mut shell = command("sh").unwrap();
        shell
            .args(["-c", "sleep 1000 & echo $!; wait"])
            .stdout(Stdio::piped());
        let mut process = Process::start(shell, "shell").unwrap();
        let mut line = String::new();
        BufReader::new(process.take_stdout().unwrap())
            .read_line(&mut line)
            .unwrap();
        let grandchild: i32 = line.trim().parse().unwrap();
        assert!(alive(grandchild));
        drop(process);
        // The kernel has the signal; give it the time to act on it.
        while alive(grandchild) {
            std::thread::yield_now();
        }
    }

    #[test]
    fn children_survive_the_thread_that_asked_for_them() {
        let mut process = std::thread::spawn(|| {
            // It outlasts the thread, which ends at once.
            let mut command = command("sleep").unwrap();
            command.arg("0.3");
            Process::start(command, "sleep").unwrap()
        })
        .join()
        .unwrap();
        assert!(process.wait().unwrap().success());
    }

    #[test]
    fn output_reports_what_a_failed_program_said() {
        let mut shell = command("sh").unwrap();
        shell.args(["-c", "echo no such luck >&2; exit 3"]);
        let error = output(shell, "shell").unwrap_err().to_string();
        assert!(
            error.contains("no such luck") && error.contains('3'),
            "{error}"
        );
        assert!(
            command("no-such-program-xyz")
                .unwrap_err()
                .to_string()
                .contains("cargo xtask setup")
        );
    }

    #[test]
    fn at_exit_runs_once_and_scratch_goes_away() {
        let (sender, receiver) = mpsc::channel();
        drop(AtExit::new(move || sender.send(1).unwrap()));
        assert_eq!(receiver.iter().count(), 1);
        let scratch = Scratch::new("test").unwrap();
        let path = scratch.path().to_owned();
        std::fs::write(path.join("file"), "x").unwrap();
        drop(scratch);
        assert!(!path.exists());
    }
}
