//! A plan rehearsed: the real scheduler decodes recorded texts, and each of its jobs takes the time that a cost model gives
//! it. What comes out is the plan's [`Forecast`].
//!
//! Nothing about the process is assumed again: who waits for whom, how deep a draft is, how rows are batched and when text
//! ends are decided by the code that decides them in service. *Invariant:* a function of its arguments: no clock, no chance.

mod course;
mod players;

use std::collections::BTreeMap;

use outrider_plans::cost::{CostModel, ForecastError, PlanTimes};
use outrider_plans::{
    Forecast, Mode, ModelRole, PartitionPlan, PlanContext, UnitClass, UnitId, UnitSpec, Workload,
};

pub use course::Course;
pub use players::{Answer, Players, Recorded};

use crate::scheduler::SchedulerConfig;
use course::Stage;

/// Everything that a forecast is made from but the plan.
pub struct Rehearsal<'a> {
    /// Measured times.
    pub model: &'a CostModel,
    /// Machine, models, caches.
    pub context: &'a PlanContext,
    /// What is decoded.
    pub workload: &'a Workload,
    /// The rules under which the engine would run a plan.
    pub rules: &'a dyn Fn(&PartitionPlan) -> SchedulerConfig,
}

impl Rehearsal<'_> {
    /// What `plan` is expected to yield.
    ///
    /// # Errors
    /// See [`ForecastError`].
    pub fn forecast(&self, plan: &PartitionPlan) -> Result<Forecast, ForecastError> {
        let course = self.course(plan)?;
        let plain = match plan.mode {
            Mode::Plain => course.rate(),
            _ => {
                let plain = plan.with_mode(Mode::Plain).expect("a plain plan needs nothing");
                self.course(&plain)?.rate()
            }
        };
        Ok(course.forecast(plan, plain, self.memory(plan)))
    }

    /// How decoding would go under `plan`.
    ///
    /// # Errors
    /// See [`ForecastError`].
    pub fn course(&self, plan: &PartitionPlan) -> Result<Course, ForecastError> {
        let times = self.model.times(plan, self.context)?;
        if self.workload.texts.is_empty() {
            return Err(ForecastError::NoTexts);
        }
        let end = (self.rules)(plan).end_of_text.first().copied().unwrap_or(0);
        Ok(self.play(plan, &times, &mut Recorded::new(&times, end)))
    }

    /// The same with other players, such as simulated units. `times` says what lies around their jobs.
    pub fn play(
        &self,
        plan: &PartitionPlan,
        times: &PlanTimes,
        players: &mut dyn Players,
    ) -> Course {
        Stage::new((self.rules)(plan), times, self.workload).play(players)
    }

    /// Bytes on each unit: what the plan was checked with, and the scratch buffers that were measured.
    fn memory(&self, plan: &PartitionPlan) -> BTreeMap<UnitId, u64> {
        let of = |(unit, spec): (&UnitId, &UnitSpec)| {
            let class = UnitClass::of(spec, &self.context.machine);
            let profile = self.model.profile(&class);
            let scratch = |role: ModelRole| {
                let runs = plan.chain(role).iter().any(|p| p.unit == *unit);
                let known = profile.as_ref().and_then(|p| p.roles.get(&role));
                known.filter(|_| runs).map_or(0, |times| times.scratch_bytes)
            };
            let scratch = scratch(ModelRole::Target) + scratch(ModelRole::Draft);
            (unit.clone(), plan.unit_memory(unit).total_bytes() + scratch)
        };
        plan.units.iter().map(of).collect()
    }
}
