//! `outpost.toml`: the one configuration file (DESIGN §7), parsed by the same code on the build host and on the box.
//!
//! [`Config::parse`] either gives a configuration that holds together or the line that is wrong and what would be right.
//! It reads no files and acts on nothing.
#![cfg_attr(not(test), no_std)]
#![forbid(unsafe_code)]

extern crate alloc;

mod check;
mod error;
mod guest;
mod program;
mod values;

use alloc::string::String;
use alloc::vec::Vec;
use core::net::{Ipv4Addr, SocketAddrV4};

use serde::Deserialize;

pub use check::{Step, locate};
pub use error::ConfigError;
pub use guest::{Guest, MAX_CPUS, MAX_VCPUS, Policy, Services};
pub use program::{ProgramConfig, ProgramManagement, ProgramStore, Proxy, Socks, Transparent};
pub use values::{ByteSize, Ipv4Cidr, Ipv4Interface, MacAddress, PrivateKey, PublicKey};

/// UDP port of the tunnel unless `listen` says otherwise.
pub const DEFAULT_PORT: u16 = 3301;

/// The longest configuration file that is read, in bytes.
pub const MAX_FILE_BYTES: usize = 64 * 1024;

/// Which end of the line this box is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// A branch office: it dials its peers and intercepts what its LAN opens to them.
    Branch,
    /// A head office: it waits for branches and opens connections to the servers for them.
    Core,
}

/// A whole configuration.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Which end of the line this box is.
    pub role: Role,
    /// This box's X25519 private key.
    pub private_key: PrivateKey,
    /// Where a core listens for its branches (UDP): `0.0.0.0` or its management address, and a port. A branch listens
    /// nowhere.
    #[serde(default = "default_listen")]
    pub listen: SocketAddrV4,
    /// The box's own address on the network it bridges.
    pub management: Management,
    /// Which network port is which.
    #[serde(default)]
    pub ports: Ports,
    /// The other end of the tunnel: none or one in this version.
    #[serde(default, rename = "peer")]
    pub peers: Vec<Peer>,
    /// The dictionary.
    #[serde(default)]
    pub store: Store,
    /// The pinned guest; none if absent.
    #[serde(default)]
    pub guest: Option<Guest>,
    /// The box's own work beside the guest.
    #[serde(default)]
    pub services: Services,
}

/// `[management]`: the box's own address.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Management {
    /// Address and prefix length of the network that it is on, as `10.77.1.1/16`.
    pub address: Ipv4Interface,
    /// Router to everything outside that network.
    #[serde(default)]
    pub gateway: Option<Ipv4Addr>,
}

/// `[ports]`: which network port is which. What is not named is taken in PCI order: first LAN, then WAN.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Ports {
    /// MAC address of the port towards the office.
    #[serde(default)]
    pub lan: Option<MacAddress>,
    /// MAC address of the port towards the line.
    #[serde(default)]
    pub wan: Option<MacAddress>,
}

/// `[[peer]]`: the other end of a tunnel.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Peer {
    /// What logs and statistics call it.
    pub name: String,
    /// Its X25519 public key. A peer with another key is refused.
    pub public_key: PublicKey,
    /// Branch: the UDP address at which the peer listens.
    #[serde(default)]
    pub endpoint: Option<SocketAddrV4>,
    /// Branch: the destinations that the peer serves. TCP from the LAN to one of them is optimised.
    #[serde(default)]
    pub prefixes: Vec<Ipv4Cidr>,
}

/// `[store]`: the dictionary of what the line has carried.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Store {
    /// Memory for the dictionaries of both directions together; if they are on the disk, for their index and the parts in use.
    /// By default a quarter of the box's memory.
    #[serde(default)]
    pub memory: Option<ByteSize>,
}

fn default_listen() -> SocketAddrV4 {
    SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, DEFAULT_PORT)
}

impl Config {
    /// Parses and checks a configuration file.
    ///
    /// # Errors
    /// [`ConfigError`] names the line, what is wrong there and what would be right: bad TOML, an unknown key, a bad value, a
    /// missing key, or keys that do not go together.
    pub fn parse(text: &str) -> Result<Config, ConfigError> {
        if text.len() > MAX_FILE_BYTES {
            return Err(ConfigError::whole_file(alloc::format!(
                "the file has {} bytes; at most {MAX_FILE_BYTES} are read",
                text.len()
            )));
        }
        let config: Config =
            toml::from_str(text).map_err(|error| ConfigError::from_toml(text, &error))?;
        check::check(text, &config)?;
        Ok(config)
    }

    /// Parses what was read from a disk, which need not be UTF-8.
    ///
    /// # Errors
    /// As [`Config::parse`]; bytes that are not UTF-8 are named by their line. A UTF-8 byte-order mark is skipped.
    pub fn parse_bytes(bytes: &[u8]) -> Result<Config, ConfigError> {
        text_of(bytes).and_then(Config::parse)
    }
}

/// Bytes of a disk as text, without a byte-order mark.
fn text_of(bytes: &[u8]) -> Result<&str, ConfigError> {
    let bytes = bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(bytes);
    core::str::from_utf8(bytes).map_err(|error| {
        let before = bytes.get(..error.valid_up_to()).unwrap_or_default();
        ConfigError::at_line(
            1 + before.iter().filter(|&&byte| byte == b'\n').count(),
            String::from("not UTF-8 text; save the file as plain UTF-8"),
        )
    })
}

#[cfg(test)]
mod tests;
