//! The configuration of `outpost-peer`: the same file as a box's, with the keys of a program instead of a bridge's.

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use core::net::{Ipv4Addr, SocketAddrV4};

use serde::Deserialize;

use crate::check::{MIN_STORE_MIB, Step, at, check_peer};
use crate::{ByteSize, ConfigError, MAX_FILE_BYTES, Peer, PrivateKey, Role};

/// What `outpost-peer` is told.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ProgramConfig {
    /// Which end of the line this is.
    pub role: Role,
    /// Its X25519 private key.
    pub private_key: PrivateKey,
    /// Where a core listens for its branches (UDP).
    #[serde(default = "crate::default_listen")]
    pub listen: SocketAddrV4,
    /// Metrics.
    #[serde(default)]
    pub management: Option<ProgramManagement>,
    /// The other ends of the tunnels.
    #[serde(default, rename = "peer")]
    pub peers: Vec<Peer>,
    /// The dictionary.
    #[serde(default)]
    pub store: ProgramStore,
    /// Branch: forwarded ports.
    #[serde(default, rename = "proxy")]
    pub proxies: Vec<Proxy>,
    /// Branch: SOCKS5 servers.
    #[serde(default)]
    pub socks: Vec<Socks>,
    /// Branch: connections that the router hands over.
    #[serde(default)]
    pub transparent: Option<Transparent>,
    /// Core: connect to servers from the client's address, not from this machine's.
    #[serde(default)]
    pub from_client: bool,
}

/// `[management]` of a program.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ProgramManagement {
    /// Where `/metrics` and `/flows` are served (TCP).
    pub listen: SocketAddrV4,
}

/// `[store]` of a program.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ProgramStore {
    /// Memory for the dictionaries of both directions with one peer.
    #[serde(default)]
    pub memory: Option<ByteSize>,
    /// Where the dictionary is kept.
    #[serde(default)]
    pub path: Option<String>,
    /// How large it may become there.
    #[serde(default)]
    pub size: Option<ByteSize>,
}

/// `[[proxy]]`: a port that is forwarded through a peer.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Proxy {
    /// Where clients connect (TCP).
    pub listen: SocketAddrV4,
    /// Where the peer connects to for them.
    pub to: SocketAddrV4,
    /// The name of the peer.
    pub peer: String,
}

/// `[[socks]]`: a SOCKS5 server whose connections go through a peer.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Socks {
    /// Where clients connect (TCP).
    pub listen: SocketAddrV4,
    /// The name of the peer.
    pub peer: String,
}

/// `[transparent]`: where the router's TPROXY or REDIRECT rules hand connections over. Which peer serves a destination is in
/// `prefixes` of the peers.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Transparent {
    /// Where the rules lead (TCP).
    pub listen: SocketAddrV4,
    /// The peer for destinations that are in no peer's prefixes; none: those are connected directly.
    #[serde(default)]
    pub peer: Option<String>,
}

impl ProgramConfig {
    /// Parses and checks a configuration file.
    ///
    /// # Errors
    /// As [`Config::parse`](crate::Config::parse).
    pub fn parse(text: &str) -> Result<ProgramConfig, ConfigError> {
        if text.len() > MAX_FILE_BYTES {
            return Err(ConfigError::whole_file(format!(
                "the file has {} bytes; at most {MAX_FILE_BYTES} are read",
                text.len()
            )));
        }
        let config: ProgramConfig =
            toml::from_str(text).map_err(|error| ConfigError::from_toml(text, &error))?;
        config.check(text)?;
        Ok(config)
    }

    /// Parses what was read from a disk, which need not be UTF-8.
    ///
    /// # Errors
    /// As [`Config::parse_bytes`](crate::Config::parse_bytes).
    pub fn parse_bytes(bytes: &[u8]) -> Result<ProgramConfig, ConfigError> {
        crate::text_of(bytes).and_then(ProgramConfig::parse)
    }

