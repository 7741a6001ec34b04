//! Several branches at one core.

use super::*;
use std::sync::atomic::AtomicBool;

struct Site {
    running: Running,
    management: u16,
    proxy: SocketAddr,
}

struct Office {
    core: Running,
    core_management: u16,
    core_public: String,
    udp: u16,
    sites: Vec<Site>,
}

/// A core with branches called `0`, `1`, …; `through` gives the port at which a branch finds the core.
fn office(branches: usize, to: SocketAddr, through: impl Fn(usize, u16) -> u16) -> Office {
    let (core_private, core_public) = keys();
    let (udp, core_management) = (free_port(), free_port());
    let pairs: Vec<(String, String)> = (0..branches).map(|_| keys()).collect();
    let names: Vec<String> = (0..branches).map(|index| index.to_string()).collect();
    let peers: Vec<(&str, &str)> = names
        .iter()
        .zip(&pairs)
        .map(|(name, (_, public))| (name.as_str(), public.as_str()))
        .collect();
    let core = Running::start(&core_text(&core_private, udp, core_management, &peers));
    let sites = pairs.iter().enumerate().map(|(index, (private, _))| {
        let (management, port) = (free_port(), free_port());
        let text = branch_text(private, management, &core_public, through(index, udp))
            + &proxy_text(port, to);
        Site {
            running: Running::start(&text),
            management,
            proxy: SocketAddr::from(([127, 0, 0, 1], port)),
        }
    });
    let sites: Vec<Site> = sites.collect();
    for (site, name) in sites.iter().zip(&names) {
        tunnel_is_up(site.management, "head");
        tunnel_is_up(core_management, name);
    }
    Office {
        core,
        core_management,
        core_public,
        udp,
        sites,
    }
}

/// All sites exchange bytes of their own at once.
fn exchange_all(office: &Office, len: usize) {
    let threads = office.sites.iter().zip(10..).map(|(site, seed)| {
        let at = site.proxy;
        std::thread::spawn(move || exchange(at, &noise(seed, len), 60_000))
    });
    let threads: Vec<_> = threads.collect();
    for thread in threads {
        thread.join().unwrap();
    }
}

#[test]
fn three_branches_at_once_each_with_a_dictionary_of_its_own() {
    let office = office(3, echo(), |_, udp| udp);
    let wire = |index: usize| {
        metric(
            office.core_management,
            &format!("outpost_dedup_wire_bytes_total{{peer=\"{index}\",direction=\"sent\"}}"),
        )
    };
    exchange_all(&office, 700_000);
    let cold: Vec<u64> = (0..3).map(wire).collect();
    assert!(cold.iter().all(|bytes| *bytes > 0), "{cold:?}");
    exchange_all(&office, 700_000);
    for (index, cold) in cold.into_iter().enumerate() {
        let warm = wire(index) - cold;
        assert!(
            warm < 70_000,
            "branch {index}: {warm} bytes for known bytes"
        );
    }
    let up = office.core.lines_with("the tunnel is up");
    assert_eq!(up.len(), 3, "{up:?}");
}

#[test]
fn an_unknown_key_is_refused_and_said_once_and_the_others_do_not_notice() {
    let office = office(2, echo(), |_, udp| udp);
    let (private, public) = keys();
    let management = free_port();
    let text = branch_text(&private, management, &office.core_public, office.udp);
    let stranger = Running::start(&text);
    stranger.says("does not accept this box's key");
    // Several attempts, and work for the others meanwhile.
    let attempts = "outpost_strangers_total{reason=\"wrong_key\"}";
    while metric(office.core_management, attempts) < 3 {
        exchange_all(&office, 50_000);
    }
    let said = office
        .core
        .lines_with("which is not the [[peer]] public_key");
    assert_eq!(said.len(), 1, "{said:?}");
    assert_eq!(metric(management, "outpost_tunnel_up{peer=\"head\"}"), 0);
    assert!(!public.is_empty());
    for site in &office.sites {
        let connections = "outpost_tunnel_connections_total{peer=\"head\"}";
        assert_eq!(metric(site.management, connections), 1);
        assert!(site.running.lines_with("is down").is_empty());
    }
}

