//! A learning bridge. It says where a frame goes; it does not look past the Ethernet header and holds no frames.

use core::time::Duration;

use hashbrown::HashMap;

use crate::hash::{self, Keyed};
use crate::time::Instant;
use crate::wire::Mac;

/// A network port of the box that frames arrive at and leave from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Port {
    /// Towards the office.
    Lan,
    /// Towards the line.
    Wan,
    /// The pinned guest's virtual network card.
    Guest,
}

impl Port {
    /// Every port.
    pub const ALL: [Port; 3] = [Port::Lan, Port::Wan, Port::Guest];

    const fn bit(self) -> u8 {
        match self {
            Port::Lan => 1,
            Port::Wan => 2,
            Port::Guest => 4,
        }
    }

    /// A number for tables: 0, 1 or 2.
    pub const fn index(self) -> usize {
        self as usize
    }
}

/// A set of ports.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Ports(u8);

impl Ports {
    /// No port.
    pub const NONE: Ports = Ports(0);
    /// Every port.
    pub const ALL: Ports = Ports(7);

    /// One port.
    pub const fn only(port: Port) -> Ports {
        Ports(port.bit())
    }

    /// These ports but `port`.
    pub const fn without(self, port: Port) -> Ports {
        Ports(self.0 & !port.bit())
    }

    /// Whether `port` is one of them.
    pub const fn contains(self, port: Port) -> bool {
        self.0 & port.bit() != 0
    }

    /// Whether there is none.
    pub const fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// The ports in this set.
    pub fn iter(self) -> impl Iterator<Item = Port> {
        Port::ALL
            .into_iter()
            .filter(move |&port| self.contains(port))
    }
}

/// How long an address is remembered after its last frame (IEEE 802.1D's default).
const AGEING: Duration = Duration::from_secs(300);
/// The largest number of addresses remembered. Frames to others are flooded.
const CAPACITY: usize = 4096;

#[derive(Clone, Copy)]
struct Station {
    port: Port,
    heard: Instant,
}

/// The table of which station is behind which port.
pub struct Switch {
    own: Mac,
    stations: HashMap<Mac, Station, Keyed>,
    swept: Instant,
}

impl Switch {
    /// A switch whose own station has the address `own`.
    pub fn new(own: Mac, hash: Keyed, now: Instant) -> Switch {
        Switch {
            own,
            stations: hash::bounded(CAPACITY, hash),
            swept: now,
        }
    }

    /// Learns who is behind `port`.
    pub fn learn(&mut self, now: Instant, port: Port, source: Mac) {
        // A group address is no station (IEEE 802.1D, 7.8); our own address from outside is a forgery or a loop.
        if source.is_group() || source == self.own {
            return;
        }
        if let Some(station) = self.stations.get_mut(&source) {
            *station = Station { port, heard: now };
            return;
        }
        if self.stations.len() >= CAPACITY && now.since(self.swept) >= Duration::from_secs(1) {
            self.swept = now;
            self.stations
                .retain(|_, station| now.since(station.heard) < AGEING);
        }
        if self.stations.len() < CAPACITY {
            self.stations.insert(source, Station { port, heard: now });
        }
    }

    /// The port behind which `destination` was last heard.
    pub fn port_of(&self, now: Instant, destination: Mac) -> Option<Port> {
        let station = self.stations.get(&destination)?;
        (now.since(station.heard) < AGEING).then_some(station.port)
    }

    /// Where a frame for `destination` goes that came in at `from` (`None`: that the box itself sends). Never back to where it came from.
    pub fn forward(&self, now: Instant, from: Option<Port>, destination: Mac) -> Ports {
        let without_source = |ports: Ports| from.map_or(ports, |port| ports.without(port));
        if destination == self.own {
            return Ports::NONE;
        }
        match self.port_of(now, destination) {
            Some(port) if !destination.is_group() => without_source(Ports::only(port)),
            _ => without_source(Ports::ALL),
        }
    }

    /// How many stations are known.
    pub fn stations(&self) -> usize {
        self.stations.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mac(number: u32) -> Mac {
        let [a, b, c, d] = number.to_be_bytes();
        Mac([2, 0, a, b, c, d])
    }

    fn switch() -> Switch {
        Switch::new(mac(0), Keyed::with_seed(1), Instant::ZERO)
    }

    #[test]
    fn floods_the_unknown_and_unicasts_the_known() {
        let mut switch = switch();
        let now = Instant::ZERO;
        assert_eq!(
            switch.forward(now, Some(Port::Lan), mac(2)),
            Ports::ALL.without(Port::Lan)
        );
        switch.learn(now, Port::Guest, mac(2));
        assert_eq!(
            switch.forward(now, Some(Port::Lan), mac(2)),
            Ports::only(Port::Guest)
        );
        assert_eq!(switch.forward(now, None, mac(2)), Ports::only(Port::Guest));
        assert_eq!(
            switch.forward(now, Some(Port::Wan), Mac::BROADCAST),
            Ports::ALL.without(Port::Wan)
        );
    }

    #[test]
    fn never_sends_a_frame_back() {
        let mut switch = switch();
        switch.learn(Instant::ZERO, Port::Lan, mac(2));
        assert!(
            switch
                .forward(Instant::ZERO, Some(Port::Lan), mac(2))
                .is_empty()
        );
    }

    #[test]
    fn follows_a_station_that_moves_and_forgets_one_that_is_silent() {
        let mut switch = switch();
        switch.learn(Instant::ZERO, Port::Lan, mac(2));
        switch.learn(Instant::ZERO, Port::Wan, mac(2));
        assert_eq!(switch.port_of(Instant::ZERO, mac(2)), Some(Port::Wan));
        assert_eq!(switch.port_of(Instant::from_millis(300_000), mac(2)), None);
    }

    #[test]
    fn neither_group_addresses_nor_its_own_are_learned() {
        let mut switch = switch();
        switch.learn(Instant::ZERO, Port::Wan, Mac::BROADCAST);
        switch.learn(Instant::ZERO, Port::Wan, mac(0));
        assert_eq!(switch.stations(), 0);
        assert!(
            switch
                .forward(Instant::ZERO, Some(Port::Wan), mac(0))
                .is_empty()
        );
    }

    #[test]
    fn a_flood_of_addresses_is_bounded_and_ages_out() {
        let mut switch = switch();
        for number in 1..20_000 {
            switch.learn(Instant::ZERO, Port::Lan, mac(number));
        }
        assert_eq!(switch.stations(), CAPACITY);
        let later = Instant::from_millis(301_000);
        switch.learn(later, Port::Wan, mac(30_000));
        assert_eq!(switch.stations(), 1);
        assert_eq!(switch.port_of(later, mac(30_000)), Some(Port::Wan));
    }
}
