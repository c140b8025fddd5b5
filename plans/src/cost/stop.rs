//! When to stop drafting: the marginal rules that follow from the formulas.
//!
//! *Invariant:* pure comparisons of what one more token is expected to bring with what its time is worth.

use super::formula::{Costs, Rhythm, power};

/// What is known when the draft could go on.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Prospect {
    /// Calibrated probability that everything drafted so far is accepted: the product over the drafted tokens; 1 if
    /// nothing is drafted yet.
    pub prefix: f64,
    /// Calibrated probability that the next token is accepted if the others are.
    pub next: f64,
    /// `S`: the rate currently achieved, in tokens per plain pass of the target.
    pub rate: f64,
}

/// Whether one more drafted token is worth its time: `prefix next > S (c + v)`.
///
/// By renewal-reward: the token brings `prefix next` tokens on average and takes `c + v`, in which `S (c + v)` tokens come
/// out otherwise. At the best rate this finds the best depth.
pub fn worth_drafting(prospect: Prospect, costs: Costs) -> bool {
    prospect.prefix * prospect.next > prospect.rate * (costs.draft_step + costs.verify_token)
}

/// Whether the first pass after a rejection should wait for one draft more than `rhythm.wait`:
/// `tau a^(g0+1) (1 - a) / (1 - a^n) > c + v`.
pub fn worth_waiting(a: f64, rhythm: Rhythm, costs: Costs) -> bool {
    let Costs { draft_step: c, verify_token: v, .. } = costs;
    let n = f64::from(rhythm.draft_tokens);
    let tau = (1.0 + v * n).max(n * c).max(rhythm.bus);
    tau * power(a, rhythm.wait + 1) * (1.0 - a) / (1.0 - power(a, rhythm.draft_tokens)) > c + v
}
