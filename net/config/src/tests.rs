use super::*;
use proptest::prelude::*;

const KEY_A: &str = "AQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQE=";
const KEY_B: &str = "AgICAgICAgICAgICAgICAgICAgICAgICAgICAgICAgI=";

fn branch() -> String {
    format!(
        r#"role = "branch"
private_key = "{KEY_A}"
[management]
address = "10.77.1.1/16"
gateway = "10.77.0.1"
[ports]
lan = "52:54:00:00:00:01"
[[peer]]
name = "head-office"
public_key = "{KEY_B}"
endpoint = "10.77.2.1:3301"
prefixes = ["10.77.2.0/24"]
[store]
memory = "128M"
[guest]
address = "10.77.1.5/16"
"#
    )
}

/// Parses the branch's file with `from` replaced by `to`; expects an error and returns its line and text.
fn broken(from: &str, to: &str) -> (Option<usize>, String) {
    let text = branch();
    assert!(text.contains(from), "the sample has no `{from}`");
    let error = Config::parse(&text.replacen(from, to, 1)).expect_err("must be refused");
    (error.line(), error.to_string())
}

#[track_caller]
fn refuses(from: &str, to: &str, line: usize, words: &[&str]) {
    let (found_line, message) = broken(from, to);
    assert_eq!(found_line, Some(line), "{message}");
    for word in words {
        assert!(message.contains(word), "`{word}` is not in: {message}");
    }
}

#[test]
fn a_branch_is_read_whole() {
    let config = Config::parse(&branch()).unwrap();
    assert_eq!(config.role, Role::Branch);
    assert_eq!(config.private_key.0, [1; 32]);
    assert_eq!(config.listen.port(), DEFAULT_PORT);
    assert_eq!(
        config.management.address.address(),
        Ipv4Addr::new(10, 77, 1, 1)
    );
    assert_eq!(config.ports.lan.unwrap().to_string(), "52:54:00:00:00:01");
    let peer = &config.peers[0];
    assert_eq!(peer.public_key.0, [2; 32]);
    assert_eq!(peer.endpoint.unwrap().to_string(), "10.77.2.1:3301");
    assert!(peer.prefixes[0].contains(Ipv4Addr::new(10, 77, 2, 255)));
    assert!(!peer.prefixes[0].contains(Ipv4Addr::new(10, 77, 3, 0)));
    assert_eq!(config.store.memory.unwrap().bytes(), 128 << 20);
    let guest = config.guest.unwrap();
    assert_eq!(
        (guest.name.as_str(), guest.memory.bytes()),
        ("directory", 256 << 20)
    );
    assert_eq!((guest.vcpus, guest.nice), (1, 0));
    assert_eq!((guest.policy, guest.cpus), (Policy::Balance, vec![]));
    assert_eq!((config.services.nice, config.services.load), (-20, vec![]));
}

#[test]
fn the_guests_share_of_the_cpus_is_read() {
    let with = |words: &str| {
        let text = branch() + words;
        Config::parse(&text).unwrap_or_else(|error| panic!("{error}"))
    };
    let config = with(
        "vcpus = 16\nnice = -20\npolicy = \"gang\"\ncpus = [63, 0]\n[services]\nnice = 19\nload = [1, 0]\n",
    );
    let guest = config.guest.unwrap();
    assert_eq!((guest.vcpus, guest.nice), (16, -20));
    assert_eq!((guest.policy, guest.cpus), (Policy::Gang, vec![63, 0]));
    assert_eq!(
        (config.services.nice, config.services.load),
        (19, vec![1, 0])
    );
    for (name, policy) in [
        ("fair", Policy::Fair),
        ("balance", Policy::Balance),
        ("gang", Policy::Gang),
        ("placed", Policy::Placed),
    ] {
        let config = with(&format!("policy = \"{name}\"\n"));
        assert_eq!(config.guest.unwrap().policy, policy);
    }
}

#[test]
fn a_share_of_the_cpus_that_there_is_not_is_named_with_its_remedy() {
    let last = "[guest]";
    let guest = |words: &str| format!("[guest]\n{words}");
    let refuses = |words: &str, parts: &[&str]| refuses(last, &guest(words), 16, parts);
    refuses("vcpus = 0", &["0 is out of range", "1 to 16", "vcpus = 2"]);
    refuses("vcpus = 17", &["17 is out of range", "1 to 16"]);
    refuses("vcpus = -1", &["-1 is out of range", "1 to 16"]);
    refuses("vcpus = \"two\"", &["two", "vcpus = 2"]);
    refuses("vcpus = 1.5", &["1.5", "vcpus = 2"]);
    refuses("nice = -21", &["-21 is out of range", "-20", "19"]);
    refuses("nice = 20", &["20 is out of range", "-20", "19"]);
    refuses("nice = 9223372036854775807", &["out of range", "19"]);
    refuses(
        "policy = \"greedy\"",
        &[
            "greedy",
            "\"fair\"",
            "\"balance\"",
            "\"gang\"",
            "\"placed\"",
        ],
    );
    refuses("policy = 1", &["`1`", "\"fair\""]);
    refuses("cpus = []", &["needs a CPU", "cpus = [0, 1]"]);
    refuses("cpus = 1", &["cpus = [0, 1]"]);
    refuses("cpus = [0, 64]", &["64 is out of range", "0 to 63"]);
    refuses("cpus = [-1]", &["-1 is out of range", "0 to 63"]);
    refuses("cpus = [1, 0, 1]", &["CPU 1", "twice"]);
    refuses("cpus = [\"all\"]", &["all", "cpus = [0, 1]"]);
    refuses("vcpu = 2", &["unknown key `vcpu`", "vcpus"]);
}

