//! The arithmetic of a virtqueue's notifications.

/// True if the other side wants to be told: its event index lies between the places `old` and `new` (virtio 1.2, 2.7.13.1).
/// Places count up and wrap.
pub const fn needs_event(event: u16, new: u16, old: u16) -> bool {
    new.wrapping_sub(event).wrapping_sub(1) < new.wrapping_sub(old)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tells_when_the_place_was_passed_and_only_then() {
        assert!(needs_event(4, 5, 4));
        assert!(needs_event(4, 9, 4));
        assert!(!needs_event(4, 4, 4));
        assert!(!needs_event(9, 9, 4));
        assert!(!needs_event(3, 9, 4));
    }

    #[test]
    fn places_wrap() {
        assert!(needs_event(65_535, 0, 65_535));
        assert!(needs_event(65_534, 3, 65_530));
        assert!(!needs_event(3, 2, 65_530));
        assert!(!needs_event(65_529, 2, 65_530));
    }
}
