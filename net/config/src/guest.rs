//! `[guest]` and `[services]`: what the pinned guest gets, and how it shares the CPUs with the box's own work.

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use core::fmt;
use core::ops::RangeInclusive;

use serde::Deserialize;
use serde::de::{self, Deserializer, SeqAccess, Unexpected, Visitor};

use crate::{ByteSize, Ipv4Interface};

/// The most virtual CPUs that a guest can have.
pub const MAX_VCPUS: u32 = 16;

/// CPU numbers are below this.
pub const MAX_CPUS: u8 = 64;

/// `[guest]`: the pinned guest.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Guest {
    /// Name of the guest in the image.
    #[serde(default = "default_name")]
    pub name: String,
    /// The guest's own address on the LAN, as `10.77.1.5/16`.
    #[serde(default)]
    pub address: Option<Ipv4Interface>,
    /// The guest's memory.
    #[serde(default = "default_memory")]
    pub memory: ByteSize,
    /// How many virtual CPUs it has: 1 to [`MAX_VCPUS`], of which there may be more than the box has CPUs.
    #[serde(default = "default_vcpus", deserialize_with = "vcpus")]
    pub vcpus: u32,
    /// Its nice value, -20 to 19, as Linux means it: the lower, the more CPU time beside the box's services.
    #[serde(default, deserialize_with = "nice")]
    pub nice: i8,
    /// How its virtual CPUs are scheduled.
    #[serde(default)]
    pub policy: Policy,
    /// The CPUs that it may run on, each once and below [`MAX_CPUS`]; empty: as the box sees fit.
    #[serde(default, deserialize_with = "cpus")]
    pub cpus: Vec<u8>,
    /// More words for the guest kernel's command line.
    #[serde(default)]
    pub cmdline: String,
    /// Gives a test guest the debug-exit port 0xf4.
    #[serde(default)]
    pub debug_exit: bool,
    /// Copies what the guest writes to its serial port to the box's third one (COM3), byte for byte.
    #[serde(default)]
    pub com3: bool,
}

/// `[guest] policy`: which virtual CPU runs where and when. The scheduler's documentation compares them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Policy {
    /// Each virtual CPU by itself, wherever there is least to do.
    Fair,
    /// No two virtual CPUs wait for one CPU while there are CPUs enough.
    #[default]
    Balance,
    /// All virtual CPUs that can run start and stop together.
    Gang,
    /// Each virtual CPU stays on its CPU.
    Placed,
}

impl<'de> Deserialize<'de> for Policy {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Name;
        impl Visitor<'_> for Name {
            type Value = Policy;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a policy: \"fair\", \"balance\" (the default), \"gang\" or \"placed\"")
            }
            fn visit_str<E: de::Error>(self, name: &str) -> Result<Policy, E> {
                match name {
                    "fair" => Ok(Policy::Fair),
                    "balance" => Ok(Policy::Balance),
                    "gang" => Ok(Policy::Gang),
                    "placed" => Ok(Policy::Placed),
                    _ => Err(E::invalid_value(Unexpected::Str(name), &self)),
                }
            }
        }
        deserializer.deserialize_any(Name)
    }
}

/// `[services] nice` where the file is silent: of a CPU that they share with a guest that wants all of it, the services have 99% if they can use it, by
/// Linux's weights. So frames are forwarded at their full rate whatever the guest does.
const SERVICES_NICE: i8 = -20;

/// `[services]`: the box's own work, frames first of all.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Services {
    /// Its nice value, -20 to 19, as Linux means it. -20 by default: frames come before the guest.
    #[serde(deserialize_with = "nice")]
    pub nice: i8,
    /// CPUs for each of which a service computes all it can and for nothing, so that shares of the CPUs can be measured; each once
    /// and below [`MAX_CPUS`]. Empty: none, which is right for every box that is not measured.
    #[serde(deserialize_with = "load")]
    pub load: Vec<u8>,
}

impl Default for Services {
    fn default() -> Services {
        Services {
            nice: SERVICES_NICE,
            load: Vec::new(),
        }
    }
}

fn default_name() -> String {
    String::from("directory")
}

fn default_memory() -> ByteSize {
    ByteSize::from_mib(256)
}

fn default_vcpus() -> u32 {
    1
}

fn vcpus<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u32, D::Error> {
    deserializer.deserialize_any(Whole {
        range: 1..=MAX_VCPUS,
        what: "a guest has 1 to 16 virtual CPUs, as in vcpus = 2",
    })
}

fn nice<'de, D: Deserializer<'de>>(deserializer: D) -> Result<i8, D::Error> {
    deserializer.deserialize_any(Whole {
        range: -20..=19,
        what: "nice is -20 (most CPU time) to 19 (least), as in nice = 5",
    })
}

/// The guest's CPUs: at least one.
fn cpus<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<u8>, D::Error> {
    let cpus = deserializer.deserialize_any(CpuList("cpus = [0, 1]"))?;
    if cpus.is_empty() {
        return Err(de::Error::custom(
            "the guest needs a CPU to run on; write cpus = [0, 1], or leave the key out for all",
        ));
    }
    Ok(cpus)
}

fn load<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<u8>, D::Error> {
    deserializer.deserialize_any(CpuList("load = [0, 1]"))
}

/// Reads CPU numbers, each below [`MAX_CPUS`] and named once. Has an example.
struct CpuList(&'static str);

impl<'de> Visitor<'de> for CpuList {
    type Value = Vec<u8>;
    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "a list of CPU numbers, as in {}", self.0)
    }
    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Vec<u8>, A::Error> {
        let mut cpus: Vec<u8> = Vec::new();
        while let Some(Cpu(cpu)) = list.next_element()? {
            if cpus.contains(&cpu) {
                let message = format!("CPU {cpu} is in the list twice; name each once");
                return Err(de::Error::custom(message));
            }
            cpus.push(cpu);
        }
        Ok(cpus)
    }
}

/// A CPU's number.
struct Cpu(u8);

impl<'de> Deserialize<'de> for Cpu {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let whole = Whole {
            range: 0..=MAX_CPUS - 1,
            what: "a CPU's number is 0 to 63, as in cpus = [0, 1]",
        };
        deserializer.deserialize_any(whole).map(Cpu)
    }
}

/// Reads a whole number of a range. `what` says what is right.
struct Whole<T> {
    range: RangeInclusive<T>,
    what: &'static str,
}

impl<T: TryFrom<i64> + PartialOrd> Visitor<'_> for Whole<T> {
    type Value = T;
    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a whole number; ")?;
        f.write_str(self.what)
    }
    fn visit_i64<E: de::Error>(self, number: i64) -> Result<T, E> {
        T::try_from(number)
            .ok()
            .filter(|value| self.range.contains(value))
            .ok_or_else(|| E::custom(format!("{number} is out of range: {}", self.what)))
    }
    fn visit_u64<E: de::Error>(self, number: u64) -> Result<T, E> {
        match i64::try_from(number) {
            Ok(number) => self.visit_i64(number),
            Err(_) => Err(E::invalid_value(Unexpected::Unsigned(number), &self)),
        }
    }
}
