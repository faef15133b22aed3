//! What a check found, and whether that is good enough.

use std::fmt;
use std::path::Path;

use conclave_kernels::Activation;

use super::teacher::Seen;
use super::{Case, Encoded, Fixture};

/// Differences listed a case; the rest is counted.
const LISTED: usize = 3;

/// What is asked of a numeric class.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Tolerance {
    /// Least share of positions whose first choice is the reference's.
    pub same_choice: f64,
    /// Largest difference of a log-probability.
    pub max_difference: f64,
    /// Largest mean difference of log-probabilities.
    pub mean_difference: f64,
}

impl Tolerance {
    /// f32 activations differ from the reference by the order of sums only; 8-bit ones by rounding.
    pub fn of(activation: Activation) -> Tolerance {
        match activation {
            Activation::F32 => Tolerance {
                same_choice: 1.0,
                max_difference: 0.002,
                mean_difference: 0.002,
            },
            Activation::Int8 => Tolerance {
                same_choice: 0.9,
                max_difference: f64::INFINITY,
                mean_difference: 0.12,
            },
        }
    }
}

/// What a check found.
#[derive(Clone, Debug, PartialEq)]
pub struct CheckReport {
    /// The model's path and the reference, for the reader.
    pub heading: String,
    /// One for each kind of activations.
    pub classes: Vec<ClassReport>,
}

/// What one numeric class gave.
#[derive(Clone, Debug, PartialEq)]
pub struct ClassReport {
    /// Its name.
    pub class: String,
    /// What is asked of it.
    pub tolerance: Tolerance,
    /// The cases of the file, in order.
    pub cases: Vec<CaseReport>,
}

/// What one case gave.
#[derive(Clone, Debug, PartialEq)]
pub struct CaseReport {
    /// Tells it from others.
    pub title: String,
    /// How the prompt's token ids or the rendered chat differ from the reference's, if they do.
    pub prompt: Option<String>,
    /// Positions compared.
    pub positions: usize,
    /// Positions whose first choice is the reference's.
    pub same_choice: usize,
    /// Where it is not: position, and what was chosen instead of what.
    pub other_choices: Vec<String>,
    /// Absolute differences of log-probabilities.
    pub differences: Vec<f64>,
}

impl CheckReport {
    pub(super) fn new(path: &Path, fixture: &Fixture) -> CheckReport {
        let heading = format!(
            "model      {}\nreference  {} ({}), {} cases",
            path.display(),
            fixture.model,
            fixture.source,
            fixture.cases.len(),
        );
        CheckReport {
            heading,
            classes: Vec::new(),
        }
    }

    /// Whether every class is within its tolerances.
    pub fn passed(&self) -> bool {
        self.classes.iter().all(ClassReport::passed)
    }
}

impl ClassReport {
    /// Whether all prompts are equal and the rest is within the tolerances.
    pub fn passed(&self) -> bool {
        let tolerance = self.tolerance;
        self.cases.iter().all(|case| case.prompt.is_none())
            && self.same_choice() >= tolerance.same_choice
            && self.max_difference() <= tolerance.max_difference
            && self.mean_difference() <= tolerance.mean_difference
    }

    /// Share of positions whose first choice is the reference's; 1 if there are none.
    pub fn same_choice(&self) -> f64 {
        let positions: usize = self.cases.iter().map(|case| case.positions).sum();
        let same: usize = self.cases.iter().map(|case| case.same_choice).sum();
        if positions == 0 {
            1.0
        } else {
            same as f64 / positions as f64
        }
    }

    /// Largest difference of a log-probability.
    pub fn max_difference(&self) -> f64 {
        max(self.cases.iter().flat_map(|case| &case.differences))
    }

    /// Mean difference of log-probabilities.
    pub fn mean_difference(&self) -> f64 {
        mean(self.cases.iter().flat_map(|case| &case.differences))
    }
}

impl CaseReport {
    pub(super) fn new(case: &Case, encoded: Encoded, seen: &[Seen]) -> CaseReport {
        let mut report = CaseReport {
            title: case.title(),
            prompt: compare_prompt(case, &encoded),
            positions: case.greedy_ids.len(),
            same_choice: 0,
            other_choices: Vec::new(),
            differences: Vec::new(),
        };
        for (position, (expected, seen)) in case.greedy_ids.iter().zip(seen).enumerate() {
            if seen.choice == *expected {
                report.same_choice += 1;
            } else {
                let (choice, logprob) = (seen.choice, seen.logprob);
                report.other_choices.push(format!(
                    "position {position}: {choice} ({logprob:.4}) instead of {expected}"
                ));
            }
            let pairs = case.top5[position].iter().zip(&seen.top);
            report
                .differences
                .extend(pairs.map(|((_, theirs), ours)| (theirs - ours).abs()));
        }
        report
    }
}

fn compare_prompt(case: &Case, encoded: &Encoded) -> Option<String> {
    if let (Some(expected), Some(found)) = (&case.rendered, &encoded.rendered)
        && expected != found
    {
        return Some(format!(
            "chat rendered as {found:?} instead of {expected:?}"
        ));
    }
    if case.prompt_ids == encoded.ids {
        return None;
    }
    let same = case
        .prompt_ids
        .iter()
        .zip(&encoded.ids)
        .take_while(|(a, b)| a == b)
        .count();
    let show = |ids: &[u32]| ids.get(same).map_or("nothing".to_owned(), u32::to_string);
    Some(format!(
        "prompt id {same}: {} instead of {} ({} ids instead of {})",
        show(&encoded.ids),
        show(&case.prompt_ids),
        encoded.ids.len(),
        case.prompt_ids.len(),
    ))
}

