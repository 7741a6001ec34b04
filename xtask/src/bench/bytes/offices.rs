//! A branch and a head office on this machine: two `outpost-peer` programs with a line between them, a server behind one and
//! clients in front of the other. What comes out is compared with what went in, every byte.

use std::collections::HashMap;
use std::convert::Infallible;
use std::fmt::Write as _;
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::path::Path;
use std::process::Stdio;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use nix::time::ClockId;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Runtime;
use tokio::task::JoinSet;

use super::relay::{HEADERS, Relay};
use crate::process::{self, Process, Scratch};

/// Of each program's dictionaries, both directions.
const STORE_SIZE: &str = "1G";
/// A pause that tells that nothing more comes.
const QUIET: Duration = Duration::from_millis(300);
/// Far beyond what anything here takes.
const LIMIT: Duration = Duration::from_secs(300);

/// How the programs are connected.
#[derive(Clone, Copy, Debug)]
pub enum Line {
    /// Through a relay that counts, at so many bits a second if given.
    Counted(Option<u64>),
    /// Over the loopback interface, so that nothing else takes CPU time.
    Direct,
}

/// What carrying something took.
#[derive(Clone, Copy, Debug)]
pub struct Measured {
    /// Payload.
    pub payload: u64,
    /// IP packets on the line, both directions; none on a direct line.
    pub line: Option<u64>,
    /// CPU time of each program.
    pub cpu: [Duration; 2],
}

impl Measured {
    /// CPU time of the busier program.
    pub fn busier(&self) -> Duration {
        let [core, branch] = self.cpu;
        core.max(branch)
    }

    /// Payload bytes for each CPU-second of the busier program.
    pub fn speed(&self) -> f64 {
        self.payload as f64 / self.busier().as_secs_f64()
    }

    /// Line bytes for 100 payload bytes.
    pub fn percent(&self) -> f64 {
        self.line.unwrap_or_default() as f64 * 100.0 / self.payload as f64
    }
}

/// Samples of `/metrics`, with their labels as they stand there.
pub type Metrics = HashMap<String, u64>;

/// One program.
struct Program {
    name: &'static str,
    process: Process,
    management: SocketAddr,
}

/// Both programs, and what is around them.
pub struct Offices {
    core: Program,
    branch: Program,
    line: Option<Relay>,
    entry: SocketAddr,
    received: Receiver<std::io::Result<Vec<u8>>>,
    scratch: Scratch,
}

impl Offices {
    /// Starts them with empty dictionaries, and waits until the tunnel is up.
    ///
    /// # Errors
    /// A program does not start, or the tunnel does not come up.
    pub fn new(program: &Path, line: Line) -> Result<Offices> {
        let scratch = Scratch::new("bench")?;
        let (server, received) = serve()?;
        let core_listen = free_address()?;
        let (entry, managements) = (free_address()?, [free_address()?, free_address()?]);
        let line = match line {
            Line::Counted(rate) => Some(Relay::new(core_listen, rate)?),
            Line::Direct => None,
        };
        let endpoint = line.as_ref().map_or(core_listen, |line| line.address);
        let keys = [keys(program)?, keys(program)?];
        let store = |name: &str| {
            let path = scratch.path().join(format!("{name}.store"));
            format!(
                "[store]\npath = \"{}\"\nsize = \"{STORE_SIZE}\"\n",
                path.display()
            )
        };
        let core = format!(
            "role = \"core\"\n{}\nlisten = \"{core_listen}\"\n{}[[peer]]\nname = \"branch\"\n{}\n[management]\nlisten = \"{}\"\n",
            keys[0].0,
            store("core"),
            keys[1].1,
            managements[0]
        );
        let branch = format!(
            "role = \"branch\"\n{}\n{}[[peer]]\nname = \"head\"\n{}\nendpoint = \"{endpoint}\"\n\
             [[proxy]]\nlisten = \"{entry}\"\nto = \"{server}\"\npeer = \"head\"\n[management]\nlisten = \"{}\"\n",
            keys[1].0,
            store("branch"),
            keys[0].1,
            managements[1]
        );
        std::fs::write(scratch.path().join("core.toml"), core)?;
        std::fs::write(scratch.path().join("branch.toml"), branch)?;
        let start = |name, management| {
            Ok::<_, anyhow::Error>(Program {
                name,
                process: start(program, scratch.path(), name)?,
                management,
            })
        };
        let mut offices = Offices {
            core: start("core", managements[0])?,
            branch: start("branch", managements[1])?,
            line,
            entry,
            received,
            scratch,
        };
        offices.wait_until_up()?;
        Ok(offices)
    }

