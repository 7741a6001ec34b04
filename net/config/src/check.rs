//! Checks of keys that are right by themselves and wrong together.

use alloc::format;
use alloc::string::String;

use toml::de::{DeTable, DeValue};

use crate::error::{ConfigError, line_of};
use crate::{Config, Guest, Peer, Role};

/// The least memory that a Linux guest starts in.
const MIN_GUEST_MIB: u64 = 16;

/// The least dictionary worth having.
pub(crate) const MIN_STORE_MIB: u64 = 4;

/// One step from a table to what is in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step<'a> {
    /// To the value of a key.
    Key(&'a str),
    /// To an element of an array, counted from 0.
    Index(usize),
}
use Step::{Index, Key};

/// Returns the first thing in `config`, parsed from `text`, that does not hold together.
pub(crate) fn check(text: &str, config: &Config) -> Result<(), ConfigError> {
    let fault = |path: &[Step<'_>], message: String| Err(at(text, path, message));
    if config.listen.port() == 0 {
        return fault(
            &[Key("listen")],
            String::from("the tunnel needs a port; write listen = \"0.0.0.0:3301\""),
        );
    }
    let own = config.management.address;
    let listen = config.listen.ip();
    if !listen.is_unspecified() && *listen != own.address() {
        let message = format!(
            "the box has no address {listen} to listen at; write listen = \"0.0.0.0:{}\"",
            config.listen.port()
        );
        return fault(&[Key("listen")], message);
    }
    if let Some(gateway) = config.management.gateway
        && (!own.is_neighbour(gateway) || gateway == own.address())
    {
        let message = format!("the gateway {gateway} must be another host on the network of {own}");
        return fault(&[Key("management"), Key("gateway")], message);
    }
    if config.ports.lan.is_some() && config.ports.lan == config.ports.wan {
        return fault(
            &[Key("ports"), Key("wan")],
            String::from("LAN and WAN must be two different ports"),
        );
    }
    if let Some(memory) = config.store.memory
        && memory.bytes() < MIN_STORE_MIB << 20
    {
        let message =
            format!("a dictionary of {memory} is of no use; give it at least {MIN_STORE_MIB}M");
        return fault(&[Key("store"), Key("memory")], message);
    }
    for index in 0..config.peers.len() {
        check_peer(text, config.role, &config.peers, index, true)?;
    }
    if config.peers.len() > 1 {
        let message =
            String::from("a box has one peer in this version; leave one [[peer]] in the file");
        return fault(&[Key("peer"), Index(1)], message);
    }
    config
        .guest
        .as_ref()
        .map_or(Ok(()), |guest| check_guest(text, config, guest))
}

/// Checks the peer at `index`. A box (`needs_prefixes`) of a branch must know what each peer serves.
pub(crate) fn check_peer(
    text: &str,
    role: Role,
    peers: &[Peer],
    index: usize,
    needs_prefixes: bool,
) -> Result<(), ConfigError> {
    let Some(peer) = peers.get(index) else {
        return Ok(());
    };
    let fault = |key, message| Err(at(text, &[Key("peer"), Index(index), Key(key)], message));
    let name = &peer.name;
    if name.is_empty()
        || !name
            .chars()
            .all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.'))
    {
        return fault(
            "name",
            format!("`{name}` is not a name; use letters, digits, `-`, `_` and `.`"),
        );
    }
    let earlier = peers.get(..index).unwrap_or_default();
    if earlier.iter().any(|other| other.name == *name) {
        return fault(
            "name",
            format!("two peers are called `{name}`; give each its own name"),
        );
    }
    if earlier
        .iter()
        .any(|other| other.public_key == peer.public_key)
    {
        return fault(
            "public_key",
            format!("peer `{name}` has the public key of another peer; each has its own"),
        );
    }
    match (role, peer.endpoint) {
        (Role::Branch, None) => {
            let message = format!(
                "a branch must know where peer `{name}` is; add endpoint = \"10.77.2.1:3301\""
            );
            return fault("endpoint", message);
        }
        (Role::Branch, Some(endpoint)) => {
            let ip = endpoint.ip();
            if endpoint.port() == 0 || ip.is_unspecified() || ip.is_multicast() || ip.is_broadcast()
            {
                let message = format!(
                    "{endpoint} is no place to reach peer `{name}`; write its address and port"
                );
                return fault("endpoint", message);
            }
            if needs_prefixes && peer.prefixes.is_empty() {
                let message = format!(
                    "nothing would be optimised for peer `{name}`; add prefixes = [\"10.77.2.0/24\"]"
                );
                return fault("prefixes", message);
            }
        }
        (Role::Core, None) if peer.prefixes.is_empty() => {}
        (Role::Core, endpoint) => {
            let key = if endpoint.is_some() {
                "endpoint"
            } else {
                "prefixes"
            };
            return fault(
                key,
                format!("a core waits for its branches; `{key}` belongs into the file of `{name}`"),
            );
        }
    }
    for prefix in &peer.prefixes {
        let overlaps = |other: &&Peer| other.prefixes.iter().any(|taken| taken.overlaps(prefix));
        if let Some(other) = earlier.iter().find(overlaps) {
            let message = format!(
                "{prefix} is also served by peer `{}`; a prefix has one peer",
                other.name
            );
            return fault("prefixes", message);
        }
    }
    Ok(())
}

fn check_guest(text: &str, config: &Config, guest: &Guest) -> Result<(), ConfigError> {
    let fault = |key, message| Err(at(text, &[Key("guest"), Key(key)], message));
    if guest.memory.bytes() < MIN_GUEST_MIB << 20 {
        let message = format!(
            "a guest does not start in {}; give it at least {MIN_GUEST_MIB}M",
            guest.memory
        );
        return fault("memory", message);
    }
    if guest
        .address
        .is_some_and(|address| address.address() == config.management.address.address())
    {
        return fault(
            "address",
            String::from("the guest's address is the box's own; give it another"),
        );
    }
    Ok(())
}

/// The line (from 1) of the value that `path` leads to, or of the last step of the way that the file has: for what only
/// shows when the configuration is put to use, such as a port that another program has. `None`: the text has nothing of it.
pub fn locate(text: &str, path: &[Step<'_>]) -> Option<usize> {
    let table = DeTable::parse(text).ok()?;
    offset_of(table.get_ref(), path).map(|offset| line_of(text, offset))
}

/// An error at the value that `path` leads to, or at the last step of the way that the file has.
pub(crate) fn at(text: &str, path: &[Step<'_>], message: String) -> ConfigError {
    match locate(text, path) {
        Some(line) => ConfigError::at_line(line, message),
        None => ConfigError::whole_file(message),
    }
}

fn offset_of(table: &DeTable<'_>, path: &[Step<'_>]) -> Option<usize> {
    let (&Key(first), mut rest) = path.split_first()? else {
        return None;
    };
    let mut value = table.get(first)?;
    while let Some((&step, after)) = rest.split_first() {
        let next = match (step, value.get_ref()) {
            (Key(key), DeValue::Table(table)) => table.get(key),
            (Index(index), DeValue::Array(array)) => array.get(index),
            _ => None,
        };
        match next {
            Some(next) => value = next,
            None => break,
        }
        rest = after;
    }
    Some(value.span().start)
}