#[test]
fn the_services_keys_are_checked_too() {
    refuses(
        "[store]",
        "[services]\nnice = 40\n[store]",
        14,
        &["40 is out of range", "19"],
    );
    for (load, parts) in [
        ("64", ["64", "load = [0, 1]"]),
        ("[64]", ["64 is out of range", "0 to 63"]),
        ("[0, 0]", ["CPU 0", "twice"]),
        ("true", ["true", "load = [0, 1]"]),
    ] {
        let text = format!("[services]\nload = {load}\n[store]");
        refuses("[store]", &text, 14, &parts);
    }
    refuses(
        "[store]",
        "[services]\nniece = 4\n[store]",
        14,
        &["unknown key `niece`", "nice"],
    );
}

#[test]
fn the_shortest_useful_file_has_a_role_a_key_an_address_and_a_peer() {
    let text = format!(
        "role = \"core\"\nprivate_key = \"{KEY_A}\"\n[management]\naddress = \"10.77.2.1/16\"\n[[peer]]\nname = \"b\"\npublic_key = \"{KEY_B}\"\n"
    );
    let config = Config::parse(&text).unwrap();
    assert_eq!(config.role, Role::Core);
    assert_eq!(config.guest, None);
}

#[test]
fn bad_values_are_named_with_line_and_remedy() {
    refuses(
        "role = \"branch\"",
        "role = \"brunch\"",
        1,
        &["brunch", "`branch`", "`core`"],
    );
    refuses(
        "10.77.2.0/24",
        "10.77.2.1/24",
        12,
        &["did you mean 10.77.2.0/24?"],
    );
    refuses("10.77.2.0/24", "10.77.2.0/33", 12, &["0 to 32"]);
    refuses(
        "10.77.2.0/24",
        "head office",
        12,
        &["head office", "10.77.2.0/24"],
    );
    refuses("10.77.1.1/16", "10.77.1.1", 4, &["10.77.1.1/16"]);
    refuses("10.77.1.1/16", "10.77.255.255/16", 4, &["own address"]);
    refuses(KEY_A, "c2hvcnQ=", 2, &["32 bytes", "5 bytes"]);
    refuses(KEY_A, "not base64!", 2, &["base64", "keygen"]);
    refuses(
        "52:54:00:00:00:01",
        "52:54:00:00:00",
        7,
        &["52:54:00:00:00:01"],
    );
    refuses(
        "52:54:00:00:00:01",
        "53:54:00:00:00:01",
        7,
        &["group address"],
    );
    refuses("\"128M\"", "\"lots\"", 14, &["lots", "256M"]);
    refuses("\"128M\"", "-5", 14, &["256M"]);
    refuses("10.77.2.1:3301", "10.77.2.1", 11, &["address"]);
}

#[test]
fn unknown_and_missing_keys_are_named() {
    refuses(
        "gateway =",
        "gatway =",
        5,
        &["unknown key `gatway`", "gateway"],
    );
    refuses("[store]", "[stoer]", 13, &["unknown key `stoer`", "store"]);
    refuses(
        "role = \"branch\"\n",
        "",
        1,
        &["`role` is missing", "\"core\""],
    );
    refuses(
        &format!("private_key = \"{KEY_A}\"\n"),
        "",
        1,
        &["`private_key` is missing", "keygen"],
    );
    refuses(
        "address = \"10.77.1.1/16\"\n",
        "",
        3,
        &["`address` is missing", "10.77.1.1/16"],
    );
    refuses(
        &format!("public_key = \"{KEY_B}\"\n"),
        "",
        8,
        &["`public_key` is missing"],
    );
    refuses(
        "endpoint = \"10.77.2.1:3301\"\n",
        "",
        8,
        &["head-office", "endpoint"],
    );
    refuses("prefixes = [\"10.77.2.0/24\"]\n", "", 8, &["prefixes"]);
}