    /// Stops both in order and starts them again, with the dictionaries they have written. What that sends over the line is
    /// measured with what is carried next.
    ///
    /// # Errors
    /// One does not stop, does not start again, or the tunnel does not come up.
    pub fn restart(&mut self, program: &Path) -> Result<()> {
        for end in [&mut self.branch, &mut self.core] {
            end.process.terminate();
            let status = end.process.wait_for(LIMIT)?;
            ensure!(
                status.is_some_and(|status| status.success()),
                "{} did not stop in order ({status:?})",
                end.name
            );
        }
        for end in [&mut self.core, &mut self.branch] {
            end.process = start(program, self.scratch.path(), end.name)?;
        }
        self.wait_until_up()
    }

    /// Carries each payload over a connection of its own, one after the other or all at once, and compares what comes out.
    ///
    /// # Errors
    /// Something did not arrive as it was sent.
    pub fn carry(&mut self, payloads: &[&[u8]], at_once: bool) -> Result<Measured> {
        let before = self.line_bytes();
        self.carry_since(before, payloads, at_once)
    }

    /// As [`Offices::carry`], with the line's bytes counted since `before`.
    ///
    /// # Errors
    /// As there.
    pub fn carry_since(
        &mut self,
        before: Option<u64>,
        payloads: &[&[u8]],
        at_once: bool,
    ) -> Result<Measured> {
        let cpu = self.cpu_times()?;
        self.transfer(payloads, at_once)?;
        self.wait_until_quiet()?;
        let line = self.line_bytes().zip(before);
        Ok(Measured {
            payload: payloads.iter().map(|payload| payload.len() as u64).sum(),
            line: line.map(|(after, before)| after - before),
            cpu: self.cpu_since(cpu)?,
        })
    }

    /// As [`Offices::carry`], but measures nothing and does not wait for what the programs still say to each other.
    ///
    /// # Errors
    /// As there.
    pub fn transfer(&mut self, payloads: &[&[u8]], at_once: bool) -> Result<()> {
        let entry = self.entry;
        let sent = if at_once {
            send_at_once(entry, payloads)
        } else {
            payloads
                .iter()
                .try_for_each(|payload| send_at_once(entry, &[payload]))
        };
        sent.map_err(|error| self.with_log(error))?;
        let mut arrived = Vec::new();
        for _ in payloads {
            arrived.push(self.next_received()?);
        }
        arrived.sort();
        let mut expected = payloads.to_vec();
        expected.sort_unstable();
        ensure!(
            arrived == expected,
            "WRONG BYTES: what the server received is not what the clients sent"
        );
        Ok(())
    }

    /// Bytes of IP packets on the line so far.
    pub fn line_bytes(&self) -> Option<u64> {
        self.line.as_ref().map(Relay::bytes)
    }

    /// The branch's own count of the same since it was started.
    ///
    /// # Errors
    /// Its management page does not answer.
    pub fn line_bytes_by_branch(&self) -> Result<u64> {
        let metrics = self.metrics()?;
        let of = |name: &str| {
            metrics
                .iter()
                .filter(|(sample, _)| sample.starts_with(name))
                .map(|(_, value)| value)
                .sum::<u64>()
        };
        Ok(of("outpost_tunnel_sent_bytes_total")
            + of("outpost_tunnel_received_bytes_total")
            + HEADERS
                * (of("outpost_tunnel_sent_packets_total")
                    + of("outpost_tunnel_received_packets_total")))
    }

    /// What the branch shows of itself.
    ///
    /// # Errors
    /// Its management page does not answer.
    pub fn metrics(&self) -> Result<Metrics> {
        metrics(self.branch.management)
    }

