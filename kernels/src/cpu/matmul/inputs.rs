//! Inputs that the op which computes them rounds on the way, while they are in a cache and all threads are at it.

use super::quantize::Rounding;
use super::takes_int8;
use crate::scratch::Scratch;
use crate::weights::PackedMatrix;
use std::sync::atomic::{AtomicU64, Ordering};

/// Inputs of a product, which perhaps lie rounded in the scratch of the op that computed them.
#[derive(Clone, Copy, Debug)]
pub struct Inputs<'a> {
    x: &'a [f32],
    /// See [`Scratch::stamp`].
    stamp: u64,
}

impl<'a> From<&'a [f32]> for Inputs<'a> {
    /// Inputs that nobody has rounded.
    fn from(x: &'a [f32]) -> Self {
        Inputs { x, stamp: 0 }
    }
}

impl<'a> Inputs<'a> {
    /// The numbers themselves.
    pub fn numbers(&self) -> &'a [f32] {
        self.x
    }

    /// Whether they lie rounded in this scratch.
    pub(super) fn are_rounded_in(&self, scratch: &Scratch) -> bool {
        self.stamp != 0 && self.stamp == scratch.stamp
    }

    /// Inputs that `rounding`, if there is one, has rounded into the scratch.
    pub(in crate::cpu) fn computed(
        x: &'a [f32],
        rounding: Option<Rounding>,
        scratch: &mut Scratch,
    ) -> Inputs<'a> {
        /// No two have the same, in whichever scratch they are.
        static STAMPS: AtomicU64 = AtomicU64::new(1);
        scratch.stamp = match rounding {
            Some(_) => STAMPS.fetch_add(1, Ordering::Relaxed),
            None => 0,
        };
        let stamp = scratch.stamp;
        Inputs { x, stamp }
    }
}

/// How to round what an op computes, if the product `then` takes it in 8 bit: `m` rows, computed in parts of
/// `part` numbers.
pub(in crate::cpu) fn rounding(
    then: Option<&PackedMatrix>,
    m: usize,
    part: usize,
    scratch: &mut Scratch,
) -> Option<Rounding> {
    let k = then.filter(|w| takes_int8(w)).map(|w| w.k())?;
    // Blocks are rounded whole.
    let fits = k.is_multiple_of(32) && part.is_multiple_of(32);
    fits.then(|| Rounding::new(&mut scratch.ahead, m, k))
}
