//! What is known of a running job, kept from the updates of a watch. Pure:
//! time arrives with the update.
use std::{collections::BTreeMap, time::Duration};

use conclave_proto::v1::{
    AgentState, AgentStatus, JobState, Role, TokenDelta, job_event::Event,
    watch_job_response::Update,
};

use unicode_width::UnicodeWidthStr as _;

use super::names;

/// One agent as far as the stream has told.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct AgentRow {
    /// What it is for.
    pub role: Role,
    /// Its round, from 0.
    pub round: u32,
    /// Where it stands.
    pub state: AgentState,
    /// Which attempt this row shows; 0 before the first placement.
    pub attempt: u32,
    /// Worker that the attempt was placed on.
    pub worker: String,
    /// Generated tokens so far.
    pub tokens: u64,
    /// Mean or latest window confidence, millionths of a nat.
    pub confidence_micro: Option<i64>,
    /// Prompt tokens, and how many of them the prefix cache held.
    pub prompt: (u64, u64),
    /// It is still thinking.
    pub thought: bool,
    /// Its newest text, one line, bounded.
    pub tail: String,
    /// Tokens known when the first delta of the attempt arrived, and when.
    started: Option<(u64, Duration)>,
    last: Option<Duration>,
    /// Why it failed.
    pub error: String,
}

/// Shortest time over which a speed is told, seconds: text that a watch catches up on arrives
/// at once and says nothing of speed.
const MEASURED: f64 = 0.5;
/// Longest tail kept, characters.
const TAIL: usize = 160;

impl AgentRow {
    /// Tokens per second between the first and the latest text seen of this
    /// attempt; `None` until there are two moments to compare.
    pub fn tokens_per_second(&self) -> Option<f64> {
        let (first_tokens, first) = self.started?;
        let seconds = self.last?.checked_sub(first)?.as_secs_f64();
        (seconds >= MEASURED && self.tokens > first_tokens)
            .then(|| (self.tokens - first_tokens) as f64 / seconds)
    }

    fn begin(&mut self, attempt: u32) {
        if attempt > self.attempt {
            *self = Self {
                role: self.role,
                round: self.round,
                state: self.state,
                attempt,
                ..Self::default()
            };
        }
    }

    fn status(&mut self, status: &AgentStatus) {
        self.begin(status.attempt);
        self.role = status.role();
        self.round = status.round;
        self.state = status.state();
        self.worker.clone_from(&status.worker);
        self.error = flat(&status.error).collect();
        if let Some(draft) = &status.draft {
            self.confidence_micro = Some(draft.confidence_micro);
            if let Some(usage) = &draft.usage {
                self.tokens = usage.thought_tokens + usage.answer_tokens;
                self.prompt = (usage.prompt_tokens, usage.cached_tokens);
            }
        }
    }

    fn delta(&mut self, delta: &TokenDelta, now: Duration) {
        self.begin(delta.attempt);
        let end = u64::from(delta.offset) + u64::from(delta.tokens);
        // Resent after a failover, or of an attempt that is history.
        if delta.attempt < self.attempt || end <= self.tokens {
            return;
        }
        self.tokens = end;
        self.thought = delta.thought;
        self.confidence_micro = Some(delta.confidence_micro);
        if delta.prompt_tokens > 0 {
            self.prompt = (
                u64::from(delta.prompt_tokens),
                u64::from(delta.cached_tokens),
            );
        }
        self.started.get_or_insert((end, now));
        self.last = Some(now);
        self.push_tail(&delta.text);
    }

    fn push_tail(&mut self, text: &str) {
        for c in flat(text) {
            if !(c == ' ' && self.tail.ends_with(' ')) {
                self.tail.push(c);
            }
        }
        let excess = self.tail.chars().count().saturating_sub(TAIL);
        if excess > 0 {
            self.tail = self.tail.chars().skip(excess).collect();
        }
    }
}

/// One job as far as the stream has told.
#[derive(Debug, Default)]
pub struct Progress {
    /// Its state.
    pub state: JobState,
    /// Its agents by number.
    pub agents: BTreeMap<u32, AgentRow>,
    /// The newest message, e.g. why it is DEGRADED.
    pub message: String,
    /// Index of the newest state event; they have no gaps.
    pub event_index: u64,
}

/// What an update changed, for renderers that print changes.
#[derive(Debug, PartialEq, Eq)]
pub enum Change {
    /// Nothing that a line-by-line view shows.
    Quiet,
    /// The job's state.
    State(JobState),
    /// This agent's state.
    Agent(u32),
    /// The job's message.
    Message,
    /// A new attempt of this agent began.
    Reset(u32),
}

