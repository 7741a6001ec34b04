//! Two ends of one direction in a known state: the receiver knows a file, and the next version of it is about to come.

use outpost_net::dedup::{
    DecodeError, Decoder, Encoder, Flush, Receiver, ReceiverConfig, Sender, SenderConfig, Urgency,
    fuzzing,
};

use crate::mutate::{Random, leb128};

const LOG: usize = 1 << 20;
/// The digest key of [`greeting`]'s sessions.
pub const KEY: [u8; 32] = [0x4b; 32];

/// An honest sender's greeting with [`KEY`], its log's end at `head`.
pub fn greeting(head: u64) -> Vec<u8> {
    let mut body = vec![1];
    body.extend([7; 16]);
    body.extend(leb128(head));
    body.extend(KEY);
    [leb128(body.len() as u64), body].concat()
}

/// The first block of a flow under [`KEY`]: `bytes` as they are, to be stored at `position`.
pub fn raw_block(flow: u64, position: u64, bytes: &[u8]) -> Vec<u8> {
    let mut wire = vec![0x04];
    wire.extend(leb128(flow));
    wire.extend(leb128(bytes.len() as u64));
    wire.extend(leb128(position));
    wire.extend_from_slice(bytes);
    wire.extend(fuzzing::digest(KEY, bytes));
    wire
}

/// A receiver in a session of [`KEY`] that has stored `dictionary` from position 0 on.
pub fn receiver_with(dictionary: &[u8]) -> Receiver {
    let mut receiver = Receiver::new(ReceiverConfig { memory: LOG });
    receiver
        .on_control(&greeting(0))
        .expect("an honest greeting");
    let mut decoder = Decoder::new(&receiver);
    // A raw block's position is written unless it is 0, which a flow begins with.
    let mut wire = vec![0x04 | 0x08, 1];
    wire.extend(leb128(dictionary.len() as u64));
    wire.extend_from_slice(dictionary);
    wire.extend(fuzzing::digest(KEY, dictionary));
    decoder.push(&mut receiver, &wire).expect("an honest block");
    assert_eq!(decoder.pop(), dictionary);
    receiver
}

/// A sender and a receiver that have greeted each other.
pub fn ends() -> (Sender, Receiver) {
    let mut sender = Sender::new(SenderConfig::with_memory(LOG), [3; 32]);
    let mut receiver = Receiver::new(ReceiverConfig { memory: LOG });
    assert!(carry(&mut sender, &mut receiver));
    (sender, receiver)
}

/// Carries both control channels until they are quiet. False: one side will have no more of it.
pub fn carry(sender: &mut Sender, receiver: &mut Receiver) -> bool {
    for _ in 0..100 {
        let (mut up, mut down) = (vec![], vec![]);
        sender.take_control(&mut down, usize::MAX);
        if receiver.on_control(&down).is_err() {
            return false;
        }
        receiver.take_control(&mut up, Urgency::Now);
        if sender.on_control(&up).is_err() {
            return false;
        }
        if up.is_empty() && down.is_empty() {
            return true;
        }
    }
    panic!("the control channels never fall silent");
}

/// The first block of a new flow for `bytes`, of a sender whose log begins with `dictionary`, all of it confirmed.
pub fn encoded_behind(dictionary: &[u8], bytes: &[u8]) -> Vec<u8> {
    let (mut sender, mut receiver) = ends();
    transfer(
        &mut sender,
        &mut receiver,
        dictionary,
        dictionary.len(),
        Flush::Yes,
    );
    let mut wire = vec![];
    let mut encoder = Encoder::new(&mut sender);
    encoder.encode(&mut sender, bytes, Flush::Yes, &mut wire);
    wire
}

