//! Claims about whole picks: their distribution, their agreement across models, and odd logits.

use super::noise::{gumbel, word};
use super::{Sampling, SamplingError, Scratch, pick, pick_token};

fn sampled(seed: u64) -> Sampling {
    Sampling { temperature: 1.0, seed, ..Sampling::default() }
}

fn token(logits: &[f32], position: u32, sampling: &Sampling) -> u32 {
    pick_token(logits, position, &[], sampling, &mut Scratch::default())
}

/// Logits between -8 and 8, different for each `salt`.
fn row(len: u32, salt: u64) -> Vec<f32> {
    (0..len).map(|i| word(salt, 77, i) as f32 / 2.7e8 - 8.0).collect()
}

fn softmax(logits: &[f32]) -> Vec<f64> {
    let e: Vec<f64> = logits.iter().map(|&l| f64::from(l).exp()).collect();
    let sum: f64 = e.iter().sum();
    e.into_iter().map(|e| e / sum).collect()
}

/// Pearson's statistic of `counts` against `expected` probabilities.
fn chi_square(counts: &[u32], expected: &[f64]) -> f64 {
    let total: f64 = counts.iter().map(|&c| f64::from(c)).sum();
    counts
        .iter()
        .zip(expected)
        .map(|(&c, p)| (f64::from(c) - total * p).powi(2) / (total * p).max(1e-9))
        .sum()
}

#[test]
fn picks_follow_the_softmax() {
    let logits = [0.3, -1.2, 1.9, 0.0, 2.2, -3.0, 1.0, 0.5];
    for temperature in [0.5, 1.0, 1.7] {
        let expected = softmax(&logits.map(|l| l / temperature));
        let mut counts = [0; 8];
        for seed in 0..60_000 {
            let s = Sampling { temperature, ..sampled(seed) };
            counts[token(&logits, (seed % 50) as u32, &s) as usize] += 1;
        }
        let statistic = chi_square(&counts, &expected);
        assert!(statistic < 24.3, "7 degrees of freedom, p = 0.001: {statistic} at {temperature}");
    }
}

#[test]
fn picks_follow_the_filtered_softmax() {
    let logits = [0.3, -1.2, 1.9, 0.0, 2.2, -3.0, 1.0, 0.5];
    let full = softmax(&logits);
    let cases = [
        (Sampling { top_k: 3, ..sampled(0) }, vec![2, 4, 6]),
        (Sampling { top_p: 0.6, ..sampled(0) }, vec![2, 4]),
        (Sampling { min_p: 0.18, ..sampled(0) }, vec![2, 4, 6, 7]),
    ];
    for (sampling, stay) in cases {
        let mass: f64 = stay.iter().map(|&t: &usize| full[t]).sum();
        let expected: Vec<f64> = stay.iter().map(|&t| full[t] / mass).collect();
        let mut counts = vec![0; stay.len()];
        for seed in 0..40_000 {
            let picked = token(&logits, 9, &Sampling { seed, ..sampling.clone() }) as usize;
            counts[stay.iter().position(|&t| t == picked).expect("a filtered token")] += 1;
        }
        assert!(chi_square(&counts, &expected) < 16.3, "{sampling:?}: {counts:?}");
    }
}

/// The definition, with no token skipped.
fn by_definition(logits: &[f32], position: u32, sampling: &Sampling) -> u32 {
    let inverse = 1.0 / sampling.temperature;
    let score =
        |t: usize| f64::from(logits[t] * inverse) + gumbel(word(sampling.seed, position, t as u32));
    (0..logits.len()).fold(0, |best, t| if score(t) > score(best) { t } else { best }) as u32
}

#[test]
fn skipping_losers_changes_no_pick() {
    let mut scratch = Scratch::default();
    for seed in 0..3000 {
        let logits = row(200 + (seed % 130) as u32, seed);
        for temperature in [0.3, 1.0, 6.0, 100.0] {
            let s = Sampling { temperature, ..sampled(seed) };
            let fast = pick_token(&logits, 5, &[], &s, &mut scratch);
            assert_eq!(
                fast,
                by_definition(&logits, 5, &s),
                "seed {seed}, temperature {temperature}"
            );
        }
    }
}

