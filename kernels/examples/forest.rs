//! What attention costs with sequences that share a prompt, each by itself and grouped, in turns:
//! `cargo run --release -p conclave-kernels --example forest [THREADS] [ISA]`.

#![allow(clippy::print_stdout, reason = "prints a table")]

use conclave_kernels::{AttnPlan, BLOCK, Isa, Kernels, KvDtype, KvLayer, Pool, Scratch, SeqSpan};
use std::time::{Duration, Instant};

// SmolLM2-135M's.
const LAYERS: usize = 30;
const HEADS: usize = 9;
const KV_HEADS: usize = 3;
const DIM: usize = 64;

/// Slots that each sequence has for itself.
const TAIL: usize = 48;

/// Times each way is measured; the ways take turns.
const ROUNDS: usize = 15;

struct Case {
    layers: Vec<KvLayer>,
    tables: Vec<Vec<u32>>,
    shared: usize,
    slots: usize,
}

impl Case {
    fn new(agents: usize, prompt: usize, dtype: KvDtype) -> Case {
        let (shared, slots) = (prompt / BLOCK, prompt + TAIL);
        let own = slots.div_ceil(BLOCK) - shared;
        let table = |agent: usize| {
            let own = shared + agent * own..shared + (agent + 1) * own;
            (0..shared).chain(own).map(|block| block as u32).collect()
        };
        let layer = || KvLayer::new(shared + agents * own, KV_HEADS, DIM, dtype);
        Case {
            layers: (0..LAYERS).map(|_| layer()).collect(),
            tables: (0..agents).map(table).collect(),
            shared,
            slots,
        }
    }

    /// All layers' attention of one decode step.
    fn step(&self, kernels: &Kernels, grouped: bool, memory: &mut Memory) -> Duration {
        let tables = self.tables.iter().enumerate();
        let seqs: Vec<SeqSpan<'_>> = tables
            .map(|(agent, block_table)| SeqSpan {
                q_start: agent,
                q_len: 1,
                kv_len: self.slots,
                block_table,
                shared_blocks: if grouped && agent > 0 { self.shared } else { 0 },
            })
            .collect();
        let plan = AttnPlan {
            heads: HEADS,
            kv_heads: KV_HEADS,
            dim: DIM,
            scale: 0.125,
            window: None,
            softcap: None,
            seqs: &seqs,
        };
        let start = Instant::now();
        for layer in &self.layers {
            let (q, out) = (&memory.q, &mut memory.out);
            kernels.paged_attention(q, layer, &plan, out, &mut memory.scratch);
        }
        start.elapsed()
    }
}

struct Memory {
    q: Vec<f32>,
    out: Vec<f32>,
    scratch: Scratch,
}

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let threads = arguments.iter().find_map(|a| a.parse().ok());
    let isa = arguments.iter().find_map(|a| Isa::from_name(a));
    let isa = isa.unwrap_or_else(conclave_kernels::detect);
    let kernels = Kernels::new(
        isa,
        Pool::new(threads.unwrap_or_else(Pool::default_threads)),
    );
    println!(
        "{isa}, {} threads, {LAYERS} layers; best of {ROUNDS}, in turns",
        kernels.pool().threads()
    );
    println!("| cache | agents | shared prompt | each alone | grouped | ratio |");
    println!("|---|---|---|---|---|---|");
    for dtype in [KvDtype::F16, KvDtype::F32] {
        for (agents, prompt) in [(1, 284), (8, 284), (32, 284), (8, 2048), (32, 2048)] {
            let case = Case::new(agents, prompt, dtype);
            let mut memory = Memory {
                q: (0..agents * HEADS * DIM)
                    .map(|i| (i % 13) as f32 * 0.1 - 0.6)
                    .collect(),
                out: vec![0.0; agents * HEADS * DIM],
                scratch: Scratch::new(),
            };
            let mut best = [Duration::MAX; 2];
            for _ in 0..ROUNDS {
                for (grouped, best) in [false, true].into_iter().zip(&mut best) {
                    *best = case.step(&kernels, grouped, &mut memory).min(*best);
                }
            }
            let [alone, grouped] = best;
            println!(
                "| {} | {agents} | {prompt} | {:.2} ms | {:.2} ms | {:.2} |",
                dtype.name(),
                alone.as_secs_f64() * 1e3,
                grouped.as_secs_f64() * 1e3,
                alone.as_secs_f64() / grouped.as_secs_f64(),
            );
        }
    }
}
