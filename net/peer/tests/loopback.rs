//! Two spawned programs over loopback. No test times the clock: each waits for what it expects.

mod ports;

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::{Child, Command};
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

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn run(name: &str, text: &str) -> Running {
    let file: PathBuf =
        std::env::temp_dir().join(format!("outpost-peer-{}-{name}.toml", ports::free()));
    std::fs::write(&file, text).unwrap();
    let child = Command::new(PROGRAM)
        .args(["run", "--config"])
        .arg(&file)
        .spawn()
        .unwrap();
    Running(child)
}

struct Pair {
    core: Running,
    branch: Running,
    proxy: SocketAddr,
    management: u16,
}

fn pair(name: &str, to: SocketAddr) -> Pair {
    let ((core_private, core_public), (private, public)) = (keys(), keys());
    let (udp, port, management) = (ports::free(), ports::free(), ports::free());
    let core = run(
        &format!("{name}-core"),
        &format!(
            "role = \"core\"\nprivate_key = \"{core_private}\"\nlisten = \"127.0.0.1:{udp}\"\n[store]\nmemory = \"32M\"\n[[peer]]\nname = \"branch\"\npublic_key = \"{public}\"\n"
        ),
    );
    let branch = run(
        &format!("{name}-branch"),
        &format!(
            "role = \"branch\"\nprivate_key = \"{private}\"\n[store]\nmemory = \"32M\"\n[[peer]]\nname = \"head\"\npublic_key = \"{core_public}\"\nendpoint = \"127.0.0.1:{udp}\"\n[[proxy]]\nlisten = \"127.0.0.1:{port}\"\nto = \"{to}\"\npeer = \"head\"\n[management]\nlisten = \"127.0.0.1:{management}\"\n"
        ),
    );
    let mut pair = Pair {
        core,
        branch,
        proxy: SocketAddr::from(([127, 0, 0, 1], port)),
        management,
    };
    while !get(management, "/metrics").contains("outpost_tunnel_up{peer=\"head\"} 1") {
        for end in [&mut pair.core, &mut pair.branch] {
            assert_eq!(end.0.try_wait().unwrap(), None, "a program ended by itself");
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    pair
}

fn get(port: u16, path: &str) -> String {
    let mut text = String::new();
    if let Ok(mut stream) = TcpStream::connect(("127.0.0.1", port)) {
        let _ = write!(
            stream,
            "GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
        );
        let _ = stream.read_to_string(&mut text);
    }
    text
}

/// A server that sends back what it has read once the client has finished.
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
    (0..len)
        .map(|_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            (state >> 32) as u8
        })
        .collect()
}

fn exchange(at: SocketAddr, bytes: &[u8], piece: usize) {
    let mut stream = TcpStream::connect(at).unwrap();
    stream.set_nodelay(true).unwrap();
    for part in bytes.chunks(piece) {
        stream.write_all(part).unwrap();
    }
    stream.shutdown(Shutdown::Write).unwrap();
    let mut back = Vec::new();
    stream.read_to_end(&mut back).unwrap();
    assert!(
        back == bytes,
        "{} bytes came back of {}",
        back.len(),
        bytes.len()
    );
}

#[test]
fn bytes_arrive_both_ways_after_half_a_close() {
    let pair = pair("bytes", echo());
    let bytes = noise(1, 3_000_000);
    exchange(pair.proxy, &bytes, 100_000);
    exchange(pair.proxy, &bytes, 100_000);
    exchange(pair.proxy, &noise(2, 300), 1);
    exchange(pair.proxy, &[], 1);
    let metrics = get(pair.management, "/metrics");
    assert!(
        metrics.contains("outpost_flow_ends_total{peer=\"head\",end=\"finished\"} 4"),
        "{metrics}"
    );
    assert!(get(pair.management, "/flows").contains("\"flows\":["));
}

#[test]
fn fifty_connections_at_once() {
    let pair = pair("fifty", echo());
    let at = pair.proxy;
    let threads: Vec<_> = (0..50)
        .map(|seed| std::thread::spawn(move || exchange(at, &noise(seed, 40_000), 7_000)))
        .collect();
    for thread in threads {
        thread.join().unwrap();
    }
}

#[test]
fn a_refusal_is_mirrored_and_counted() {
    let pair = pair("refusal", SocketAddr::from(([127, 0, 0, 1], ports::free())));
    let mut stream = TcpStream::connect(pair.proxy).unwrap();
    let error = stream.read(&mut [0]).unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
    let metrics = get(pair.management, "/metrics");
    assert!(metrics.contains("end=\"refused\"} 1"), "{metrics}");
}

#[test]
fn a_stop_is_clean() {
    let mut pair = pair("stop", echo());
    exchange(pair.proxy, b"before", 6);
    let id = pair.branch.0.id().to_string();
    assert!(
        Command::new("kill")
            .args(["-TERM", &id])
            .status()
            .unwrap()
            .success()
    );
    assert!(pair.branch.0.wait().unwrap().success());
    assert!(TcpStream::connect(pair.proxy).is_err());
}
