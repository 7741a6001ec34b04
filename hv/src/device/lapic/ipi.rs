//! What local APICs and the I/O APIC send: a message to one or more local APICs, and who it is for.

/// Delivery modes of messages (Intel SDM vol. 3A, 11.6.1; I/O APIC datasheet 3.2.4).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DeliveryMode {
    /// The vector, to every destination.
    Fixed,
    /// The vector, to the destination that is least busy.
    LowestPriority,
    /// System management interrupt. The guest has none: dropped.
    Smi,
    /// Non-maskable interrupt.
    Nmi,
    /// Reset to the wait-for-SIPI state.
    Init,
    /// Start at `vector` × 4 KiB.
    Startup,
    /// From the 8259, which never has one: dropped.
    External,
}

impl DeliveryMode {
    /// Mode of the three bits in an interrupt command register; none if reserved.
    pub(super) fn of_command(bits: u32) -> Option<Self> {
        match bits & 7 {
            0 => Some(Self::Fixed),
            1 => Some(Self::LowestPriority),
            2 => Some(Self::Smi),
            4 => Some(Self::Nmi),
            5 => Some(Self::Init),
            6 => Some(Self::Startup),
            _ => None,
        }
    }

    /// Mode of the three bits in a redirection entry; none if reserved.
    pub(in crate::device) fn of_redirection(bits: u32) -> Option<Self> {
        match bits & 7 {
            0 => Some(Self::Fixed),
            1 => Some(Self::LowestPriority),
            2 => Some(Self::Smi),
            4 => Some(Self::Nmi),
            5 => Some(Self::Init),
            7 => Some(Self::External),
            _ => None,
        }
    }
}

/// Whom a message is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Destination {
    /// The local APIC with this identifier (32 bits in x2APIC mode, 8 in xAPIC mode and from the I/O APIC).
    Physical(u32),
    /// Those whose logical identifier matches.
    Logical(u32),
    /// The sender.
    Myself,
    /// Every one.
    All,
    /// Every one but the sender.
    Others,
}

/// One message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Message {
    /// Whom it is for.
    pub destination: Destination,
    /// What it does.
    pub mode: DeliveryMode,
    /// Its vector, where the mode has one.
    pub vector: u8,
    /// True for a level-triggered interrupt, whose end the I/O APIC wants to know.
    pub level: bool,
}
