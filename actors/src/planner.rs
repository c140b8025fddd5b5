//! The planner: compares what jobs take with what was foreseen, corrects the model, and proposes a plan when another one
//! would be faster by a margin for long enough.
//!
//! ```text
//!   units ── StageTiming (may be lost) ──▶ Planner ── Advice ──▶ log, or Engine::propose
//! ```
//!
//! A unit that runs hotter or beside a noisy neighbour takes longer for the same work. Its tables are scaled only when the
//! ratio has left a band for many jobs, and the band is wider than noise: hysteresis, so that plans do not flap.
//! *Invariant:* the planner decides nothing about a swap; it proposes. Its memory is fixed.

use std::collections::{BTreeMap, BTreeSet};
use std::str::FromStr;
use std::time::Duration;

use crossbeam_channel::Receiver;
use outrider_observability::PlanMetrics;
use outrider_plans::cost::{Before, DraftShape, PassShape, PlanTimes, Purpose};
use outrider_plans::{
    CostModel, Forecast, Mode, ModelRole, Objective, PartitionPlan, PlanEpoch, Proposal, Reason,
    UnitClass, UnitSpec,
};

use crate::foresight::Foresight;
use crate::meter::{StageTiming, Work};
use crate::office::Office;
use crate::supervisor::PlanView;

/// What the planner may do.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Policy {
    /// It proposes better plans to the running service.
    Auto,
    /// It says in the log which plan would be better.
    #[default]
    Advise,
    /// Nothing but metrics.
    Off,
}

impl FromStr for Policy {
    type Err = String;

    fn from_str(word: &str) -> Result<Self, String> {
        match word {
            "auto" => Ok(Policy::Auto),
            "advise" => Ok(Policy::Advise),
            "off" => Ok(Policy::Off),
            _ => Err(format!("`{word}` is not a planner policy: choose auto, advise or off")),
        }
    }
}

impl std::fmt::Display for Policy {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Policy::Auto => "auto",
            Policy::Advise => "advise",
            Policy::Off => "off",
        })
    }
}

/// Jobs after which a ratio is believed.
const JOBS_MIN: u64 = 64;
/// A ratio further than this from the one in use, in thousandths, changes the model.
const BAND_PERMILLE: u32 = 80;
/// Another plan must be faster by this, in thousandths.
const MARGIN_PERMILLE: u64 = 50;
/// Looks in a row at which it must be.
const LOOKS: u32 = 3;
/// Time between two looks.
pub const LOOK_EVERY: Duration = Duration::from_secs(5);
/// Timings that wait for the planner; more are lost.
pub const TIMINGS_MAX: usize = 4096;

/// Measured over foreseen time of one model on one class of units.
#[derive(Clone, Copy, Debug)]
struct Ratio {
    jobs: u64,
    measured_ns: u64,
    foreseen_ns: u64,
    /// What the model's tables are multiplied with, in thousandths.
    applied_permille: u32,
}

impl Default for Ratio {
    fn default() -> Self {
        Self { jobs: 0, measured_ns: 0, foreseen_ns: 0, applied_permille: 1000 }
    }
}

impl Ratio {
    /// What tables are to be multiplied with, in thousandths; `foreseen` already contains what was applied.
    fn found(&self) -> u32 {
        let found = u64::from(self.applied_permille) * self.measured_ns / self.foreseen_ns.max(1);
        found.clamp(100, 10_000) as u32
    }
}

/// A plan that would be faster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Advice {
    /// The plan.
    pub plan: PartitionPlan,
    /// Its forecast.
    pub forecast: Forecast,
    /// That of the running plan.
    pub running: Forecast,
}

impl Advice {
    /// Why, in words.
    pub fn words(&self) -> String {
        let (new, old) =
            (self.forecast.microtokens_per_second, self.running.microtokens_per_second);
        format!(
            "{} is foreseen to give {} tokens/s, the running plan {}",
            self.plan.name,
            new / 1_000_000,
            old / 1_000_000
        )
    }
}

/// Compares and corrects.
pub struct Planner {
    foresight: Foresight,
    measured: CostModel,
    running: PartitionPlan,
    times: Option<PlanTimes>,
    ratios: BTreeMap<(UnitClass, ModelRole), Ratio>,
    /// Measured and foreseen time of jobs since the last look.
    since: (u64, u64),
    better: Option<(outrider_plans::PlanId, u32)>,
    corrected: bool,
    /// Units that were given up.
    lost: BTreeSet<UnitSpec>,
}

