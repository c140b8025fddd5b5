//! What a plan is expected to yield, and where the time goes.
//!
//! *Invariant:* integers, so that forecasts are compared exactly and ties break alike everywhere.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};

use super::times::Purpose;
use crate::role::UnitId;
use crate::wording;

/// A share of the time.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Share {
    /// What the time is for.
    pub purpose: Purpose,
    /// The unit that computes; `None` for what lies between units.
    pub unit: Option<UnitId>,
    /// Mean time of one round.
    pub ns: u64,
}

/// What a plan is expected to yield.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Forecast {
    /// Millionths of a token per second, all requests together, prompts included.
    pub microtokens_per_second: u64,
    /// Of the same plan's target alone, on the same units.
    pub plain_microtokens_per_second: u64,
    /// Mean time from a request's arrival to its first token.
    pub first_token_ns: u64,
    /// Mean time of a round: from one pass of the target to the next.
    pub round_ns: u64,
    /// Millionths of a token that a round yields.
    pub microtokens_per_round: u64,
    /// Share of drafted tokens that are right, in thousandths; 0 if none are drafted.
    pub acceptance_permille: u32,
    /// Share of time that each unit computes, in thousandths.
    pub utilisation_permille: BTreeMap<UnitId, u32>,
    /// Bytes on each unit: weights, caches and scratch buffers.
    pub memory_bytes: BTreeMap<UnitId, u64>,
    /// Energy of one token by the units' power while they compute, nanojoules: a proxy.
    pub energy_nj_per_token: u64,
    /// Where a round's time goes. Where units work beside each other the shares add up to more than the round.
    pub shares: Vec<Share>,
}

impl Forecast {
    /// Speed over that of the same plan's target alone, in thousandths.
    pub fn speedup_permille(&self) -> u64 {
        let (with, without) = (self.microtokens_per_second, self.plain_microtokens_per_second);
        (u128::from(with) * 1000 / u128::from(without.max(1))) as u64
    }

    /// The unit that computes most of the time; of equals the first by name.
    pub fn bottleneck(&self) -> Option<&UnitId> {
        let busiest = self.utilisation_permille.iter().rev().max_by_key(|(_, permille)| **permille);
        busiest.map(|(unit, _)| unit)
    }

    /// The largest shares of the time, largest first.
    pub fn largest_shares(&self) -> Vec<&Share> {
        let mut shares: Vec<&Share> = self.shares.iter().collect();
        shares.sort_by(|a, b| b.ns.cmp(&a.ns).then_with(|| a.purpose.cmp(&b.purpose)));
        shares
    }
}

fn thousandths(n: u64, unit: u64) -> String {
    format!("{}.{:03}", n / unit, n % unit / (unit / 1000))
}

impl fmt::Display for Forecast {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "{} tokens/s, {} times its target alone; first token after {} ms",
            thousandths(self.microtokens_per_second, 1_000_000),
            thousandths(self.speedup_permille(), 1000),
            thousandths(self.first_token_ns, 1_000_000),
        )?;
        writeln!(
            f,
            "a round: {} us for {} tokens",
            thousandths(self.round_ns, 1000),
            thousandths(self.microtokens_per_round, 1_000_000)
        )?;
        let width = self.shares.iter().map(|s| s.purpose.to_string().len()).max().unwrap_or(0);
        for Share { purpose, unit, ns } in &self.shares {
            let on = unit.as_ref().map(|unit| format!("on {unit}")).unwrap_or_default();
            let percent = ns * 1000 / self.round_ns.max(1);
            let line = format!(
                "  {:>12} us {:>3}.{} %  {:<width$}  {on}",
                thousandths(*ns, 1000),
                percent / 10,
                percent % 10,
                purpose.to_string()
            );
            writeln!(f, "{}", line.trim_end())?;
        }
        for (unit, permille) in &self.utilisation_permille {
            let mark = if self.bottleneck() == Some(unit) { ", the bottleneck" } else { "" };
            let memory = self.memory_bytes.get(unit).copied().unwrap_or(0);
            writeln!(
                f,
                "  {unit} is busy {}.{} % with {}{mark}",
                permille / 10,
                permille % 10,
                wording::bytes(memory)
            )?;
        }
        Ok(())
    }
}