/// Sends `bytes` as one flow, encoded and delivered in pieces of `step`; gives the bytes on the line.
pub fn transfer(
    sender: &mut Sender,
    receiver: &mut Receiver,
    bytes: &[u8],
    step: usize,
    flush: Flush,
) -> usize {
    let (mut encoder, mut decoder) = (Encoder::new(sender), Decoder::new(receiver));
    let (mut sent, mut got, mut on_line, mut idle) = (0, 0, 0, 0);
    let mut wire = vec![];
    while got < bytes.len() {
        let end = (sent + step).min(bytes.len());
        let last = if end == bytes.len() {
            Flush::Yes
        } else {
            flush
        };
        let before = wire.len();
        sent += encoder.encode(sender, &bytes[sent..end], last, &mut wire);
        on_line += wire.len() - before;
        let now = step.min(wire.len());
        let taken = decoder
            .push(receiver, &wire[..now])
            .expect("an honest sender");
        wire.drain(..taken);
        let ready = decoder.pop();
        assert!(bytes[got..].starts_with(ready), "wrong bytes at {got}");
        got += ready.len();
        idle = if ready.is_empty() && taken == 0 {
            idle + 1
        } else {
            0
        };
        let len = ready.len();
        decoder.consume(len);
        assert!(carry(sender, receiver), "honest ends");
        assert!(
            idle < 100_000 / step + 10,
            "stopped at {got} of {}",
            bytes.len()
        );
    }
    assert!(decoder.is_complete());
    encoder.close(sender);
    decoder.close(receiver);
    on_line
}

/// The receiver knows `text`; `edited` is the next version of it.
pub struct Primed {
    pub sender: Sender,
    pub receiver: Receiver,
    pub edited: Vec<u8>,
}

/// A flow under way.
pub struct Flow {
    pub encoder: Encoder,
    pub decoder: Decoder,
    /// Its blocks so far, not yet delivered from `at` on.
    pub wire: Vec<u8>,
    at: usize,
    sent: usize,
    got: usize,
}

/// Where a flow in [`Primed`] pauses: each piece is flushed.
const PIECES: [usize; 5] = [300, 5000, 9000, 9100, 14_000];

impl Primed {
    pub fn new() -> Primed {
        let mut random = Random::new(11);
        let text = random.text(16_000);
        // What is new comes first, so that the first block is sent as it is.
        let edited = [random.noise(PIECES[0]), random.edited(text.clone(), 7)].concat();
        let (mut sender, mut receiver) = ends();
        transfer(&mut sender, &mut receiver, &text, 16_000, Flush::Yes);
        Primed {
            sender,
            receiver,
            edited,
        }
    }

    pub fn carry(&mut self) -> bool {
        carry(&mut self.sender, &mut self.receiver)
    }

    /// The next version as a flow under way: most of it is encoded, nothing delivered.
    pub fn next_flow(&mut self) -> Flow {
        let mut flow = Flow {
            encoder: Encoder::new(&mut self.sender),
            decoder: Decoder::new(&self.receiver),
            wire: vec![],
            at: 0,
            sent: 0,
            got: 0,
        };
        for end in PIECES {
            let piece = &self.edited[flow.sent..end];
            flow.sent += flow
                .encoder
                .encode(&mut self.sender, piece, Flush::Yes, &mut flow.wire);
        }
        flow
    }

    /// The same with one byte of its first block changed and that block delivered: its decoder waits for it to be fetched
    /// again. Also what the sender answers.
    pub fn damaged_flow(&mut self) -> (Flow, Vec<u8>) {
        let mut flow = self.next_flow();
        flow.damage(&mut self.receiver);
        let mut asks = vec![];
        self.receiver.take_control(&mut asks, Urgency::Now);
        self.sender.on_control(&asks).expect("an honest request");
        let mut answer = vec![];
        self.sender.take_control(&mut answer, usize::MAX);
        (flow, answer)
    }

    /// What the receiver of [`Primed::damaged_flow`] asks for.
    pub fn damaged_flow_asks(&mut self) -> Vec<u8> {
        let mut flow = self.next_flow();
        flow.damage(&mut self.receiver);
        let mut asks = vec![];
        self.receiver.take_control(&mut asks, Urgency::Now);
        asks
    }

    /// What the receiver says when it has taken [`Primed::next_flow`] in.
    pub fn confirmation_of_next_flow(&mut self) -> Vec<u8> {
        let mut flow = self.next_flow();
        let text = self.edited.clone();
        flow.push_all(self, &text);
        let mut confirmation = vec![];
        self.receiver.take_control(&mut confirmation, Urgency::Now);
        confirmation
    }

