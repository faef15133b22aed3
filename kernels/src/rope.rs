//! Cosines and sines of rotary position embedding (arXiv 2104.09864).

/// Which elements of a head are rotated together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum RopeStyle {
    /// Element `i` with element `i + dim/2`: Hugging Face checkpoints.
    Neox,
    /// Element `2i` with element `2i + 1`: what q and k of llama-architecture GGUF files are permuted for.
    Interleaved,
}

/// Cosine and sine per position and frequency, rounded once from f64.
#[derive(Clone, Debug)]
pub struct RopeTable {
    style: RopeStyle,
    pairs: usize,
    positions: usize,
    cos: Vec<f32>,
    sin: Vec<f32>,
}

impl RopeTable {
    /// A table for heads whose first `dim` elements turn by `position / theta^(2i/dim)`.
    ///
    /// `dim` is even; positions `0..positions` can be looked up.
    pub fn new(dim: usize, theta: f64, positions: usize, style: RopeStyle) -> RopeTable {
        let inv_freq: Vec<f64> = (0..dim / 2)
            .map(|i| theta.powf(-2.0 * i as f64 / dim as f64))
            .collect();
        RopeTable::from_inv_freq(&inv_freq, positions, style)
    }

    /// A table from given frequencies in radians a position, for models that scale them.
    pub fn from_inv_freq(inv_freq: &[f64], positions: usize, style: RopeStyle) -> RopeTable {
        let angles = (0..positions).flat_map(|p| inv_freq.iter().map(move |f| p as f64 * f));
        let (sin, cos) = angles.map(|a| (a.sin() as f32, a.cos() as f32)).unzip();
        RopeTable {
            style,
            pairs: inv_freq.len(),
            positions,
            cos,
            sin,
        }
    }

    /// How the elements of a head are paired.
    pub fn style(&self) -> RopeStyle {
        self.style
    }

    /// Rotated pairs a head: half the rotated elements.
    pub fn pairs(&self) -> usize {
        self.pairs
    }

    /// Positions below this can be looked up.
    pub fn positions(&self) -> usize {
        self.positions
    }

    /// Cosines and sines at `position`, one a pair. Panics if the position is outside the table.
    pub fn at(&self, position: u32) -> (&[f32], &[f32]) {
        let start = position as usize * self.pairs;
        let range = start..start + self.pairs;
        (&self.cos[range.clone()], &self.sin[range])
    }

    /// Cosines and sines of all positions, one after another.
    pub(crate) fn all(&self) -> (&[f32], &[f32]) {
        (&self.cos, &self.sin)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn position_zero_does_not_turn() {
        let table = RopeTable::new(8, 10_000.0, 4, RopeStyle::Neox);
        let (cos, sin) = table.at(0);
        assert_eq!(cos, [1.0; 4]);
        assert_eq!(sin, [0.0; 4]);
    }

    #[test]
    fn first_pair_turns_by_one_radian_a_position() {
        let table = RopeTable::new(8, 10_000.0, 4, RopeStyle::Neox);
        let (cos, sin) = table.at(3);
        assert_eq!(cos[0], 3f64.cos() as f32);
        assert_eq!(sin[0], 3f64.sin() as f32);
    }
}
