//! Two branches at one core, each with a SOCKS5 server (RFC 1928). No test times the clock: each waits for what it expects.

mod ports;

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command};
use std::time::Duration;

const PROGRAM: &str = env!("CARGO_BIN_EXE_outpost-peer");

struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn run(folder: &Path, name: &str, text: &str) -> Running {
    let file = folder.join(name);
    std::fs::write(&file, text).unwrap();
    let child = Command::new(PROGRAM)
        .args(["run", "--config"])
        .arg(&file)
        .spawn()
        .unwrap();
    Running(child)
}

/// The two lines of a new pair of keys.
fn keys() -> [String; 2] {
    let out = Command::new(PROGRAM).arg("keygen").output().unwrap();
    let text = String::from_utf8(out.stdout).unwrap();
    let mut lines = text.lines().map(str::to_owned);
    [lines.next().unwrap(), lines.next().unwrap()]
}

/// Asks the SOCKS5 server at `port` for a connection; gives the stream and the reply field.
fn connect(port: u16, target: &[u8], to: u16) -> (TcpStream, u8) {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
    stream.write_all(&[5, 1, 0]).unwrap();
    let mut method = [0; 2];
    stream.read_exact(&mut method).unwrap();
    assert_eq!(method, [5, 0]);
    let mut request = vec![5, 1, 0];
    request.extend_from_slice(target);
    request.extend_from_slice(&to.to_be_bytes());
    stream.write_all(&request).unwrap();
    let mut reply = [0; 10];
    stream.read_exact(&mut reply).unwrap();
    (stream, reply[1])
}

fn is_up(management: u16) -> bool {
    let mut text = String::new();
    if let Ok(mut stream) = TcpStream::connect(("127.0.0.1", management)) {
        let _ = write!(
            stream,
            "GET /metrics HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
        );
        let _ = stream.read_to_string(&mut text);
    }
    text.contains("outpost_tunnel_up{peer=\"head\"} 1")
}

#[test]
fn two_branches_reach_servers_through_one_core() {
    let folder = std::env::temp_dir().join(format!("outpost-socks-{}", ports::free()));
    std::fs::create_dir_all(&folder).unwrap();
    let core_keys = keys();
    let branch_keys = [keys(), keys()];
    let listen = ports::free();
    let mut core = format!(
        "role = \"core\"\n{}\nlisten = \"127.0.0.1:{listen}\"\n[store]\nmemory = \"32M\"\n",
        core_keys[0]
    );
    for (number, keys) in branch_keys.iter().enumerate() {
        core += &format!("[[peer]]\nname = \"branch-{number}\"\n{}\n", keys[1]);
    }
    let mut running = vec![run(&folder, "core.toml", &core)];
    let mut socks = Vec::new();
    for (number, keys) in branch_keys.iter().enumerate() {
        let (port, management) = (ports::free(), ports::free());
        let text = format!(
            "role = \"branch\"\n{}\n[store]\nmemory = \"32M\"\n[[peer]]\nname = \"head\"\n{}\nendpoint = \"127.0.0.1:{listen}\"\n\
             [[socks]]\nlisten = \"127.0.0.1:{port}\"\npeer = \"head\"\n[management]\nlisten = \"127.0.0.1:{management}\"\n",
            keys[0], core_keys[1]
        );
        running.push(run(&folder, &format!("branch-{number}.toml"), &text));
        while !is_up(management) {
            for program in &mut running {
                assert_eq!(
                    program.0.try_wait().unwrap(),
                    None,
                    "a program ended by itself"
                );
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        socks.push(port);
    }
    let server = TcpListener::bind("127.0.0.1:0").unwrap();
    let at = server.local_addr().unwrap().port();
    std::thread::spawn(move || {
        for stream in server.incoming() {
            let mut stream = stream.unwrap();
            let mut bytes = Vec::new();
            if stream.read_to_end(&mut bytes).is_ok() {
                let _ = stream.write_all(&bytes);
            }
        }
    });
    let closed = ports::free();
    for port in socks {
        for target in [&[1, 127, 0, 0, 1][..], b"\x03\x09127.0.0.1"] {
            let (mut stream, reply) = connect(port, target, at);
            assert_eq!(reply, 0);
            let bytes: Vec<u8> = (0..200_000u32)
                .map(|i| (i.wrapping_mul(2_654_435_761) >> 11) as u8)
                .collect();
            stream.write_all(&bytes).unwrap();
            stream.shutdown(Shutdown::Write).unwrap();
            let mut back = Vec::new();
            stream.read_to_end(&mut back).unwrap();
            assert!(back == bytes, "{} bytes came back", back.len());
        }
        // "Connection refused", RFC 1928, section 6.
        assert_eq!(connect(port, &[1, 127, 0, 0, 1], closed).1, 5);
    }
    let _ = std::fs::remove_dir_all(&folder);
}
