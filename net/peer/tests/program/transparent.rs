//! The transparent mode, in network namespaces of its own: client ─ router (branch) ─ core ─ server. It needs no root but
//! user namespaces, `unshare`, `ip` and `nft`; where one is missing it says so and does nothing.

use super::*;
use std::fs::File;
use std::io::ErrorKind;
use std::sync::mpsc;

const INSIDE: &str = "transparent::inside_the_namespaces";

/// The networks. The router's and the core's rules are those of `docs/peer.md`.
const SETUP: &str = r#"
set -e
mount -t tmpfs none /run
for name in client core server; do ip netns add $name; ip -n $name link set lo up; done
ip link set lo up
ip link add c0 type veth peer name eth0 netns client
ip link add w0 type veth peer name eth0 netns core
ip -n core link add eth1 type veth peer name eth0 netns server
ip address add 10.91.0.1/24 dev c0; ip link set c0 up
ip address add 10.92.0.1/24 dev w0; ip link set w0 up
ip -n client address add 10.91.0.2/24 dev eth0; ip -n client link set eth0 up
ip -n core address add 10.92.0.2/24 dev eth0; ip -n core link set eth0 up
ip -n core address add 10.93.0.1/24 dev eth1; ip -n core link set eth1 up
ip -n server address add 10.93.0.2/24 dev eth0; ip -n server address add 10.93.0.3/24 dev eth0; ip -n server link set eth0 up
ip -n client route add default via 10.91.0.1
ip -n server route add default via 10.93.0.1
ip route add 10.93.0.0/24 via 10.92.0.2
ip -n core route add 10.91.0.0/24 via 10.92.0.1
"#;

/// A port that is handed over by REDIRECT instead.
const SETUP_REDIRECT: &str = r#"
nft -f - <<END
table ip handover {
  chain handover {
    type nat hook prerouting priority dstnat; policy accept;
    iifname "c0" ip daddr 10.93.0.0/24 tcp dport 8080 redirect to :3302
  }
}
END
"#;

/// The lines to paste in `docs/peer.md` that begin with this comment.
fn lines_to_paste(comment: &str) -> String {
    let page = include_str!("../../../../docs/peer.md");
    let blocks = page.split("```sh\n").skip(1);
    let mut found = blocks.filter(|block| block.starts_with(comment));
    let block = found.next().expect("lines to paste");
    block.split("```").next().unwrap().to_owned()
}

/// `text` with something replaced that is in it.
fn with(text: &str, what: &str, by: &str) -> String {
    assert!(text.contains(what), "{text}");
    text.replace(what, by)
}

#[test]
fn a_router_hands_connections_over_and_servers_see_the_client() {
    let may = Command::new("unshare")
        .args(["-Urnm", "sh", "-c", "command -v nft && ip link set lo up"])
        .output();
    if !may.is_ok_and(|output| output.status.success()) {
        eprintln!("skipped: no user namespaces here, or no unshare, ip and nft");
        return;
    }
    let output = Command::new("unshare")
        .args(["-Urnm", "--kill-child"])
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", INSIDE, "--ignored", "--nocapture"])
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    let more = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}{more}");
    assert!(said.contains("1 passed"), "{said}{more}");
}

/// Runs `work` in a thread that is in another network namespace. What it starts is there, too.
fn within<T: Send + 'static>(name: &str, work: impl FnOnce() -> T + Send + 'static) -> T {
    let namespace = File::open(format!("/run/netns/{name}")).unwrap();
    let thread = std::thread::spawn(move || {
        nix::sched::setns(namespace, nix::sched::CloneFlags::CLONE_NEWNET).unwrap();
        work()
    });
    thread.join().unwrap()
}

fn shell(script: &str) {
    let output = Command::new("sh").args(["-c", script]).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");
}

/// Says who the client is, then sends everything back.
fn serve(at: &'static str, clients: mpsc::Sender<SocketAddr>) {
    let listener = within("server", move || TcpListener::bind(at).unwrap());
    std::thread::spawn(move || {
        for mut stream in listener.incoming().map_while(Result::ok) {
            clients.send(stream.peer_addr().unwrap()).unwrap();
            std::thread::spawn(move || {
                let mut bytes = Vec::new();
                if stream.read_to_end(&mut bytes).is_ok() {
                    let _ = stream.write_all(&bytes);
                }
            });
        }
    });
}

