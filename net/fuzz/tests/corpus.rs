//! Every target on its corpus, on what honest encoders make today, and on some mutations of both: always the same ones.
//! `ROUND=2 cargo test -p outpost-fuzz` makes others.

use std::sync::{Mutex, PoisonError};

use outpost_fuzz::TARGETS;
use outpost_fuzz::run::{Runner, corpus};
use peak_alloc::PeakAlloc;

#[global_allocator]
static MEMORY: PeakAlloc = PeakAlloc;

/// Memory is measured for the whole process.
static ALONE: Mutex<()> = Mutex::new(());

fn check(name: &str) {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let target = outpost_fuzz::target(name).expect("a target of that name");
    let runner = Runner::new(target, &MEMORY);
    for (name, input) in &runner.inputs {
        if let Err(failure) = runner.run(input) {
            panic!("{}: {name}: {}", target.name, failure.why);
        }
    }
    let round: u64 = std::env::var("ROUND").map_or(1, |it| it.parse().expect("a number"));
    for case in 0..target.cases as u64 {
        let seed = round << 32 | case;
        let input = runner.mutation(seed);
        if let Err(failure) = runner.run(&input) {
            let name = target.name;
            panic!(
                "{name}: {}\nThe same again: cargo run -p outpost-fuzz -- {name} --seed {seed} --count 1",
                failure.why
            );
        }
    }
}

macro_rules! targets {
    ($($name:ident)*) => {
        $(#[test]
        fn $name() {
            check(stringify!($name));
        })*

        #[test]
        fn every_target_is_tested_and_has_a_corpus() {
            let tested = [$(stringify!($name)),*];
            for target in TARGETS {
                assert!(tested.contains(&target.name), "{} is not tested", target.name);
                let files = std::fs::read_dir(corpus(target)).map_or(0, |it| it.count());
                assert!(files > 0, "{} has no corpus; run: cargo run -p outpost-fuzz -- corpus", target.name);
            }
            assert_eq!(tested.len(), TARGETS.len());
        }
    };
}

targets! {
    tunnel_datagrams tunnel_handshakes tunnel_frames tunnel_payloads
    dedup_headers dedup_bodies dedup_blocks dedup_messages dedup_control_to_receiver dedup_control_to_sender dedup_round_trip
    flow_streams store_device image_slot engine_frames http socks config_box config_program
}