impl Progress {
    /// Takes the next update, which arrived at `now` (since any fixed moment).
    pub fn apply(&mut self, update: &Update, now: Duration) -> Change {
        match update {
            Update::Event(event) => {
                self.event_index = event.index;
                match &event.event {
                    Some(Event::State(state)) => {
                        self.enter(JobState::try_from(*state).unwrap_or_default())
                    }
                    Some(Event::Agent(status)) => {
                        let row = self.agents.entry(status.agent).or_default();
                        let before = (row.state, row.attempt);
                        row.status(status);
                        if before == (row.state, row.attempt) {
                            Change::Quiet
                        } else {
                            Change::Agent(status.agent)
                        }
                    }
                    Some(Event::Message(message)) => {
                        self.message = flat(message).collect();
                        Change::Message
                    }
                    Some(Event::Answer(_)) | None => Change::Quiet,
                }
            }
            Update::Tokens(delta) => {
                self.agents
                    .entry(delta.agent)
                    .or_default()
                    .delta(delta, now);
                Change::Quiet
            }
            Update::Reset(reset) => {
                let row = self.agents.entry(reset.agent).or_default();
                let before = row.attempt;
                row.begin(reset.attempt);
                // The first attempt, or one that goes on under a new leader, starts nothing over.
                if before == 0 || row.attempt == before {
                    Change::Quiet
                } else {
                    Change::Reset(reset.agent)
                }
            }
            Update::Done(job) => {
                for status in &job.agents {
                    self.agents.entry(status.agent).or_default().status(status);
                }
                self.message = flat(&job.message).collect();
                self.enter(job.state())
            }
        }
    }

    fn enter(&mut self, state: JobState) -> Change {
        let changed = self.state != state;
        self.state = state;
        if changed {
            Change::State(state)
        } else {
            Change::Quiet
        }
    }

    /// Generated tokens of all agents.
    pub fn tokens(&self) -> u64 {
        self.agents.values().map(|row| row.tokens).sum()
    }

    /// Agents that are decoding now.
    pub fn running(&self) -> usize {
        self.agents
            .values()
            .filter(|row| row.state == AgentState::Running)
            .count()
    }

    /// The header: state, agents, tokens, and `leader` if it is known.
    pub fn header(&self, leader: Option<&str>) -> String {
        format!(
            "{}  leader {}  {} agents, {} running  {} tokens",
            names::job_state(self.state)
                .to_lowercase()
                .replace('_', " "),
            leader.unwrap_or("?"),
            self.agents.len(),
            self.running(),
            self.tokens(),
        )
    }
}

/// One agent on one line of at most `width` columns: number, role, state,
/// tokens, tokens/s, confidence, and as much of its newest text as fits.
pub fn line(agent: u32, row: &AgentRow, width: usize) -> String {
    let speed = row
        .tokens_per_second()
        .map_or_else(|| "-".to_owned(), |speed| format!("{speed:.1}"));
    let confidence = row.confidence_micro.map_or_else(
        || "-".to_owned(),
        |micro| format!("{:.2}", names::nats(micro)),
    );
    let state = match row.state {
        AgentState::Running if row.thought => "thinking".to_owned(),
        state => names::agent_state(state).to_lowercase(),
    };
    let mut text = format!(
        "#{agent:<3}{:<9} {state:<10}{:>4} tok {speed:>6} tok/s  conf {confidence:>6}",
        names::role(row.role).to_lowercase(),
        row.tokens,
    );
    if row.attempt > 1 {
        text.push_str(&format!("  attempt {}", row.attempt));
    }
    // Bounded, since errors are not and every update redraws.
    let error: String = row.error.chars().take(TAIL).collect();
    let shown = if error.is_empty() {
        row.tail.trim()
    } else {
        error.as_str()
    };
    let room = width.saturating_sub(text.width() + 3);
    if room >= 8 && !shown.is_empty() {
        text.push_str("  ");
        text.push_str(fitting_end(shown, room));
    }
    fitting_start(&text, width).to_owned()
}

/// On one line: what moves a terminal's cursor becomes a space.
fn flat(text: &str) -> impl Iterator<Item = char> {
    text.chars().map(|c| {
        if c.is_whitespace() || c.is_control() {
            ' '
        } else {
            c
        }
    })
}

/// The longest beginning that takes at most `room` columns.
fn fitting_start(text: &str, room: usize) -> &str {
    let mut end = text.len();
    while text[..end].width() > room {
        end -= text[..end].chars().next_back().map_or(1, char::len_utf8);
    }
    &text[..end]
}

/// The longest end that takes at most `room` columns.
fn fitting_end(text: &str, room: usize) -> &str {
    let mut start = 0;
    while text[start..].width() > room {
        start += text[start..].chars().next().map_or(1, char::len_utf8);
    }
    &text[start..]
}

#[cfg(test)]
mod tests {
    use conclave_proto::v1::{AgentReset, Draft, Job, JobEvent, Usage};

    use super::*;

    fn event(event: Event) -> Update {
        Update::Event(JobEvent {
            index: 1,
            unix_ms: 0,
            event: Some(event),
        })
    }

    fn status(agent: u32, state: AgentState, attempt: u32) -> AgentStatus {
        let mut status = AgentStatus {
            agent,
            attempt,
            worker: "w1".into(),
            ..Default::default()
        };
        status.set_state(state);
        status.set_role(Role::Proposer);
        status
    }