impl fmt::Display for CheckReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}", self.heading)?;
        for class in &self.classes {
            write!(f, "\n{class}")?;
        }
        Ok(())
    }
}

impl fmt::Display for ClassReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let heads = ["prompt", "same choice", "largest diff", "mean diff"];
        let [prompt, choice, largest, mean_head] = heads;
        writeln!(
            f,
            "{:<42} {prompt:<7} {choice:>15} {largest:>15} {mean_head:>15}",
            self.class
        )?;
        for case in &self.cases {
            writeln!(f, "{case}")?;
        }
        let limit = |limit: f64| match limit.is_finite() {
            true => format!("≤ {limit}"),
            false => "—".to_owned(),
        };
        let tolerance = self.tolerance;
        writeln!(
            f,
            "{:<42} {:<7} {:>15} {:>15} {:>15}",
            "tolerance",
            "equal",
            format!("≥ {:.1} %", 100.0 * tolerance.same_choice),
            limit(tolerance.max_difference),
            limit(tolerance.mean_difference),
        )?;
        let prompts = self.cases.iter().all(|case| case.prompt.is_none());
        writeln!(
            f,
            "{:<42} {:<7} {:>15} {:>15.5} {:>15.5}",
            if self.passed() { "PASSED" } else { "FAILED" },
            if prompts { "equal" } else { "differ" },
            format!("{:.1} %", 100.0 * self.same_choice()),
            self.max_difference(),
            self.mean_difference(),
        )
    }
}

impl fmt::Display for CaseReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{:<42} {:<7} {:>15} {:>15.5} {:>15.5}",
            self.title,
            if self.prompt.is_none() {
                "equal"
            } else {
                "differs"
            },
            format!("{}/{}", self.same_choice, self.positions),
            max(&self.differences),
            mean(&self.differences),
        )?;
        for line in self
            .prompt
            .iter()
            .chain(self.other_choices.iter().take(LISTED))
        {
            write!(f, "\n    {line}")?;
        }
        match self.other_choices.len().saturating_sub(LISTED) {
            0 => Ok(()),
            more => write!(f, "\n    and {more} more"),
        }
    }
}

/// The largest, 0 of none; not a number if one is not, so that no comparison passes.
fn max<'a>(values: impl IntoIterator<Item = &'a f64>) -> f64 {
    let keep = |max: f64, value: &f64| *value <= max || max.is_nan();
    values.into_iter().fold(
        0.0,
        |max, value| if keep(max, value) { max } else { *value },
    )
}

/// The mean, 0 of none.
fn mean<'a>(values: impl IntoIterator<Item = &'a f64>) -> f64 {
    let (sum, count) = values
        .into_iter()
        .fold((0.0, 0u32), |(s, n), value| (s + value, n + 1));
    if count == 0 {
        0.0
    } else {
        sum / f64::from(count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn case() -> Case {
        serde_json::from_str(
            r#"{"prompt":"a","prompt_ids":[1,2],"greedy_ids":[3,4],
            "top5":[[[3,-0.5]],[[4,-1.0],[5,-1.5]]]}"#,
        )
        .unwrap()
    }

    fn class(seen: &[Seen], ids: Vec<u32>, activation: Activation) -> ClassReport {
        let report = CaseReport::new(
            &case(),
            Encoded {
                rendered: None,
                ids,
            },
            seen,
        );
        let tolerance = Tolerance::of(activation);
        ClassReport {
            class: "test".into(),
            tolerance,
            cases: vec![report],
        }
    }

    fn seen(shift: f64) -> Vec<Seen> {
        vec![
            Seen {
                choice: 3,
                logprob: -0.5,
                top: vec![-0.5],
            },
            Seen {
                choice: 4,
                logprob: -1.0,
                top: vec![-1.0, -1.5 + shift],
            },
        ]
    }

    #[test]
    fn agreement_passes_and_a_difference_beyond_the_tolerance_fails() {
        assert!(class(&seen(0.001), vec![1, 2], Activation::F32).passed());
        assert!(!class(&seen(0.003), vec![1, 2], Activation::F32).passed());
        assert!(
            class(&seen(0.3), vec![1, 2], Activation::Int8).passed(),
            "the mean is 0.1"
        );
        assert!(
            !class(&seen(0.4), vec![1, 2], Activation::Int8).passed(),
            "the mean is 0.13"
        );
    }

    #[test]
    fn what_is_not_a_number_fails() {
        assert!(!class(&seen(f64::NAN), vec![1, 2], Activation::F32).passed());
        assert!(!class(&seen(f64::NAN), vec![1, 2], Activation::Int8).passed());
    }

    #[test]
    fn other_prompt_ids_fail_and_are_named() {
        let report = class(&seen(0.0), vec![1, 7], Activation::F32);
        assert!(!report.passed());
        assert!(
            report.to_string().contains("prompt id 1: 7 instead of 2"),
            "{report}"
        );
    }

    #[test]
    fn another_choice_fails_where_all_must_be_the_same() {
        let mut other = seen(0.0);
        other[1].choice = 9;
        let report = class(&other, vec![1, 2], Activation::F32);
        assert!(!report.passed());
        assert!(report.to_string().contains("position 1: 9"), "{report}");
    }
}
