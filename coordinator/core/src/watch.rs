//! What a watcher is sent: agents' text behind its position, and the cursor by which it comes back
//! (law 8). Text is kept where the job is led, never replicated; a new leader asks workers for it.

use std::collections::BTreeMap;

use conclave_proto::v1::{
    AgentCursor, AgentReset, TokenDelta, WatchCursor, watch_job_response::Update,
};
use prost::{DecodeError, Message as _};

/// Bytes of text kept for one attempt; a longer one loses its beginning.
pub const MAX_TEXT: usize = 1 << 20;

/// How far a watcher has read one agent's text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Position {
    /// The attempt whose text it is.
    pub attempt: u32,
    /// The next token.
    pub offset: u32,
}

/// Watchers' positions by agent.
pub type Positions = BTreeMap<u32, Position>;

/// Where a watcher stands: opaque to callers, and good at every node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Cursor {
    /// The last replicated event that was sent; 0 before the first.
    pub event: u64,
    /// The text that was sent.
    pub positions: Positions,
}

impl Cursor {
    /// The cursor in these bytes.
    ///
    /// # Errors
    /// They are not what [`Cursor::encode`] gave.
    pub fn decode(bytes: &[u8]) -> Result<Cursor, DecodeError> {
        let cursor = WatchCursor::decode(bytes)?;
        let position = |a: AgentCursor| {
            let (attempt, offset) = (a.attempt, a.offset);
            (a.agent, Position { attempt, offset })
        };
        Ok(Cursor {
            event: cursor.event,
            positions: cursor.agents.into_iter().map(position).collect(),
        })
    }

    /// The bytes that a caller keeps.
    pub fn encode(&self) -> Vec<u8> {
        let agent = |(agent, p): (&u32, &Position)| AgentCursor {
            agent: *agent,
            attempt: p.attempt,
            offset: p.offset,
        };
        let agents = self.positions.iter().map(agent).collect();
        let event = self.event;
        WatchCursor { event, agents }.encode_to_vec()
    }

    /// Moves behind an update.
    pub fn pass(&mut self, update: &Update) {
        let (agent, attempt, offset) = match update {
            Update::Event(event) => {
                self.event = event.index;
                return;
            }
            Update::Tokens(t) => (t.agent, t.attempt, t.offset.saturating_add(t.tokens)),
            Update::Reset(r) => (r.agent, r.attempt, 0),
            Update::Done(_) => return,
        };
        self.positions.insert(agent, Position { attempt, offset });
    }
}

/// The text of one agent's current attempt.
#[derive(Debug, Default)]
struct Text {
    attempt: u32,
    deltas: Vec<TokenDelta>,
    bytes: usize,
}

impl Text {
    fn of(attempt: u32) -> Text {
        Text {
            attempt,
            ..Text::default()
        }
    }

    fn end(&self) -> u32 {
        self.deltas.last().map_or(0, |d| d.offset + d.tokens)
    }

    /// The pieces from `offset` on: they lie in order.
    fn behind(&self, offset: u32) -> &[TokenDelta] {
        let from = self.deltas.partition_point(|d| d.offset < offset);
        &self.deltas[from..]
    }

    /// No piece of the text begins where this position is, though one lies around or behind it.
    fn is_broken_at(&self, offset: u32) -> bool {
        let first = self.deltas.first().map_or(0, |d| d.offset);
        let before = &self.deltas[..self.deltas.len() - self.behind(offset).len()];
        let around = |d: &TokenDelta| offset < d.offset + d.tokens;
        offset < first || before.last().is_some_and(around)
    }
}

/// What became of a piece of text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pushed {
    /// It is here: watchers may read it.
    Taken,
    /// It was known, or belongs to an older attempt.
    Dropped,
    /// Pieces before it are missing: ask again from this offset.
    Missing(u32),
}

/// The text of one live job's current attempts.
#[derive(Debug, Default)]
pub struct Texts(BTreeMap<u32, Text>);

impl Texts {
    /// A new attempt begins: what watchers hold of an older one is void. False if it is known.
    pub fn begin(&mut self, agent: u32, attempt: u32) -> bool {
        let text = self.0.entry(agent).or_default();
        let new = attempt > text.attempt;
        if new {
            *text = Text::of(attempt);
        }
        new
    }

    /// Takes a piece of text from a worker. A piece of no token, which no position could lie behind, or
    /// beyond the last token that can be counted, is dropped.
    pub fn push(&mut self, delta: TokenDelta) -> Pushed {
        if delta.tokens == 0 || delta.offset.checked_add(delta.tokens).is_none() {
            return Pushed::Dropped;
        }
        let text = self.0.entry(delta.agent).or_default();
        if delta.attempt < text.attempt {
            return Pushed::Dropped;
        }
        if delta.attempt > text.attempt {
            *text = Text::of(delta.attempt);
        }
        let end = text.end();
        if delta.offset + delta.tokens <= end {
            return Pushed::Dropped;
        }
        if delta.offset != end {
            // Cut back to where both agree; ask for what is missing.
            text.deltas.retain(|d| d.offset + d.tokens <= delta.offset);
            text.bytes = text.deltas.iter().map(|d| d.text.len()).sum();
            let end = text.end();
            if delta.offset != end {
                return Pushed::Missing(end);
            }
        }
        text.bytes += delta.text.len();
        text.deltas.push(delta);
        while text.bytes > MAX_TEXT && text.deltas.len() > 1 {
            text.bytes -= text.deltas.remove(0).text.len();
        }
        Pushed::Taken
    }

    /// What lies behind `positions`, up to `most` bytes of text and a piece; they move past it. Nothing, if
    /// nothing does. Neighbouring pieces of one phase come as one. Where a position does not fit the text, a
    /// reset comes first, and all of it again; a watcher that has seen a later attempt elsewhere is sent
    /// nothing of an earlier one.
    pub fn read(&self, positions: &mut Positions, most: usize) -> Vec<Update> {
        let (mut updates, mut bytes) = (Vec::new(), 0);
        for (&agent, text) in &self.0 {
            let attempt = text.attempt;
            let fresh = Position { attempt, offset: 0 };
            let known = positions.get(&agent).copied();
            let mut at = known.unwrap_or(fresh);
            if at.attempt > attempt {
                continue;
            }
            if at.attempt != attempt || text.is_broken_at(at.offset) {
                at = fresh;
                updates.push(Update::Reset(AgentReset { agent, attempt }));
            }
            for delta in text.behind(at.offset) {
                if bytes >= most {
                    break;
                }
                bytes += delta.text.len();
                at.offset = delta.offset + delta.tokens;
                match updates.last_mut() {
                    Some(Update::Tokens(last)) if joins(last, delta) => join(last, delta),
                    _ => updates.push(Update::Tokens(delta.clone())),
                }
            }
            positions.insert(agent, at);
        }
        updates
    }

    /// Bytes of text held.
    pub fn bytes(&self) -> usize {
        self.0.values().map(|text| text.bytes).sum()
    }
}

fn joins(last: &TokenDelta, next: &TokenDelta) -> bool {
    last.agent == next.agent
        && last.attempt == next.attempt
        && last.thought == next.thought
        && last.offset + last.tokens == next.offset
}

fn join(last: &mut TokenDelta, next: &TokenDelta) {
    last.tokens += next.tokens;
    last.text.push_str(&next.text);
    last.confidence_micro = next.confidence_micro;
    last.cached_tokens = next.cached_tokens;
    last.prompt_tokens = next.prompt_tokens;
}

#[cfg(test)]
mod tests;
