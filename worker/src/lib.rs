//! Worker shell: device, model, tokenizer, session.
