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

    fn check(&self, text: &str) -> Result<(), ConfigError> {
        use Step::{Index, Key};
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
        if self.role == Role::Core && self.peers.len() > 1 {
            let message = "a core has one peer in this version; start one outpost-peer, with a port of its own, for each";
            return fault(&[Key("peer"), Index(1)], String::from(message));
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
        for (index, proxy) in self.proxies.iter().enumerate() {
            let fault = |key, message| fault(&[Key("proxy"), Index(index), Key(key)], message);
            if self.role == Role::Core {
                let message = "a core forwards no ports; [[proxy]] belongs into the branch's file";
                return fault("listen", String::from(message));
            }
            if !self.peers.iter().any(|peer| peer.name == proxy.peer) {
                let message = format!(
                    "no [[peer]] is called `{}`; there is `{}`",
                    proxy.peer,
                    self.peers.first().map_or("none", |peer| peer.name.as_str())
                );
                return fault("peer", message);
            }
            let earlier = self.proxies.get(..index).unwrap_or_default();
            if proxy.listen.port() == 0 || earlier.iter().any(|other| other.listen == proxy.listen)
            {
                let message = format!(
                    "{} is taken or no port; each proxy listens at its own",
                    proxy.listen
                );
                return fault("listen", message);
            }
            let ip: Ipv4Addr = *proxy.to.ip();
            if proxy.to.port() == 0 || ip.is_unspecified() || ip.is_multicast() || ip.is_broadcast()
            {
                let message = format!("{} is no server's address and port", proxy.to);
                return fault("to", message);
            }
        }
        Ok(())
    }
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
    fn what_is_wrong_is_named_with_its_line() {
        for (from, to, line, word) in [
            (
                "peer = \"head\"",
                "peer = \"tail\"",
                13,
                "no [[peer]] is called `tail`",
            ),
            ("\"1G\"", "\"1K\"", 5, "at least 4M"),
            ("127.0.0.1:3300", "127.0.0.1:0", 11, "listens at its own"),
            ("127.0.0.1:3399", "0.0.0.0:3399", 12, "no server"),
            ("endpoint = \"127.0.0.1:3301\"", "", 7, "endpoint"),
            ("to = ", "too = ", 12, "unknown key"),
            ("\"127.0.0.1:9090\"", "\"here\"", 15, "address"),
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