/// Carries datagrams between a branch and the core, and may change the address that the core sees.
struct Relay {
    port: u16,
    moves: Arc<AtomicBool>,
    stop: Arc<AtomicBool>,
}

impl Relay {
    fn new(core: u16) -> Relay {
        let near = UdpSocket::bind("127.0.0.1:0").unwrap();
        let port = near.local_addr().unwrap().port();
        let moves = Arc::new(AtomicBool::new(false));
        let stop = Arc::new(AtomicBool::new(false));
        let (moved, stopped) = (moves.clone(), stop.clone());
        std::thread::spawn(move || {
            let far = || {
                let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
                socket.connect(("127.0.0.1", core)).unwrap();
                socket.set_nonblocking(true).unwrap();
                socket
            };
            near.set_nonblocking(true).unwrap();
            let mut socket = far();
            let mut branch = None;
            let mut buffer = vec![0; 65_536];
            while !stopped.load(Ordering::SeqCst) {
                if moved.swap(false, Ordering::SeqCst) {
                    socket = far();
                }
                let mut idle = true;
                while let Ok((len, from)) = near.recv_from(&mut buffer) {
                    branch = Some(from);
                    let _ = socket.send(&buffer[..len]);
                    idle = false;
                }
                while let (Ok(len), Some(to)) = (socket.recv(&mut buffer), branch) {
                    let _ = near.send_to(&buffer[..len], to);
                    idle = false;
                }
                if idle {
                    std::thread::sleep(Duration::from_millis(1));
                }
            }
        });
        Relay { port, moves, stop }
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
    }
}

#[test]
fn a_branch_whose_address_changes_goes_on() {
    let relays = Mutex::new(Vec::new());
    let office = office(2, echo(), |_, udp| {
        let relay = Relay::new(udp);
        let port = relay.port;
        relays.lock().unwrap().push(relay);
        port
    });
    let site = &office.sites[0];
    let mut stream = connect(site.proxy);
    let bytes = noise(20, 400_000);
    let (first, second) = bytes.split_at(150_000);
    stream.write_all(first).unwrap();
    relays.lock().unwrap()[0]
        .moves
        .store(true, Ordering::SeqCst);
    stream.write_all(second).unwrap();
    stream.shutdown(Shutdown::Write).unwrap();
    let mut back = Vec::new();
    stream.read_to_end(&mut back).unwrap();
    assert!(back == bytes);
    exchange_all(&office, 100_000);
    for name in ["0", "1"] {
        let connections = format!("outpost_tunnel_connections_total{{peer=\"{name}\"}}");
        assert_eq!(metric(office.core_management, &connections), 1);
    }
}

#[test]
fn garbage_at_the_cores_port_is_counted_and_disturbs_nobody() {
    let office = office(2, echo(), |_, udp| udp);
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    let mut sent = 0;
    let malformed = "outpost_strangers_total{reason=\"malformed\"}";
    let wrong_key = "outpost_strangers_total{reason=\"wrong_key\"}";
    until("garbage to be counted", || {
        for seed in 0..200 {
            let mut bytes = noise(1000 + sent + seed, (seed as usize * 7) % 1400);
            if seed % 4 == 0 {
                // Looks like a first message, for somebody else.
                bytes = noise(sent + seed, 127);
                bytes[0] = 1;
                bytes[1] = 1;
            }
            let _ = socket.send_to(&bytes, ("127.0.0.1", office.udp));
        }
        sent += 200;
        exchange_all(&office, 20_000);
        let page = office.core_management;
        (metric(page, malformed) > 100 && metric(page, wrong_key) > 20).then_some(())
    });
    let said = office.core.lines_with("expects a box with another key");
    assert!(said.len() <= 1, "{said:?}");
    for site in &office.sites {
        assert!(site.running.lines_with("is down").is_empty());
    }
}
