//! The order in which an [`Output`] is carried out, told once: the coordinator and the simulator lend it
//! their [`Hands`], so that what is simulated is what runs.
//!
//! 1. [`begin`] sends what need not wait; the caller writes what it returns (fsync if `must_sync`; a
//!    failed write ends the process) and, for a snapshot, fetches the state behind its manifest;
//! 2. [`finish`] sends what waited for the write, says that it is done, applies, answers.

use raft::eraftpb::{ConfState, Message};

use super::{Committed, Node, NodeError, Output, Payload, Persist, ReadState};
use crate::State;

/// Whoever carries out what a node says.
pub trait Hands: Sized {
    /// What ends it.
    type Stop;

    /// The node.
    fn node(&mut self) -> &mut Node;

    /// The state that its entries are applied to.
    fn state(&mut self) -> &mut State;

    /// Sends to other members.
    fn send(&mut self, messages: Vec<Message>);

    /// A snapshot from the leader stands for all that was applied.
    fn replace(&mut self, state: State);

    /// Applies the command of an entry, and tells whoever waits for it.
    ///
    /// # Errors
    /// This program cannot read the command.
    fn command(&mut self, at: (u64, u64), context: &[u8], data: &[u8]) -> Result<(), Self::Stop>;

    /// A change of members was made, or refused.
    fn members_changed(&mut self, context: &[u8], result: Result<ConfState, NodeError>);

    /// All that was committed is applied.
    fn applied(&mut self);

    /// Reads may be served once their index is applied.
    fn confirmed(&mut self, reads: Vec<ReadState>);

    /// Role, term or leader changed.
    fn leadership_changed(&mut self);

    /// Applies entries, in order: [`apply_all`], with whatever else the hands do then.
    ///
    /// # Errors
    /// As [`Hands::command`].
    fn apply_all(&mut self, entries: Vec<Committed>) -> Result<(), Self::Stop> {
        apply_all(self, entries)
    }

    /// Applies one entry: [`apply`], with whatever else the hands do then.
    ///
    /// # Errors
    /// As [`Hands::command`].
    fn apply(&mut self, entry: Committed) -> Result<(), Self::Stop> {
        apply(self, entry)
    }
}

/// What of an output waits for its write.
#[derive(Debug)]
pub struct Written {
    number: u64,
    messages: Vec<Message>,
    committed: Vec<Committed>,
    reads: Vec<ReadState>,
    leadership_changed: bool,
}

/// Sends what need not wait; returns what is to be written, and what follows.
pub fn begin(hands: &mut impl Hands, output: Output) -> (Persist, Written) {
    hands.send(output.messages);
    let written = Written {
        number: output.number,
        messages: output.after_persist,
        committed: output.committed,
        reads: output.reads,
        leadership_changed: output.leadership.is_some(),
    };
    (output.persist, written)
}

/// What was to be written is; `received` is the state behind its snapshot, if there was one.
///
/// # Errors
/// As [`Hands::command`].
pub fn finish<H: Hands>(
    hands: &mut H,
    written: Written,
    received: Option<State>,
) -> Result<(), H::Stop> {
    let replaced = received.is_some();
    if let Some(state) = received {
        hands.replace(state);
    }
    hands.send(written.messages);
    hands.node().persisted(written.number);
    if replaced {
        note_applied(hands);
    }
    if !written.committed.is_empty() {
        hands.apply_all(written.committed)?;
    }
    hands.confirmed(written.reads);
    if written.leadership_changed {
        hands.leadership_changed();
    }
    Ok(())
}

/// Applies entries, in order; a snapshot that was just installed may stand behind some.
///
/// # Errors
/// As [`Hands::command`].
pub fn apply_all<H: Hands>(hands: &mut H, entries: Vec<Committed>) -> Result<(), H::Stop> {
    for entry in entries {
        if entry.index > hands.state().applied_index() {
            hands.apply(entry)?;
        }
    }
    note_applied(hands);
    hands.applied();
    Ok(())
}

/// Applies one entry.
///
/// # Errors
/// As [`Hands::command`].
pub fn apply<H: Hands>(hands: &mut H, entry: Committed) -> Result<(), H::Stop> {
    let Committed {
        index,
        term,
        payload,
    } = entry;
    match payload {
        Payload::Empty => hands.state().skip(index, term),
        Payload::Command { context, data } => hands.command((index, term), &context, &data)?,
        Payload::Conf { context, change } => {
            hands.state().skip(index, term);
            let result = hands.node().apply_conf(&change);
            hands.members_changed(&context, result);
        }
    }
    Ok(())
}

fn note_applied(hands: &mut impl Hands) {
    let index = hands.state().applied_index();
    hands.node().applied(index);
}
