//! Forecasts for this machine: a calibration, the models' sizes and the engine's rules, put together.
//!
//! *Invariant:* a forecast rehearses the scheduler under the very rules that the engine would run the plan with.

use std::collections::BTreeSet;
use std::sync::Arc;

use outrider_pipeline::rehearsal::{Course, Players, Rehearsal};
use outrider_plans::cost::{ForecastError, LinkProfile, PlanTimes};
use outrider_plans::search::{self, Forecaster, Found, Objective, Space, Wanted};
use outrider_plans::{
    CostModel, Forecast, Mode, ModelRole, PartitionPlan, PlanContext, UnitSpec, Workload,
};

use crate::calibrate::Calibration;
use crate::engine::EngineLimits;
use crate::frame::frame;
use crate::pair::Pair;

/// Texts of a quick forecast.
const QUICK_TEXTS: usize = 12;

/// Who foresees what plans yield.
#[derive(Clone, Debug)]
pub struct Foresight {
    /// Measured times.
    pub model: CostModel,
    /// Machine, models and caches.
    pub context: PlanContext,
    /// What is decoded.
    pub workload: Workload,
    quick: Workload,
    tokens: (u32, Arc<[u32]>),
    limits: EngineLimits,
}

/// What a plan would yield if something were different.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct WhatIf {
    /// What is different.
    pub change: String,
    /// Millionths of a token per second then.
    pub microtokens_per_second: u64,
}

impl Foresight {
    /// From a calibration of this machine with these models, `concurrent` requests at a time.
    pub fn here(
        pair: &Pair,
        limits: EngineLimits,
        calibration: &Calibration,
        concurrent: usize,
    ) -> Self {
        Self::in_context(pair, limits, (calibration, limits.plan_context(pair)), concurrent)
    }

    /// The same where it is known what there is.
    pub fn in_context(
        pair: &Pair,
        limits: EngineLimits,
        (calibration, context): (&Calibration, PlanContext),
        concurrent: usize,
    ) -> Self {
        let workload = calibration.workload().with_concurrency(concurrent);
        let known = (calibration.model.clone(), context);
        Self::of_pair(pair, limits, known, workload)
    }

    /// For a pair of models, from any times.
    pub fn of_pair(
        pair: &Pair,
        limits: EngineLimits,
        (model, context): (CostModel, PlanContext),
        workload: Workload,
    ) -> Self {
        let config = pair.target.config();
        let tokens = (config.shape.vocabulary as u32, config.special.eos.iter().copied().collect());
        Self::new(model, context, workload, tokens, limits)
    }

    /// For any machine. `tokens` are the number of tokens and those that end a text.
    pub fn new(
        model: CostModel,
        context: PlanContext,
        workload: Workload,
        tokens: (u32, Arc<[u32]>),
        limits: EngineLimits,
    ) -> Self {
        // Every n-th text, so that the quick ones are like all.
        let step = workload.texts.len().div_ceil(QUICK_TEXTS).max(1);
        let texts = workload.texts.iter().step_by(step).cloned().collect();
        let quick = Workload { texts, concurrent: workload.concurrent };
        Self { model, context, workload, quick, tokens, limits }
    }

    /// What `plan` is expected to yield.
    ///
    /// # Errors
    /// See [`ForecastError`].
    pub fn forecast(&self, plan: &PartitionPlan) -> Result<Forecast, ForecastError> {
        self.with(&self.model, &self.workload, plan)
    }

    fn with(
        &self,
        model: &CostModel,
        workload: &Workload,
        plan: &PartitionPlan,
    ) -> Result<Forecast, ForecastError> {
        self.rehearse(model, workload, |rehearsal| rehearsal.forecast(plan))
    }

    /// How decoding would go under `plan`.
    ///
    /// # Errors
    /// See [`ForecastError`].
    pub fn course(&self, plan: &PartitionPlan) -> Result<Course, ForecastError> {
        self.rehearse(&self.model, &self.workload, |rehearsal| rehearsal.course(plan))
    }

    /// How decoding would go under `plan` with these players in the place of the recorded ones.
    pub fn play(
        &self,
        plan: &PartitionPlan,
        times: &PlanTimes,
        players: &mut dyn Players,
    ) -> Course {
        self.rehearse(&self.model, &self.workload, |rehearsal| rehearsal.play(plan, times, players))
    }

