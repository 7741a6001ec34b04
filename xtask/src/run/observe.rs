//! What is looked for in the frames that the line carries: known plain text, and a copy for later (pcap).

use std::collections::HashMap;
use std::io::{BufWriter, Write};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};

use super::line::{Observer, Site};

/// Length of the samples of a file that are looked for.
pub const SAMPLE: usize = 32;

/// Multiplier of the rolling hash (modulo 2^64).
const MULTIPLIER: u64 = 0x9e37_79b9_7f4a_7c15;

/// Looks for a file's bytes in frames: any [`SAMPLE`] bytes at a multiple of [`SAMPLE`] in the file, anywhere in a frame. So
/// any run of 63 bytes of the file is found. Samples with fewer than four different bytes are left out: padding is
/// no secret.
pub struct PlainText {
    file: Arc<[u8]>,
    /// Hash of a sample → where in the file the sample is.
    samples: HashMap<u64, u32>,
    /// One bit for each value of 22 bits of a hash in `samples`: most positions need no more than this.
    filter: Vec<u64>,
    /// MULTIPLIER to the power of SAMPLE.
    power: u64,
    frames: u64,
    found: u64,
}

impl PlainText {
    /// Looks for the bytes of `file` (at most 4 GiB of it).
    pub fn new(file: Arc<[u8]>) -> PlainText {
        let mut samples = HashMap::new();
        let mut filter = vec![0; 1 << 16];
        for (index, sample) in file.chunks_exact(SAMPLE).enumerate() {
            let mut different = [false; 256];
            sample
                .iter()
                .for_each(|byte| different[usize::from(*byte)] = true);
            let Ok(at) = u32::try_from(index * SAMPLE) else {
                break;
            };
            if different.iter().filter(|seen| **seen).count() >= 4 {
                let hash = sample.iter().fold(0, |hash, byte| roll_in(hash, *byte));
                let (word, bit) = filter_place(hash);
                filter[word] |= bit;
                samples.insert(hash, at);
            }
        }
        let power = (0..SAMPLE).fold(1u64, |power, _| power.wrapping_mul(MULTIPLIER));
        PlainText {
            file,
            samples,
            filter,
            power,
            frames: 0,
            found: 0,
        }
    }

    /// Looks at one frame.
    pub fn look(&mut self, frame: &[u8]) {
        self.frames += 1;
        let mut hash = 0u64;
        for (index, byte) in frame.iter().enumerate() {
            hash = roll_in(hash, *byte);
            if let Some(leaving) = index.checked_sub(SAMPLE).and_then(|at| frame.get(at)) {
                hash =
                    hash.wrapping_sub(u64::from(*leaving).wrapping_add(1).wrapping_mul(self.power));
            }
            let (word, bit) = filter_place(hash);
            if index + 1 >= SAMPLE
                && self.filter[word] & bit != 0
                && self.is_sample(hash, &frame[index + 1 - SAMPLE..=index])
            {
                self.found += 1;
                return;
            }
        }
    }

    fn is_sample(&self, hash: u64, bytes: &[u8]) -> bool {
        self.samples
            .get(&hash)
            .is_some_and(|at| self.file[*at as usize..].starts_with(bytes))
    }

    /// Frames looked at, and frames with a sample in them.
    pub fn result(&self) -> (u64, u64) {
        (self.frames, self.found)
    }
}

fn roll_in(hash: u64, byte: u8) -> u64 {
    hash.wrapping_mul(MULTIPLIER)
        .wrapping_add(u64::from(byte) + 1)
}

fn filter_place(hash: u64) -> (usize, u64) {
    let top = (hash >> 42) as usize;
    (top >> 6, 1 << (top & 63))
}

/// Writes frames in the format of libpcap (<https://www.ietf.org/archive/id/draft-ietf-opsawg-pcap-06.html>) with nanoseconds.
pub struct Pcap {
    file: BufWriter<std::fs::File>,
}

impl Pcap {
    /// Begins a file.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn create(path: &Path) -> Result<Pcap> {
        let file = std::fs::File::create(path)
            .with_context(|| format!("cannot write {}", path.display()))?;
        let mut file = BufWriter::new(file);
        let magic_with_nanoseconds = 0xa1b2_3c4du32;
        let link_type_ethernet = 1u32;
        file.write_all(&magic_with_nanoseconds.to_le_bytes())?;
        file.write_all(&[2, 0, 4, 0])?;
        for word in [0, 0, 65_535, link_type_ethernet] {
            file.write_all(&word.to_le_bytes())?;
        }
        Ok(Pcap { file })
    }

    fn write(&mut self, at: Duration, frame: &[u8]) -> std::io::Result<()> {
        // A frame is far below 4 GiB, and seconds since the start of a run fit for 136 years.
        let length = frame.len() as u32;
        for word in [at.as_secs() as u32, at.subsec_nanos(), length, length] {
            self.file.write_all(&word.to_le_bytes())?;
        }
        self.file.write_all(frame)
    }
}

/// All that watches the line.
#[derive(Default)]
pub struct Watch {
    /// Looks for plain text, while it is wanted.
    pub plain_text: Option<PlainText>,
    /// Copies every frame.
    pub pcap: Option<Pcap>,
}

impl Observer for Watch {
    fn carried(&mut self, at: Duration, _: Site, frame: &[u8]) {
        if let Some(plain_text) = &mut self.plain_text {
            plain_text.look(frame);
        }
        if let Some(pcap) = &mut self.pcap
            && pcap.write(at, frame).is_err()
        {
            // The disk is full: what is there stays readable, and the run goes on.
            self.pcap = None;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file() -> Arc<[u8]> {
        (0..10_000u32)
            .flat_map(|number| number.wrapping_mul(2_654_435_761).to_le_bytes())
            .collect()
    }

    fn finds(frame: &[u8]) -> bool {
        let mut look = PlainText::new(file());
        look.look(frame);
        look.result() == (1, 1)
    }

    #[test]
    fn any_63_bytes_of_the_file_are_found_anywhere_in_a_frame() {
        for at in [0, 1, 31, 32, 1000, 39_937] {
            for before in [0, 1, 54] {
                let mut frame = vec![0xee; before];
                frame.extend_from_slice(&file()[at..at + 63]);
                frame.extend_from_slice(&[0x11; 7]);
                assert!(finds(&frame), "{at} {before}");
            }
        }
    }

    #[test]
    fn other_bytes_are_not_found() {
        assert!(!finds(&[0; 1514]));
        assert!(!finds(&file()[1..SAMPLE]));
        let scrambled: Vec<u8> = file()[..1500].iter().map(|byte| byte ^ 0x5a).collect();
        assert!(!finds(&scrambled));
    }

    #[test]
    fn padding_is_no_plain_text() {
        let mut look = PlainText::new(vec![0; 4096].into());
        look.look(&[0; 1514]);
        assert_eq!(look.result(), (1, 0));
    }

    #[test]
    fn a_capture_has_header_and_frames() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("line.pcap");
        let mut watch = Watch {
            pcap: Some(Pcap::create(&path).unwrap()),
            plain_text: None,
        };
        watch.carried(Duration::from_millis(1500), Site::Core, &[7; 60]);
        drop(watch);
        let bytes = std::fs::read(path).unwrap();
        assert_eq!(bytes.len(), 24 + 16 + 60);
        assert_eq!(&bytes[..4], &[0x4d, 0x3c, 0xb2, 0xa1]);
        assert_eq!(
            &bytes[24..40],
            &[1, 0, 0, 0, 0, 0x65, 0xcd, 0x1d, 60, 0, 0, 0, 60, 0, 0, 0]
        );
    }
}
