//! Every parser of outside bytes, under fuzzing.
//!
//! A target is one plain function over bytes ([`Target`]). Two drivers run it:
//!
//! | | what | when |
//! |---|---|---|
//! | [`seeded`] | corpus and seeds, each mutated a fixed number of times from a fixed seed | `make test`: the same inputs on every machine |
//! | `bin/guided.rs` | libFuzzer, guided by the coverage of this workspace's code | `make fuzz` |
//!
//! Both go through [`check::run`], which asks of every input: no panic, bounded memory (a short input
//! must not make a large allocation), bounded processor time, and what the target itself asserts.
//!
//! Why not cargo-fuzz: it builds one binary a target and all dependencies anew, and wants a nightly
//! compiler for its default sanitizer. Safe Rust gains little from that sanitizer, `unsafe` stands in few
//! places here, and the worker brings hundreds of crates. `tests/fuzz/run` instruments the workspace's
//! own crates only, with the stable compiler, so that the first build takes a minute and not twenty.

pub mod check;
mod mutate;
mod rng;
pub mod seeded;
pub mod targets;

pub use check::Limits;

/// Counts what targets allocate.
#[global_allocator]
static HEAP: peak_alloc::PeakAlloc = peak_alloc::PeakAlloc;

/// One parser under fuzzing.
#[derive(Clone, Copy)]
pub struct Target {
    /// Its name: of its corpus folder and on the command line.
    pub name: &'static str,
    /// Parses and asserts; panics on a finding.
    pub run: fn(&[u8]),
    /// Whole inputs to begin with, beside the files in `corpus/<name>/`.
    pub seeds: fn() -> Vec<Vec<u8>>,
    /// Words of the format, put into inputs.
    pub words: &'static [&'static str],
    /// Mutated inputs in `make test`: about a second's worth.
    pub inputs: u32,
    /// What one input may cost.
    pub limits: Limits,
}

impl Target {
    /// Seeds, then the files of the corpus in the order of their names.
    ///
    /// # Panics
    /// The corpus cannot be read.
    pub fn corpus(&self) -> Vec<Vec<u8>> {
        let mut corpus = (self.seeds)();
        let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("corpus")
            .join(self.name);
        let Ok(entries) = std::fs::read_dir(folder) else {
            return corpus;
        };
        let mut paths: Vec<_> = entries
            .map(|entry| entry.expect("a readable corpus").path())
            .collect();
        paths.sort();
        corpus.extend(
            paths
                .iter()
                .map(|path| std::fs::read(path).expect("a readable corpus")),
        );
        corpus
    }
}
