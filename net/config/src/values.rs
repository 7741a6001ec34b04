//! The values that a configuration is made of: keys, prefixes, MAC addresses, sizes. Each is checked when it is read.

use alloc::format;
use alloc::string::String;
use core::fmt;
use core::net::Ipv4Addr;
use core::str::FromStr;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;
use serde::de::{self, Deserializer, Unexpected, Visitor};

/// Reads a value from a TOML string by [`FromStr`], whose error becomes the message.
macro_rules! deserialize_from_str {
    ($type:ty) => {
        impl<'de> Deserialize<'de> for $type {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let text = String::deserialize(deserializer)?;
                text.parse().map_err(de::Error::custom)
            }
        }
    };
}

fn key_bytes(text: &str) -> Result<[u8; 32], String> {
    let bytes = STANDARD.decode(text).map_err(|_| {
        String::from("not base64; a key is 44 characters as `cargo xtask keygen` prints them")
    })?;
    let length = bytes.len();
    bytes.try_into().map_err(|_| {
        format!("a key is 32 bytes (44 characters of base64); this one has {length} bytes")
    })
}

/// An X25519 private key. It is never printed.
#[derive(Clone, PartialEq, Eq)]
pub struct PrivateKey(pub [u8; 32]);

impl FromStr for PrivateKey {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let key = key_bytes(text)?;
        if key == [0; 32] {
            return Err(String::from(
                "the key is all zeros; `cargo xtask keygen` makes a real one",
            ));
        }
        Ok(PrivateKey(key))
    }
}

impl fmt::Debug for PrivateKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PrivateKey(hidden)")
    }
}

deserialize_from_str!(PrivateKey);

/// An X25519 public key.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct PublicKey(pub [u8; 32]);

impl FromStr for PublicKey {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        key_bytes(text).map(PublicKey)
    }
}

impl fmt::Display for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&STANDARD.encode(self.0))
    }
}

impl fmt::Debug for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PublicKey({self})")
    }
}

deserialize_from_str!(PublicKey);

/// Splits `a.b.c.d/len`.
fn address_and_length(text: &str, example: &str) -> Result<(Ipv4Addr, u8), String> {
    let wrong = || format!("`{text}` is not an IPv4 prefix; write it as {example}");
    let (address, length) = text.split_once('/').ok_or_else(wrong)?;
    let address = address.parse().map_err(|_| wrong())?;
    let length: u8 = length.parse().map_err(|_| wrong())?;
    if length > 32 {
        return Err(format!(
            "`{text}`: a prefix length is 0 to 32, as in {example}"
        ));
    }
    Ok((address, length))
}

const fn netmask(length: u8) -> u32 {
    // A shift by 32 is the one that `checked_shl` refuses: the empty prefix has an empty mask.
    match u32::MAX.checked_shl(32 - length as u32) {
        Some(mask) => mask,
        None => 0,
    }
}

/// A block of addresses, as `10.77.2.0/24`. The host bits are zero.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Ipv4Cidr {
    address: Ipv4Addr,
    length: u8,
}

impl Ipv4Cidr {
    /// The lowest address of the block.
    pub fn address(&self) -> Ipv4Addr {
        self.address
    }

    /// How many leading bits the block fixes: 0 to 32.
    pub fn length(&self) -> u8 {
        self.length
    }

    /// Whether the two blocks have an address in common.
    pub fn overlaps(&self, other: &Ipv4Cidr) -> bool {
        self.contains(other.address) || other.contains(self.address)
    }

    /// Whether `address` lies in the block.
    pub fn contains(&self, address: Ipv4Addr) -> bool {
        (address.to_bits() ^ self.address.to_bits()) & netmask(self.length) == 0
    }
}

impl FromStr for Ipv4Cidr {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let (address, length) = address_and_length(text, "\"10.77.2.0/24\"")?;
        let network = Ipv4Addr::from_bits(address.to_bits() & netmask(length));
        if network != address {
            return Err(format!(
                "`{text}` has bits set beyond its length; did you mean {network}/{length}?"
            ));
        }
        Ok(Ipv4Cidr { address, length })
    }
}

impl fmt::Display for Ipv4Cidr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.length)
    }
}

deserialize_from_str!(Ipv4Cidr);

/// An address together with the length of the prefix of the network that it is on, as `10.77.1.1/16`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Ipv4Interface {
    address: Ipv4Addr,
    length: u8,
}

