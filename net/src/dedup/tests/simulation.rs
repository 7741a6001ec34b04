//! The simulated line of the tests: seeded, and with every byte checked.

use alloc::collections::VecDeque;
use alloc::vec::Vec;

use crate::dedup::*;

pub struct Rng(u64);

impl Rng {
    pub fn new(seed: u64) -> Self {
        Rng(seed ^ 0x9e37_79b9_7f4a_7c15)
    }

    pub fn next(&mut self) -> u64 {
        // SplitMix64 (Steele, Lea and Flood).
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `bound`; 0 for 0.
    pub fn below(&mut self, bound: usize) -> usize {
        (self.next() % bound.max(1) as u64) as usize
    }
}

pub fn noise(rng: &mut Rng, len: usize) -> Vec<u8> {
    (0..len).map(|_| rng.next() as u8).collect()
}

/// Something like source code: words of a vocabulary, numbers, lines.
pub fn text(rng: &mut Rng, len: usize) -> Vec<u8> {
    let letters = b"etaoinshrdlucmfwypvbgkjqxz";
    let words: Vec<Vec<u8>> = (0..400)
        .map(|_| {
            (0..2 + rng.below(9))
                .map(|_| {
                    let skewed = rng.below(26).min(rng.below(26));
                    letters[skewed]
                })
                .collect()
        })
        .collect();
    let mut out = Vec::with_capacity(len + 32);
    while out.len() < len {
        let common = rng
            .below(words.len())
            .min(rng.below(words.len()))
            .min(rng.below(words.len()));
        match rng.below(12) {
            0 => out.extend_from_slice(b"();\n    "),
            1 => out.extend_from_slice(alloc::format!("{}", rng.below(1000)).as_bytes()),
            2 => out.extend_from_slice(b" = &self."),
            _ => {
                out.extend_from_slice(&words[common]);
                out.push(b' ');
            }
        }
    }
    out.truncate(len);
    out
}

/// `bytes` with `edits` scattered changes: replaced, inserted and removed bits.
pub fn edited(rng: &mut Rng, mut bytes: Vec<u8>, edits: usize) -> Vec<u8> {
    for _ in 0..edits {
        let at = rng.below(bytes.len());
        let len = rng.below(40).min(bytes.len() - at);
        let new_len = rng.below(40);
        let new = noise(rng, new_len);
        match rng.below(3) {
            0 => bytes.splice(at..at + len, new).for_each(drop),
            1 => bytes.splice(at..at, new).for_each(drop),
            _ => bytes.drain(at..at + len).for_each(drop),
        }
    }
    bytes
}

pub struct Flow {
    pub encoder: Encoder,
    pub decoder: Decoder,
    pub input: Vec<u8>,
    pub sent: usize,
    pub got: usize,
    pub wire: VecDeque<u8>,
}

/// Two ends of one direction, and the flows between them.
pub struct World {
    pub sender: Sender,
    pub receiver: Receiver,
    pub flows: Vec<Flow>,
    pub to_sender: VecDeque<u8>,
    pub to_receiver: VecDeque<u8>,
    /// Bytes of blocks so far.
    pub wire_bytes: u64,
}

impl World {
    pub fn new(ours: usize, theirs: usize, seed: u64) -> Self {
        let mut key = [0; 32];
        key[..8].copy_from_slice(&seed.to_le_bytes());
        World {
            sender: Sender::new(SenderConfig::with_memory(ours), key),
            receiver: Receiver::new(ReceiverConfig { memory: theirs }),
            flows: Vec::new(),
            to_sender: VecDeque::new(),
            to_receiver: VecDeque::new(),
            wire_bytes: 0,
        }
    }

    pub fn open(&self) -> usize {
        self.flows.len()
    }

    pub fn start(&mut self, input: Vec<u8>) {
        self.flows.push(Flow {
            encoder: Encoder::new(&mut self.sender),
            decoder: Decoder::new(&self.receiver),
            input,
            sent: 0,
            got: 0,
            wire: VecDeque::new(),
        });
    }

    /// Takes in input for one flow.
    pub fn encode(&mut self, index: usize, len: usize, flush: Flush) {
        let Some(flow) = self.flows.get_mut(index) else {
            return;
        };
        let end = flow.input.len().min(flow.sent + len);
        let flush = if end == flow.input.len() {
            Flush::Yes
        } else {
            flush
        };
        let mut out = Vec::new();
        flow.sent += flow.encoder.encode(
            &mut self.sender,
            &flow.input[flow.sent..end],
            flush,
            &mut out,
        );
        self.wire_bytes += out.len() as u64;
        flow.wire.extend(out);
    }

