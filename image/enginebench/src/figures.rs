//! What one case took, and the line of text that carries it from the UEFI program to the host.

use core::fmt;
use core::str::FromStr;

/// Begins every line of the UEFI program's: the firmware writes to the same port.
pub const MARK: &str = "engine-bench:";

/// What is sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Case {
    /// OLD, over ends that have nothing yet.
    Cold,
    /// NEW, after OLD.
    Next,
    /// NEW once more.
    Again,
    /// What nothing shrinks.
    Noise,
}

impl Case {
    const ALL: [Case; 4] = [Case::Cold, Case::Next, Case::Again, Case::Noise];

    /// One word.
    pub fn name(self) -> &'static str {
        match self {
            Case::Cold => "cold",
            Case::Next => "next",
            Case::Again => "again",
            Case::Noise => "noise",
        }
    }
}

/// What one case took.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Figures {
    /// What was sent.
    pub case: Case,
    /// Bytes sent.
    pub bytes: u64,
    /// Bytes on the line: blocks with their digests.
    pub line: u64,
    /// Bytes of confirmations that came back.
    pub back: u64,
    /// Instructions that encoding took (ticks of the counter, in what the UEFI program says).
    pub encoding: u64,
    /// As `encoding` for decoding, with verifying the digests.
    pub decoding: u64,
}

impl fmt::Display for Figures {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = self.case.name();
        write!(
            f,
            "{name} {} {} {} {} {}",
            self.bytes, self.line, self.back, self.encoding, self.decoding
        )
    }
}

/// Not a line of figures.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NoFigures;

impl FromStr for Figures {
    type Err = NoFigures;

    fn from_str(text: &str) -> Result<Figures, NoFigures> {
        let mut words = text.split_ascii_whitespace();
        let name = words.next().ok_or(NoFigures)?;
        let case = Case::ALL
            .into_iter()
            .find(|case| case.name() == name)
            .ok_or(NoFigures)?;
        let mut number = || words.next()?.parse().ok();
        let mut all = || {
            Some(Figures {
                case,
                bytes: number()?,
                line: number()?,
                back: number()?,
                encoding: number()?,
                decoding: number()?,
            })
        };
        let figures = all().ok_or(NoFigures)?;
        words.next().is_none().then_some(figures).ok_or(NoFigures)
    }
}

#[cfg(test)]
mod tests {
    extern crate std;
    use super::*;
    use std::string::ToString;

    #[test]
    fn figures_survive_the_serial_line() {
        for case in Case::ALL {
            let figures = Figures {
                case,
                bytes: 1,
                line: 2,
                back: 3,
                encoding: 4,
                decoding: u64::MAX,
            };
            assert_eq!(figures.to_string().parse(), Ok(figures));
        }
        for wrong in [
            "",
            "cold 1 2 3 4",
            "cold 1 2 3 4 5 6",
            "warm 1 2 3 4 5",
            "cold 1 2 x 4 5",
        ] {
            assert_eq!(wrong.parse::<Figures>(), Err(NoFigures), "{wrong:?}");
        }
    }
}
