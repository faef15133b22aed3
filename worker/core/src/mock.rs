//! A fake model for tests, benches and the simulator; never for answers.
//!
//! It keeps a KV of its own: what it stores for a token is a hash over the token and what it reads, through
//! the block table, for the token before. The next token is a hash over all slots of the sequence, read
//! the same way. Any fault in block tables, copy-on-write, preemption or prefix hits changes what it says.

use std::collections::BTreeMap;

use crate::batch::{Batch, BatchEntry};
use crate::block_pool::{BLOCK, BlockId};
use crate::runner::{Next, Outcome, Runner};
use crate::sequence::{SeqId, StopReason};

/// What a [`MockRunner`] does for one sequence.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Script {
    /// Mixed into every sampled token, as a sampling seed would be.
    pub seed: u64,
    /// Stop, with this reason, when the sampled token stands at this position.
    pub stop_at: Option<(usize, StopReason)>,
    /// Inject these tokens after the one sampled at this position.
    pub inject_at: Option<(usize, Vec<u32>)>,
}

/// How the mock was misused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MockError {
    /// A block was read at a slot that nobody has written.
    #[error("{seq:?} read the unwritten slot {pos}")]
    Unwritten {
        /// Who read.
        seq: SeqId,
        /// The position that was asked for.
        pos: usize,
    },
    /// Two entries of one batch wrote to one block, or one read what the other wrote.
    #[error("{seq:?} touched block {block:?}, which another entry of the batch writes")]
    Contended {
        /// The later of the two.
        seq: SeqId,
        /// The block.
        block: BlockId,
    },
    /// The failure that [`MockRunner::fail_next`] asked for.
    #[error("asked to fail")]
    Asked,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Slot {
    /// Position + 1 of the token stored; 0 is unwritten.
    pos: usize,
    value: u64,
}

/// A deterministic pseudo-model over fake KV storage.
#[derive(Debug)]
pub struct MockRunner {
    kv: Vec<[Slot; BLOCK]>,
    scripts: BTreeMap<SeqId, Script>,
    /// Blocks written in the current batch, and by which entry.
    writers: BTreeMap<BlockId, SeqId>,
    fail_next: bool,
    computed: u64,
}

impl MockRunner {
    /// With memory for `blocks` blocks.
    pub fn new(blocks: u32) -> Self {
        Self {
            kv: vec![[Slot::default(); BLOCK]; blocks as usize],
            scripts: BTreeMap::new(),
            writers: BTreeMap::new(),
            fail_next: false,
            computed: 0,
        }
    }

    /// Sets what happens to `seq`; forgotten when it ends.
    pub fn script(&mut self, seq: SeqId, script: Script) {
        self.scripts.insert(seq, script);
    }

    /// How many sequences have a script.
    pub fn scripts(&self) -> usize {
        self.scripts.len()
    }

    /// Whether the next run fails.
    pub fn fail_next(&mut self, fail: bool) {
        self.fail_next = fail;
    }

    /// Tokens computed so far.
    pub fn computed(&self) -> u64 {
        self.computed
    }

    fn write(&mut self, entry: &BatchEntry<'_>) -> Result<(), MockError> {
        let mut before = match entry.start_pos {
            0 => 0,
            pos => self.read(entry, pos - 1)?,
        };
        for (pos, token) in (entry.start_pos..).zip(entry.tokens) {
            let block = entry.block_table[pos / BLOCK];
            if *self.writers.entry(block).or_insert(entry.seq) != entry.seq {
                let seq = entry.seq;
                return Err(MockError::Contended { seq, block });
            }
            before = mix(before, u64::from(*token));
            self.kv[block.0 as usize][pos % BLOCK] = Slot {
                pos: pos + 1,
                value: before,
            };
        }
        self.computed += entry.tokens.len() as u64;
        Ok(())
    }

    fn read(&self, entry: &BatchEntry<'_>, pos: usize) -> Result<u64, MockError> {
        let (seq, block) = (entry.seq, entry.block_table[pos / BLOCK]);
        if self
            .writers
            .get(&block)
            .is_some_and(|writer| *writer != seq)
        {
            return Err(MockError::Contended { seq, block });
        }
        match self.kv[block.0 as usize][pos % BLOCK] {
            slot if slot.pos == pos + 1 => Ok(slot.value),
            _ => Err(MockError::Unwritten { seq, pos }),
        }
    }

    fn sample(&self, entry: &BatchEntry<'_>) -> Result<Outcome, MockError> {
        let idle = Script::default();
        let script = self.scripts.get(&entry.seq).unwrap_or(&idle);
        let end = entry.end_pos();
        let mut state = script.seed;
        for pos in 0..end {
            state = mix(state, self.read(entry, pos)?);
        }
        let (token, logprob) = draw(state);
        Ok(Outcome {
            seq: entry.seq,
            token,
            logprob,
            next: script.next(end),
        })
    }
}

impl Script {
    /// What follows the token sampled at position `pos`.
    fn next(&self, pos: usize) -> Next {
        match (&self.stop_at, &self.inject_at) {
            (Some((at, reason)), _) if *at == pos => Next::Stop(*reason),
            (_, Some((at, tokens))) if *at == pos => Next::Inject(tokens.clone()),
            _ => Next::Continue,
        }
    }

    /// What a faultless engine generates from `prompt`: sampled and injected tokens.
    pub fn expected(&self, prompt: &[u32], max_tokens: usize) -> Vec<u32> {
        let mut tokens = prompt.to_vec();
        let full = prompt.len() + max_tokens;
        while tokens.len() < full {
            let (mut state, mut value) = (self.seed, 0);
            for token in &tokens {
                value = mix(value, u64::from(*token));
                state = mix(state, value);
            }
            let next = self.next(tokens.len());
            tokens.push(draw(state).0);
            match next {
                Next::Stop(_) => break,
                Next::Inject(injected) => tokens.extend(injected),
                Next::Continue => {}
            }
        }
        tokens.truncate(full);
        tokens.split_off(prompt.len())
    }
}

impl Runner for MockRunner {
    type Error = MockError;

    fn run(&mut self, batch: &Batch, out: &mut Vec<Outcome>) -> Result<(), MockError> {
        if std::mem::take(&mut self.fail_next) {
            return Err(MockError::Asked);
        }
        for copy in batch.copies() {
            self.kv[copy.dst.0 as usize] = self.kv[copy.src.0 as usize];
        }
        self.writers.clear();
        for entry in batch.entries() {
            self.write(&entry)?;
        }
        for entry in batch.entries().filter(|entry| entry.sample) {
            out.push(self.sample(&entry)?);
        }
        Ok(())
    }

    fn release(&mut self, seq: SeqId) {
        self.scripts.remove(&seq);
    }
}

/// A token of a vocabulary of 32,000 and its log-probability.
fn draw(state: u64) -> (u32, f32) {
    let logprob = -((state >> 40) as f32) / (1 << 20) as f32;
    ((state % 32_000) as u32, logprob)
}

/// One round of SplitMix64 over both.
fn mix(state: u64, value: u64) -> u64 {
    let mut z = state.rotate_left(23) ^ value.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ z >> 31
}
