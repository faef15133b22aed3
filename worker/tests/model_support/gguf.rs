//! Writes GGUF files.

use super::{DIM, EPS, FFN, HEADS, HIDDEN, KV_HEADS, LAYERS, Numbers, THETA, VOCAB, weights};

/// A file to be written: tests change what they want to be wrong.
#[derive(Clone)]
pub struct File {
    /// Key, type number, encoded value.
    pub metadata: Vec<(String, u32, Vec<u8>)>,
    /// Name, dimensions (columns first, as in the file), type number, data.
    pub tensors: Vec<(String, Vec<u64>, u32, Vec<u8>)>,
}

pub fn text(value: &str) -> Vec<u8> {
    [&(value.len() as u64).to_le_bytes(), value.as_bytes()].concat()
}

fn array(kind: u32, count: usize, items: Vec<u8>) -> Vec<u8> {
    [
        &kind.to_le_bytes()[..],
        &(count as u64).to_le_bytes(),
        &items,
    ]
    .concat()
}

fn texts(items: &[String]) -> Vec<u8> {
    array(
        8,
        items.len(),
        items.iter().flat_map(|item| text(item)).collect(),
    )
}

/// GPT-2's character of each byte.
pub fn alphabet() -> Vec<String> {
    let mut next = 256u32;
    let mut character = |byte: u32| match byte {
        0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff => char::from_u32(byte),
        _ => {
            next += 1;
            char::from_u32(next - 1)
        }
    };
    (0..256)
        .map(|byte| character(byte).unwrap().to_string())
        .collect()
}

/// All bytes, three merges, and three marks.
pub fn vocabulary() -> (Vec<String>, Vec<String>) {
    let mut tokens = alphabet();
    tokens.extend(["he", "ll", "hell", "<|begin|>", "<|im_end|>", "<think>"].map(str::to_owned));
    (tokens, ["h e", "l l", "he ll"].map(str::to_owned).to_vec())
}

impl File {
    /// A small llama model whose matrices have type `ggml_type`.
    pub fn llama(ggml_type: u32, tied: bool) -> File {
        let mut file = File {
            metadata: Vec::new(),
            tensors: Vec::new(),
        };
        file.text("general.architecture", "llama");
        file.text("general.name", "small");
        for (key, value) in [
            ("block_count", LAYERS),
            ("context_length", 512),
            ("embedding_length", HIDDEN),
            ("feed_forward_length", FFN),
            ("attention.head_count", HEADS),
            ("attention.head_count_kv", KV_HEADS),
        ] {
            file.u32(&format!("llama.{key}"), value as u32);
        }
        file.f32("llama.attention.layer_norm_rms_epsilon", EPS);
        file.f32("llama.rope.freq_base", THETA as f32);
        file.tokenizer();
        file.weights(ggml_type, tied);
        file
    }

    fn tokenizer(&mut self) {
        let (tokens, merges) = vocabulary();
        let types: Vec<i32> = (0..tokens.len())
            .map(|id| if id < 259 { 1 } else { 3 })
            .collect();
        self.text("tokenizer.ggml.model", "gpt2");
        self.text("tokenizer.ggml.pre", "smollm");
        self.put("tokenizer.ggml.tokens", 9, texts(&tokens));
        let types: Vec<u8> = types.iter().flat_map(|ty| ty.to_le_bytes()).collect();
        self.put(
            "tokenizer.ggml.token_type",
            9,
            array(5, tokens.len(), types),
        );
        self.put("tokenizer.ggml.merges", 9, texts(&merges));
        self.u32("tokenizer.ggml.bos_token_id", 259);
        self.u32("tokenizer.ggml.eos_token_id", 260);
        self.text(
            "tokenizer.chat_template",
            "{% for m in messages %}{{ m.role }}: {{ m.content }}<|im_end|>{% endfor %}",
        );
    }

