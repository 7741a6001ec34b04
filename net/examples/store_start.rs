//! How long a store takes to be warm again, and what it costs to read and write:
//! `cargo run --release -p outpost-net --features std --example store_start FILE [MIB]`. FILE is made, and left behind.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::rc::Rc;
use std::time::Instant;

use outpost_net::dedup::{Encoder, Flush, Receiver, Sender, Urgency};
use outpost_net::store::{BlockDevice, DeviceError, Disk};

struct Plain(File, u64);

impl BlockDevice for Plain {
    fn size(&self) -> u64 {
        self.1
    }
    fn read(&self, offset: u64, bytes: &mut [u8]) -> Result<(), DeviceError> {
        let result = self.0.read_exact_at(bytes, offset);
        result.map_err(|_| DeviceError::Failed)
    }
    fn write(&self, offset: u64, bytes: &[u8]) -> Result<(), DeviceError> {
        let result = self.0.write_all_at(bytes, offset);
        result.map_err(|_| DeviceError::Failed)
    }
    fn flush(&self) -> Result<(), DeviceError> {
        self.0.sync_data().map_err(|_| DeviceError::Failed)
    }
}

fn main() {
    let mut arguments = std::env::args().skip(1);
    let Some(file) = arguments.next() else {
        eprintln!("usage: store_start FILE [MIB]");
        std::process::exit(2);
    };
    let mib: u64 = arguments
        .next()
        .map_or(2048, |mib| mib.parse().expect("MIB is a number"));
    let open = || {
        let mut options = File::options();
        let options = options.read(true).write(true).create(true).truncate(false);
        let handle = options.open(&file).expect("FILE can be made");
        handle
            .set_len(mib << 20)
            .expect("FILE can be made so large");
        let device = Rc::new(Plain(handle, mib << 20));
        Disk::open(device, [1; 32], [2; 48]).expect("a store")
    };
    let disk = open();
    let mut sender = Sender::on_disk(&disk, 32 << 20, [3; 32]);
    let mut receiver = Receiver::on_disk(&disk, 32 << 20);
    let mut control = Vec::new();
    sender.take_control(&mut control, 1 << 20);
    receiver.on_control(&control).expect("a greeting");
    control.clear();
    receiver.take_control(&mut control, Urgency::Now);
    sender.on_control(&control).expect("a greeting");
    // Both directions are filled with noise.
    let started = Instant::now();
    let mut encoder = Encoder::new(&mut sender);
    let mut decoder = outpost_net::dedup::Decoder::new(&receiver);
    let (mut state, mut wire) = (1u64, Vec::new());
    let total = disk.capacity();
    let mut sent = 0;
    while sent < total {
        let bytes: Vec<u8> = std::iter::repeat_with(|| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state.to_le_bytes()
        })
        .take(1 << 15)
        .flatten()
        .collect();
        sent += encoder.encode(&mut sender, &bytes, Flush::Yes, &mut wire) as u64;
        decoder
            .push(&mut receiver, &wire)
            .expect("an honest sender");
        decoder.consume(decoder.pop().len());
        wire.clear();
        control.clear();
        receiver.take_control(&mut control, Urgency::Now);
        sender.on_control(&control).expect("an honest receiver");
    }
    let gib = total as f64 / f64::from(1 << 30);
    println!(
        "filled: {gib:.2} GiB in each direction in {:.2} s",
        started.elapsed().as_secs_f64()
    );
    sender.place().sync();
    receiver.place().sync();
    drop((sender, receiver, disk));
    let started = Instant::now();
    let disk = open();
    let sender = Sender::on_disk(&disk, 32 << 20, [4; 32]);
    let sending = started.elapsed().as_secs_f64();
    let receiver = Receiver::on_disk(&disk, 32 << 20);
    let both = started.elapsed().as_secs_f64();
    let warm =
        sender.store_statistics().store_warm_bytes + receiver.store_statistics().store_warm_bytes;
    let read =
        sender.store_statistics().store_read_bytes + receiver.store_statistics().store_read_bytes;
    let stored = warm as f64 / f64::from(1 << 30);
    println!(
        "opened: {stored:.2} GiB warm in {both:.3} s ({sending:.3} s for the sending side's index of {:.1} MiB), {:.0} MiB read: {:.3} s for each GiB",
        sender.store_memory().index as f64 / f64::from(1 << 20),
        read as f64 / f64::from(1 << 20),
        both / stored
    );
}