    fn check(&self, text: &str) -> Result<(), ConfigError> {
        use Step::Key;
        let fault = |path: &[Step<'_>], message: String| Err(at(text, path, message));
        if self.listen.port() == 0 {
            let message = "the tunnel needs a port; write listen = \"0.0.0.0:3301\"";
            return fault(&[Key("listen")], String::from(message));
        }
        for index in 0..self.peers.len() {
            check_peer(text, self.role, &self.peers, index, false)?;
        }
        if self.peers.is_empty() {
            let message = "there is nobody to talk to; add a [[peer]] with name and public_key";
            return fault(&[Key("peer")], String::from(message));
        }
        for (key, size) in [("memory", self.store.memory), ("size", self.store.size)] {
            if let Some(size) = size
                && size.bytes() < MIN_STORE_MIB << 20
            {
                let message = format!(
                    "a dictionary of {size} is of no use; give it at least {MIN_STORE_MIB}M"
                );
                return fault(&[Key("store"), Key(key)], message);
            }
        }
        if self.store.size.is_some() && self.store.path.is_none() {
            let message = "size is the file's; add path = \"/var/lib/outpost/store\", or write memory instead for a dictionary that is kept in memory only";
            return fault(&[Key("store"), Key("size")], String::from(message));
        }
        self.check_listeners(text)
    }

    /// Everything that accepts TCP connections.
    fn check_listeners(&self, text: &str) -> Result<(), ConfigError> {
        use Step::{Index, Key};
        if self.role == Role::Branch && self.from_client {
            let message =
                "a branch connects to no servers; from_client belongs into the core's file";
            return Err(at(text, &[Key("from_client")], String::from(message)));
        }
        let mut taken: Vec<SocketAddrV4> = Vec::new();
        for (index, proxy) in self.proxies.iter().enumerate() {
            let place = [Key("proxy"), Index(index)];
            self.check_listener(text, &place, proxy.listen, Some(&proxy.peer), &mut taken)?;
            let ip: Ipv4Addr = *proxy.to.ip();
            if proxy.to.port() == 0 || ip.is_unspecified() || ip.is_multicast() || ip.is_broadcast()
            {
                let message = format!(
                    "{} is no server's address and port; write to = \"10.77.2.10:80\"",
                    proxy.to
                );
                return Err(at(text, &[place[0], place[1], Key("to")], message));
            }
        }
        for (index, socks) in self.socks.iter().enumerate() {
            let place = [Key("socks"), Index(index)];
            self.check_listener(text, &place, socks.listen, Some(&socks.peer), &mut taken)?;
        }
        if let Some(transparent) = &self.transparent {
            let place = [Key("transparent")];
            let peer = transparent.peer.as_ref();
            self.check_listener(text, &place, transparent.listen, peer, &mut taken)?;
            if peer.is_none() && self.peers.iter().all(|peer| peer.prefixes.is_empty()) {
                let message = "nothing would be optimised; add prefixes = [\"10.77.2.0/24\"] to a [[peer]], or peer = \"name\" here";
                return Err(at(text, &place, String::from(message)));
            }
        }
        if let Some(management) = &self.management {
            let place = [Key("management"), Key("listen")];
            check_port(text, &place, management.listen, &mut taken)?;
        }
        Ok(())
    }

    /// A listener for clients, in the table at `place`.
    fn check_listener(
        &self,
        text: &str,
        place: &[Step<'_>],
        listen: SocketAddrV4,
        peer: Option<&String>,
        taken: &mut Vec<SocketAddrV4>,
    ) -> Result<(), ConfigError> {
        let with = |key| [place, &[Step::Key(key)]].concat();
        if self.role == Role::Core {
            let message = "a core takes no clients of its own; [[proxy]], [[socks]] and [transparent] belong into the branch's file";
            return Err(at(text, &with("listen"), String::from(message)));
        }
        if let Some(name) = peer
            && !self.peers.iter().any(|peer| peer.name == *name)
        {
            let names: Vec<String> = self
                .peers
                .iter()
                .map(|it| format!("`{}`", it.name))
                .collect();
            let message = format!(
                "no [[peer]] is called `{name}`; there is {}",
                names.join(", ")
            );
            return Err(at(text, &with("peer"), message));
        }
        check_port(text, &with("listen"), listen, taken)
    }
}

/// A TCP port that nothing else of this file listens at.
fn check_port(
    text: &str,
    place: &[Step<'_>],
    listen: SocketAddrV4,
    taken: &mut Vec<SocketAddrV4>,
) -> Result<(), ConfigError> {
    if listen.port() == 0 {
        let message = format!("{listen} has no port; write listen = \"127.0.0.1:3300\"");
        return Err(at(text, place, message));
    }
    let same = |other: &&SocketAddrV4| {
        other.port() == listen.port()
            && (other.ip() == listen.ip()
                || other.ip().is_unspecified()
                || listen.ip().is_unspecified())
    };
    if let Some(other) = taken.iter().find(same) {
        let message = format!(
            "{listen} is taken by another section, which listens at {other}; give each its own port"
        );
        return Err(at(text, place, message));
    }
    taken.push(listen);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY_A: &str = "AQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQE=";
    const KEY_B: &str = "AgICAgICAgICAgICAgICAgICAgICAgICAgICAgICAgI=";

    fn branch() -> String {
        format!(
            "role = \"branch\"\nprivate_key = \"{KEY_A}\"\n[store]\npath = \"/tmp/x\"\nsize = \"1G\"\n[[peer]]\nname = \"head\"\npublic_key = \"{KEY_B}\"\nendpoint = \"127.0.0.1:3301\"\n[[proxy]]\nlisten = \"127.0.0.1:3300\"\nto = \"127.0.0.1:3399\"\npeer = \"head\"\n[management]\nlisten = \"127.0.0.1:9090\"\n"
        )
    }

    #[test]
    fn a_branch_is_read_whole() {
        let config = ProgramConfig::parse(&branch()).unwrap();
        assert_eq!(config.proxies[0].to.port(), 3399);
        assert_eq!(config.management.unwrap().listen.port(), 9090);
        assert_eq!(config.store.size.unwrap().bytes(), 1 << 30);
    }

    #[test]
    fn a_core_has_many_branches() {
        let config = ProgramConfig::parse(&format!(
            "role = \"core\"\nprivate_key = \"{KEY_A}\"\nfrom_client = true\n[[peer]]\nname = \"a\"\npublic_key = \"{KEY_A}\"\n[[peer]]\nname = \"b\"\npublic_key = \"{KEY_B}\"\n"
        ))
        .unwrap();
        assert_eq!(config.peers.len(), 2);
        assert!(config.from_client);
    }

    #[test]
    fn socks_and_transparent_are_checked_like_proxies() {
        let with = |more: &str| ProgramConfig::parse(&(branch() + more));
        let good = with(
            "[[socks]]\nlisten = \"127.0.0.1:1080\"\npeer = \"head\"\n[transparent]\nlisten = \"0.0.0.0:3302\"\npeer = \"head\"\n",
        )
        .unwrap();
        assert_eq!(good.socks[0].listen.port(), 1080);
        assert_eq!(good.transparent.unwrap().peer.as_deref(), Some("head"));
        for (more, line, word) in [
            (
                "[[socks]]\nlisten = \"127.0.0.1:1080\"\npeer = \"tail\"\n",
                18,
                "no [[peer]] is called `tail`; there is `head`",
            ),
            (
                "[[socks]]\nlisten = \"0.0.0.0:3300\"\npeer = \"head\"\n",
                17,
                "taken by another section",
            ),
            (
                "[[socks]]\nlisten = \"127.0.0.1:1080\"\n",
                16,
                "`peer` is missing",
            ),
            (
                "[transparent]\nlisten = \"0.0.0.0:9090\"\npeer = \"head\"\n",
                15,
                "taken by another section",
            ),
            (
                "[transparent]\nlisten = \"0.0.0.0:3302\"\n",
                16,
                "nothing would be optimised",
            ),
        ] {
            let error = with(more).unwrap_err();
            assert!(error.to_string().contains(word), "{error}");
            assert_eq!(error.line(), Some(line), "{error}");
        }
        let error =
            ProgramConfig::parse(&branch().replacen("[store]", "from_client = true\n[store]", 1))
                .unwrap_err();
        assert!(
            error.line() == Some(3) && error.message().contains("core"),
            "{error}"
        );
    }

    #[test]
    fn what_is_wrong_is_named_with_its_line() {
        for (from, to, line, word) in [
            (
                "peer = \"head\"",
                "peer = \"tail\"",
                13,
                "no [[peer]] is called `tail`",
            ),
            ("\"1G\"", "\"1K\"", 5, "at least 4M"),
            ("127.0.0.1:3300", "127.0.0.1:0", 11, "no port"),
            ("127.0.0.1:3399", "0.0.0.0:3399", 12, "no server"),
            ("endpoint = \"127.0.0.1:3301\"", "", 7, "endpoint"),
            ("to = ", "too = ", 12, "unknown key"),
            (
                "\"127.0.0.1:9090\"",
                "\"here\"",
                15,
                "\"here\" is not an IPv4 address and port",
            ),
            (
                "127.0.0.1:3301",
                "head.example.com:3301",
                9,
                "names are not looked up",
            ),
            ("path = ", "#", 5, "add path = "),
            ("size = ", "path = ", 5, "`path` is there twice"),
        ] {
            let error = ProgramConfig::parse(&branch().replacen(from, to, 1)).unwrap_err();
            assert!(error.to_string().contains(word), "{error}");
            if to.is_empty() {
                assert!(error.line().is_some(), "{error}");
            } else {
                assert_eq!(error.line(), Some(line), "{error}");
            }
        }
    }
}