    fn delta(attempt: u32, offset: u32, tokens: u32, text: &str) -> Update {
        Update::Tokens(TokenDelta {
            agent: 1,
            attempt,
            offset,
            tokens,
            text: text.into(),
            confidence_micro: 12_340_000,
            prompt_tokens: 40,
            cached_tokens: 32,
            ..Default::default()
        })
    }

    #[test]
    fn an_error_cannot_move_the_cursor() {
        let mut progress = Progress::default();
        let mut failed = status(1, AgentState::Failed, 1);
        failed.error = "gone\x1b[2J\r\nagain".into();
        progress.apply(&event(Event::Agent(failed)), ms(0));
        let line = line(1, &progress.agents[&1], 200);
        assert!(line.contains("gone [2J  again"), "{line}");
        assert!(!line.contains(char::is_control), "{line}");
    }

    const fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    #[test]
    fn speed_counts_from_the_first_text_of_the_attempt() {
        let mut progress = Progress::default();
        progress.apply(&delta(1, 0, 2, "a"), ms(1000));
        assert_eq!(progress.agents[&1].tokens_per_second(), None);
        progress.apply(&delta(1, 2, 20, "b"), ms(3000));
        assert_eq!(progress.agents[&1].tokens_per_second(), Some(10.0));
        assert_eq!(progress.tokens(), 22);
        assert_eq!(progress.agents[&1].prompt, (40, 32));
    }

    #[test]
    fn text_that_was_resent_counts_once() {
        let mut progress = Progress::default();
        progress.apply(&delta(1, 0, 4, "abcd"), ms(0));
        progress.apply(&delta(1, 0, 4, "abcd"), ms(1));
        assert_eq!(
            (progress.tokens(), progress.agents[&1].tail.as_str()),
            (4, "abcd")
        );
    }

    #[test]
    fn a_new_attempt_forgets_the_old_ones_text_and_ignores_its_stragglers() {
        let mut progress = Progress::default();
        progress.apply(
            &event(Event::Agent(status(1, AgentState::Running, 1))),
            ms(0),
        );
        progress.apply(&delta(1, 0, 9, "old"), ms(0));
        let reset = Update::Reset(AgentReset {
            agent: 1,
            attempt: 2,
        });
        assert_eq!(progress.apply(&reset, ms(1)), Change::Reset(1));
        assert_eq!(
            (progress.tokens(), progress.agents[&1].tail.as_str()),
            (0, "")
        );
        progress.apply(&delta(1, 9, 5, "late"), ms(2));
        assert_eq!(progress.tokens(), 0);
        progress.apply(&delta(2, 0, 3, "new"), ms(3));
        assert_eq!(
            (progress.tokens(), progress.agents[&1].tail.as_str()),
            (3, "new")
        );
    }

    #[test]
    fn changes_are_reported_once() {
        let mut progress = Progress::default();
        let running = event(Event::Agent(status(3, AgentState::Running, 1)));
        assert_eq!(progress.apply(&running, ms(0)), Change::Agent(3));
        assert_eq!(progress.apply(&running, ms(0)), Change::Quiet);
        let proposing = event(Event::State(JobState::Proposing.into()));
        assert_eq!(
            progress.apply(&proposing, ms(0)),
            Change::State(JobState::Proposing)
        );
        assert_eq!(progress.apply(&proposing, ms(0)), Change::Quiet);
    }

    #[test]
    fn the_end_fills_in_what_the_stream_left_out() {
        let mut progress = Progress::default();
        let mut done = status(1, AgentState::Done, 1);
        let usage = Usage {
            prompt_tokens: 50,
            cached_tokens: 48,
            thought_tokens: 10,
            answer_tokens: 5,
        };
        done.draft = Some(Draft {
            confidence_micro: 7_000_000,
            usage: Some(usage),
            ..Default::default()
        });
        let mut job = Job {
            agents: vec![done],
            ..Default::default()
        };
        job.set_state(JobState::Done);
        assert_eq!(
            progress.apply(&Update::Done(job), ms(9)),
            Change::State(JobState::Done)
        );
        let row = &progress.agents[&1];
        assert_eq!(
            (row.tokens, row.prompt, row.confidence_micro),
            (15, (50, 48), Some(7_000_000))
        );
    }

    #[test]
    fn lines_keep_within_their_width_whatever_the_text() {
        let mut progress = Progress::default();
        progress.apply(
            &event(Event::Agent(status(1, AgentState::Running, 1))),
            ms(0),
        );
        progress.apply(
            &delta(
                1,
                0,
                2,
                "größer\n\n\tals 中文中文中文中文中文中文 👩‍👩‍👧 text that is much too long for a narrow window",
            ),
            ms(0),
        );
        for width in [0, 10, 60, 80, 300] {
            let line = line(1, &progress.agents[&1], width);
            assert!(line.width() <= width, "{width}: {line}");
            assert!(!line.contains('\n'));
        }
        let line = line(1, &progress.agents[&1], 120);
        assert!(
            line.contains("proposer") && line.contains("2 tok") && line.contains("12.34"),
            "{line}"
        );
    }
}
