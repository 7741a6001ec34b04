//! An image branch and `outpost-peer` at head office: the box's WAN card leads to QEMU's user-mode network, from which this
//! machine's loopback interface can be reached.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddrV4, TcpListener, TcpStream, UdpSocket};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::thread::JoinHandle;
use std::time::Instant;

use anyhow::{Result, bail, ensure};

use super::boxes::{BOX_ADDRESS, Setup, TestBox};
use super::station::Station;
use super::{Trial, frames, store};
use crate::keys::KeyPair;
use crate::paths;
use crate::process::{self, Process};
use crate::qemu::Wire;

/// What this machine's loopback interface is in the box's network.
const GATEWAY: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 2);
/// Where the server listens: an address of this machine, which only the core can reach.
const SERVER: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 1);
/// Fetched twice.
const FILE_BYTES: usize = 1 << 20;

/// Builds the program as the host tests do, and gives its path.
fn build() -> Result<PathBuf> {
    let mut cargo = process::command(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))?;
    cargo
        .current_dir(paths::workspace())
        .args(["build", "--quiet", "--package", "outpost-peer"]);
    let status = Process::start(cargo, "cargo build")?.wait()?;
    ensure!(status.success(), "outpost-peer does not build");
    Ok(paths::target().join("debug/outpost-peer"))
}

/// `outpost-peer` as a core, with its log in the test's folder.
struct Core {
    process: Process,
    pages: SocketAddrV4,
    log: PathBuf,
}

impl Core {
    fn start(trial: &mut Trial<'_>, own: &KeyPair, branch: &KeyPair, listen: u16) -> Result<Core> {
        let began = Instant::now();
        let program = build()?;
        // The deadline is the test's; the first build takes minutes.
        trial.deadline += began.elapsed();
        // Bound and let go: nobody else asks for ports of this machine so quickly.
        let pages = match TcpListener::bind((SERVER, 0))?.local_addr()? {
            std::net::SocketAddr::V4(address) => address,
            other => bail!("{other} is no IPv4 address"),
        };
        let config = trial.folder.join("core.toml");
        std::fs::write(
            &config,
            format!(
                "role = \"core\"\nprivate_key = \"{}\"\nlisten = \"127.0.0.1:{listen}\"\n[[peer]]\nname = \"branch\"\n\
                 public_key = \"{}\"\n[management]\nlisten = \"{pages}\"\n",
                own.private, branch.public
            ),
        )?;
        let log = trial.folder.join("core.log");
        let file = std::fs::File::create(&log)?;
        let mut command: Command = process::command(program)?;
        command
            .args(["run", "--config"])
            .arg(&config)
            .stdin(Stdio::null())
            .stdout(file.try_clone()?)
            .stderr(file);
        Ok(Core {
            process: Process::start(command, "outpost-peer")?,
            pages,
            log,
        })
    }

    fn is_running(&mut self) -> Result<()> {
        if let Some(status) = self.process.try_wait()? {
            let log = std::fs::read_to_string(&self.log).unwrap_or_default();
            bail!("outpost-peer ended with {status}:\n{log}");
        }
        Ok(())
    }

    /// The sum of a metric over the lines that have all of `labels`.
    fn metric(&self, name: &str, labels: &[&str]) -> Result<u64> {
        let mut stream = TcpStream::connect(self.pages)?;
        stream.write_all(b"GET /metrics HTTP/1.0\r\n\r\n")?;
        let mut page = String::new();
        stream.read_to_string(&mut page)?;
        let lines = page.lines().filter(|line| {
            line.strip_prefix(name)
                .is_some_and(|rest| rest.starts_with(['{', ' ']))
                && labels.iter().all(|label| line.contains(label))
        });
        let values: Vec<u64> = lines
            .filter_map(|line| line.rsplit(' ').next()?.parse().ok())
            .collect();
        ensure!(!values.is_empty(), "{name} is not in /metrics:\n{page}");
        Ok(values.iter().sum())
    }
}

/// Serves `file` to `clients` clients, one after the other.
fn serve(file: Vec<u8>, clients: usize) -> Result<(u16, JoinHandle<Result<()>>)> {
    let listener = TcpListener::bind((SERVER, 0))?;
    let port = listener.local_addr()?.port();
    let thread = std::thread::spawn(move || {
        for _ in 0..clients {
            let (mut stream, _) = listener.accept()?;
            let mut asked = [0; 4];
            stream.read_exact(&mut asked)?;
            stream.write_all(&file)?;
            stream.shutdown(std::net::Shutdown::Write)?;
            // Until the client has ended, too.
            stream.read_to_end(&mut Vec::new())?;
        }
        Ok(())
    });
    Ok((port, thread))
}