impl Ipv4Interface {
    /// The address itself.
    pub fn address(&self) -> Ipv4Addr {
        self.address
    }

    /// Prefix length of the network: 1 to 32.
    pub fn length(&self) -> u8 {
        self.length
    }

    /// Whether `other` is on the same network, reached without a router.
    pub fn is_neighbour(&self, other: Ipv4Addr) -> bool {
        (self.address.to_bits() ^ other.to_bits()) & netmask(self.length) == 0
    }
}

impl FromStr for Ipv4Interface {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let (address, length) = address_and_length(text, "\"10.77.1.1/16\"")?;
        let host_bits = !netmask(length);
        let host = address.to_bits() & host_bits;
        let reserved = length < 31 && (host == 0 || host == host_bits);
        if length == 0
            || reserved
            || address.is_multicast()
            || address.is_loopback()
            || address.is_unspecified()
        {
            return Err(format!(
                "`{text}` cannot be a host's own address; write it as \"10.77.1.1/16\""
            ));
        }
        Ok(Ipv4Interface { address, length })
    }
}

impl fmt::Display for Ipv4Interface {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.length)
    }
}

deserialize_from_str!(Ipv4Interface);

/// An Ethernet address, as `52:54:00:00:00:01`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct MacAddress(pub [u8; 6]);

impl FromStr for MacAddress {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("`{text}` is not a MAC address; write it as \"52:54:00:00:00:01\"");
        let mut bytes = [0; 6];
        let mut parts = text.split([':', '-']);
        for byte in &mut bytes {
            let part = parts
                .next()
                .filter(|part| part.len() == 2)
                .ok_or_else(wrong)?;
            *byte = u8::from_str_radix(part, 16).map_err(|_| wrong())?;
        }
        if parts.next().is_some() {
            return Err(wrong());
        }
        if bytes[0] & 1 != 0 {
            return Err(format!(
                "`{text}` is a group address; a port has an individual one"
            ));
        }
        Ok(MacAddress(bytes))
    }
}

impl fmt::Display for MacAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

deserialize_from_str!(MacAddress);

/// An amount of memory or disk: a number of bytes, or a string with a binary unit, as `"256M"` or `"2 GiB"`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ByteSize(u64);

impl ByteSize {
    /// A size of `mib` mebibytes.
    pub const fn from_mib(mib: u64) -> Self {
        ByteSize(mib.saturating_mul(1 << 20))
    }

    /// The size in bytes.
    pub const fn bytes(self) -> u64 {
        self.0
    }
}

impl FromStr for ByteSize {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("`{text}` is not a size; write it as \"256M\" or \"2G\"");
        let digits = text.trim_end_matches(|c: char| !c.is_ascii_digit());
        let unit = text.get(digits.len()..).ok_or_else(wrong)?.trim_start();
        let shift = match unit {
            "" | "B" => 0,
            "K" | "KiB" => 10,
            "M" | "MiB" => 20,
            "G" | "GiB" => 30,
            "T" | "TiB" => 40,
            _ => return Err(wrong()),
        };
        let number: u64 = digits.parse().map_err(|_| wrong())?;
        number
            .checked_mul(1 << shift)
            .map(ByteSize)
            .ok_or_else(wrong)
    }
}

impl fmt::Display for ByteSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (shift, unit) in [(30, "GiB"), (20, "MiB"), (10, "KiB")] {
            if self.0 != 0 && self.0.trailing_zeros() >= shift {
                return write!(f, "{} {unit}", self.0 >> shift);
            }
        }
        write!(f, "{} bytes", self.0)
    }
}

impl<'de> Deserialize<'de> for ByteSize {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct SizeVisitor;
        impl Visitor<'_> for SizeVisitor {
            type Value = ByteSize;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a size such as \"256M\"")
            }
            fn visit_str<E: de::Error>(self, text: &str) -> Result<ByteSize, E> {
                text.parse().map_err(E::custom)
            }
            fn visit_i64<E: de::Error>(self, bytes: i64) -> Result<ByteSize, E> {
                u64::try_from(bytes)
                    .map(ByteSize)
                    .map_err(|_| E::invalid_value(Unexpected::Signed(bytes), &self))
            }
            fn visit_u64<E: de::Error>(self, bytes: u64) -> Result<ByteSize, E> {
                Ok(ByteSize(bytes))
            }
        }
        deserializer.deserialize_any(SizeVisitor)
    }
}
