//! The dictionary on disk through spawned programs: it is warm after a restart, it is nobody else's, and trouble with it
//! stops no flow. No test times the clock: each waits for what it expects.

mod ports;

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

const PROGRAM: &str = env!("CARGO_BIN_EXE_outpost-peer");

fn keys() -> (String, String) {
    let out = Command::new(PROGRAM).arg("keygen").output().unwrap();
    let text = String::from_utf8(out.stdout).unwrap();
    let mut values = text
        .lines()
        .map(|line| line.split('"').nth(1).unwrap().to_owned());
    (values.next().unwrap(), values.next().unwrap())
}

struct Running(Child);

impl Running {
    fn start(config: &Path) -> Running {
        let child = Command::new(PROGRAM)
            .args(["run", "--config"])
            .arg(config)
            .spawn()
            .unwrap();
        Running(child)
    }

    fn stop(mut self, signal: &str) {
        let id = self.0.id().to_string();
        assert!(
            Command::new("kill")
                .args([signal, &id])
                .status()
                .unwrap()
                .success()
        );
        self.0.wait().unwrap();
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Two ends in a folder of their own, with a server behind the core that sends what it is sent back.
struct Pair {
    folder: PathBuf,
    proxy: SocketAddr,
    management: u16,
    ends: Option<(Running, Running)>,
}

impl Pair {
    fn new(name: &str) -> Pair {
        let folder = std::env::temp_dir().join(format!("outpost-store-{name}-{}", ports::free()));
        std::fs::create_dir_all(&folder).unwrap();
        let ((core_private, core_public), (private, public)) = (keys(), keys());
        let udp = ports::free();
        let (port, management) = (ports::free(), ports::free());
        let store = |end: &str| {
            format!(
                "[store]\npath = {:?}\nsize = \"48M\"\nmemory = \"8M\"\n",
                folder.join(format!("{end}.store"))
            )
        };
        std::fs::write(
            folder.join("core.toml"),
            format!(
                "role = \"core\"\nprivate_key = \"{core_private}\"\nlisten = \"127.0.0.1:{udp}\"\n{}[[peer]]\nname = \"branch\"\npublic_key = \"{public}\"\n",
                store("core")
            ),
        )
        .unwrap();
        std::fs::write(
            folder.join("branch.toml"),
            format!(
                "role = \"branch\"\nprivate_key = \"{private}\"\n{}[[peer]]\nname = \"head\"\npublic_key = \"{core_public}\"\nendpoint = \"127.0.0.1:{udp}\"\n[[proxy]]\nlisten = \"127.0.0.1:{port}\"\nto = \"{}\"\npeer = \"head\"\n[management]\nlisten = \"127.0.0.1:{management}\"\n",
                store("branch"),
                echo(),
            ),
        )
        .unwrap();
        let mut pair = Pair {
            folder,
            proxy: SocketAddr::from(([127, 0, 0, 1], port)),
            management,
            ends: None,
        };
        pair.start();
        pair
    }

    fn start(&mut self) {
        let core = Running::start(&self.folder.join("core.toml"));
        let branch = Running::start(&self.folder.join("branch.toml"));
        self.ends = Some((core, branch));
        while self.metric("outpost_tunnel_up") != Some(1) {
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    fn stop(&mut self, signal: &str) {
        let (core, branch) = self.ends.take().unwrap();
        branch.stop(signal);
        core.stop(signal);
    }

    fn metrics(&self) -> String {
        let mut text = String::new();
        if let Ok(mut stream) = TcpStream::connect(("127.0.0.1", self.management)) {
            let _ = write!(
                stream,
                "GET /metrics HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
            );
            let _ = stream.read_to_string(&mut text);
        }
        text
    }

    fn metric(&self, name: &str) -> Option<u64> {
        let text = self.metrics();
        let line = text
            .lines()
            .find(|line| line.starts_with(&format!("{name}{{")))?;
        line.rsplit(' ').next()?.parse().ok()
    }

    /// Bytes that the branch has sent and received through the tunnel.
    fn line(&self) -> u64 {
        self.metric("outpost_tunnel_sent_bytes_total").unwrap()
            + self.metric("outpost_tunnel_received_bytes_total").unwrap()
    }

    /// Sends `bytes`, reads them back, and returns the bytes on the line.
    fn exchange(&self, bytes: &[u8]) -> u64 {
        let before = self.line();
        let stream = TcpStream::connect(self.proxy).unwrap();
        let mut reading = stream.try_clone().unwrap();
        let sent = bytes.to_vec();
        let writer = std::thread::spawn(move || {
            let mut stream = stream;
            stream.write_all(&sent).unwrap();
            stream.shutdown(Shutdown::Write).unwrap();
        });
        let mut back = Vec::new();
        reading.read_to_end(&mut back).unwrap();
        writer.join().unwrap();
        assert!(back == bytes, "{} bytes of {}", back.len(), bytes.len());
        self.line() - before
    }
}

impl Drop for Pair {
    fn drop(&mut self) {
        self.ends = None;
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

fn echo() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let at = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            std::thread::spawn(move || {
                let mut bytes = Vec::new();
                if stream.read_to_end(&mut bytes).is_ok() {
                    let _ = stream.write_all(&bytes);
                }
            });
        }
    });
    at
}

fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    std::iter::repeat_with(|| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state as u8
    })
    .take(len)
    .collect()
}

