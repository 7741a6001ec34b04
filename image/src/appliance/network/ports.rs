//! The box's two ports: which network device is LAN and which WAN.

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

use outpost_config::{MacAddress, Ports};
use outpost_net::Port;
use serde::Serialize;

use crate::device::nic::{self, Nic};
use crate::device::pci::{Function, Pci};
use crate::firmware::Findings;
use crate::output;

/// The ports of the box.
#[derive(Default)]
pub struct NicPorts {
    lan: Option<Nic>,
    wan: Option<Nic>,
    /// Frames for a port that is not there.
    no_port: u64,
}

/// Finds the network ports and decides which is which.
pub fn find_ports(findings: &Findings, pci: &Pci, functions: &[Function]) -> NicPorts {
    let mut nics = Vec::new();
    for found in nic::find_all(pci, functions) {
        match found {
            Ok(nic) => nics.push(nic),
            Err(why) => output::problem(&why),
        }
    }
    log::info!(
        "pci: {} functions, {} network ports",
        functions.len(),
        nics.len()
    );
    let wanted = findings
        .config
        .as_ref()
        .map_or_else(|_| Ports::default(), |config| config.ports.clone());
    let lan = take(&mut nics, wanted.lan, "lan");
    let wan = take(&mut nics, wanted.wan, "wan");
    // What is not named is taken in PCI order.
    // A port that is named but not there stays absent: another one would be the wrong one.
    let mut rest = nics.into_iter();
    let lan = lan.or_else(|| {
        if wanted.lan.is_none() {
            rest.next()
        } else {
            None
        }
    });
    let wan = wan.or_else(|| {
        if wanted.wan.is_none() {
            rest.next()
        } else {
            None
        }
    });
    for (name, nic) in [("LAN", &lan), ("WAN", &wan)] {
        if let Some(nic) = nic {
            log::info!(
                "{name}: {} link {}, {}",
                Mac(nic.mac()),
                if nic.link_up() { "up" } else { "down" },
                if nic.interrupts() {
                    "interrupts by MSI-X"
                } else {
                    "polled: no MSI-X"
                }
            );
        }
    }
    match (&lan, &wan) {
        (Some(_), Some(_)) => {}
        (None, None) => output::problem(
            "no network port works: nothing is forwarded; the guest runs without a network. Fit two virtio-net ports",
        ),
        (Some(_), None) => output::problem(
            "only one network port works: it is taken for the LAN, nothing is forwarded to the WAN. Fit a second one",
        ),
        (None, Some(_)) => output::problem(
            "only the WAN port works: nothing is forwarded from the LAN. Check [ports] lan in outpost.toml, or fit a second port",
        ),
    }
    NicPorts {
        lan,
        wan,
        no_port: 0,
    }
}

impl NicPorts {
    /// The MAC address of the box's own station: the LAN port's, which is the box's alone.
    pub fn station_mac(&self) -> [u8; 6] {
        /// Locally administered, for a box without ports.
        const NOBODY: [u8; 6] = [0x02, 0, 0, 0, 0, 1];
        self.iter().next().map_or(NOBODY, Nic::mac)
    }

    /// The ports that are there.
    pub fn iter_mut(&mut self) -> impl Iterator<Item = (Port, &mut Nic)> {
        let lan = self.lan.as_mut().map(|nic| (Port::Lan, nic));
        let wan = self.wan.as_mut().map(|nic| (Port::Wan, nic));
        lan.into_iter().chain(wan)
    }

    fn iter(&self) -> impl Iterator<Item = &Nic> {
        self.lan.iter().chain(&self.wan)
    }

    /// Queues a frame on a port; one for a port that is not there is lost.
    pub fn send(&mut self, port: Port, frame: &[u8]) {
        let nic = match port {
            Port::Lan => &mut self.lan,
            Port::Wan => &mut self.wan,
            Port::Guest => return,
        };
        match nic {
            Some(nic) => nic.send(frame),
            None => self.no_port += 1,
        }
    }

    /// Sends what is queued. True if frames wait for room at a port.
    pub fn flush(&mut self) -> bool {
        self.iter_mut()
            .fold(false, |waiting, (_, nic)| nic.flush() | waiting)
    }

    /// True if a frame waits at a port.
    pub fn has_received(&self) -> bool {
        self.iter().any(Nic::has_received)
    }

    /// True if no port needs to be polled.
    pub fn all_interrupt(&self) -> bool {
        self.iter().all(Nic::interrupts)
    }

    /// For the telemetry.
    pub fn report(&self) -> Report {
        Report {
            lan: self.lan.as_ref().map(Nic::report),
            wan: self.wan.as_ref().map(Nic::report),
            dropped_no_port: self.no_port,
        }
    }
}

/// What the ports show of themselves.
#[derive(Serialize)]
pub struct Report {
    lan: Option<nic::Report>,
    wan: Option<nic::Report>,
    dropped_no_port: u64,
}

fn take(nics: &mut Vec<Nic>, name: Option<MacAddress>, key: &str) -> Option<Nic> {
    let name = name?;
    match nics.iter().position(|nic| nic.mac() == name.0) {
        Some(index) => Some(nics.remove(index)),
        None => {
            let there: Vec<String> = nics
                .iter()
                .map(|nic| format!("{}", Mac(nic.mac())))
                .collect();
            output::problem(format_args!(
                "[ports] {key} in outpost.toml names {}, which the box does not have; it has {}",
                Mac(name.0),
                if there.is_empty() {
                    String::from("no other")
                } else {
                    there.join(", ")
                }
            ));
            None
        }
    }
}

/// A MAC address as people write it.
struct Mac([u8; 6]);

impl core::fmt::Display for Mac {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}
