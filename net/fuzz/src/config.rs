//! Targets for configuration files: the box's and `outpost-peer`'s.

use outpost_config::{Config, ConfigError, MAX_FILE_BYTES, ProgramConfig};

use crate::Target;

/// A public or private key, in base64.
const KEY: &str = "AQIDBAUGBwgJCgsMDQ4PEBESExQVFhcYGRobHB0eHyA=";

/// An error names a line that there is and says something short.
fn check(input: &[u8], error: &ConfigError) {
    let lines = 1 + input.iter().filter(|byte| **byte == b'\n').count();
    assert!(
        error.line().is_none_or(|line| (1..=lines).contains(&line)),
        "{error}"
    );
    assert!(!error.message().is_empty());
    let most = 600 + 2 * longest_line(input);
    assert!(
        error.message().len() <= most,
        "a message of {} bytes",
        error.message().len()
    );
}

fn longest_line(input: &[u8]) -> usize {
    input
        .split(|byte| *byte == b'\n')
        .map(<[u8]>::len)
        .max()
        .unwrap_or(0)
}

/// The box's `outpost.toml`.
pub const BOX: Target = Target {
    name: "config_box",
    about: "the box's outpost.toml: what is taken holds together, an error names a line that exists",
    run: |input| match Config::parse_bytes(input) {
        Ok(config) => {
            assert!(input.len() <= MAX_FILE_BYTES && config.peers.len() <= 1);
            let names = config.peers.iter().all(|peer| !peer.name.is_empty());
            assert!(names && config.listen.port() != 0);
            assert_eq!(Config::parse_bytes(input), Ok(config));
        }
        Err(error) => check(input, &error),
    },
    honest: || {
        let branch = format!(
            "role = \"branch\"\nprivate_key = \"{KEY}\"\n[management]\naddress = \"10.77.1.1/24\"\ngateway = \"10.77.1.254\"\n\
             [ports]\nlan = \"02:00:00:00:00:01\"\nwan = \"02:00:00:00:00:02\"\n\
             [[peer]]\nname = \"head\"\npublic_key = \"{KEY}\"\nendpoint = \"192.0.2.1:3301\"\nprefixes = [\"10.77.2.0/24\"]\n\
             [store]\nmemory = \"256 MiB\"\n[guest]\nname = \"directory\"\naddress = \"10.77.1.5/24\"\nmemory = \"512 MiB\"\n\
             vcpus = 2\nnice = -5\npolicy = \"gang\"\ncpus = [0, 1]\n[services]\nnice = 5\n"
        );
        let core = format!(
            "role = \"core\"\nprivate_key = \"{KEY}\"\nlisten = \"0.0.0.0:3301\"\n[management]\naddress = \"10.77.2.1/16\"\n\
             [[peer]]\nname = \"branch\"\npublic_key = \"{KEY}\"\n"
        );
        vec![("branch", branch.into_bytes()), ("core", core.into_bytes())]
    },
    cases: 10_000,
    memory: 4 << 20,
};

/// `outpost-peer`'s file.
pub const PROGRAM: Target = Target {
    name: "config_program",
    about: "outpost-peer's configuration: what is taken holds together, an error names a line that exists",
    run: |input| match ProgramConfig::parse_bytes(input) {
        Ok(config) => {
            assert!(input.len() <= MAX_FILE_BYTES);
            let known = |name: &str| config.peers.iter().any(|peer| peer.name == name);
            assert!(config.proxies.iter().all(|it| known(&it.peer)));
            assert!(config.socks.iter().all(|it| known(&it.peer)));
            assert_eq!(ProgramConfig::parse_bytes(input), Ok(config));
        }
        Err(error) => check(input, &error),
    },
    honest: || {
        let branch = format!(
            "role = \"branch\"\nprivate_key = \"{KEY}\"\n[[peer]]\nname = \"head\"\npublic_key = \"{KEY}\"\n\
             endpoint = \"127.0.0.1:3301\"\nprefixes = [\"10.77.2.0/24\"]\n\
             [[proxy]]\nlisten = \"127.0.0.1:3300\"\nto = \"127.0.0.1:3399\"\npeer = \"head\"\n\
             [[socks]]\nlisten = \"127.0.0.1:1080\"\npeer = \"head\"\n[transparent]\nlisten = \"0.0.0.0:3302\"\n\
             [management]\nlisten = \"127.0.0.1:9090\"\n[store]\npath = \"store\"\nsize = \"64 MiB\"\nmemory = \"16 MiB\"\n"
        );
        let core = format!(
            "role = \"core\"\nprivate_key = \"{KEY}\"\nlisten = \"0.0.0.0:3301\"\nfrom_client = true\n\
             [[peer]]\nname = \"a\"\npublic_key = \"{KEY}\"\n\
             [[peer]]\nname = \"b\"\npublic_key = \"AgIDBAUGBwgJCgsMDQ4PEBESExQVFhcYGRobHB0eHyA=\"\n"
        );
        vec![("branch", branch.into_bytes()), ("core", core.into_bytes())]
    },
    cases: 10_000,
    memory: 4 << 20,
};
