//! The one place where devices that compute logits in memory turn a row of them into a pick.

use crate::Sampling;
use crate::batch::Pick;

/// Picks the token after `seen` (the sequence's tokens up to the row of `logits`).
///
/// Panics if `sampling` is not greedy.
pub(crate) fn choose(logits: &[f32], seen: &[u32], sampling: &Sampling) -> Pick {
    assert_eq!(sampling.temperature, 0.0, "position {}: only greedy picks", seen.len());
    let mut token = 0;
    for (id, &logit) in logits.iter().enumerate() {
        if logit > logits[token] {
            token = id;
        }
    }
    let most = f64::from(logits[token]);
    let total: f64 = logits.iter().map(|&l| (f64::from(l) - most).exp()).sum();
    let mut order: Vec<usize> = (0..logits.len()).collect();
    if sampling.top_logprobs > 0 {
        order.sort_by(|&a, &b| logits[b].total_cmp(&logits[a]).then(a.cmp(&b)));
    }
    let log_probability = |id: usize| (f64::from(logits[id]) - most - total.ln()) as f32;
    let top = order.into_iter().take(sampling.top_logprobs as usize);
    Pick {
        token: token as u32,
        probability: (1.0 / total) as f32,
        top: top.map(|id| (id as u32, log_probability(id))).collect(),
    }
}
