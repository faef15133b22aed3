//! Times all matrix products of one step of SmolLM2-135M (Q4_1 with a Q8_0 head) and prints what
//! tokens/s they alone would allow: `cargo run --release -p conclave-kernels --example step`.

#![allow(clippy::print_stdout, reason = "prints a table")]

use conclave_kernels::{
    Activation, Isa, Kernels, PackedMatrix, Pool, Product, Scratch, WeightType, detect,
};
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

fn main() {
    let argument = std::env::args().nth(1);
    let ty = WeightType::ALL
        .into_iter()
        .find(|ty| Some(ty.name()) == argument.as_deref());
    let ty = ty.unwrap_or(WeightType::Q4_1);
    let pool = Pool::new(Pool::default_threads());
    let launch = best_of(|| (0..1000).for_each(|_| pool.run(2, &|_| {}))) / 1000;
    println!("{} threads, {launch:?} an empty hand-out", pool.threads());
    for isa in [Isa::Avx2, Isa::Avx512]
        .into_iter()
        .filter(|isa| *isa <= detect())
    {
        let kernels = Kernels::new(isa, pool.clone());
        for act in [Activation::Int8, Activation::F32] {
            let model = Model::new(ty, act, isa);
            println!(
                "\n{} {isa} {}: {} MB",
                ty.name(),
                act.name(),
                model.bytes() / 1_000_000
            );
            // From 64 rows on it is a prefill, which needs the head for its last row only.
            for (m, heads) in [(1, 1), (4, 4), (8, 8), (32, 32), (128, 1), (512, 1)] {
                let mut buffers = Buffers::new(m, heads);
                let time = best_of(|| model.step(&kernels, m, heads, &mut buffers));
                let rate = m as f64 / time.as_secs_f64();
                println!("  m={m:<4} head rows={heads:<3} {time:>10.2?}  {rate:>8.0} tokens/s");
            }
        }
    }
}