/// A counter of the branch, as last reported.
fn counter(said: &super::watch::Said, part: &str, name: &str) -> Option<u64> {
    said.status()?["net"][part][name].as_u64()
}

/// The client behind the box fetches the file.
fn fetch(
    branch: &mut TestBox,
    core: &mut Core,
    client: &mut Station,
    port: u16,
) -> Result<Vec<u8>> {
    let mut asking = client.connect(SocketAddrV4::new(SERVER, port))?;
    asking.send(b"file");
    for closing in [false, true] {
        if closing {
            asking.close();
        }
        while !asking.turn(client)? {
            let busy = client.poll();
            branch.alive("the file")?;
            core.is_running()?;
            if !busy {
                std::thread::sleep(std::time::Duration::from_millis(1));
            }
        }
        // The last acknowledgement goes out.
        client.poll();
    }
    Ok(asking.received)
}

/// A file comes through right, twice, and both sides count the same; the second time little crosses the line.
pub fn program(trial: &mut Trial<'_>) -> Result<()> {
    let (branch_keys, core_keys) = (KeyPair::generate()?, KeyPair::generate()?);
    let listen = UdpSocket::bind((SERVER, 0))?.local_addr()?.port();
    let mut core = Core::start(trial, &core_keys, &branch_keys, listen)?;
    let mut setup = Setup::new(format!(
        "role = \"branch\"\nprivate_key = \"{}\"\n[management]\naddress = \"{BOX_ADDRESS}/16\"\n[[peer]]\nname = \"head-office\"\n\
         public_key = \"{}\"\nendpoint = \"{GATEWAY}:{listen}\"\nprefixes = [\"{SERVER}/32\"]\n",
        branch_keys.private, core_keys.public
    ));
    setup.wan = Some(Wire::User {
        network: "10.77.0.0/16".into(),
        gateway: GATEWAY,
        forwards: Vec::new(),
    });
    let mut branch = setup.start(trial)?;
    branch.wait_for("the tunnel to come up", |said| {
        (said.status()?["net"]["tunnel"]["up"] == true).then_some(())
    })?;
    core.is_running()?;

    let file = store::noise(FILE_BYTES);
    let (port, server) = serve(file.clone(), 2)?;
    let mut client = Station::new(
        &branch.lan,
        frames::LAN_STATION,
        Ipv4Addr::new(10, 77, 1, 10),
        GATEWAY,
    );
    for _ in 0..2 {
        let received = fetch(&mut branch, &mut core, &mut client, port)?;
        ensure!(
            received == file,
            "WRONG BYTES: {} of {} came",
            received.len(),
            file.len()
        );
    }
    ensure!(
        server.join().is_ok_and(|served| served.is_ok()),
        "the server failed"
    );

    // Both sides agree on what was optimised.
    let carried = 2 * FILE_BYTES as u64;
    branch.wait_for("the branch to have counted both flows", |said| {
        (counter(said, "flows", "finished")? == 2).then_some(())
    })?;
    let [to_hosts, stored, coded] = branch.said(|said| {
        [
            ("flows", "to_hosts"),
            ("received", "stored_bytes"),
            ("received", "wire_bytes"),
        ]
        .map(|(part, name)| counter(said, part, name))
    });
    ensure!(
        to_hosts == Some(carried),
        "the branch gave {to_hosts:?} bytes to its client, not {carried}"
    );
    let from_hosts = core.metric("outpost_host_bytes_total", &["direction=\"from_hosts\""])?;
    ensure!(
        from_hosts == carried,
        "the core took {from_hosts} bytes from its server, not {carried}"
    );
    // A busy machine loses packets, and what is sent again is no second copy.
    let (line, once) = (
        core.metric("outpost_tunnel_sent_bytes_total", &[])?,
        FILE_BYTES as u64..FILE_BYTES as u64 * 5 / 4,
    );
    ensure!(
        line >= once.start && coded.is_some_and(|coded| once.contains(&coded)),
        "the core sent {line} bytes, {coded:?} of them coded, for a file of {FILE_BYTES} that was fetched twice"
    );
    ensure!(
        stored.is_some_and(|stored| stored >= FILE_BYTES as u64 && stored < carried),
        "the branch stored {stored:?} bytes of a file of {FILE_BYTES} that was fetched twice"
    );
    Ok(())
}
