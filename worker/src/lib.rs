//! Worker shell: device, model, tokenizer, session.
pub mod model;
