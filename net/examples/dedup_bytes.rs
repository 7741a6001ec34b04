//! Bytes and speed of the dedup codec alone (no tunnel, no headers) on files given:
//! `cargo run --release -p outpost-net --example dedup_bytes OLD NEW`.

use std::time::{Duration, Instant};

use outpost_net::dedup::{
    Decoder, Effort, Encoder, Flush, Receiver, ReceiverConfig, Sender, SenderConfig, Urgency,
};

/// CPU time of this thread where the system tells it (Linux), else the time that has passed.
struct Clock(Instant);

impl Clock {
    fn now(&self) -> Duration {
        std::fs::read_to_string("/proc/thread-self/schedstat")
            .ok()
            .and_then(|line| Some(Duration::from_nanos(line.split(' ').next()?.parse().ok()?)))
            .unwrap_or_else(|| self.0.elapsed())
    }
}

struct Line {
    clock: Clock,
    sender: Sender,
    receiver: Receiver,
}

impl Line {
    /// Sends `bytes` as one flow, flushed every `flush` bytes, and prints what came of it.
    fn transfer(&mut self, name: &str, bytes: &[u8], flush: usize) {
        let before = (self.sender.statistics(), self.receiver.statistics());
        let (mut encoding, mut decoding) = (Duration::ZERO, Duration::ZERO);
        let mut encoder = Encoder::new(&mut self.sender);
        let mut decoder = Decoder::new(&self.receiver);
        let (mut sent, mut got, mut wire, mut control) = (0, 0, Vec::new(), Vec::new());
        while got < bytes.len() {
            let started = self.clock.now();
            let end = bytes
                .len()
                .min(sent + 256 * 1024)
                .min(sent - sent % flush + flush);
            let how = if end == bytes.len() || end.is_multiple_of(flush) {
                Flush::Yes
            } else {
                Flush::No
            };
            sent += encoder.encode(&mut self.sender, &bytes[sent..end], how, &mut wire);
            encoding += self.clock.now() - started;
            let started = self.clock.now();
            let mut at = 0;
            loop {
                at += decoder
                    .push(&mut self.receiver, &wire[at..])
                    .expect("a right block");
                let ready = decoder.pop();
                assert!(
                    bytes[got..got + ready.len()] == *ready,
                    "wrong bytes came out"
                );
                got += ready.len();
                let all = ready.len();
                decoder.consume(all);
                if all == 0 && at == wire.len() {
                    break;
                }
            }
            wire.clear();
            decoding += self.clock.now() - started;
            self.receiver.take_control(&mut control, Urgency::Lazy);
            self.sender.on_control(&control).expect("an honest peer");
            control.clear();
        }
        self.receiver.take_control(&mut control, Urgency::Now);
        self.sender.on_control(&control).expect("an honest peer");
        encoder.close(&mut self.sender);
        decoder.close(&mut self.receiver);
        let after = (self.sender.statistics(), self.receiver.statistics());
        let line = after.0.wire_bytes - before.0.wire_bytes;
        let back = after.1.control_bytes - before.1.control_bytes;
        let rate = |time: Duration| bytes.len() as f64 / time.as_secs_f64() / 1e6;
        println!(
            "{name:<12} {:>10} -> {line:>9} {:>9.4}%  back {back:>6}  encode {:>6.0} MB/s  decode {:>6.0} MB/s  copy/coded/raw blocks {}/{}/{}  copied {} matched {} literal {} stored {}",
            bytes.len(),
            100.0 * line as f64 / bytes.len() as f64,
            rate(encoding),
            rate(decoding),
            after.0.copy_blocks - before.0.copy_blocks,
            after.0.coded_blocks - before.0.coded_blocks,
            after.0.raw_blocks - before.0.raw_blocks,
            after.0.copied_bytes - before.0.copied_bytes,
            after.0.matched_bytes - before.0.matched_bytes,
            after.0.literal_bytes - before.0.literal_bytes,
            after.0.stored_bytes - before.0.stored_bytes,
        );
    }
}

fn main() {
    let mut arguments = std::env::args().skip(1);
    let (Some(old), Some(new)) = (arguments.next(), arguments.next()) else {
        eprintln!("usage: dedup_bytes OLD NEW [LOG_MIB] [FLUSH_BYTES]; EFFORT=fast for less of it");
        std::process::exit(2);
    };
    let old = std::fs::read(old).expect("OLD can be read");
    let new = std::fs::read(new).expect("NEW can be read");
    let mib: usize = arguments
        .next()
        .map_or(256, |mib| mib.parse().expect("LOG_MIB is a number"));
    let flush: usize = arguments.next().map_or(usize::MAX / 2, |bytes| {
        bytes.parse().expect("FLUSH_BYTES is a number")
    });
    let mut line = Line {
        clock: Clock(Instant::now()),
        sender: Sender::new(SenderConfig::with_memory(mib << 20), [7; 32]),
        receiver: Receiver::new(ReceiverConfig { memory: mib << 20 }),
    };
    if std::env::var("EFFORT").is_ok_and(|effort| effort == "fast") {
        line.sender.set_effort(Effort::Fast);
    }
    let mut control = Vec::new();
    line.sender.take_control(&mut control, 1 << 20);
    line.receiver.on_control(&control).expect("a greeting");
    control.clear();
    line.receiver.take_control(&mut control, Urgency::Now);
    line.sender.on_control(&control).expect("a greeting");

    line.transfer("cold", &old, flush);
    line.transfer("again", &old, flush);
    line.transfer("next", &new, flush);
    line.transfer("next again", &new, flush);
    line.transfer("shifted", &[&b"!"[..], &new].concat(), flush);
    let mut state = 1u64;
    let random: Vec<u8> = std::iter::repeat_with(|| {
        state = state
            .wrapping_mul(6364136223846793005)
            .wrapping_add(1442695040888963407);
        (state >> 56) as u8
    })
    .take(16 << 20)
    .collect();
    line.transfer("random", &random, flush);
    line.transfer("random again", &random, flush);
    let (s, r) = (line.sender.statistics(), line.receiver.statistics());
    println!(
        "refetches {} missing {} mismatches {}",
        s.refetches, r.missing, r.mismatches
    );
}
