//! What every peer computes: `benches/peers/workload.py` in Rust.

use std::error::Error;
use std::path::Path;

use conclave_worker::model::Tokenizer;
use serde::Deserialize;
use sha2::{Digest as _, Sha256};

/// The shape of the workload, `workload.json`.
#[derive(Deserialize)]
pub struct Shape {
    pub prefill: Vec<usize>,
    pub shared: usize,
    pub agents: Vec<usize>,
    pub decode_tokens: usize,
    pub drafts: usize,
    pub draft_tokens: usize,
    pub hint_tokens: usize,
    pub cue_tokens: usize,
    pub repeats: usize,
}

/// The shape and the ids of the text.
pub struct Workload {
    pub shape: Shape,
    pub ids: Vec<u32>,
}

impl Workload {
    /// Reads `workload.json` and `text.txt` in `folder`.
    pub fn read(folder: &Path, tokenizer: &Tokenizer) -> Result<Workload, Box<dyn Error>> {
        let read = |name: &str| {
            let path = folder.join(name);
            std::fs::read_to_string(&path).map_err(|error| format!("{}: {error}", path.display()))
        };
        let shape: Shape = serde_json::from_str(&read("workload.json")?)?;
        let ids = tokenizer.encode(&read("text.txt")?, false)?;
        Ok(Workload { shape, ids })
    }

    /// Of the text's ids: equal digests, equal prompts.
    pub fn digest(&self) -> String {
        let bytes: Vec<u8> = self.ids.iter().flat_map(|id| id.to_le_bytes()).collect();
        let digest = Sha256::digest(&bytes);
        digest[..8]
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect()
    }

    fn shared(&self) -> &[u32] {
        &self.ids[..self.shape.shared]
    }

    /// The prompt of agent `agent` of the decode figures: they differ in the last token.
    pub fn decode_prompt(&self, agent: usize) -> Vec<u32> {
        [self.shared(), &[self.ids[300 + agent]]].concat()
    }

    /// The prompt of a draft: what all share, then a few words of its own.
    pub fn proposal(&self, agent: usize) -> Vec<u32> {
        let hint = self.shape.hint_tokens;
        [self.shared(), &self.ids[512 + agent * hint..][..hint]].concat()
    }

    /// The prompt of the chair: what all share, and the text of every draft.
    pub fn chair(&self, drafts: &[Vec<u32>]) -> Vec<u32> {
        let hint = self.shape.hint_tokens;
        let mut at = 512 + self.shape.drafts * hint;
        let mut ids = self.shared().to_vec();
        for draft in drafts {
            ids.extend_from_slice(&self.ids[at..][..hint]);
            ids.extend_from_slice(draft);
            at += hint;
        }
        ids.extend_from_slice(&self.ids[at..][..self.shape.cue_tokens]);
        ids
    }
}
