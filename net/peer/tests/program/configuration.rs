//! What the program says about its arguments and its file.

use super::*;
use std::process::Output;

fn run(arguments: &[&str]) -> Output {
    let mut child = Command::new(PROGRAM)
        .args(arguments)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let end = Instant::now() + DEADLINE;
    while child.try_wait().unwrap().is_none() {
        if Instant::now() > end {
            let _ = child.kill();
            panic!("{arguments:?} does not end");
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    child.wait_with_output().unwrap()
}

/// The one message with which a file is refused.
#[track_caller]
fn refusal(text: &str) -> String {
    let file = ConfigFile::new(text);
    let path = file.0.to_str().unwrap();
    let out = run(&["run", "--config", path]);
    let message = String::from_utf8(out.stderr).unwrap();
    assert_eq!(out.status.code(), Some(2), "{message}");
    assert_eq!(message.lines().count(), 1, "{message}");
    assert!(out.stdout.is_empty());
    let prefix = format!("outpost-peer: {path}");
    message.strip_prefix(&prefix).unwrap().trim_end().to_owned()
}

#[test]
fn help_and_keygen() {
    let help = run(&["--help"]);
    assert!(help.status.success() && help.stderr.is_empty());
    let text = String::from_utf8(help.stdout).unwrap();
    for word in ["keygen", "run --config FILE", "SIGHUP", "SIGTERM"] {
        assert!(text.contains(word), "{text}");
    }
    for wrong in [
        &[][..],
        &["walk"],
        &["run"],
        &["run", "--config"],
        &["keygen", "now"],
    ] {
        let out = run(wrong);
        assert_eq!(out.status.code(), Some(2), "{wrong:?}");
        assert_eq!(String::from_utf8(out.stderr).unwrap(), text);
    }
    let keys = String::from_utf8(run(&["keygen"]).stdout).unwrap();
    let lines: Vec<&str> = keys.lines().collect();
    assert_eq!(lines.len(), 2);
    for (line, key) in lines.iter().zip(["private_key", "public_key"]) {
        let value = line
            .strip_prefix(key)
            .unwrap()
            .strip_prefix(" = \"")
            .unwrap();
        assert_eq!(value.strip_suffix("\"").unwrap().len(), 44);
    }
}

#[test]
fn a_file_that_cannot_be_read() {
    for path in ["/nonexistent/outpost.toml", "/"] {
        let out = run(&["run", "--config", path]);
        let message = String::from_utf8(out.stderr).unwrap();
        assert_eq!(out.status.code(), Some(2), "{message}");
        assert_eq!(message.lines().count(), 1, "{message}");
        let prefix = format!("outpost-peer: {path}: cannot be read: ");
        assert!(message.starts_with(&prefix), "{message}");
        assert!(message.contains("--config takes the path"), "{message}");
    }
}

#[test]
fn every_mistake_in_the_file_is_named_with_its_line_and_what_would_be_right() {
    let ((_, core_public), (private, public)) = (keys(), keys());
    let (management, port, socks) = (free_port(), free_port(), free_port());
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let taken = taken.local_addr().unwrap().port();
    let good = branch_text(&private, management, &core_public, 3301)
        + &proxy_text(port, SocketAddr::from(([127, 0, 0, 1], 80)))
        + &format!("[[socks]]\nlisten = \"127.0.0.1:{socks}\"\npeer = \"head\"\n");
    // 1 role, 2 private_key, 3 listen, 5 memory, 7 management, 9 name, 10 public_key, 11 endpoint,
    // 13 listen, 14 to, 15 peer, 17 listen, 18 peer
    let listen = format!("listen = \"127.0.0.1:{port}\"");
    let socks_listen = format!("listen = \"127.0.0.1:{socks}\"");
    let management_listen = format!("listen = \"127.0.0.1:{management}\"");
    let store = "memory = \"16M\"";
    for (from, to, line, words) in [
        (
            "role = \"branch\"",
            "role = \"office\"",
            1,
            &["`branch`", "`core`"][..],
        ),
        (
            "role = \"branch\"",
            "roles = \"branch\"",
            1,
            &["unknown key `roles`", "`role`"],
        ),
        ("role = \"branch\"\n", "role = branch\n", 1, &[]),
        (&private, "@@@@", 2, &["base64", "keygen"]),
        (&private, "AAAA", 2, &["32 bytes", "3 bytes"]),
        (&core_public, &public, 10, &["own key", "keygen"]),
        (&core_public, "no key", 10, &["base64", "keygen"]),
        (
            "127.0.0.1:3301\"\n[store]",
            "127.0.0.1\"\n[store]",
            3,
            &[
                "\"127.0.0.1\" is not an IPv4 address and port",
                "10.77.2.1:3301",
            ],
        ),
        (store, "memory = \"16 apples\"", 5, &["16 apples", "256M"]),
        (store, "memory = \"1M\"", 5, &["at least 4M"]),
        (store, "memory = true", 5, &["a size such as"]),
        (store, "disk = \"x\"", 5, &["unknown key `disk`", "`path`"]),
        (
            store,
            "path = \"/nonexistent/folder/store\"",
            5,
            &["/nonexistent/folder/store", "make the folder"],
        ),
        (store, "path = \"/tmp\"", 5, &["/tmp: ", "path of a file"]),
        (store, "size = \"1G\"", 5, &["add path = "]),
        (
            "role = \"branch\"",
            "role = \"branch\"\nrole = \"branch\"",
            2,
            &["`role` is there twice"],
        ),
        (
            "name = \"head\"",
            "name = \"head office\"",
            9,
            &["not a name", "letters"],
        ),
        (
            "endpoint = \"127.0.0.1:3301\"",
            "endpoint = \"0.0.0.0:3301\"",
            11,
            &["no place to reach"],
        ),
        ("endpoint = \"127.0.0.1:3301\"", "", 8, &["endpoint = "]),
        (
            &listen,
            "listen = \"127.0.0.1:0\"",
            13,
            &["no port", "listen = "],
        ),
        (
            &listen,
            &format!("listen = \"127.0.0.1:{taken}\""),
            13,
            &["cannot listen", "another address or port"],
        ),
        (
            "127.0.0.1:80\"",
            "0.0.0.0:80\"",
            14,
            &["no server's address"],
        ),
        (
            "127.0.0.1:80\"",
            "server:80\"",
            14,
            &["address and port", "names are not looked up"],
        ),
        (
            "peer = \"head\"\n[[socks]]",
            "peer = \"tail\"\n[[socks]]",
            15,
            &["`tail`", "there is `head`"],
        ),
        (
            &socks_listen,
            &listen,
            17,
            &["taken by another section", "own port"],
        ),
        (
            &socks_listen,
            &format!("listen = \"127.0.0.1:{taken}\""),
            17,
            &["cannot listen"],
        ),
        (
            &management_listen,
            &format!("listen = \"127.0.0.1:{taken}\""),
            7,
            &["cannot listen"],
        ),
        (
            &management_listen,
            &listen,
            7,
            &["taken by another section"],
        ),
        ("[[socks]]", "[[socks]", 16, &[]),
        (
            "[store]",
            "from_client = true\n[store]",
            4,
            &["belongs into the core's file"],
        ),
    ] {
        assert!(good.contains(from), "{from}");
        let message = refusal(&good.replacen(from, to, 1));
        let at = format!(" line {line}: ");
        assert!(message.starts_with(&at), "{from} → {to}: {message}");
        for word in words {
            assert!(message.contains(word), "{from} → {to}: {message}");
        }
    }
    let message = refusal("");
    assert!(message.contains("`role` is missing"), "{message}");
    // What only a core can get wrong.
    let udp = UdpSocket::bind("127.0.0.1:0").unwrap();
    let core = core_text(
        &private,
        udp.local_addr().unwrap().port(),
        management,
        &[("a", &core_public)],
    );
    let message = refusal(&core);
    assert!(
        message.starts_with(" line 3: cannot listen") && message.contains("(UDP)"),
        "{message}"
    );
    let twice = core.clone() + &format!("[[peer]]\nname = \"b\"\npublic_key = \"{core_public}\"\n");
    let message = refusal(&twice);
    assert!(
        message.starts_with(" line 13: ") && message.contains("key of another peer"),
        "{message}"
    );
    let message = refusal(&(core + &proxy_text(port, SocketAddr::from(([127, 0, 0, 1], 80)))));
    assert!(
        message.contains("belong into the branch's file"),
        "{message}"
    );
}

#[test]
fn bytes_that_are_no_text() {
    let file = ConfigFile::new("");
    std::fs::write(&file.0, b"role = \"core\"\n\xff\xfe").unwrap();
    let out = run(&["run", "--config", file.0.to_str().unwrap()]);
    let message = String::from_utf8(out.stderr).unwrap();
    assert_eq!(out.status.code(), Some(2));
    assert!(message.contains(" line 2: not UTF-8 text"), "{message}");
}
