//! From one row of logits to a pick.

use crate::batch::Pick;
use crate::sampling::Sampling;

/// Picks the token after a row: `position` is that of the token picked, `history` all tokens before it.
pub(crate) fn pick(logits: &[f32], position: u32, history: &[u32], sampling: &Sampling) -> Pick {
    let _ = (position, history, sampling);
    let (mut token, mut greatest) = (0, f32::NEG_INFINITY);
    for (id, &logit) in logits.iter().enumerate() {
        if logit > greatest {
            (token, greatest) = (id, logit);
        }
    }
    let sum: f32 = logits.iter().map(|&l| (l - greatest).exp()).sum();
    Pick { token: token as u32, probability: 1.0 / sum, top: Vec::new() }
}