#[test]
fn keys_that_do_not_go_together_are_named() {
    refuses(
        "10.77.0.1",
        "192.168.0.1",
        5,
        &["192.168.0.1", "10.77.1.1/16"],
    );
    refuses("10.77.1.5/16", "10.77.1.1/16", 16, &["the box's own"]);
    refuses("\"128M\"", "\"1M\"", 14, &["1 MiB", "4M"]);
    refuses("[guest]", "[guest]\nmemory = \"1M\"", 16, &["16M"]);
    refuses("10.77.2.1:3301", "0.0.0.0:3301", 11, &["no place to reach"]);
    refuses(
        "role = \"branch\"",
        "role = \"core\"",
        11,
        &["endpoint", "core"],
    );
    refuses(
        "[ports]",
        "[ports]\nwan = \"52:54:00:00:00:01\"",
        7,
        &["two different ports"],
    );
    refuses(
        "[management]",
        "listen = \"10.77.9.9:3301\"\n[management]",
        3,
        &["10.77.9.9", "0.0.0.0:3301"],
    );
    refuses("head-office", "head office", 9, &["not a name"]);
}

#[test]
fn two_peers_share_neither_name_nor_key_nor_prefix() {
    let second = |name: &str, key: &str, prefix: &str| {
        let text = branch()
            + &format!(
                "[[peer]]\nname = \"{name}\"\npublic_key = \"{key}\"\nendpoint = \"10.9.9.9:3301\"\nprefixes = [\"{prefix}\"]\n"
            );
        Config::parse(&text).map_err(|error| (error.line().unwrap(), error.to_string()))
    };
    let key_c = "AwMDAwMDAwMDAwMDAwMDAwMDAwMDAwMDAwMDAwMDAwM=";
    let (line, message) = second("second", key_c, "10.78.0.0/16").unwrap_err();
    assert_eq!(line, 17);
    assert!(message.contains("one peer"), "{message}");
    assert_eq!(
        second("head-office", key_c, "10.78.0.0/16").unwrap_err().0,
        18
    );
    assert_eq!(second("second", KEY_B, "10.78.0.0/16").unwrap_err().0, 19);
    let (line, message) = second("second", key_c, "10.77.0.0/16").unwrap_err();
    assert_eq!(line, 21);
    assert!(message.contains("head-office"), "{message}");
}

#[test]
fn toml_that_does_not_parse_is_named_by_its_line() {
    refuses("gateway = \"10.77.0.1\"", "gateway = \"10.77.0.1", 5, &[]);
    refuses("[ports]", "[ports", 6, &[]);
}

#[test]
fn bytes_from_a_disk_need_not_be_text() {
    let mut bytes = branch().into_bytes();
    let with_mark = [b"\xef\xbb\xbf".as_slice(), &bytes].concat();
    assert!(Config::parse_bytes(&with_mark).is_ok());
    bytes.splice(20..20, [0xff]);
    assert_eq!(Config::parse_bytes(&bytes).unwrap_err().line(), Some(2));
    let long = "#".repeat(MAX_FILE_BYTES + 1);
    assert_eq!(Config::parse(&long).unwrap_err().line(), None);
}

#[test]
fn a_private_key_is_never_printed() {
    let shown = format!("{:?}", Config::parse(&branch()).unwrap());
    assert!(
        shown.contains("hidden") && !shown.contains("1, 1, 1") && !shown.contains(KEY_A),
        "{shown}"
    );
}

#[test]
fn the_empty_prefix_holds_every_address() {
    let all: Ipv4Cidr = "0.0.0.0/0".parse().unwrap();
    assert!(all.contains(Ipv4Addr::new(255, 1, 2, 3)));
    let one: Ipv4Cidr = "10.0.0.1/32".parse().unwrap();
    assert!(one.contains(Ipv4Addr::new(10, 0, 0, 1)) && !one.contains(Ipv4Addr::new(10, 0, 0, 0)));
    assert!(all.overlaps(&one) && one.overlaps(&all));
}

proptest! {
    #[test]
    fn no_bytes_make_the_parser_panic(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
        let _ = Config::parse_bytes(&bytes);
    }

    #[test]
    fn no_edit_of_a_good_file_makes_the_parser_panic(at in 0usize..400, edit in "[ -~\n]{0,6}", cut in 0usize..20) {
        let mut text = branch();
        let start = at.min(text.len());
        let end = (start + cut).min(text.len());
        text.replace_range(start..end, &edit);
        if let Err(error) = Config::parse(&text) {
            prop_assert!(error.line().is_none_or(|line| line <= text.lines().count() + 1));
            prop_assert!(!error.message().is_empty());
        }
    }

    #[test]
    fn sizes_are_read_back(mib in 1u64..1_000_000) {
        let size = ByteSize::from_mib(mib);
        prop_assert_eq!(format!("{mib}M").parse::<ByteSize>().unwrap(), size);
        prop_assert_eq!(size.to_string().parse::<ByteSize>().unwrap(), size);
    }
}