    fn rehearse<T>(
        &self,
        model: &CostModel,
        workload: &Workload,
        play: impl FnOnce(&Rehearsal<'_>) -> T,
    ) -> T {
        let positions = self.context.caches.positions_max;
        let rules = |plan: &PartitionPlan| frame(plan, self.tokens.clone(), self.limits, positions);
        play(&Rehearsal { model, context: &self.context, workload, rules: &rules })
    }

    /// The best plans for this machine.
    pub fn search(&self, objective: Objective, memory_bytes_max: Option<u64>) -> Found {
        self.search_without(&BTreeSet::new(), objective, memory_bytes_max)
    }

    /// The best plans that use none of these units.
    pub fn search_without(
        &self,
        lost: &BTreeSet<UnitSpec>,
        objective: Objective,
        memory_bytes_max: Option<u64>,
    ) -> Found {
        let space = Space::new(&self.context, &self.model).without(lost);
        let wanted = Wanted { objective, memory_bytes_max, concurrent: self.workload.concurrent };
        search::search(&self.context, &space, wanted, self)
    }

    /// What would make `plan` faster, and how much.
    ///
    /// # Errors
    /// See [`ForecastError`].
    pub fn what_if(&self, plan: &PartitionPlan) -> Result<Vec<WhatIf>, ForecastError> {
        let mut found = Vec::new();
        let mut add = |change: &str, model: &CostModel, workload: &Workload| {
            let rate = self.with(model, workload, plan)?.microtokens_per_second;
            found.push(WhatIf { change: change.to_owned(), microtokens_per_second: rate });
            Ok(())
        };
        let changed = |change: &dyn Fn(&mut CostModel)| {
            let mut model = self.model.clone();
            change(&mut model);
            model
        };
        let hops = changed(&|model| {
            model.link_default = LinkProfile::default();
            for unit in model.units.values_mut() {
                (unit.around.target_hop_ns, unit.around.draft_hop_ns) = (0, 0);
            }
        });
        add("hops took no time", &hops, &self.workload)?;
        if plan.mode != Mode::Plain {
            let rows = changed(&|model| {
                for unit in model.units.values_mut() {
                    if let Some(times) = unit.roles.get_mut(&ModelRole::Target) {
                        let table = times.verify.clone();
                        times.verify = table.map(|_, context, _| table.at_ns(1, context));
                    }
                }
            });
            add("verified rows cost nothing", &rows, &self.workload)?;
        }
        if plan.has_draft() {
            let draft = changed(&|model| {
                for unit in model.units.values_mut() {
                    if let Some(times) = unit.roles.get_mut(&ModelRole::Draft) {
                        for table in [&mut times.verify, &mut times.fill, &mut times.draft_step] {
                            *table = table.map(|_, _, _| 0);
                        }
                    }
                }
            });
            add("the draft took no time", &draft, &self.workload)?;
            let alone = changed(&|model| {
                model.contention.clear();
                model.bus_bytes_per_second = 0;
            });
            add("units did not slow each other", &alone, &self.workload)?;
            add("every draft were right", &self.model, &self.agreeing(1000))?;
        }
        Ok(found)
    }

    /// The share of right drafts, in thousandths, below which the target alone would be as fast as `plan`; `None` if drafts
    /// always pay, or never.
    ///
    /// # Errors
    /// See [`ForecastError`].
    pub fn break_even(&self, plan: &PartitionPlan) -> Result<Option<u32>, ForecastError> {
        let pays = |kept: u32| -> Result<(bool, u32), ForecastError> {
            let workload = self.agreeing(kept);
            let found = self.with(&self.model, &workload, plan)?;
            let pays = found.microtokens_per_second > found.plain_microtokens_per_second;
            Ok((pays, workload.acceptance_permille()))
        };
        if plan.mode == Mode::Plain || pays(0)?.0 || !pays(1000)?.0 {
            return Ok(None);
        }
        let (mut low, mut high) = (0, 1000);
        while high - low > 5 {
            let middle = (low + high) / 2;
            if pays(middle)?.0 { high = middle } else { low = middle }
        }
        Ok(Some(pays(high)?.1))
    }

    /// The texts with drafts that are right at `permille` of all positions, evenly spread.
    fn agreeing(&self, permille: u32) -> Workload {
        let mut workload = self.workload.clone();
        let mut position = 0u32;
        for text in &mut workload.texts {
            for (guess, token) in text.guesses.iter_mut().zip(&text.output) {
                position += 1;
                // A multiplicative hash spreads the positions without a pattern.
                let right = (position.wrapping_mul(2_654_435_769) >> 12) % 1000 < permille;
                let wrong = if *token == self.tokens.0 - 1 { 0 } else { self.tokens.0 - 1 };
                guess.token = if right { *token } else { wrong };
            }
        }
        workload
    }
}

impl Forecaster for Foresight {
    fn quick(&self, plan: &PartitionPlan) -> Result<Forecast, ForecastError> {
        self.with(&self.model, &self.quick, plan)
    }

    fn full(&self, plan: &PartitionPlan) -> Result<Forecast, ForecastError> {
        self.forecast(plan)
    }
}

/// A plan by the search, if it finds any; else why there is none.
///
/// # Errors
/// The search's reason in words.
pub fn chosen(foresight: &Foresight) -> Result<(PartitionPlan, Forecast), String> {
    let found = foresight.search(Objective::Throughput, None);
    match (found.ranked.into_iter().next(), found.unmeasured) {
        (Some(best), _) => Ok((best.plan, best.forecast)),
        (None, Some(error)) => Err(error.to_string()),
        (None, None) => Err("no plan fits this machine".to_owned()),
    }
}