impl Planner {
    /// For a service that runs `plan`.
    pub fn new(foresight: Foresight, plan: PartitionPlan) -> Self {
        let measured = foresight.model.clone();
        let mut planner = Self {
            foresight,
            measured,
            running: plan.clone(),
            times: None,
            ratios: BTreeMap::new(),
            since: (0, 0),
            better: None,
            corrected: true,
            lost: BTreeSet::new(),
        };
        planner.runs(plan);
        planner
    }

    /// The service runs this plan now.
    pub fn runs(&mut self, plan: PartitionPlan) {
        self.times = self.foresight.model.times(&plan, &self.foresight.context).ok();
        self.running = plan;
        self.since = (0, 0);
        self.better = None;
    }

    /// These units were given up, and all others are there: plans are looked for anew.
    pub fn without(&mut self, lost: BTreeSet<UnitSpec>) {
        if lost != self.lost {
            (self.lost, self.better, self.corrected) = (lost, None, true);
        }
    }

    /// The plan that it compares with.
    pub fn running(&self) -> &PartitionPlan {
        &self.running
    }

    /// A unit has done a job.
    pub fn note(&mut self, timing: &StageTiming) {
        let (Some(times), Some(spec)) = (&self.times, self.running.units.get(&timing.unit)) else {
            return;
        };
        let role = timing.stage.role;
        let chain = if role == ModelRole::Target { &times.target } else { &times.draft };
        let Some(stage) = chain.iter().find(|stage| stage.stage == timing.stage) else { return };
        let Work { rows, head_rows, steps, context } = timing.work;
        let shared = self.running.has_draft() && self.running.units.len() == 1;
        let before = if shared { Before::Other } else { Before::Same };
        let first = PassShape { rows, head_rows, context, before };
        let pass = stage.pass(first).into_iter();
        let pass: u64 =
            pass.filter(|piece| piece.purpose != Purpose::Transfer).map(|piece| piece.ns).sum();
        let further = vec![1; steps.saturating_sub(head_rows.max(1)) as usize];
        let alone = pass + stage.further_steps_ns(&DraftShape { first, further });
        let slowed = match (self.running.mode, role) {
            (Mode::Overlap { .. }, ModelRole::Target) => times.slowed.0,
            (Mode::Overlap { .. }, ModelRole::Draft) => times.slowed.1,
            _ => 1000,
        };
        let foreseen_ns = alone * u64::from(slowed) / 1000;
        let measured_ns = timing.at_ns.end.saturating_sub(timing.at_ns.start);
        let class = UnitClass::of(spec, &self.foresight.context.machine);
        let ratio = self.ratios.entry((class, role)).or_default();
        ratio.jobs += 1;
        ratio.measured_ns += measured_ns;
        ratio.foreseen_ns += foreseen_ns;
        self.since.0 += measured_ns;
        self.since.1 += foreseen_ns;
    }

    /// Corrects the model where jobs have long been slower or faster than foreseen, and shows how well it foresaw.
    pub fn look(&mut self, metrics: &PlanMetrics) {
        let (measured, foreseen) = std::mem::take(&mut self.since);
        if measured > 0 && foreseen > 0 {
            // Speeds are the inverse of times.
            metrics.error_ratio.set(measured as f64 / foreseen as f64 - 1.0);
        }
        let mut changed = false;
        for ratio in self.ratios.values_mut().filter(|ratio| ratio.jobs >= JOBS_MIN) {
            let found = ratio.found();
            if found.abs_diff(ratio.applied_permille) * 1000
                > BAND_PERMILLE * ratio.applied_permille
            {
                ratio.applied_permille = found;
                changed = true;
            }
            (ratio.jobs, ratio.measured_ns, ratio.foreseen_ns) = (0, 0, 0);
        }
        if changed {
            self.correct();
        }
        if let Ok(forecast) = self.foresight.forecast(&self.running) {
            metrics.predicted_tokens_per_second.set(forecast.microtokens_per_second as f64 / 1e6);
        }
    }

