//! What watchers are sent: text by token offsets, so that any part can be sent again.

use super::Generation;

/// A run of ids of one phase, and the text that became certain with them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Delta {
    /// The first id's place among the generated ones.
    pub offset: u32,
    /// How many ids.
    pub tokens: u32,
    /// May be empty: injected ids, marks and held-back text add none.
    pub text: String,
    /// Whether the ids belong to the thought.
    pub thought: bool,
    /// The latest window's confidence when the delta was made, in millionths of a nat.
    pub confidence_micro: i64,
}

impl Generation {
    /// What came since the last call; one phase at a time, so call it until there is none.
    pub fn take_delta(&mut self) -> Option<Delta> {
        let delta = self.delta(self.taken)?;
        self.taken += delta.tokens as usize;
        Some(delta)
    }

    /// Everything from the id at `offset` on, one delta a phase. Does not change what
    /// [`Generation::take_delta`] gives.
    pub fn deltas_from(&self, offset: usize) -> Vec<Delta> {
        let mut deltas = Vec::new();
        let mut at = offset;
        while let Some(delta) = self.delta(at) {
            at += delta.tokens as usize;
            deltas.push(delta);
        }
        deltas
    }

    /// From the id at `from` to the end of its phase, as far as there is one.
    fn delta(&self, from: usize) -> Option<Delta> {
        let thought_len = self.thought_len();
        let thought = from < thought_len;
        let (begin, end, text) = if thought {
            (0, thought_len, self.thought_text())
        } else {
            (thought_len, self.ids.len(), self.answer_text())
        };
        if from >= end {
            return None;
        }
        let start = if from > begin {
            self.marks[from - 1]
        } else {
            0
        };
        let text = text.get(start as usize..self.marks[end - 1] as usize);
        Some(Delta {
            offset: from as u32,
            tokens: (end - from) as u32,
            text: text.unwrap_or_default().to_owned(),
            thought,
            confidence_micro: self.confidence.latest(),
        })
    }
}
