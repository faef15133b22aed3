//! Times all matrix products of one step of SmolLM2-135M (Q4_1 with a Q8_0 head) and prints what
//! tokens/s they alone would allow, then the other ops:
//! `cargo run --release -p conclave-kernels --example step [TYPE] [THREADS] [ISA] [int8|f32|others]`.

#![allow(clippy::print_stdout, reason = "prints a table")]

use conclave_kernels::{
    Activation, AttnPlan, BLOCK, Isa, Kernels, KvDtype, KvLayer, PackedMatrix, Pool, Product,
    RopeStyle, RopeTable, Scratch, SeqSpan, WeightType,
};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

const LAYERS: usize = 30;
const HIDDEN: usize = 576;
const FFN: usize = 1536;
const KV: usize = 192;
const VOCAB: usize = 49152;

struct Layer {
    q: PackedMatrix,
    k: PackedMatrix,
    v: PackedMatrix,
    o: PackedMatrix,
    gate: PackedMatrix,
    up: PackedMatrix,
    down: PackedMatrix,
}

struct Model {
    layers: Vec<Layer>,
    head: PackedMatrix,
}

fn matrix(ty: WeightType, n: usize, k: usize, act: Activation, isa: Isa) -> PackedMatrix {
    // 576 inputs are no whole block of 256: quantizers fall back, too.
    let ty = if k.is_multiple_of(ty.block_len()) {
        ty
    } else {
        WeightType::Q5_0
    };
    // Any bytes do, except that exponents of scales must not be extreme: 0x2222 is a small f16.
    let bytes = vec![0x22; n * ty.row_bytes(k)];
    PackedMatrix::pack(ty, &bytes, n, k, act, isa).expect("shapes fit")
}

impl Model {
    fn new(ty: WeightType, act: Activation, isa: Isa) -> Model {
        let layer = |_| Layer {
            q: matrix(ty, HIDDEN, HIDDEN, act, isa),
            k: matrix(ty, KV, HIDDEN, act, isa),
            v: matrix(ty, KV, HIDDEN, act, isa),
            o: matrix(ty, HIDDEN, HIDDEN, act, isa),
            gate: matrix(ty, FFN, HIDDEN, act, isa),
            up: matrix(ty, FFN, HIDDEN, act, isa),
            down: matrix(ty, HIDDEN, FFN, act, isa),
        };
        let head = matrix(WeightType::Q8_0, VOCAB, HIDDEN, act, isa);
        Model {
            layers: (0..LAYERS).map(layer).collect(),
            head,
        }
    }

    fn bytes(&self) -> usize {
        let layer = |l: &Layer| {
            [&l.q, &l.k, &l.v, &l.o, &l.gate, &l.up, &l.down]
                .iter()
                .map(|w| w.bytes())
                .sum::<usize>()
        };
        self.layers.iter().map(layer).sum::<usize>() + self.head.bytes()
    }

    /// All products of a step of `m` rows, of which the head sees the last `heads`.
    fn step(&self, kernels: &Kernels, m: usize, heads: usize, b: &mut Buffers) {
        let x = &b.x[..m * HIDDEN];
        for l in &self.layers {
            let qkv = [
                Product {
                    weights: &l.q,
                    out: &mut b.q[..m * HIDDEN],
                },
                Product {
                    weights: &l.k,
                    out: &mut b.k[..m * KV],
                },
                Product {
                    weights: &l.v,
                    out: &mut b.v[..m * KV],
                },
            ];
            kernels.qmatmuls(qkv, x, m, &mut b.scratch);
            kernels.qmatmul(&l.o, x, m, &mut b.q[..m * HIDDEN], &mut b.scratch);
            let pair = [
                Product {
                    weights: &l.gate,
                    out: &mut b.gate[..m * FFN],
                },
                Product {
                    weights: &l.up,
                    out: &mut b.up[..m * FFN],
                },
            ];
            kernels.qmatmuls(pair, x, m, &mut b.scratch);
            let (inner, out) = (&b.x[..m * FFN], &mut b.q[..m * HIDDEN]);
            kernels.qmatmul(&l.down, inner, m, out, &mut b.scratch);
        }
        let (x, out) = (&b.x[..heads * HIDDEN], &mut b.logits[..heads * VOCAB]);
        kernels.qmatmul(&self.head, x, heads, out, &mut b.scratch);
    }
}

struct Buffers {
    x: Vec<f32>,
    q: Vec<f32>,
    k: Vec<f32>,
    v: Vec<f32>,
    gate: Vec<f32>,
    up: Vec<f32>,
    logits: Vec<f32>,
    scratch: Scratch,
}

impl Buffers {
    fn new(m: usize, heads: usize) -> Buffers {
        Buffers {
            x: (0..m * FFN).map(|i| (i % 17) as f32 - 8.0).collect(),
            q: vec![0.0; m * HIDDEN],
            k: vec![0.0; m * KV],
            v: vec![0.0; m * KV],
            gate: vec![0.0; m * FFN],
            up: vec![0.0; m * FFN],
            logits: vec![0.0; heads * VOCAB],
            scratch: Scratch::new(),
        }
    }
}

