//! What keys mean in `cargo xtask boot`, and what of the firmware's output is kept from the terminal.

/// Ctrl-A, the escape, as in QEMU and screen.
const ESCAPE: u8 = 0x01;
/// Ctrl-C.
const INTERRUPT: u8 = 0x03;

/// What a typed byte comes to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Typed {
    /// Goes to the box.
    Send(u8),
    /// Part of an escape.
    Nothing,
    /// The user wants to quit.
    Quit,
}

/// Follows escapes.
#[derive(Default)]
pub struct Keyboard {
    escaped: bool,
}

impl Keyboard {
    /// Takes a byte. Ctrl-C and Ctrl-A X quit; Ctrl-A C sends Ctrl-C, Ctrl-A A sends Ctrl-A.
    pub fn typed(&mut self, byte: u8) -> Typed {
        match (std::mem::take(&mut self.escaped), byte) {
            (false, ESCAPE) => {
                self.escaped = true;
                Typed::Nothing
            }
            (false, INTERRUPT) | (true, b'x' | b'X' | INTERRUPT) => Typed::Quit,
            (true, b'c' | b'C') => Typed::Send(INTERRUPT),
            (true, b'a' | b'A' | ESCAPE) => Typed::Send(ESCAPE),
            (true, _) => Typed::Nothing,
            (false, byte) => Typed::Send(byte),
        }
    }
}

/// Drops the control sequences with which the firmware clears the screen. Once the box itself speaks (`Outpost`), everything goes
/// through as it is. `filter` begins as `Some(empty)`; it holds a sequence that is not complete, and is `None` in the end.
pub fn without_screen_control(filter: &mut Option<Vec<u8>>, bytes: &[u8]) -> Vec<u8> {
    const OURS: &[u8] = b"Outpost";
    let Some(mut pending) = filter.take() else {
        return bytes.to_vec();
    };
    pending.extend_from_slice(bytes);
    let ours = pending
        .windows(OURS.len())
        .position(|window| window == OURS);
    let end = ours.unwrap_or(pending.len());
    let mut kept = Vec::new();
    let mut rest = pending.get(..end).unwrap_or_default();
    let mut unfinished = Vec::new();
    while let Some((&byte, after)) = rest.split_first() {
        if byte != 0x1b {
            kept.push(byte);
            rest = after;
            continue;
        }
        // ECMA-48, 5.4: ESC [ parameters (0x20–0x3f) final byte (0x40–0x7e). Other sequences are one letter long.
        let length = match after.first() {
            Some(b'[') => after
                .iter()
                .skip(1)
                .position(|byte| !(0x20..0x40).contains(byte))
                .map(|at| at + 2),
            Some(_) => Some(1),
            None => None,
        };
        match length {
            Some(length) => rest = after.get(length..).unwrap_or_default(),
            None => {
                unfinished = rest.to_vec();
                break;
            }
        }
    }
    match ours {
        Some(at) => kept.extend_from_slice(pending.get(at..).unwrap_or_default()),
        None => {
            // The word may have begun at the end of what has come so far.
            let tail = (1..OURS.len()).rev().find(|&length| {
                unfinished.is_empty() && kept.ends_with(OURS.get(..length).unwrap_or_default())
            });
            if let Some(length) = tail {
                unfinished = kept.split_off(kept.len() - length);
            }
            *filter = Some(unfinished);
        }
    }
    kept
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_go_through_but_for_the_escapes() {
        let mut keyboard = Keyboard::default();
        let mut all = |bytes: &[u8]| {
            bytes
                .iter()
                .map(|&byte| keyboard.typed(byte))
                .collect::<Vec<_>>()
        };
        assert_eq!(
            all(b"l\x14\r"),
            [Typed::Send(b'l'), Typed::Send(0x14), Typed::Send(b'\r')]
        );
        assert_eq!(all(b"\x01x"), [Typed::Nothing, Typed::Quit]);
        assert_eq!(all(b"\x03"), [Typed::Quit]);
        assert_eq!(
            all(b"\x01c\x01a\x01q"),
            [
                Typed::Nothing,
                Typed::Send(3),
                Typed::Nothing,
                Typed::Send(1),
                Typed::Nothing,
                Typed::Nothing
            ]
        );
    }

    #[test]
    fn the_firmware_does_not_clear_the_screen() {
        let input =
            b"\x1b[2J\x1b[01;01H\x1b[=3hBdsDxe: Out of\r\n[ 0.1] Outpost 0.1\r\n\x1b[31mred\x1b[0m";
        let expected = b"BdsDxe: Out of\r\n[ 0.1] Outpost 0.1\r\n\x1b[31mred\x1b[0m";
        for size in 1..input.len() {
            let mut filter = Some(Vec::new());
            let output: Vec<u8> = input
                .chunks(size)
                .flat_map(|chunk| without_screen_control(&mut filter, chunk))
                .collect();
            assert_eq!(
                String::from_utf8_lossy(&output),
                String::from_utf8_lossy(expected),
                "in pieces of {size}"
            );
            assert!(filter.is_none());
        }
    }
}