#[test]
fn both_ends_are_warm_after_a_restart() {
    let mut pair = Pair::new("warm");
    // More than the parts in memory: most of it comes back from the file.
    let bytes = noise(1, 14 << 20);
    let cold = pair.exchange(&bytes);
    assert!(cold > 14 << 20);
    let again = pair.exchange(&bytes);
    pair.stop("-TERM");
    pair.start();
    let restarted = pair.exchange(&bytes);
    // Both ways, and a handshake.
    let most = 2 * bytes.len() as u64 / 1000 + 4000;
    assert!(again < most, "again: {again} bytes");
    assert!(restarted < most, "after a restart: {restarted} bytes");
    assert_eq!(pair.metric("outpost_store_bad_pages_total"), Some(0));
    assert!(pair.metric("outpost_store_read_bytes_total") > Some(8 << 20));
}

#[test]
fn one_end_wiped_or_another_peers_is_served_and_warms_up() {
    let mut pair = Pair::new("wiped");
    let bytes = noise(2, 4 << 20);
    pair.exchange(&bytes);
    for wiped in ["core", "branch"] {
        pair.stop("-TERM");
        std::fs::remove_file(pair.folder.join(format!("{wiped}.store"))).unwrap();
        pair.start();
        pair.exchange(&bytes);
        let again = pair.exchange(&bytes);
        assert!(again < 12_000, "{wiped} wiped: {again} bytes");
    }
    // The branch's store in the core's place.
    pair.stop("-TERM");
    std::fs::copy(
        pair.folder.join("branch.store"),
        pair.folder.join("core.store"),
    )
    .unwrap();
    pair.start();
    pair.exchange(&bytes);
    let again = pair.exchange(&bytes);
    assert!(again < 12_000, "swapped: {again} bytes");
}

#[test]
fn a_second_peer_takes_nothing_from_the_first() {
    let mut pair = Pair::new("second");
    let bytes = noise(4, 4 << 20);
    pair.exchange(&bytes);
    let config = pair.folder.join("core.toml");
    let one = std::fs::read_to_string(&config).unwrap();
    let (_, public) = keys();
    let second = format!("[[peer]]\nname = \"second\"\npublic_key = \"{public}\"\n");
    let (before, first) = one.split_at(one.find("[[peer]]").unwrap());
    // Before the first, behind it, and gone again.
    for text in [
        format!("{before}{second}{first}"),
        format!("{one}{second}"),
        one.clone(),
    ] {
        pair.stop("-TERM");
        std::fs::write(&config, text).unwrap();
        pair.start();
        let again = pair.exchange(&bytes);
        assert!(again < 12_000, "{again} bytes");
    }
    assert!(pair.folder.join("core.store.second").exists());
    // The only peer left keeps the name that it had among several.
    pair.stop("-TERM");
    std::fs::rename(
        pair.folder.join("core.store"),
        pair.folder.join("core.store.branch"),
    )
    .unwrap();
    pair.start();
    let again = pair.exchange(&bytes);
    assert!(again < 12_000, "{again} bytes");
}

#[test]
fn a_killed_end_loses_at_most_what_was_new() {
    let mut pair = Pair::new("killed");
    let bytes = noise(3, 6 << 20);
    pair.exchange(&bytes);
    let written = pair.metric("outpost_store_segment_writes_total");
    pair.stop("-KILL");
    assert!(written > Some(0), "whole segments are written at once");
    pair.start();
    pair.exchange(&bytes);
    let again = pair.exchange(&bytes);
    assert!(again < 16_000, "{again} bytes");
}

#[test]
fn a_file_that_is_no_store_and_one_in_use_are_left_alone() {
    let pair = Pair::new("foreign");
    let config = pair.folder.join("core.toml");
    let text = std::fs::read_to_string(&config).unwrap();
    let other = pair.folder.join("letter.txt");
    std::fs::write(&other, "Dear sir or madam".repeat(1000)).unwrap();
    let path = |name: &str| format!("{:?}", pair.folder.join(name));
    let text = text.replace(&path("core.store"), &path("letter.txt"));
    let text = text.replace("127.0.0.1:", "127.0.0.9:");
    std::fs::write(pair.folder.join("other.toml"), text).unwrap();
    let child = Command::new(PROGRAM)
        .args(["run", "--config"])
        .arg(pair.folder.join("other.toml"))
        .stderr(Stdio::piped())
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&child.stderr);
    assert!(
        !child.status.success() && said.contains("no store"),
        "{said}"
    );
    assert!(std::fs::read_to_string(&other).unwrap().starts_with("Dear"));
    assert_eq!(pair.metric("outpost_store_started_anew"), Some(1));
}
