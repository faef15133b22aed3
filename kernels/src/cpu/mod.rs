//! The CPU backend: chooses the code path once and runs it on the pool.

mod attend;
mod blocks;
mod dispatch;
mod elementwise;
mod experts;
mod forest;
mod lanes;
mod matmul;
mod residual;
mod scores;
mod span;
mod store;
mod stored;
mod unit;
mod values;

pub use experts::Routing;
pub(crate) use forest::QueryRow;
pub use matmul::{Inputs, Norm, Product, Sweep};
pub use residual::PostNorm;
pub use store::Tokens;

use crate::isa::Isa;
use crate::pool::Pool;
use std::sync::Arc;

/// The ops of a model step, on one instruction set and one pool.
pub struct Kernels {
    isa: Isa,
    pool: Arc<Pool>,
}

impl Kernels {
    /// Kernels for `isa` whose larger ops run on `pool`. Panics if the processor lacks `isa`.
    pub fn new(isa: Isa, pool: Arc<Pool>) -> Kernels {
        assert!(isa.available(), "this processor has no {isa}");
        Kernels { isa, pool }
    }

    /// The instruction set in use.
    pub fn isa(&self) -> Isa {
        self.isa
    }

    /// The pool in use.
    pub fn pool(&self) -> &Arc<Pool> {
        &self.pool
    }
}

/// A pointer of which tasks write different parts.
#[derive(Clone, Copy)]
struct SendPtr<T>(*mut T);

// SAFETY: it points into a slice that the caller of the op borrows uniquely while its tasks run.
unsafe impl<T> Send for SendPtr<T> {}
// SAFETY: as above.
unsafe impl<T> Sync for SendPtr<T> {}

impl<T> SendPtr<T> {
    /// The pointer. (A method, so that closures capture the wrapper.)
    fn get(self) -> *mut T {
        self.0
    }
}