    fn correct(&mut self) {
        let mut model = self.measured.clone();
        let kind = |class: &UnitClass| std::mem::discriminant(class);
        for (class, unit) in &mut model.units {
            for (role, times) in &mut unit.roles {
                // What slows some cores slows the others of the machine too, as far as anybody knows.
                let alike =
                    self.ratios.iter().filter(|((of, r), _)| r == role && kind(of) == kind(class));
                let own = self.ratios.get(&(class.clone(), *role));
                let Some(ratio) = own.or_else(|| alike.map(|(_, ratio)| ratio).next()) else {
                    continue;
                };
                let permille = u64::from(ratio.applied_permille);
                // Parts too, or a split target would look untouched by what slows the whole one.
                let parts = times.parts.iter_mut();
                let parts = parts.flat_map(|p| [&mut p.base, &mut p.layer, &mut p.head]);
                let whole = [&mut times.verify, &mut times.fill, &mut times.draft_step];
                for table in whole.into_iter().chain(parts) {
                    *table = table.map(|_, _, ns| ns * permille / 1000);
                }
                // What jobs take in the engine beyond that is as much slower.
                unit.around.scale(*role, permille as i64);
            }
        }
        for ((class, role), ratio) in &self.ratios {
            let permille = ratio.applied_permille;
            tracing::info!(%class, %role, permille, "the cost model is corrected");
        }
        self.foresight.model = model;
        self.corrected = true;
        self.runs(self.running.clone());
    }

    /// A plan that has been faster by the margin for long enough, by what is known now. Searches only after a correction, or
    /// while a better plan waits to be believed.
    pub fn advise(&mut self) -> Option<Advice> {
        if !self.corrected && self.better.is_none() {
            return None;
        }
        self.corrected = false;
        let running = self.foresight.forecast(&self.running).ok()?;
        let found = self.foresight.search_without(&self.lost, Objective::Throughput, None);
        let best = found.ranked.into_iter().next()?;
        let needed = running.microtokens_per_second / 1000 * (1000 + MARGIN_PERMILLE);
        if best.forecast.microtokens_per_second < needed {
            self.better = None;
            return None;
        }
        let id = best.plan.fingerprint();
        let looks = match self.better {
            Some((known, looks)) if known == id => looks + 1,
            _ => 1,
        };
        if looks < LOOKS {
            self.better = Some((id, looks));
            return None;
        }
        self.better = None;
        Some(Advice { plan: best.plan, forecast: best.forecast, running })
    }
}

/// What the units that were given up were, by the plans that had them.
fn lost(view: &PlanView) -> BTreeSet<UnitSpec> {
    let spec = |unit| {
        let plans = view.history.iter().rev().map(|entry| &entry.plan);
        plans.chain([&*view.plan]).find_map(|plan| plan.units.get(unit)).cloned()
    };
    view.gone.iter().filter_map(spec).collect()
}

/// Watches a running engine until it ends: reads timings, shows metrics, and advises or proposes.
pub async fn watch(
    office: Office,
    timings: Receiver<StageTiming>,
    (mut planner, policy): (Planner, Policy),
) {
    loop {
        tokio::time::sleep(LOOK_EVERY).await;
        let engine = office.engine();
        let view = engine.plan_view();
        if !view.plan.models.are_the_first() {
            // Other models than those that were calibrated: what is known does not hold.
            timings.try_iter().take(TIMINGS_MAX).for_each(drop);
            continue;
        }
        if view.plan.fingerprint() != planner.running().fingerprint() {
            planner.runs((*view.plan).clone());
            engine.plan_metrics().error_ratio.set(0.0);
        }
        planner.without(lost(&view));
        timings.try_iter().take(TIMINGS_MAX).for_each(|timing| planner.note(&timing));
        planner.look(engine.plan_metrics());
        if policy == Policy::Off {
            continue;
        }
        // A search takes a while, and requests must not wait for it.
        let (back, advice) = match tokio::task::spawn_blocking(move || {
            let advice = planner.advise();
            (planner, advice)
        })
        .await
        {
            Ok(answer) => answer,
            Err(error) => {
                tracing::error!(%error, "the planner has ended");
                return;
            }
        };
        planner = back;
        let Some(advice) = advice else { continue };
        let words = advice.words();
        if policy == Policy::Advise {
            tracing::info!(words, "a better plan: PUT /v1/plan, or run with --planner auto");
            continue;
        }
        let expected = Some(PlanEpoch(view.epoch.0));
        let proposal = Proposal { plan: advice.plan, expected, reason: Reason::Planner(words) };
        match engine.propose(proposal).await {
            Ok(report) => tracing::info!(?report, "the planner's plan runs"),
            Err(error) => tracing::warn!(%error, "the planner's plan was not taken"),
        }
    }
}