#[test]
fn equal_distributions_always_agree_and_near_ones_as_often_as_promised() {
    let target = [1.0, 0.2, -0.5, 0.8, -2.0, 0.0];
    let draft = [0.7, 0.6, -0.9, 0.4, -1.0, 0.3];
    let (p, q) = (softmax(&target), softmax(&draft));
    let distance: f64 = p.iter().zip(&q).map(|(p, q)| (p - q).abs()).sum::<f64>() / 2.0;
    let mut agreed = 0;
    for seed in 0..20_000 {
        let s = sampled(seed);
        let chosen = token(&target, 11, &s);
        // A constant added to all logits is the same distribution.
        assert_eq!(chosen, token(&target.map(|l| l + 2.0), 11, &s), "seed {seed}");
        agreed += u32::from(chosen == token(&draft, 11, &s));
    }
    let rate = f64::from(agreed) / 20_000.0;
    let promised = (1.0 - distance) / (1.0 + distance);
    assert!(rate >= promised - 0.01, "agreed {rate}, promised {promised}");
    assert!(rate <= 1.0 - distance + 0.01, "no coupling agrees more often than 1 - TV: {rate}");
}

/// Drafting and verifying over two positions: the target's noise decides, whatever the draft proposed, so the pairs
/// of tokens have the target's joint distribution. Greedy text is the case without noise.
#[test]
fn drafted_and_verified_pairs_have_the_targets_distribution() {
    let target =
        |before: Option<u32>| row(3, 100 + u64::from(before.map_or(0, |t| t + 1))).map_scale();
    let draft =
        |before: Option<u32>| row(3, 200 + u64::from(before.map_or(0, |t| t + 1))).map_scale();
    let first = softmax(&target(None));
    let expected: Vec<f64> = (0..9)
        .map(|pair| first[pair / 3] * softmax(&target(Some(pair as u32 / 3)))[pair % 3])
        .collect();
    let mut counts = [0; 9];
    let mut accepted = 0;
    for seed in 0..45_000 {
        let s = sampled(seed);
        let d0 = token(&draft(None), 1, &s);
        let d1 = token(&draft(Some(d0)), 2, &s);
        // One pass of the target over [.., d0, d1]: its picks after each prefix.
        let picks = [token(&target(None), 1, &s), token(&target(Some(d0)), 2, &s)];
        let text = if picks[0] == d0 {
            accepted += 1 + u32::from(picks[1] == d1);
            picks
        } else {
            [picks[0], token(&target(Some(picks[0])), 2, &s)]
        };
        counts[(text[0] * 3 + text[1]) as usize] += 1;
    }
    assert!(accepted > 10_000, "drafts must matter for this to test anything: {accepted}");
    let statistic = chi_square(&counts, &expected);
    assert!(statistic < 26.1, "8 degrees of freedom, p = 0.001: {statistic}");
}

/// Softer logits, so that every token has its chance.
trait MapScale {
    fn map_scale(self) -> Self;
}

impl MapScale for Vec<f32> {
    fn map_scale(self) -> Self {
        self.into_iter().map(|l| l / 6.0).collect()
    }
}

#[test]
fn probability_and_alternatives_are_those_of_the_unmodified_logits() {
    let logits = row(1000, 3);
    let p = softmax(&logits);
    let mut order: Vec<usize> = (0..logits.len()).collect();
    order.sort_by(|&a, &b| logits[b].total_cmp(&logits[a]).then(a.cmp(&b)));
    let s = Sampling { temperature: 0.7, top_k: 4, top_logprobs: 6, ..sampled(1) };
    let s = Sampling { logit_bias: vec![(order[500] as u32, 50.0)], ..s };
    let picked = pick(&logits, 4, &[], &s, &mut Scratch::default());
    assert_eq!(picked.token as usize, order[500]);
    assert!((f64::from(picked.probability) / p[order[500]] - 1.0).abs() < 1e-5);
    assert_eq!(picked.top.iter().map(|t| t.0 as usize).collect::<Vec<_>>(), order[..6]);
    for &(token, log) in &picked.top {
        assert!((f64::from(log) - p[token as usize].ln()).abs() < 1e-5);
    }
}

#[test]
fn logits_that_are_not_finite_never_panic() {
    let odd = [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, f32::MAX, f32::MIN, 0.0, -0.0, 1e-45];
    let samplings = [
        Sampling::default(),
        sampled(3),
        Sampling { temperature: 1e-4, ..sampled(3) },
        Sampling { top_k: 2, top_p: 0.5, min_p: 0.1, top_logprobs: 3, ..sampled(4) },
        Sampling { top_p: 0.9, repetition_penalty: 1.3, presence_penalty: 1.0, ..sampled(5) },
    ];
    let mut scratch = Scratch::default();
    for seed in 0..2000 {
        let len = 1 + word(seed, 0, 0) % 100;
        let logits: Vec<f32> = (0..len).map(|i| odd[word(seed, 1, i) as usize % 8]).collect();
        for s in &samplings {
            let picked = pick(&logits, 1, &[0, 3, 200], s, &mut scratch);
            assert!(picked.token < len && (0.0..=1.0).contains(&picked.probability));
            let any = logits.iter().any(|&l| l > f32::NEG_INFINITY);
            let chosen = logits[picked.token as usize];
            assert!(!any || !chosen.is_nan(), "NaN was picked of {logits:?} by {s:?}");
        }
    }
    let nothing = pick(&[f32::NAN; 5], 1, &[], &sampled(1), &mut scratch);
    assert_eq!((nothing.token, nothing.probability), (0, 0.0));
    let infinite = [0.0, f32::INFINITY, f32::INFINITY];
    assert_eq!(token(&infinite, 1, &Sampling::default()), 1);
}

