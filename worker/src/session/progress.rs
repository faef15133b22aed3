//! The text of one attempt as it grew, and how much of it the leader has been sent.
//!
//! Text is pulled when the stream has room, merged into as few deltas as possible: a slow link gets
//! fewer and larger ones, and never holds up the engine.

use std::collections::VecDeque;

use conclave_proto::v1::TokenDelta;

/// Text of one message, bytes.
const MESSAGE_BYTES: usize = 16 * 1024;

/// Text kept of one attempt, bytes, and pieces. Beyond, the oldest go.
const KEPT_BYTES: usize = 1024 * 1024;
const KEPT_PIECES: usize = 32 * 1024;

/// The deltas of one attempt, in the order of their offsets.
#[derive(Debug, Default)]
pub struct DeltaLog {
    pieces: VecDeque<TokenDelta>,
    bytes: usize,
    /// How many of `pieces` have been sent.
    sent: usize,
    cached_tokens: u32,
}

impl DeltaLog {
    /// The sequence started with so many prompt tokens found in the cache.
    pub fn started(&mut self, cached_tokens: u32) {
        self.cached_tokens = cached_tokens;
    }

    /// New text.
    pub fn push(&mut self, delta: TokenDelta) {
        self.bytes += delta.text.len();
        self.pieces.push_back(delta);
        while self.bytes > KEPT_BYTES || self.pieces.len() > KEPT_PIECES {
            let Some(oldest) = self.pieces.pop_front() else {
                break;
            };
            self.bytes -= oldest.text.len();
            self.sent = self.sent.saturating_sub(1);
        }
    }

    /// Whether there is text to send.
    pub fn pending(&self) -> bool {
        self.sent < self.pieces.len()
    }

    /// What has not been sent, as much of it as goes into one message: one phase, up to 16 KiB.
    pub fn take(&mut self) -> Option<TokenDelta> {
        let mut merged = self.pieces.get(self.sent)?.clone();
        self.sent += 1;
        while let Some(piece) = self.pieces.get(self.sent) {
            let joins =
                piece.thought == merged.thought && piece.offset == merged.offset + merged.tokens;
            if !joins || merged.text.len() + piece.text.len() > MESSAGE_BYTES {
                break;
            }
            merged.tokens += piece.tokens;
            merged.text.push_str(&piece.text);
            merged.confidence_micro = piece.confidence_micro;
            merged.prompt_tokens = piece.prompt_tokens;
            self.sent += 1;
        }
        merged.cached_tokens = self.cached_tokens;
        Some(merged)
    }

    /// Text from the token at `offset` on is sent again; from an earlier one where a piece begins
    /// earlier.
    pub fn rewind(&mut self, offset: u32) {
        let before =
            |piece: &TokenDelta| piece.offset + piece.tokens <= offset && piece.offset < offset;
        self.sent = self.pieces.partition_point(before).min(self.sent);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn piece(offset: u32, text: &str, thought: bool) -> TokenDelta {
        TokenDelta {
            offset,
            tokens: 1,
            text: text.into(),
            thought,
            ..TokenDelta::default()
        }
    }

    fn log() -> DeltaLog {
        let mut log = DeltaLog::default();
        for (offset, text) in ["a", "b", "c", "d"].into_iter().enumerate() {
            log.push(piece(offset as u32, text, offset < 2));
        }
        log
    }

    #[test]
    fn unsent_text_is_merged_but_never_across_phases() {
        let mut log = log();
        let (first, second) = (log.take().unwrap(), log.take().unwrap());
        assert_eq!(
            (
                first.text.as_str(),
                first.offset,
                first.tokens,
                first.thought
            ),
            ("ab", 0, 2, true)
        );
        assert_eq!(
            (
                second.text.as_str(),
                second.offset,
                second.tokens,
                second.thought
            ),
            ("cd", 2, 2, false)
        );
        assert!(log.take().is_none() && !log.pending());
    }

    #[test]
    fn a_resend_starts_at_the_token_asked_for() {
        for (offset, text) in [(0, "ab"), (1, "b"), (2, "cd"), (3, "d")] {
            let mut log = log();
            while log.take().is_some() {}
            log.rewind(offset);
            assert_eq!(log.take().unwrap().text, text, "from {offset}");
        }
        let mut log = log();
        while log.take().is_some() {}
        log.rewind(4);
        assert!(!log.pending());
    }

    #[test]
    fn a_resend_of_what_was_not_sent_yet_skips_nothing() {
        let mut log = log();
        log.rewind(3);
        assert_eq!(log.take().unwrap().offset, 0);
    }

    #[test]
    fn the_log_is_bounded() {
        let mut log = DeltaLog::default();
        for offset in 0..5 {
            log.push(piece(offset, &"x".repeat(KEPT_BYTES / 4), false));
        }
        assert!(log.bytes <= KEPT_BYTES);
        assert_eq!(log.take().unwrap().offset, 1);
    }
}
