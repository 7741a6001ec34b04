//! What a virtio block device is told and says (virtio 1.2, 5.2): features, request headers, answers. Queues and registers
//! are the driver's.

/// Size of a sector in requests and in the device's capacity, in bytes, whatever the disk's own blocks are (5.2.6).
pub const SECTOR: u64 = 512;
/// Bytes of a request's header (5.2.6).
pub const HEADER_BYTES: usize = 16;
/// An answer that no device gives: it is there before the device has answered.
pub const UNANSWERED: u8 = 0xff;

/// 5.2.3: the device does not write.
const READ_ONLY: u64 = 1 << 5;
/// 5.2.3: the device has a cache, and a request that empties it.
const FLUSH: u64 = 1 << 9;
/// 6: notifications by place in the queue.
const EVENT_INDEX: u64 = 1 << 29;
/// 6: not the interface from before version 1.0.
const VERSION_1: u64 = 1 << 32;

/// The features that driver and device have in common.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Features(u64);

impl Features {
    /// Of what the device offers, that which the driver knows; none if the device is older than virtio 1.0.
    pub fn common(offered: u64) -> Option<Features> {
        (offered & VERSION_1 != 0).then_some(Features(
            offered & (READ_ONLY | FLUSH | EVENT_INDEX | VERSION_1),
        ))
    }

    /// As the device is told.
    pub fn bits(self) -> u64 {
        self.0
    }

    /// Whether the device only reads.
    pub fn is_read_only(self) -> bool {
        self.0 & READ_ONLY != 0
    }

    /// Whether what was written is safe from a power cut only after a flush. A device without the request writes through.
    pub fn has_flush(self) -> bool {
        self.0 & FLUSH != 0
    }

    /// Whether notifications go by the place in the queue.
    pub fn has_event_index(self) -> bool {
        self.0 & EVENT_INDEX != 0
    }
}

/// What the device is to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Request {
    /// Read from this sector on.
    Read(u64),
    /// Write from this sector on.
    Write(u64),
    /// Make safe what was written.
    Flush,
}

impl Request {
    /// The request's header.
    pub fn header(self) -> [u8; HEADER_BYTES] {
        let (kind, sector) = match self {
            Request::Read(sector) => (0_u32, sector),
            Request::Write(sector) => (1, sector),
            Request::Flush => (4, 0),
        };
        let mut header = [0; HEADER_BYTES];
        for (to, from) in header.iter_mut().zip(
            kind.to_le_bytes()
                .into_iter()
                .chain([0; 4])
                .chain(sector.to_le_bytes()),
        ) {
            *to = from;
        }
        header
    }
}

/// Whether the device did what it was asked to, by the byte that it answers with. Anything but "OK" is no.
pub fn is_done(answer: u8) -> bool {
    answer == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_are_as_the_standard_has_them() {
        assert_eq!(
            Request::Read(0x0102_0304_0506_0708).header(),
            [0, 0, 0, 0, 0, 0, 0, 0, 8, 7, 6, 5, 4, 3, 2, 1]
        );
        assert_eq!(Request::Write(1).header()[..9], [1, 0, 0, 0, 0, 0, 0, 0, 1]);
        assert_eq!(Request::Flush.header()[..8], [4, 0, 0, 0, 0, 0, 0, 0]);
    }

    #[test]
    fn only_ok_is_done() {
        assert!(is_done(0));
        for answer in [1, 2, 3, UNANSWERED] {
            assert!(!is_done(answer));
        }
    }

    #[test]
    fn takes_only_the_features_it_knows_and_needs_version_1() {
        assert_eq!(Features::common(FLUSH | READ_ONLY), None);
        let features = Features::common(u64::MAX).unwrap();
        assert_eq!(features.bits(), READ_ONLY | FLUSH | EVENT_INDEX | VERSION_1);
        assert!(features.is_read_only() && features.has_flush() && features.has_event_index());
        let bare = Features::common(VERSION_1).unwrap();
        assert!(!bare.is_read_only() && !bare.has_flush() && !bare.has_event_index());
    }
}