    /// Delivers a flow and all that follows in it; every byte must come out, if neither end gives up the session.
    pub fn finish(&mut self, mut flow: Flow, text: &[u8]) {
        for _ in 0..50 {
            flow.encode(&mut self.sender, text, Flush::Yes);
            if !flow.push_all(self, text) || !self.carry() {
                return;
            }
            if flow.got == text.len() {
                return;
            }
        }
        panic!("an honest flow stops at {} of {}", flow.got, text.len());
    }
}

impl Flow {
    /// Encodes what is left of `text`.
    pub fn encode(&mut self, sender: &mut Sender, text: &[u8], flush: Flush) {
        self.sent += self
            .encoder
            .encode(sender, &text[self.sent..], flush, &mut self.wire);
    }

    /// Delivers what has been encoded, and checks what comes out against `text`. False: the decoder has given up.
    pub fn push_all(&mut self, primed: &mut Primed, text: &[u8]) -> bool {
        loop {
            let taken = self
                .decoder
                .push(&mut primed.receiver, &self.wire[self.at..]);
            let ready = self.decoder.pop();
            assert!(
                text[self.got..].starts_with(ready),
                "wrong bytes at {}",
                self.got
            );
            let len = ready.len();
            self.got += len;
            self.decoder.consume(len);
            match taken {
                Ok(0) if len == 0 => return true,
                Ok(taken) => self.at += taken,
                Err(_) => return false,
            }
        }
    }

    /// Delivers the first block with its last byte (of the digest) changed.
    fn damage(&mut self, receiver: &mut Receiver) {
        let first = fuzzing::header(&self.wire, 0, 0).expect("a block");
        let end = first.body.end + DIGEST;
        let mut block = self.wire[..end].to_vec();
        block[end - DIGEST - 1] ^= 0x10;
        let result: Result<usize, DecodeError> = self.decoder.push(receiver, &block);
        assert_eq!(result, Ok(end));
        assert!(self.decoder.is_waiting() && self.decoder.pop().is_empty());
        self.at = end;
    }
}

const DIGEST: usize = 8;

/// What the blocks of honest flows stand for, to check that nothing else comes out of a decoder.
pub struct Blocks {
    meant: Vec<Vec<u8>>,
    /// What came out and is no whole block yet.
    open: Vec<u8>,
}

impl Blocks {
    /// The blocks of a flow that has not been delivered, and the one block of [`raw_block`]s.
    pub fn of(flow: &Flow) -> Blocks {
        let mut reference = Primed::new();
        let mut decoder = Decoder::new(&reference.receiver);
        let mut meant = vec![b"hello".to_vec()];
        for byte in &flow.wire {
            decoder
                .push(&mut reference.receiver, &[*byte])
                .expect("an honest sender");
            if !decoder.pop().is_empty() {
                meant.push(decoder.pop().to_vec());
                let len = decoder.pop().len();
                decoder.consume(len);
            }
        }
        for (at, block) in meant.iter().enumerate() {
            let clear = |other: &Vec<u8>| !other.starts_with(block);
            assert!(
                meant.iter().skip(at + 1).all(clear),
                "blocks can be told apart"
            );
        }
        Blocks {
            meant,
            open: vec![],
        }
    }

    /// Takes in what a decoder gave.
    pub fn came(&mut self, bytes: &[u8]) {
        self.open.extend_from_slice(bytes);
        while let Some(block) = self.meant.iter().find(|it| self.open.starts_with(it)) {
            self.open.drain(..block.len());
        }
        let begun = |block: &Vec<u8>| block.starts_with(&self.open);
        assert!(
            self.meant.iter().any(begun),
            "bytes came out that no block stands for: {:?}",
            String::from_utf8_lossy(&self.open)
        );
    }

    /// Nothing is left over.
    pub fn end(&self) {
        assert!(self.open.is_empty(), "a part of a block came out");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_honest_answer_mends_a_damaged_flow() {
        let mut primed = Primed::new();
        let (flow, answer) = primed.damaged_flow();
        primed.receiver.on_control(&answer).unwrap();
        let text = primed.edited.clone();
        primed.finish(flow, &text);
        assert_eq!(primed.receiver.statistics().rejected, 0);
        assert_eq!(primed.receiver.statistics().mismatches, 1);
    }
}
