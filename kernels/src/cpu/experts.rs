//! A mixture of experts: which ones a row goes to, and the sum of what they give.

use super::dispatch::per_isa;
use super::lanes::{Lanes, WIDTH};
use super::residual::{PostNorm, add_normed_row, from_sigmoid};
use super::{Kernels, SendPtr};
use crate::reference::ROUTE_EPS;

/// How a row's experts are chosen.
#[derive(Clone, Copy, Debug)]
pub struct Routing<'a> {
    /// Added to an expert's score where it competes, not where it weighs; one an expert.
    pub bias: &'a [f32],
    /// How many experts a row goes to.
    pub chosen: usize,
    /// A factor of logits before the sigmoid.
    pub multiplier: f32,
    /// A factor of shares, which sum to 1 without it.
    pub scale: f32,
}

impl Kernels {
    /// The experts of each row, ascending, and the share of each, from the router's logits, which become scores.
    ///
    /// `logits` is `rows x experts`; `experts` and `shares` are `rows x chosen`. Panics if a slice has another
    /// length, or if more are chosen than there are.
    pub fn route(
        &self,
        logits: &mut [f32],
        routing: &Routing<'_>,
        experts: &mut [u32],
        shares: &mut [f32],
    ) {
        let (all, chosen) = (routing.bias.len(), routing.chosen);
        assert!((1..=all).contains(&chosen), "{chosen} of {all} experts");
        let rows = logits.len() / all;
        assert_eq!(logits.len(), rows * all);
        assert_eq!(
            (experts.len(), shares.len()),
            (rows * chosen, rows * chosen)
        );
        let isa = self.isa;
        let scores = SendPtr(logits.as_mut_ptr());
        let (experts, shares) = (SendPtr(experts.as_mut_ptr()), SendPtr(shares.as_mut_ptr()));
        self.share(rows, all, &|row| {
            // SAFETY: each slice has the row, and only this task touches it.
            let (scores, experts, shares) = unsafe {
                (
                    std::slice::from_raw_parts_mut(scores.get().add(row * all), all),
                    std::slice::from_raw_parts_mut(experts.get().add(row * chosen), chosen),
                    std::slice::from_raw_parts_mut(shares.get().add(row * chosen), chosen),
                )
            };
            // SAFETY: `Kernels::new` has checked the instruction set.
            unsafe { sigmoids(isa, scores, routing.multiplier) };
            choose(scores, routing, experts, shares);
        });
    }

    /// Adds to each row of `x` what its experts gave: [`crate::reference::add_experts`].
    ///
    /// `places` and `shares` are `rows x chosen`. Panics if `x` has another length, or if `y` lacks a place.
    pub fn add_experts(
        &self,
        x: &mut [f32],
        y: &[f32],
        norm: &PostNorm<'_>,
        places: &[u32],
        shares: &[f32],
        chosen: usize,
    ) {
        let k = norm.width();
        let rows = places.len() / chosen;
        assert_eq!((x.len(), shares.len()), (rows * k, rows * chosen));
        let (isa, to) = (self.isa, SendPtr(x.as_mut_ptr()));
        self.share(rows, k * chosen, &|row| {
            for at in row * chosen..(row + 1) * chosen {
                let y = &y[places[at] as usize * k..][..k];
                // SAFETY: `x` has the row, only this task touches it, and the factors are as wide.
                unsafe { add_normed_row(isa, to.get().add(row * k), y, norm, shares[at]) };
            }
        });
    }
}

/// Fills the experts and shares of one row.
fn choose(scores: &[f32], routing: &Routing<'_>, experts: &mut [u32], shares: &mut [f32]) {
    for taken in 0..experts.len() {
        let mut best: Option<(f32, u32)> = None;
        for (expert, (score, bias)) in (0..).zip(scores.iter().zip(routing.bias)) {
            let rank = score + bias;
            let higher = best.is_none_or(|(best, _)| rank.total_cmp(&best).is_gt());
            if higher && !experts[..taken].contains(&expert) {
                best = Some((rank, expert));
            }
        }
        experts[taken] = best.map_or(0, |(_, expert)| expert);
    }
    experts.sort_unstable();
    let of = |expert: &u32| scores[*expert as usize];
    let sum = experts.iter().fold(0f32, |sum, expert| sum + of(expert));
    for (share, expert) in shares.iter_mut().zip(&*experts) {
        *share = of(expert) / (sum + ROUTE_EPS) * routing.scale;
    }
}

per_isa! {
    /// `x = 1 / (1 + e^-(x * multiplier))`.
    unsafe fn sigmoids = sigmoids_of(x: &mut [f32], multiplier: f32);
}

/// # Safety
/// See [`Lanes`].
#[inline(always)]
unsafe fn sigmoids_of<L: Lanes>(x: &mut [f32], multiplier: f32) {
    // SAFETY: see [`Lanes`]; a chunk has all lanes.
    unsafe {
        let (one, by) = (L::splat(1.0), L::splat(multiplier));
        for chunk in x.chunks_mut(WIDTH) {
            let mut lanes = [0f32; WIDTH];
            lanes[..chunk.len()].copy_from_slice(chunk);
            let logits = L::load(lanes.as_ptr()).mul(by);
            one.div(from_sigmoid(logits)).store(lanes.as_mut_ptr());
            chunk.copy_from_slice(&lanes[..chunk.len()]);
        }
    }
}
