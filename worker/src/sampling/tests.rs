use super::*;
use proptest::prelude::*;

fn pick(logits: &[f32], sampling: &Sampling, u: f64) -> u32 {
    let changes = Changes::default();
    sample(logits, sampling, &changes, u, &mut Scratch::default()).expect("a token")
}

fn warm() -> Sampling {
    Sampling {
        temperature: 1.0,
        ..Sampling::GREEDY
    }
}

/// The ids that can come out, over a fine grid of random numbers.
fn support(logits: &[f32], sampling: &Sampling) -> Vec<u32> {
    let mut ids: Vec<u32> = (0..2000)
        .map(|i| pick(logits, sampling, f64::from(i) / 2000.0))
        .collect();
    ids.sort_unstable();
    ids.dedup();
    ids
}

#[test]
fn greedy_takes_the_lowest_id_among_the_largest() {
    assert_eq!(pick(&[0.0, 2.0, 2.0, 1.0], &Sampling::GREEDY, 0.9), 1);
}

#[test]
fn draws_follow_the_softmax() {
    let logits = [1.0f32, 3.0, 2.0, f32::NEG_INFINITY];
    let total: f64 = logits.iter().map(|&l| f64::from(l).exp()).sum();
    let full = warm();
    // The same distribution by the other path, which selects first.
    let selected = Sampling { top_k: 4, ..full };
    for sampling in [full, selected] {
        let mut counts = [0u32; 4];
        for position in 0..40_000 {
            counts[pick(&logits, &sampling, uniform(7, position)) as usize] += 1;
        }
        for (count, logit) in counts.iter().zip(logits) {
            let expected = 40_000.0 * f64::from(logit).exp() / total;
            assert!((f64::from(*count) - expected).abs() < 400.0, "{counts:?}");
        }
    }
}

#[test]
fn temperature_sharpens() {
    let cold = Sampling {
        temperature: 0.001,
        ..warm()
    };
    assert_eq!(support(&[1.0, 1.5, 1.2], &cold), [1]);
    assert_eq!(support(&[1.0, 1.5, 1.2], &warm()), [0, 1, 2]);
}

#[test]
fn top_k_keeps_the_lowest_ids_among_equals() {
    let two = Sampling { top_k: 2, ..warm() };
    assert_eq!(support(&[1.0, 1.0, 1.0, 0.5], &two), [0, 1]);
}

#[test]
fn top_p_keeps_the_fewest_tokens_with_the_share() {
    // Shares: 0.5, 0.25, 0.125, 0.125.
    let logits = [4.0f32.ln(), 2.0f32.ln(), 0.0, 0.0];
    let share = |top_p| Sampling { top_p, ..warm() };
    assert_eq!(support(&logits, &share(0.49)), [0]);
    assert_eq!(support(&logits, &share(0.7)), [0, 1]);
    assert_eq!(support(&logits, &share(0.8)), [0, 1, 2]);
    assert_eq!(support(&logits, &share(0.9)), [0, 1, 2, 3]);
}

#[test]
fn top_p_looks_past_its_first_guess() {
    let flat = vec![0.0f32; 5000];
    let half = Sampling {
        top_p: 0.5,
        ..warm()
    };
    assert!(pick(&flat, &half, 0.9999) > 2400);
    assert!(pick(&flat, &half, 0.9999) < 2500);
}

#[test]
fn min_p_is_relative_to_the_best() {
    let logits = [0.0f32, -1.0, -3.0];
    let some = Sampling {
        min_p: 0.3,
        ..warm()
    };
    assert_eq!(support(&logits, &some), [0, 1]);
}

#[test]
fn the_penalty_pushes_seen_tokens_down_whatever_their_sign() {
    let changes = Changes {
        seen: &[0, 2],
        ..Changes::default()
    };
    let penalty = Sampling {
        repetition_penalty: 2.0,
        ..Sampling::GREEDY
    };
    let pick = |logits: &[f32]| {
        sample(logits, &penalty, &changes, 0.0, &mut Scratch::default()).expect("a token")
    };
    assert_eq!(pick(&[3.0, 2.0, 1.0]), 1);
    assert_eq!(pick(&[-1.0, -1.5, -1.2]), 1);
}

#[test]
fn a_bias_moves_one_token() {
    let changes = Changes {
        bias: &[(2, 5.0), (900, 1.0)],
        ..Changes::default()
    };
    let scratch = &mut Scratch::default();
    let token = sample(&[0.0, 1.0, 0.0], &Sampling::GREEDY, &changes, 0.0, scratch);
    assert_eq!(token, Ok(2));
}

#[test]
fn only_masked_in_tokens_are_drawn() {
    let logits: Vec<f32> = (0..70).map(|i| i as f32).collect();
    let allowed = [1u32 << 3, 0, 0];
    let with = |mask| Changes {
        mask: Some(mask),
        ..Changes::default()
    };
    let scratch = &mut Scratch::default();
    for sampling in [Sampling::GREEDY, warm()] {
        let token = sample(&logits, &sampling, &with(&allowed), 0.9, scratch);
        assert_eq!(token, Ok(3));
        let none = sample(&logits, &sampling, &with(&[]), 0.9, scratch);
        assert_eq!(none, Err(SampleError::NoCandidate));
    }
}