    /// A SentencePiece vocabulary in place of the byte-level one: text, score, type.
    pub fn sentence_piece(&mut self, pieces: &[(&str, f32, u32)]) {
        let tokens: Vec<String> = pieces.iter().map(|piece| piece.0.to_owned()).collect();
        let scores: Vec<u8> = pieces
            .iter()
            .flat_map(|piece| piece.1.to_le_bytes())
            .collect();
        let types: Vec<u8> = pieces
            .iter()
            .flat_map(|piece| piece.2.to_le_bytes())
            .collect();
        self.text("tokenizer.ggml.model", "llama");
        self.remove("tokenizer.ggml.pre");
        self.remove("tokenizer.ggml.merges");
        self.put("tokenizer.ggml.tokens", 9, texts(&tokens));
        self.put("tokenizer.ggml.scores", 9, array(6, tokens.len(), scores));
        self.put(
            "tokenizer.ggml.token_type",
            9,
            array(5, tokens.len(), types),
        );
        self.u32("tokenizer.ggml.bos_token_id", 1);
        self.u32("tokenizer.ggml.eos_token_id", 2);
    }

    fn weights(&mut self, ty: u32, tied: bool) {
        let mut numbers = Numbers(u64::from(ty) + 7);
        let mut matrix = |name: String, rows: usize, columns: usize| {
            let data = weights(&mut numbers, ty, rows * columns);
            self.tensors
                .push((name, vec![columns as u64, rows as u64], ty, data));
        };
        matrix("token_embd.weight".into(), VOCAB, HIDDEN);
        if !tied {
            matrix("output.weight".into(), VOCAB, HIDDEN);
        }
        for layer in 0..LAYERS {
            for (part, rows, columns) in [
                ("attn_q", HEADS * DIM, HIDDEN),
                ("attn_k", KV_HEADS * DIM, HIDDEN),
                ("attn_v", KV_HEADS * DIM, HIDDEN),
                ("attn_output", HIDDEN, HEADS * DIM),
                ("ffn_gate", FFN, HIDDEN),
                ("ffn_up", FFN, HIDDEN),
                ("ffn_down", HIDDEN, FFN),
            ] {
                matrix(format!("blk.{layer}.{part}.weight"), rows, columns);
            }
        }
        let mut norm = |name: String| {
            let ones = (0..HIDDEN).flat_map(|_| (1.0 + 0.1 * numbers.unit()).to_le_bytes());
            self.tensors
                .push((name, vec![HIDDEN as u64], 0, ones.collect()));
        };
        norm("output_norm.weight".into());
        for layer in 0..LAYERS {
            norm(format!("blk.{layer}.attn_norm.weight"));
            norm(format!("blk.{layer}.ffn_norm.weight"));
        }
    }

    pub fn put(&mut self, key: &str, kind: u32, value: Vec<u8>) {
        self.remove(key);
        self.metadata.push((key.to_owned(), kind, value));
    }

    pub fn remove(&mut self, key: &str) {
        self.metadata.retain(|(name, ..)| name != key);
    }

    pub fn text(&mut self, key: &str, value: &str) {
        self.put(key, 8, text(value));
    }

    pub fn u32(&mut self, key: &str, value: u32) {
        self.put(key, 4, value.to_le_bytes().to_vec());
    }

    pub fn f32(&mut self, key: &str, value: f32) {
        self.put(key, 6, value.to_le_bytes().to_vec());
    }

    /// The tensor of this name, to be changed.
    pub fn tensor(&mut self, name: &str) -> &mut (String, Vec<u64>, u32, Vec<u8>) {
        self.tensors
            .iter_mut()
            .find(|tensor| tensor.0 == name)
            .unwrap()
    }

    /// The bytes of the file, and how many of them are header.
    pub fn encode(&self) -> (Vec<u8>, usize) {
        let mut out = b"GGUF".to_vec();
        out.extend(3u32.to_le_bytes());
        out.extend((self.tensors.len() as u64).to_le_bytes());
        out.extend((self.metadata.len() as u64).to_le_bytes());
        for (key, kind, value) in &self.metadata {
            out.extend(text(key));
            out.extend(kind.to_le_bytes());
            out.extend(value);
        }
        let mut offset = 0u64;
        for (name, dims, ty, data) in &self.tensors {
            out.extend(text(name));
            out.extend((dims.len() as u32).to_le_bytes());
            dims.iter().for_each(|dim| out.extend(dim.to_le_bytes()));
            out.extend(ty.to_le_bytes());
            out.extend(offset.to_le_bytes());
            offset = (offset + data.len() as u64).next_multiple_of(32);
        }
        let header = out.len();
        for (.., data) in &self.tensors {
            out.resize(out.len().next_multiple_of(32), 0);
            out.extend(data);
        }
        (out, header)
    }
}
