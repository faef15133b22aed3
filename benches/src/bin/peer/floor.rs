//! What a step costs beyond its matrix products: the bare micro-kernel over all matrices of the file, in their own
//! types and at the same rows, beside a whole step of the engine.

use std::error::Error;
use std::time::Instant;

use conclave_kernels::{PackedMatrix, Sweep};
use conclave_worker::model::Model;
use conclave_worker::model::family::Family;
use conclave_worker::model::llama::Llama;

use crate::figure;
use crate::turn::{Bench, best};

/// Rows of a step, one an agent.
const ROWS: [usize; 3] = [1, 8, 32];

/// Passes over the matrices of which the fastest counts.
const PASSES: usize = 30;

/// Prints milliseconds of both for each number of rows.
pub fn print(bench: &Bench) -> Result<(), Box<dyn Error>> {
    let weights = matrices(&bench.model)?;
    for rows in ROWS {
        let mut sweep = Sweep::new(&bench.kernels, weights.clone(), rows);
        let bare = best(PASSES, || {
            let started = Instant::now();
            sweep.run();
            Ok(started.elapsed().as_secs_f64())
        })?;
        figure(&format!("bare-{rows}"), bare * 1e3);
        figure(
            &format!("step-{rows}"),
            bench.decode(rows)? * rows as f64 * 1e3,
        );
    }
    Ok(())
}

/// The matrices in the order in which a step uses them, the head last.
fn matrices(model: &Model) -> Result<Vec<&PackedMatrix>, Box<dyn Error>> {
    let Some(Family::Llama(Llama { weights, .. })) = model.family() else {
        return Err("the bare kernels are shown on llama models only".into());
    };
    let layers = weights
        .layers
        .iter()
        .flat_map(|l| [&l.q, &l.k, &l.v, &l.o, &l.gate, &l.up, &l.down]);
    Ok(layers
        .chain([weights.head.as_ref().unwrap_or(&weights.embedding)])
        .collect())
}