#[test]
fn greedy_ignores_the_seed_and_breaks_ties_downwards() {
    for seed in 0..50 {
        let s = Sampling { seed, ..Sampling::default() };
        assert_eq!(token(&[1.0, 4.0, 4.0, 4.0], 9, &s), 1);
        assert_eq!(token(&[1.0, 4.0, 4.0, 4.0], 9, &Sampling { temperature: 1e-5, ..s }), 1);
    }
}

#[test]
fn both_ways_to_pick_agree() {
    let mut scratch = Scratch::default();
    for seed in 0..300 {
        let logits = row(512, seed);
        let history = [1, 2, 3, (seed % 512) as u32];
        for s in [
            Sampling::default(),
            Sampling { top_p: 0.9, ..sampled(seed) },
            Sampling {
                presence_penalty: 2.0,
                repetition_penalty: 1.5,
                prompt_len: 1,
                ..sampled(seed)
            },
        ] {
            let full = pick(&logits, 4, &history, &s, &mut scratch).token;
            assert_eq!(full, pick_token(&logits, 4, &history, &s, &mut scratch));
        }
    }
}

#[test]
fn validation_names_the_field_and_its_range() {
    let bad = |s: Sampling| s.validate(100).expect_err("out of range").to_string();
    assert_eq!(Sampling::default().validate(100), Ok(()));
    let text = bad(Sampling { top_p: 1.5, ..Sampling::default() });
    assert_eq!(text, "top_p is 1.5, but must lie in 0 to 1 (1 keeps all)");
    for s in [
        Sampling { temperature: f32::NAN, ..Sampling::default() },
        Sampling { temperature: -1.0, ..Sampling::default() },
        Sampling { min_p: -0.1, ..Sampling::default() },
        Sampling { repetition_penalty: 0.0, ..Sampling::default() },
        Sampling { presence_penalty: 3.0, ..Sampling::default() },
        Sampling { frequency_penalty: f32::INFINITY, ..Sampling::default() },
        Sampling { logit_bias: vec![(1, 200.0)], ..Sampling::default() },
        Sampling { top_logprobs: 21, ..Sampling::default() },
    ] {
        assert!(matches!(s.validate(100), Err(SamplingError::OutOfRange { .. })), "{s:?}");
    }
    let unknown = Sampling { logit_bias: vec![(100, 1.0)], ..Sampling::default() };
    assert_eq!(bad(unknown), "logit_bias names token 100, but the vocabulary ends at 99");
}

/// Microseconds a pick, for people: `cargo test --release -p outrider-devices picks_per -- --ignored --nocapture`.
#[test]
#[ignore = "prints timings"]
#[expect(clippy::print_stdout, reason = "its purpose")]
fn picks_per_microsecond() {
    let logits = row(8192, 1);
    let mut scratch = Scratch::default();
    let sampled = Sampling { temperature: 0.8, ..sampled(1) };
    for (name, s) in [
        ("greedy", Sampling::default()),
        ("sampled", sampled.clone()),
        ("top-k 40", Sampling { top_k: 40, ..sampled.clone() }),
        ("top-p 0.9", Sampling { top_p: 0.9, ..sampled.clone() }),
    ] {
        let mut best = [f64::MAX; 2];
        for position in 0..2000 {
            let start = std::time::Instant::now();
            std::hint::black_box(pick(&logits, position, &[], &s, &mut scratch));
            let middle = std::time::Instant::now();
            std::hint::black_box(pick_token(&logits, position, &[], &s, &mut scratch));
            best[0] = best[0].min((middle - start).as_secs_f64() * 1e6);
            best[1] = best[1].min(middle.elapsed().as_secs_f64() * 1e6);
        }
        println!("{name:>10}: pick {:.1} us, pick_token {:.1} us", best[0], best[1]);
    }
}