    /// Delivers up to `len` bytes to one flow's decoder, and checks what comes out.
    pub fn deliver(&mut self, index: usize, len: usize) -> Result<(), DecodeError> {
        let Some(flow) = self.flows.get_mut(index) else {
            return Ok(());
        };
        let len = len.min(flow.wire.len());
        let bytes: Vec<u8> = flow.wire.iter().take(len).copied().collect();
        let result = flow.decoder.push(&mut self.receiver, &bytes);
        let ready = flow.decoder.pop();
        assert!(
            flow.got + ready.len() <= flow.input.len(),
            "more came out than went in"
        );
        assert!(
            flow.input[flow.got..flow.got + ready.len()] == *ready,
            "wrong bytes came out"
        );
        flow.got += ready.len();
        let all = ready.len();
        flow.decoder.consume(all);
        flow.wire.drain(..result?);
        Ok(())
    }

    /// Carries some bytes of the control channels.
    pub fn control(&mut self, rng: &mut Rng, most: usize, urgency: Urgency) {
        let mut out = Vec::new();
        self.receiver.take_control(&mut out, urgency);
        self.to_sender.extend(&out);
        out.clear();
        self.sender.take_control(&mut out, rng.below(most));
        self.to_receiver.extend(&out);
        let len = rng.below(most).min(self.to_sender.len());
        let bytes: Vec<u8> = self.to_sender.drain(..len).collect();
        self.sender.on_control(&bytes).expect("an honest receiver");
        let len = rng.below(most).min(self.to_receiver.len());
        let bytes: Vec<u8> = self.to_receiver.drain(..len).collect();
        self.receiver.on_control(&bytes).expect("an honest sender");
    }

    /// Carries everything that the receiver has to say, and the answers to it.
    pub fn receiver_control(&mut self) {
        let mut out = Vec::new();
        self.receiver.take_control(&mut out, Urgency::Now);
        let _ = self.sender.on_control(&out);
        out.clear();
        self.sender.take_control(&mut out, usize::MAX);
        let _ = self.receiver.on_control(&out);
    }

    /// One random thing happens.
    pub fn step(&mut self, rng: &mut Rng) {
        let index = rng.below(self.flows.len());
        match rng.below(8) {
            0..3 => {
                let len = [1, 100, 5000, 300_000][rng.below(4)];
                let len = 1 + rng.below(len);
                let flush = if rng.below(3) == 0 {
                    Flush::Yes
                } else {
                    Flush::No
                };
                self.encode(index, len, flush);
            }
            3..7 => {
                let len = [1, 100, 5000, 500_000][rng.below(4)];
                let len = rng.below(len);
                self.deliver(index, len).expect("an honest sender");
            }
            _ => {
                let urgency = if rng.below(2) == 0 {
                    Urgency::Now
                } else {
                    Urgency::Lazy
                };
                self.control(rng, 100_000, urgency);
            }
        }
        self.reap();
    }

    /// Closes flows that are done.
    pub fn reap(&mut self) {
        let mut index = 0;
        while let Some(flow) = self.flows.get(index) {
            if flow.got < flow.input.len() {
                index += 1;
                continue;
            }
            assert!(flow.decoder.is_complete());
            let flow = self.flows.swap_remove(index);
            flow.encoder.close(&mut self.sender);
            flow.decoder.close(&mut self.receiver);
        }
    }

    /// Goes on until every flow is done; panics if they stop short.
    pub fn finish(&mut self, rng: &mut Rng) {
        let mut rounds = 0;
        while !self.flows.is_empty() {
            for index in 0..self.flows.len() {
                self.encode(index, 1 << 20, Flush::Yes);
                self.deliver(index, 1 << 20).expect("an honest sender");
            }
            self.control(rng, 1 << 20, Urgency::Now);
            self.reap();
            rounds += 1;
            assert!(rounds < 2000, "flows do not come to an end");
        }
        for _ in 0..20 {
            self.control(rng, 1 << 20, Urgency::Now);
        }
        assert_eq!(
            self.sender.statistics().unconfirmed_bytes,
            0,
            "everything is confirmed"
        );
    }

    /// Sends `input` as one flow and returns the bytes of its blocks.
    pub fn transfer(&mut self, rng: &mut Rng, input: Vec<u8>) -> u64 {
        let before = self.wire_bytes;
        self.start(input);
        self.finish(rng);
        self.wire_bytes - before
    }

    /// The tunnel goes down and up again: flows are gone, and so is what was under way.
    pub fn reconnect(&mut self) {
        for flow in self.flows.drain(..) {
            flow.encoder.close(&mut self.sender);
            flow.decoder.close(&mut self.receiver);
        }
        self.to_sender.clear();
        self.to_receiver.clear();
        self.sender.reset_peer();
        self.receiver.reset_peer();
    }
}
