//! A round, which is what repeats, and the forecast that it makes.
//!
//! In `plain`, `sequential` and `lookup` a round is one verification pass with the drafting before it, in `overlap` the
//! time from one rejection to the next. *Invariant:* the shares of a round add up to the round, but for `overlap`, where
//! they add up to more if units really work at once.

use std::collections::BTreeMap;
use std::fmt;

use super::chain::{Chain, Part};
use crate::plan::PartitionPlan;
use crate::role::UnitId;

/// A part of a round.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Share {
    /// What the time is for.
    pub what: String,
    /// The unit that computes; `None` for what lies between units.
    pub unit: Option<UnitId>,
    /// Mean time in one round.
    pub ns: u64,
}

/// What a plan is expected to yield for one sequence.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Forecast {
    /// Millionths of a token per second.
    pub microtokens_per_second: u64,
    /// Of the same plan's target alone, on the same units.
    pub plain_microtokens_per_second: u64,
    /// Mean time of a round.
    pub round_ns: u64,
    /// Millionths of a token that a round yields.
    pub microtokens_per_round: u64,
    /// Share of time that each unit computes, in thousandths.
    pub utilisation_permille: BTreeMap<UnitId, u32>,
    /// Where a round's time goes; in `overlap` what units do beside each other is listed too.
    pub shares: Vec<Share>,
}

/// What repeats: time, tokens, and where the time goes.
#[derive(Clone, Debug)]
pub(super) struct Round {
    pub(super) tokens: f64,
    pub(super) ns: f64,
    pub(super) parts: Vec<Part>,
}

impl Round {
    pub(super) fn new(tokens: f64, overhead_ns: f64) -> Self {
        let mut round = Self { tokens, ns: 0.0, parts: Vec::new() };
        if overhead_ns > 0.0 {
            round.add(vec![Part { what: "round".to_owned(), unit: None, ns: overhead_ns }], 1.0);
        }
        round
    }

    pub(super) fn plain(target: &Chain<'_>, overhead_ns: f64) -> Self {
        let mut round = Self::new(1.0, overhead_ns);
        round.add(target.parts(1.0), 1.0);
        round
    }

    /// Adds parts that the sequence waits for, each `times` times on average. The overhead of a round is counted once.
    pub(super) fn add(&mut self, parts: Vec<Part>, times: f64) {
        for part in parts {
            let already = |p: &&mut Part| p.what == part.what && p.unit == part.unit;
            let known = self.parts.iter_mut().find(already);
            if part.what == "round" && known.is_some() {
                continue;
            }
            let ns = part.ns * times;
            self.ns += ns;
            match known {
                Some(known) => known.ns += ns,
                None => self.parts.push(Part { ns, ..part }),
            }
        }
    }

    /// Tokens per nanosecond.
    pub(super) fn rate(&self) -> f64 {
        self.tokens / self.ns
    }

    pub(super) fn forecast(&self, plan: &PartitionPlan, plain_rate: f64) -> Forecast {
        let busy = |unit: &UnitId| -> f64 {
            let on_unit = |part: &&Part| part.unit.as_ref() == Some(unit);
            self.parts.iter().filter(on_unit).map(|part| part.ns).sum()
        };
        let permille = |unit: &UnitId| (busy(unit) * 1000.0 / self.ns).round().min(1000.0) as u32;
        let share = |part: &Part| Share {
            what: part.what.clone(),
            unit: part.unit.clone(),
            ns: part.ns.round() as u64,
        };
        Forecast {
            microtokens_per_second: (self.rate() * 1e15).round() as u64,
            plain_microtokens_per_second: (plain_rate * 1e15).round() as u64,
            round_ns: self.ns.round() as u64,
            microtokens_per_round: (self.tokens * 1e6).round() as u64,
            utilisation_permille: plan.units.keys().map(|u| (u.clone(), permille(u))).collect(),
            shares: self.parts.iter().map(share).collect(),
        }
    }
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
}

impl fmt::Display for Forecast {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let thousandths =
            |n: u64, unit: u64| format!("{}.{:03}", n / unit, n % unit / (unit / 1000));
        writeln!(
            f,
            "{} tokens/s, {} times its target alone",
            thousandths(self.microtokens_per_second, 1_000_000),
            thousandths(self.speedup_permille(), 1000)
        )?;
        writeln!(
            f,
            "a round: {} us for {} tokens",
            thousandths(self.round_ns, 1000),
            thousandths(self.microtokens_per_round, 1_000_000)
        )?;
        for Share { what, unit, ns } in &self.shares {
            let on = unit.as_ref().map(|unit| format!(" on {unit}")).unwrap_or_default();
            writeln!(f, "  {:>12} us  {what}{on}", thousandths(*ns, 1000))?;
        }
        for (unit, permille) in &self.utilisation_permille {
            let mark = if self.bottleneck() == Some(unit) { ", the bottleneck" } else { "" };
            writeln!(f, "  {unit} is busy {}.{} %{mark}", permille / 10, permille % 10)?;
        }
        Ok(())
    }
}