    /// The most memory that a program had, in bytes: the larger of both.
    ///
    /// # Errors
    /// The system does not say.
    pub fn peak_memory(&self) -> Result<u64> {
        let of = |program: &Program| {
            let path = format!("/proc/{}/status", program.process.id());
            let status = std::fs::read_to_string(path)?;
            let kib = status
                .lines()
                .find_map(|line| line.strip_prefix("VmHWM:"))
                .and_then(|rest| rest.split_whitespace().next())
                .and_then(|kib| kib.parse::<u64>().ok())
                .context("the system does not say how much memory a program had")?;
            Ok::<_, anyhow::Error>(kib << 10)
        };
        Ok(of(&self.core)?.max(of(&self.branch)?))
    }

    /// CPU time of each program since it was started.
    ///
    /// # Errors
    /// The system does not say.
    pub fn cpu_times(&self) -> Result<[Duration; 2]> {
        let of = |program: &Program| {
            let clock = ClockId::pid_cpu_clock_id(program.process.id())?;
            Ok::<_, nix::Error>(Duration::from(clock.now()?))
        };
        Ok([of(&self.core)?, of(&self.branch)?])
    }

    /// CPU time of each program since [`Offices::cpu_times`] was `before`.
    ///
    /// # Errors
    /// As there.
    pub fn cpu_since(&self, before: [Duration; 2]) -> Result<[Duration; 2]> {
        let now = self.cpu_times()?;
        Ok([0, 1].map(|end| now[end].saturating_sub(before[end])))
    }

    fn next_received(&mut self) -> Result<Vec<u8>> {
        let deadline = Instant::now() + LIMIT;
        loop {
            process::check_interrupted()?;
            match self.received.recv_timeout(Duration::from_millis(200)) {
                Ok(received) => return received.context("the server could not read to the end"),
                Err(RecvTimeoutError::Timeout) if Instant::now() < deadline => {}
                Err(_) => {
                    let error = anyhow::anyhow!("the server waited in vain for a connection");
                    return Err(self.with_log(error));
                }
            }
        }
    }

