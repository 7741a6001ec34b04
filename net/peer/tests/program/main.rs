//! The program as a process, over loopback. No test times the clock: each waits for what it expects, up to a deadline far
//! beyond what that takes.

mod badstore;
mod configuration;
mod core;
mod flows;
mod liar;
mod lifecycle;
mod pages;
mod socks;
mod transparent;

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU16, AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

pub(crate) const PROGRAM: &str = env!("CARGO_BIN_EXE_outpost-peer");

/// Far beyond what anything here takes on a busy machine.
const DEADLINE: Duration = Duration::from_secs(90);

/// Waits until `seen` gives something.
#[track_caller]
pub(crate) fn until<T>(what: &str, mut seen: impl FnMut() -> Option<T>) -> T {
    let end = Instant::now() + DEADLINE;
    loop {
        if let Some(found) = seen() {
            return found;
        }
        assert!(Instant::now() < end, "waited in vain for {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// A port of this process's own, below those that the system gives to clients, free for TCP and UDP.
pub(crate) fn free_port() -> u16 {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let base = 10_000 + (std::process::id() % 220) as u16 * 100;
    loop {
        let port = base + NEXT.fetch_add(1, Ordering::SeqCst) % 400;
        let at = ("127.0.0.1", port);
        if TcpListener::bind(at).is_ok() && UdpSocket::bind(at).is_ok() {
            return port;
        }
    }
}

/// A private key and its public key.
pub(crate) fn keys() -> (String, String) {
    let out = Command::new(PROGRAM).arg("keygen").output().unwrap();
    let text = String::from_utf8(out.stdout).unwrap();
    let mut values = text
        .lines()
        .map(|line| line.split('"').nth(1).unwrap().to_owned());
    (values.next().unwrap(), values.next().unwrap())
}

/// A file of its own with this text. It is removed when dropped.
pub(crate) struct ConfigFile(pub(crate) PathBuf);

impl ConfigFile {
    pub(crate) fn new(text: &str) -> ConfigFile {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::SeqCst);
        let name = format!("outpost-peer-test-{}-{number}.toml", std::process::id());
        let path = std::env::temp_dir().join(name);
        std::fs::write(&path, text).unwrap();
        ConfigFile(path)
    }
}

impl Drop for ConfigFile {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

/// A running program, which ends when dropped.
pub(crate) struct Running {
    pub(crate) child: Child,
    lines: Arc<Mutex<Vec<String>>>,
    pub(crate) config: ConfigFile,
}

impl Running {
    pub(crate) fn start(text: &str) -> Running {
        let config = ConfigFile::new(text);
        let mut command = Command::new(PROGRAM);
        command.args(["run", "--config"]).arg(&config.0);
        Running::spawn(command, config)
    }

    pub(crate) fn spawn(mut command: Command, config: ConfigFile) -> Running {
        let mut child = command.stderr(Stdio::piped()).spawn().unwrap();
        let stderr = BufReader::new(child.stderr.take().unwrap());
        let lines = Arc::new(Mutex::new(Vec::new()));
        let kept = lines.clone();
        std::thread::spawn(move || {
            for line in stderr.lines().map_while(Result::ok) {
                kept.lock().unwrap().push(line);
            }
        });
        Running {
            child,
            lines,
            config,
        }
    }

    /// The lines that it has said so far with this text.
    pub(crate) fn lines_with(&self, text: &str) -> Vec<String> {
        let lines = self.lines.lock().unwrap();
        let with = |line: &&String| line.contains(text);
        lines.iter().filter(with).cloned().collect()
    }

    #[track_caller]
    pub(crate) fn says(&self, text: &str) {
        let end = Instant::now() + DEADLINE;
        while self.lines_with(text).is_empty() {
            assert!(
                Instant::now() < end,
                "waited in vain for {text:?} among {:#?}",
                self.lines.lock().unwrap()
            );
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    pub(crate) fn signal(&self, signal: &str) {
        let id = self.child.id().to_string();
        let status = Command::new("kill").args([signal, &id]).status().unwrap();
        assert!(status.success());
    }

    #[track_caller]
    pub(crate) fn ends(&mut self) -> ExitStatus {
        until("the program to end", || self.child.try_wait().unwrap())
    }

    /// Ends it as a power cut would, and starts it again.
    pub(crate) fn restart(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        let mut command = Command::new(PROGRAM);
        command.args(["run", "--config"]).arg(&self.config.0);
        let config = std::mem::replace(&mut self.config, ConfigFile(PathBuf::new()));
        let new = Running::spawn(command, config);
        // The old one's file is the new one's.
        let old = std::mem::replace(self, new);
        drop(old);
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// What a branch's or core's file begins with.
pub(crate) fn head(role: &str, private: &str, management: u16) -> String {
    format!(
        "role = \"{role}\"\nprivate_key = \"{private}\"\nlisten = \"127.0.0.1:LISTEN\"\n[store]\nmemory = \"16M\"\n[management]\nlisten = \"127.0.0.1:{management}\"\n"
    )
}

pub(crate) fn core_text(
    private: &str,
    listen: u16,
    management: u16,
    peers: &[(&str, &str)],
) -> String {
    let mut text = head("core", private, management).replace("LISTEN", &listen.to_string());
    for (name, public) in peers {
        text += &format!("[[peer]]\nname = \"{name}\"\npublic_key = \"{public}\"\n");
    }
    text
}

pub(crate) fn branch_text(
    private: &str,
    management: u16,
    core_public: &str,
    endpoint: u16,
) -> String {
    head("branch", private, management).replace("LISTEN", "3301")
        + &format!(
            "[[peer]]\nname = \"head\"\npublic_key = \"{core_public}\"\nendpoint = \"127.0.0.1:{endpoint}\"\n"
        )
}

pub(crate) fn proxy_text(listen: u16, to: SocketAddr) -> String {
    format!("[[proxy]]\nlisten = \"127.0.0.1:{listen}\"\nto = \"{to}\"\npeer = \"head\"\n")
}

/// A branch and a core, with a proxy to a server.
pub(crate) struct Pair {
    pub(crate) core: Running,
    pub(crate) branch: Running,
    pub(crate) proxy: SocketAddr,
    pub(crate) management: u16,
    pub(crate) core_management: u16,
    pub(crate) branch_text: String,
}

impl Pair {
    /// With the tunnel up. `more` is appended to the branch's file.
    pub(crate) fn new(to: SocketAddr, more: &str) -> Pair {
        let ((core_private, core_public), (private, public)) = (keys(), keys());
        let (udp, port) = (free_port(), free_port());
        let (management, core_management) = (free_port(), free_port());
        let core = core_text(&core_private, udp, core_management, &[("branch", &public)]);
        let branch_text =
            branch_text(&private, management, &core_public, udp) + &proxy_text(port, to) + more;
        let pair = Pair {
            core: Running::start(&core),
            branch: Running::start(&branch_text),
            proxy: SocketAddr::from(([127, 0, 0, 1], port)),
            management,
            core_management,
            branch_text,
        };
        tunnel_is_up(management, "head");
        pair
    }
}

#[track_caller]
pub(crate) fn tunnel_is_up(management: u16, peer: &str) {
    let line = format!("outpost_tunnel_up{{peer=\"{peer}\"}} 1\n");
    until(&line, || {
        get(management, "/metrics").contains(&line).then_some(())
    });
}

/// The page, with its head; nothing if nobody answers.
pub(crate) fn get(port: u16, path: &str) -> String {
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

/// The value of a sample of `/metrics`; 0 if there is none.
pub(crate) fn metric(port: u16, sample: &str) -> u64 {
    let page = get(port, "/metrics");
    let line = page
        .lines()
        .find_map(|line| line.strip_prefix(sample)?.strip_prefix(' '));
    line.map_or(0, |value| value.parse().unwrap())
}

pub(crate) fn flow_ends(port: u16, peer: &str, end: &str) -> u64 {
    metric(
        port,
        &format!("outpost_flow_ends_total{{peer=\"{peer}\",end=\"{end}\"}}"),
    )
}

/// The JSON of `/flows`.
pub(crate) fn flows_page(port: u16) -> serde_json::Value {
    let page = get(port, "/flows");
    let body = page.split_once("\r\n\r\n").map_or("", |(_, body)| body);
    serde_json::from_str(body).unwrap_or_default()
}

/// A server that hands each connection to `serve`, in a thread of its own.
pub(crate) fn server(serve: impl Fn(TcpStream) + Send + Sync + 'static) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let at = listener.local_addr().unwrap();
    let serve = Arc::new(serve);
    std::thread::spawn(move || {
        for stream in listener.incoming().map_while(Result::ok) {
            let serve = serve.clone();
            std::thread::spawn(move || serve(stream));
        }
    });
    at
}

/// A server that sends back what it has read once the client has finished.
pub(crate) fn echo() -> SocketAddr {
    server(|mut stream| {
        let mut bytes = Vec::new();
        if stream.read_to_end(&mut bytes).is_ok() {
            let _ = stream.write_all(&bytes);
        }
    })
}

pub(crate) fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut state = (seed + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    (0..len)
        .map(|_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            (state >> 32) as u8
        })
        .collect()
}

/// A client that does not wait longer than any test may.
pub(crate) fn connect(at: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect(at).unwrap();
    stream.set_read_timeout(Some(DEADLINE)).unwrap();
    stream.set_write_timeout(Some(DEADLINE)).unwrap();
    stream.set_nodelay(true).unwrap();
    stream
}

/// Sends bytes in pieces and expects them back.
pub(crate) fn exchange(at: SocketAddr, bytes: &[u8], piece: usize) {
    exchange_on(connect(at), bytes, piece);
}

pub(crate) fn exchange_on(mut stream: TcpStream, bytes: &[u8], piece: usize) {
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

/// Closes with an RST.
pub(crate) fn reset(stream: TcpStream) {
    let zero = Some(Duration::ZERO);
    socket2::SockRef::from(&stream).set_linger(zero).unwrap();
}