/// All layers' attention of `seqs` sequences with `queries` rows each at the end of `context` slots.
fn attention(
    kernels: &Kernels,
    seqs: usize,
    queries: usize,
    context: usize,
    dtype: KvDtype,
) -> Duration {
    let (heads, kv_heads, dim, blocks) = (9, 3, 64, context.div_ceil(BLOCK));
    let layers: Vec<KvLayer> = (0..LAYERS)
        .map(|_| KvLayer::new(seqs * blocks, kv_heads, dim, dtype))
        .collect();
    let table: Vec<u32> = (0..(seqs * blocks) as u32).collect();
    let spans: Vec<SeqSpan> = (0..seqs)
        .map(|i| SeqSpan {
            q_start: i * queries,
            q_len: queries,
            kv_len: context,
            block_table: &table[i * blocks..][..blocks],
            shared_blocks: 0,
        })
        .collect();
    let plan = AttnPlan {
        heads,
        kv_heads,
        dim,
        scale: 0.125,
        window: None,
        softcap: None,
        seqs: &spans,
    };
    let q = vec![0.5; seqs * queries * heads * dim];
    let (mut out, mut scratch) = (vec![0.0; q.len()], Scratch::new());
    best_of(|| {
        for layer in &layers {
            kernels.paged_attention(&q, layer, &plan, &mut out, &mut scratch);
        }
    })
}

/// What is left of a layer: two norms, rotation of q and k, activation, two residual sums, storing k and v.
fn elementwise(kernels: &Kernels, m: usize) -> Duration {
    let table = RopeTable::new(64, 10_000.0, 1024, RopeStyle::Interleaved);
    let mut layer = KvLayer::new(m.div_ceil(BLOCK), 3, 64, KvDtype::F16);
    let slots: Vec<u32> = (0..m as u32).collect();
    let x = vec![0.5; m * FFN];
    let (mut q, mut k, mut wide) = (vec![0.1; m * HIDDEN], vec![0.1; m * KV], vec![0.1; m * FFN]);
    let weight = vec![1.0; HIDDEN];
    best_of(|| {
        for _ in 0..LAYERS {
            for _ in 0..2 {
                kernels.rms_norm(&x[..m * HIDDEN], &weight, 1e-5, m, &mut q);
                kernels.add(&mut q, &x[..m * HIDDEN]);
            }
            kernels.rope(&mut q, &slots, 9, 64, &table);
            kernels.rope(&mut k, &slots, 3, 64, &table);
            kernels.write_kv(&mut layer, &k, &k, &slots);
            kernels.silu_mul(&x, &x, &mut wide);
        }
    })
}

fn best_of(mut f: impl FnMut()) -> Duration {
    f();
    let until = Instant::now() + Duration::from_millis(600);
    let mut best = Duration::MAX;
    while Instant::now() < until {
        let start = Instant::now();
        f();
        best = best.min(start.elapsed());
    }
    best
}

/// What an op costs beyond its work when every thread must come for it.
fn hand_out(pool: &Pool) -> Duration {
    let meeting = AtomicUsize::new(0);
    let thousand = best_of(|| {
        for _ in 0..1000 {
            meeting.store(0, Ordering::Relaxed);
            pool.run(pool.threads(), &|_| {
                // Or else the fastest would take all tasks.
                meeting.fetch_add(1, Ordering::Relaxed);
                while meeting.load(Ordering::Relaxed) < pool.threads() {
                    std::hint::spin_loop();
                }
            });
        }
    });
    thousand / 1000
}

fn print_products(kernels: &Kernels, ty: WeightType, act: Activation) {
    let start = Instant::now();
    let model = Model::new(ty, act, kernels.isa());
    let (time, megabytes) = (start.elapsed(), model.bytes() / 1_000_000);
    let (ty, isa, act) = (ty.name(), kernels.isa(), act.name());
    println!("\n{ty} {isa} {act}: {megabytes} MB, packed in {time:.2?}");
    // From 128 rows on it is a prefill, which needs the head for its last row only.
    for (m, heads) in [(1, 1), (4, 4), (8, 8), (32, 32), (128, 1), (512, 1)] {
        let mut buffers = Buffers::new(m, heads);
        let time = best_of(|| model.step(kernels, m, heads, &mut buffers));
        let rate = m as f64 / time.as_secs_f64();
        println!("  m={m:<4} head rows={heads:<3} {time:>10.2?}  {rate:>8.0} tokens/s");
    }
}

fn print_others(kernels: &Kernels) {
    println!("\n{}, {LAYERS} layers", kernels.isa());
    let shapes = [
        (1, 1, 300),
        (1, 1, 4000),
        (8, 1, 400),
        (32, 1, 400),
        (1, 128, 512),
    ];
    for (seqs, queries, context) in shapes {
        let [f32, f16] = [KvDtype::F32, KvDtype::F16]
            .map(|dtype| attention(kernels, seqs, queries, context, dtype));
        println!(
            "  attention {seqs:>2} x {queries:<3} of {context:<4}: {f32:.2?} f32, {f16:.2?} f16"
        );
    }
    for m in [1, 8, 128] {
        println!("  elementwise ops m={m}: {:.2?}", elementwise(kernels, m));
    }
}

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let has = |name: &str| arguments.iter().any(|a| a == name);
    let ty = WeightType::ALL
        .into_iter()
        .find(|ty| has(ty.name()))
        .unwrap_or(WeightType::Q4_1);
    let threads = arguments.iter().find_map(|a| a.parse().ok());
    let pool = Pool::new(threads.unwrap_or_else(Pool::default_threads));
    println!(
        "{} threads, {:?} to hand out an op to all of them",
        pool.threads(),
        hand_out(&pool)
    );
    let named = Isa::ALL.into_iter().any(|isa| has(isa.name()));
    let wanted = |isa: &Isa| {
        if named {
            has(isa.name())
        } else {
            *isa != Isa::Portable
        }
    };
    for isa in Isa::ALL
        .into_iter()
        .filter(|isa| isa.available())
        .filter(wanted)
    {
        let kernels = Kernels::new(isa, pool.clone());
        if !has("int8") && !has("f32") {
            print_others(&kernels);
        }
        for act in [Activation::Int8, Activation::F32] {
            if has(act.name()) || !has("int8") && !has("f32") && !has("others") {
                print_products(&kernels, ty, act);
            }
        }
    }
}