/// The client's address when it has exchanged bytes with a server.
fn client_exchanges(at: &'static str) -> SocketAddr {
    within("client", move || {
        let stream = connect(at.parse().unwrap());
        let own = stream.local_addr().unwrap();
        exchange_on(stream, &noise(1, 300_000), 40_000);
        own
    })
}

#[test]
#[ignore = "started by the test above, inside of namespaces"]
fn inside_the_namespaces() {
    shell(SETUP);
    let router = lines_to_paste("# the branch's router");
    let router = with(
        &router,
        "LAN=eth1 SERVED=10.77.2.0/24",
        "LAN=c0 SERVED=10.93.0.0/24",
    );
    // One port goes the other way.
    let router = with(
        &router,
        "meta l4proto tcp tproxy",
        "tcp dport != 8080 tproxy",
    );
    shell(&format!("set -e\n{router}"));
    shell(SETUP_REDIRECT);
    let core = lines_to_paste("# the core's machine");
    within("core", move || shell(&format!("set -e\n{core}")));
    let ((core_private, core_public), (private, public)) = (keys(), keys());
    let core = core_text(&core_private, 3301, 9091, &[("branch", &public)])
        .replace("127.0.0.1:3301", "10.92.0.2:3301")
        .replace("[store]", "from_client = true\n[store]");
    let mut core = within("core", move || Running::start(&core));
    let text = branch_text(&private, 9090, &core_public, 3301).replace(
        "endpoint = \"127.0.0.1:3301\"",
        "endpoint = \"10.92.0.2:3301\"\nprefixes = [\"10.93.0.2/32\"]",
    ) + "[transparent]\nlisten = \"0.0.0.0:3302\"\n";
    let branch = Running::start(&text);
    tunnel_is_up(9090, "head");
    let (sender, clients) = mpsc::channel();
    for at in ["10.93.0.2:80", "10.93.0.2:8080", "10.93.0.3:80"] {
        serve(at, sender.clone());
    }
    let seen = || clients.recv_timeout(DEADLINE).unwrap();

    // By TPROXY and by REDIRECT; the server sees the client's own address and port.
    for at in ["10.93.0.2:80", "10.93.0.2:8080"] {
        let own = client_exchanges(at);
        assert_eq!(own.ip().to_string(), "10.91.0.2");
        assert_eq!(seen(), own, "{at}");
    }
    let optimised = "outpost_connections_total{reason=\"optimised\"}";
    assert_eq!(metric(9090, optimised), 2);
    let page = flows_page(9090);
    assert_eq!(page["ended"][0]["server"], "10.93.0.2:8080");

    // No peer serves this one: directly, and said so.
    client_exchanges("10.93.0.3:80");
    assert_eq!(seen().ip().to_string(), "10.92.0.1");
    let page = flows_page(9090);
    assert_eq!(page["bridged"][0]["reason"], "no_peer");
    assert_eq!(page["bridged"][0]["server"], "10.93.0.3:80");

    // A refusal comes through, by either way.
    for at in ["10.93.0.2:81", "10.93.0.3:81"] {
        let error = within("client", move || {
            connect(at.parse().unwrap()).read(&mut [0])
        })
        .unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ConnectionReset, "{at}");
    }
    // The listener's own address is no way around the rules.
    let error = within("client", || {
        let own = connect("10.91.0.1:3302".parse().unwrap()).read(&mut [0]);
        own.unwrap_err()
    });
    assert_eq!(error.kind(), ErrorKind::ConnectionReset);
    branch.says("connected to 10.91.0.1:3302 itself");

    // Without a core the branch is as good as without Outpost.
    let _ = core.child.kill();
    branch.says("the tunnel is down");
    client_exchanges("10.93.0.2:80");
    assert_eq!(seen().ip().to_string(), "10.92.0.1");
    assert_eq!(flows_page(9090)["bridged"][0]["reason"], "tunnel_down");

    // Without the program TPROXY's rule lets new connections pass; REDIRECT's cannot.
    drop(branch);
    let own = client_exchanges("10.93.0.2:80");
    assert_eq!(seen(), own);
    let refused = within("client", || TcpStream::connect("10.93.0.2:8080"));
    assert_eq!(refused.unwrap_err().kind(), ErrorKind::ConnectionRefused);
}