    fn wait_until_up(&mut self) -> Result<()> {
        let deadline = Instant::now() + LIMIT;
        loop {
            process::check_interrupted()?;
            let ended = [
                self.core.process.try_wait()?,
                self.branch.process.try_wait()?,
            ];
            if let Some(status) = ended.into_iter().flatten().next() {
                let error = anyhow::anyhow!("outpost-peer ended ({status})");
                return Err(self.with_log(error));
            }
            let up = |program: &Program| {
                metrics(program.management).is_ok_and(|metrics| {
                    metrics
                        .iter()
                        .any(|(name, value)| name.starts_with("outpost_tunnel_up{") && *value == 1)
                })
            };
            if up(&self.core) && up(&self.branch) {
                return self.wait_until_quiet();
            }
            if Instant::now() > deadline {
                return Err(self.with_log(anyhow::anyhow!("the tunnel does not come up")));
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// Waits until nothing but keep-alives is on the line.
    ///
    /// # Errors
    /// The run was interrupted.
    pub fn wait_until_quiet(&self) -> Result<()> {
        let Some(line) = &self.line else {
            std::thread::sleep(QUIET);
            return process::check_interrupted();
        };
        loop {
            let before = line.packets();
            std::thread::sleep(QUIET);
            process::check_interrupted()?;
            if line.packets() <= before + 1 {
                return Ok(());
            }
        }
    }

    /// The error, with what the programs said last.
    fn with_log(&self, error: anyhow::Error) -> anyhow::Error {
        let mut said = String::new();
        for name in ["core", "branch"] {
            let log = std::fs::read_to_string(self.scratch.path().join(format!("{name}.log")))
                .unwrap_or_default();
            let lines: Vec<&str> = log.lines().collect();
            for line in lines.iter().skip(lines.len().saturating_sub(5)) {
                let _ = write!(said, "\n  {name}: {line}");
            }
        }
        error.context(format!("the programs said last:{said}\n"))
    }
}

fn start(program: &Path, directory: &Path, name: &str) -> Result<Process> {
    let log = std::fs::OpenOptions::new()
        .create(true)
        .append(true)
        .open(directory.join(format!("{name}.log")))?;
    let mut command = process::command(program)?;
    command
        .args(["run", "--config"])
        .arg(directory.join(format!("{name}.toml")))
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log);
    Process::start(command, "outpost-peer")
}

/// The lines of configuration for a private key and for its public key.
fn keys(program: &Path) -> Result<(String, String)> {
    let mut command = process::command(program)?;
    command.arg("keygen");
    let text = String::from_utf8(process::output(command, "outpost-peer keygen")?)?;
    let (private, public) = text
        .trim_end()
        .split_once('\n')
        .context("outpost-peer keygen prints two lines")?;
    Ok((private.to_owned(), public.to_owned()))
}

/// A loopback address that is free for TCP and UDP now.
fn free_address() -> Result<SocketAddr> {
    loop {
        let listener = std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        let address = listener.local_addr()?;
        if UdpSocket::bind(address).is_ok() {
            return Ok(address);
        }
    }
}

/// A server that keeps what each connection brings. It is one thread that sleeps only when none has anything: a thread for each
/// would have to be woken for each, at the cost of the program that is measured, as no host behind a network would.
fn serve() -> Result<(SocketAddr, Receiver<std::io::Result<Vec<u8>>>)> {
    let listener = std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    listener.set_nonblocking(true)?;
    let address = listener.local_addr()?;
    let (sender, received) = mpsc::channel();
    let runtime = one_thread()?;
    std::thread::Builder::new()
        .name("server".into())
        .spawn(move || runtime.block_on(accept(listener, sender)))?;
    Ok((address, received))
}

async fn accept(
    listener: std::net::TcpListener,
    sender: Sender<std::io::Result<Vec<u8>>>,
) -> std::io::Result<Infallible> {
    let listener = TcpListener::from_std(listener)?;
    loop {
        let (connection, _) = listener.accept().await?;
        tokio::spawn(receive(connection, sender.clone()));
    }
}

async fn receive(mut connection: TcpStream, sender: Sender<std::io::Result<Vec<u8>>>) {
    let mut bytes = Vec::new();
    let result = connection.read_to_end(&mut bytes).await.map(|_| bytes);
    // Nobody listens any more when the run is over.
    let _ = sender.send(result);
}

/// Sends all at once, each over a connection of its own, from one thread, as [`serve`] is one.
fn send_at_once(entry: SocketAddr, payloads: &[&[u8]]) -> Result<()> {
    one_thread()?.block_on(async {
        let mut clients = JoinSet::new();
        for payload in payloads {
            clients.spawn(send(entry, payload.to_vec()));
        }
        loop {
            tokio::select! {
                client = clients.join_next() => match client {
                    Some(sent) => sent.context("a client died")??,
                    None => return Ok(()),
                },
                () = tokio::time::sleep(Duration::from_millis(200)) => process::check_interrupted()?,
            }
        }
    })
}

async fn send(entry: SocketAddr, payload: Vec<u8>) -> Result<()> {
    let mut connection = TcpStream::connect(entry)
        .await
        .context("the branch does not accept")?;
    let all = async {
        connection.write_all(&payload).await?;
        connection.shutdown().await?;
        let mut answer = Vec::new();
        tokio::time::timeout(LIMIT, connection.read_to_end(&mut answer)).await?
    };
    let answered = all.await.context("a client's connection broke")?;
    ensure!(
        answered == 0,
        "the server sends nothing, and {answered} bytes arrived"
    );
    Ok(())
}

fn one_thread() -> std::io::Result<Runtime> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
}

fn metrics(management: SocketAddr) -> Result<Metrics> {
    let text = ureq::get(format!("http://{management}/metrics"))
        .call()?
        .body_mut()
        .read_to_string()?;
    let sample = |line: &str| {
        let (name, value) = line.rsplit_once(' ')?;
        Some((name.to_owned(), value.parse().ok()?))
    };
    Ok(text.lines().filter_map(sample).collect())
}
