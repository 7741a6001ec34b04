//! Runs inputs of a target: the corpus, and seeded mutations of it. What fails can be run again from its seed or its bytes.

use std::path::PathBuf;

use peak_alloc::PeakAlloc;

use crate::Target;
use crate::mutate::{Random, mutate};

/// An input that breaks an invariant, and how.
#[derive(Debug)]
pub struct Failure {
    /// The input.
    pub input: Vec<u8>,
    /// What was wrong.
    pub why: String,
}

/// A target with its corpus.
pub struct Runner {
    /// What is run.
    pub target: &'static Target,
    /// Names and bytes: the corpus's files, and what honest encoders make now.
    pub inputs: Vec<(String, Vec<u8>)>,
    memory: &'static PeakAlloc,
}

/// The folder of a target's corpus in this repository.
pub fn corpus(target: &Target) -> PathBuf {
    [env!("CARGO_MANIFEST_DIR"), "corpus", target.name]
        .iter()
        .collect()
}

impl Runner {
    /// A runner in a program whose allocator is `memory`.
    ///
    /// # Panics
    /// When the corpus is there but cannot be read.
    pub fn new(target: &'static Target, memory: &'static PeakAlloc) -> Runner {
        let mut inputs: Vec<(String, Vec<u8>)> = (target.honest)()
            .into_iter()
            .map(|(name, bytes)| (format!("honest {name}"), bytes))
            .collect();
        if let Ok(files) = std::fs::read_dir(corpus(target)) {
            let mut paths: Vec<PathBuf> = files.map(|it| it.expect("a folder").path()).collect();
            paths.sort();
            for path in paths {
                let bytes = std::fs::read(&path).expect("a file of the corpus");
                inputs.push((path.display().to_string(), bytes));
            }
        }
        Runner {
            target,
            inputs,
            memory,
        }
    }

    /// Runs one input. Memory is measured for the whole process: nothing else may go on in it.
    ///
    /// # Errors
    /// What does not hold.
    pub fn run(&self, input: &[u8]) -> Result<(), Failure> {
        let before = self.memory.current_usage();
        self.memory.reset_peak_usage();
        let result = std::panic::catch_unwind(|| (self.target.run)(input));
        let peak = self.memory.peak_usage().saturating_sub(before);
        let failure = |why: String| Failure {
            input: input.to_vec(),
            why,
        };
        match result {
            Ok(()) if peak <= self.target.memory => Ok(()),
            Ok(()) => Err(failure(format!(
                "takes {peak} bytes of memory, {} are allowed",
                self.target.memory
            ))),
            Err(panic) => Err(failure(
                panic
                    .downcast_ref::<String>()
                    .cloned()
                    .or_else(|| panic.downcast_ref::<&str>().map(|it| (*it).to_owned()))
                    .unwrap_or_else(|| "panics".to_owned()),
            )),
        }
    }

    /// The input that a seed makes.
    pub fn mutation(&self, seed: u64) -> Vec<u8> {
        let mut random = Random::new(seed);
        let one = &self.inputs[random.below(self.inputs.len())].1;
        let other = &self.inputs[random.below(self.inputs.len())].1;
        mutate(&mut random, one, other)
    }
}