#[test]
fn broken_logits_are_named() {
    assert_eq!(
        Softmax::of(&[0.0, f32::NAN, 1.0], &mut Scratch::default()),
        Err(SampleError::NotFinite)
    );
    assert_eq!(
        Softmax::of(&[f32::INFINITY, 1.0], &mut Scratch::default()),
        Err(SampleError::NotFinite)
    );
    assert_eq!(
        Softmax::of(&[f32::NEG_INFINITY; 3], &mut Scratch::default()),
        Err(SampleError::NotFinite)
    );
}

#[test]
fn log_probabilities_are_the_softmax() {
    let logits: Vec<f32> = (0..1003).map(|i| ((i * 37) % 101) as f32 / 7.0).collect();
    let exact: f64 = logits.iter().map(|&l| f64::from(l).exp()).sum::<f64>().ln();
    let scratch = &mut Scratch::default();
    let softmax = Softmax::of(&logits, scratch).expect("finite");
    for &logit in &logits {
        assert!((f64::from(softmax.logprob(logit)) - (f64::from(logit) - exact)).abs() < 1e-6);
    }
    let mut sorted = logits.clone();
    sorted.sort_by(|a, b| b.total_cmp(a));
    let mean = sorted[..5]
        .iter()
        .map(|&l| f64::from(l) - exact)
        .sum::<f64>()
        / 5.0;
    let top = softmax.top_mean(&logits, 5, scratch);
    assert!((top - mean).abs() < 1e-6);
}

/// The slow and obvious way: sort everything, in f64.
fn allowed_by_definition(logits: &[f32], sampling: &Sampling) -> Vec<u32> {
    let mut order: Vec<u32> = (0..logits.len() as u32).collect();
    order.sort_by(|&a, &b| {
        logits[b as usize]
            .total_cmp(&logits[a as usize])
            .then(a.cmp(&b))
    });
    let weight = |id: &u32| {
        let above = f64::from(logits[*id as usize]) - f64::from(logits[order[0] as usize]);
        (above / f64::from(sampling.temperature)).exp()
    };
    let mut kept: Vec<u32> = order
        .iter()
        .copied()
        .filter(|id| weight(id) >= f64::from(sampling.min_p))
        .collect();
    if sampling.top_k > 0 {
        kept.truncate(sampling.top_k);
    }
    let total: f64 = kept.iter().map(weight).sum();
    let mut sum = 0.0;
    // A little generous: rounding may move the border by one token.
    let wanted = (f64::from(sampling.top_p) + 1e-6) * total;
    let fewest = kept.iter().take_while(|id| {
        let before = sum;
        sum += weight(id);
        before < wanted
    });
    fewest.copied().collect()
}

proptest! {
    /// Whatever the settings, a draw is among the tokens that the definitions let through.
    #[test]
    fn draws_obey_the_definitions(
        row in prop::collection::vec(-80i16..80, 2..600),
        temperature in prop::sample::select(vec![0.3f32, 1.0, 2.5]),
        top_k in prop::sample::select(vec![0usize, 1, 5, 50]),
        top_p in prop::sample::select(vec![0.1f32, 0.6, 0.95, 1.0]),
        min_p in prop::sample::select(vec![0.0f32, 0.011, 0.23]),
        u in 0.0f64..1.0,
    ) {
        let logits: Vec<f32> = row.iter().map(|&x| f32::from(x) / 10.0).collect();
        let sampling = Sampling { temperature, top_k, top_p, min_p, repetition_penalty: 1.0 };
        let token = pick(&logits, &sampling, u);
        let allowed = allowed_by_definition(&logits, &sampling);
        prop_assert!(allowed.contains(&token), "{token} not in {allowed:?}");
    }

    /// A row's draw does not depend on what the scratch was used for before.
    #[test]
    fn scratch_carries_nothing_over(
        first in prop::collection::vec(-50i16..50, 2..300),
        second in prop::collection::vec(-50i16..50, 2..300),
        top_p in prop::sample::select(vec![0.5f32, 1.0]),
        u in 0.0f64..1.0,
    ) {
        let logits = |row: &[i16]| row.iter().map(|&x| f32::from(x) / 10.0).collect::<Vec<f32>>();
        let sampling = Sampling { top_p, ..warm() };
        let mut used = Scratch::default();
        let changes = Changes::default();
        let _ = sample(&logits(&first), &sampling, &changes, 1.0 - u, &mut used);
        let again = sample(&logits(&second), &sampling, &changes, u, &mut used);
        prop_assert_eq!(again, Ok(pick(&logits(&second), &sampling, u)));
    }
}
