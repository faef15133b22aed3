//! The live view: a header and one line an agent, redrawn in place.
use std::{collections::BTreeMap, time::Duration};

use conclave_proto::v1::AgentState;
use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::progress::{self, Progress};

/// Draws on standard error until dropped; what it drew is then erased.
pub struct Live {
    multi: MultiProgress,
    header: ProgressBar,
    rows: BTreeMap<u32, (ProgressBar, AgentState)>,
}

impl Live {
    /// An empty view.
    pub fn new() -> Self {
        let multi = MultiProgress::with_draw_target(ProgressDrawTarget::stderr_with_hz(12));
        let header = multi.add(
            ProgressBar::new_spinner().with_style(style("{spinner:.cyan} {msg:.bold}  {elapsed}")),
        );
        header.enable_steady_tick(Duration::from_millis(120));
        Self {
            multi,
            header,
            rows: BTreeMap::new(),
        }
    }

    /// Draws the job as it is known now.
    pub fn draw(&mut self, progress: &Progress, leader: Option<&str>) {
        self.header.set_message(progress.header(leader));
        let width = terminal_width();
        for (place, (agent, row)) in progress.agents.iter().enumerate() {
            let (bar, drawn) = self.rows.entry(*agent).or_insert_with(|| {
                let bar = ProgressBar::new_spinner().with_style(row_style(row.state));
                // Below the header, by number: agents may be heard of in any order.
                (self.multi.insert(place + 1, bar), row.state)
            });
            if *drawn != row.state {
                bar.set_style(row_style(row.state));
                *drawn = row.state;
            }
            bar.set_message(progress::line(*agent, row, width.saturating_sub(3)));
        }
    }

    /// Says that the connection is being made again; the next draw replaces it. Time goes on.
    pub fn reconnecting(&self) {
        self.header.set_message("reconnecting");
    }

    /// Prints a line above the view.
    pub fn note(&self, text: &str) {
        // The view is a convenience: losing it is not worth an error.
        let _ = self.multi.println(text);
    }
}

impl Drop for Live {
    fn drop(&mut self) {
        self.header.finish_and_clear();
        for (bar, _) in self.rows.values() {
            bar.finish_and_clear();
        }
    }
}

/// Columns of the terminal as it is now: windows are resized.
fn terminal_width() -> usize {
    usize::from(console::Term::stderr().size().1)
}

/// An agent's line tells its state by colour too.
fn row_style(state: AgentState) -> ProgressStyle {
    style(match state {
        AgentState::Done => "  {msg:.green}",
        AgentState::Failed => "  {msg:.red}",
        AgentState::Cancelled => "  {msg:.dim}",
        AgentState::Queued | AgentState::Running | AgentState::Unspecified => "  {msg}",
    })
}

/// A style from a template that is fixed at compile time.
fn style(template: &str) -> ProgressStyle {
    ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_spinner())
}
