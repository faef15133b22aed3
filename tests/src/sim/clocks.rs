//! The members' clocks, asked when a leader doubts its own.

use conclave_coordinator_core::lead::reached;

use super::{
    coordinator::Coordinator,
    cx::{Addr, Cx, Wire},
};

/// The question under way, and the answers so far.
#[derive(Debug, Default)]
pub(super) struct Clocks {
    question: u64,
    /// Voters, and what their clocks said.
    answers: Vec<(u64, Option<i64>)>,
}

impl Coordinator {
    pub(super) fn ask_clocks(&mut self, cx: &mut Cx) {
        cx.coverage.hit("deeds", "a leader asked for the clocks");
        let voters = self.node.conf_state().voters;
        self.clocks = Clocks {
            question: cx.number(),
            answers: voters.into_iter().map(|id| (id, None)).collect(),
        };
        let question = self.clocks.question;
        for (id, _) in self.clocks.answers.clone() {
            if id != self.id {
                cx.send(self.addr(), Addr::Node(id), Wire::AskClock(question));
            }
        }
        self.clock_told(self.id, question, self.unix_ms(cx), cx);
    }

    /// A member says what time it is.
    pub(super) fn clock_told(&mut self, from: u64, question: u64, unix_ms: i64, cx: &mut Cx) {
        if question != self.clocks.question {
            return;
        }
        for (id, clock) in &mut self.clocks.answers {
            if *id == from {
                *clock = Some(unix_ms);
            }
        }
        let clocks: Vec<_> = self
            .clocks
            .answers
            .iter()
            .map(|(_, clock)| *clock)
            .collect();
        let reached_ms = reached(&clocks);
        self.with_leader(cx, |leader, moment| leader.clocks(reached_ms, moment));
        self.begin_serving(cx);
    }
}
