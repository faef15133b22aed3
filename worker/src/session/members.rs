//! Which coordinator to dial next, and how long to wait before.

use std::time::Duration;

use crate::config::is_address;

/// The shortest and the longest wait before a dial that follows a failure.
const FIRST_WAIT: Duration = Duration::from_millis(50);
const LONGEST_WAIT: Duration = Duration::from_secs(2);

/// Hints that are followed at once; then they are followed after a wait, so that two coordinators that
/// name each other are not hammered.
const FREE_HINTS: u32 = 3;

/// The coordinators: those configured and those that a coordinator named.
#[derive(Debug)]
pub struct Members {
    configured: Vec<String>,
    learned: Vec<String>,
    hint: Option<String>,
    /// Whose session ended last: others are dialed before it.
    lost: Option<String>,
    next: usize,
    failures: u32,
    hints: u32,
    /// Spreads the waits of workers that lost the same leader.
    salt: String,
}

impl Members {
    /// With the configured addresses; `salt` differs between workers.
    pub fn new(configured: &[String], salt: &str) -> Self {
        Self {
            configured: configured.to_vec(),
            learned: Vec::new(),
            hint: None,
            lost: None,
            next: 0,
            failures: 0,
            hints: 0,
            salt: salt.to_owned(),
        }
    }

    /// A coordinator named the others.
    pub fn learn(&mut self, members: &[String]) {
        let addresses = members.iter().filter(|member| is_address(member));
        let learned: Vec<String> = addresses.cloned().collect();
        if !learned.is_empty() {
            self.learned = learned;
        }
    }

    /// A coordinator that does not lead named the one that does.
    pub fn hint(&mut self, leader: &str) {
        if is_address(leader) && self.hints < FREE_HINTS {
            self.hints += 1;
            self.hint = Some(leader.to_owned());
        } else {
            self.failed();
        }
    }

    /// A leader of another cluster took us on: it is dialed again at once, and of the coordinators
    /// that the old cluster named none is left.
    pub fn begin_anew(&mut self, leader: &str, members: &[String]) {
        self.learned.clear();
        self.learn(members);
        self.welcomed();
        self.hint = Some(leader.to_owned());
    }

    /// A leader welcomed us.
    pub fn welcomed(&mut self) {
        (self.failures, self.hints, self.hint) = (0, 0, None);
    }

    /// A dial failed, or a session ended.
    pub fn failed(&mut self) {
        self.failures = self.failures.saturating_add(1);
        self.hints = 0;
        self.hint = None;
    }

    /// The session with this coordinator ended. A dial to a machine that fell silent takes all its
    /// time, so it is the others' turn first.
    pub fn lost(&mut self, address: &str) {
        self.failed();
        self.lost = Some(address.to_owned());
    }

    /// How often in a row there was no session; the log need not repeat itself.
    pub fn failures(&self) -> u32 {
        self.failures
    }

    /// Whom to dial now.
    pub fn choose(&mut self) -> String {
        if let Some(leader) = self.hint.take() {
            return leader;
        }
        let all = self.all();
        let mut in_turn = || {
            let address = all[self.next % all.len()].clone();
            self.next = self.next.wrapping_add(1);
            address
        };
        let address = in_turn();
        match self.lost.take() {
            Some(lost) if lost == address => in_turn(),
            _ => address,
        }
    }

    fn all(&self) -> Vec<String> {
        let mut all = self.learned.clone();
        for address in &self.configured {
            if !all.contains(address) {
                all.push(address.clone());
            }
        }
        all
    }

    /// How long to wait before that. Doubles with each failure, up to the bound; jittered to between
    /// half of it and all.
    pub fn wait(&self) -> Duration {
        let Some(doublings) = self.failures.checked_sub(1).filter(|_| self.hint.is_none()) else {
            return Duration::ZERO;
        };
        let full = LONGEST_WAIT.min(FIRST_WAIT * 2u32.pow(doublings.min(10)));
        let mut hasher = blake3::Hasher::new();
        hasher.update(self.salt.as_bytes());
        hasher.update(&self.next.to_le_bytes());
        let share = f64::from(hasher.finalize().as_bytes()[0]) / 255.0;
        full.mul_f64(0.5 + 0.5 * share)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn members() -> Members {
        Members::new(&["a:1".into(), "b:1".into()], "w")
    }

    #[test]
    fn all_members_are_tried_the_learned_ones_too() {
        let mut members = members();
        members.learn(&["c:1".into(), "a:1".into(), "not an address".into()]);
        let mut tried: Vec<String> = (0..3).map(|_| members.choose()).collect();
        tried.sort();
        assert_eq!(tried, ["a:1", "b:1", "c:1"]);
    }

    #[test]
    fn a_hint_is_followed_at_once_but_not_for_ever() {
        let mut members = members();
        for _ in 0..FREE_HINTS {
            members.hint("z:9");
            assert_eq!(
                (members.wait(), members.choose().as_str()),
                (Duration::ZERO, "z:9")
            );
        }
        members.hint("z:9");
        assert!(members.wait() > Duration::ZERO && members.choose() != "z:9");
    }

    #[test]
    fn another_cluster_is_dialed_at_once_and_the_old_ones_members_no_more() {
        let mut members = members();
        members.learn(&["old:1".into()]);
        members.failed();
        members.begin_anew("new:1", &["new:1".into(), "new:2".into()]);
        assert_eq!(members.wait(), Duration::ZERO);
        let tried: Vec<String> = (0..5).map(|_| members.choose()).collect();
        assert_eq!(tried[0], "new:1");
        assert!(!tried.contains(&"old:1".into()), "{tried:?}");
    }

    #[test]
    fn whoever_fell_silent_is_dialed_last() {
        for turns in 0..4 {
            let mut members = members();
            members.learn(&["c:1".into(), "a:1".into(), "b:1".into()]);
            (0..turns).for_each(|_| drop(members.choose()));
            members.welcomed();
            members.lost("a:1");
            let tried: Vec<String> = (0..2).map(|_| members.choose()).collect();
            assert!(tried[0] != "a:1", "after {turns} turns: {tried:?}");
        }
        let mut alone = Members::new(&["a:1".into()], "w");
        alone.lost("a:1");
        assert_eq!(alone.choose(), "a:1", "there is nobody else");
    }

    #[test]
    fn waits_grow_to_a_bound_and_a_welcome_ends_them() {
        let mut members = members();
        assert_eq!(members.wait(), Duration::ZERO);
        let mut waits = Vec::new();
        for _ in 0..20 {
            members.failed();
            waits.push(members.wait());
        }
        assert!(waits[0] <= FIRST_WAIT && waits[0] >= FIRST_WAIT / 2);
        assert!(waits[19] <= LONGEST_WAIT && waits[19] >= LONGEST_WAIT / 2);
        members.welcomed();
        assert_eq!(members.wait(), Duration::ZERO);
    }

    #[test]
    fn workers_do_not_come_back_in_step() {
        let wait = |salt: &str| {
            let mut members = Members::new(&["a:1".into()], salt);
            (0..6).for_each(|_| members.failed());
            members.wait()
        };
        let waits: std::collections::BTreeSet<_> = ["u", "v", "w", "x", "y"].map(wait).into();
        assert!(waits.len() > 1);
    }
}
