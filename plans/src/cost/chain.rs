//! The stages that a model's rows pass through, with the times of each.
//!
//! *Invariant:* the parts of a pass are in the order that a row meets them, and add up to the pass.

use super::profile::{LinkProfile, TimeTable, UnitProfile};
use crate::role::{StageId, UnitId};

/// The stages of one model with what is known of them.
pub(super) struct Chain<'a> {
    pub(super) hops: Vec<Hop<'a>>,
    /// Bytes of a row of activations between two stages.
    pub(super) row_bytes: f64,
    /// Cached positions.
    pub(super) context: f64,
}

/// A stage on its unit.
pub(super) struct Hop<'a> {
    pub(super) unit: &'a UnitId,
    pub(super) stage: StageId,
    pub(super) profile: &'a UnitProfile,
    pub(super) table: &'a TimeTable,
    /// From the stage before; `None` for the first.
    pub(super) link: Option<LinkProfile>,
}

/// A piece of time: what for, and on which unit.
#[derive(Clone, Debug)]
pub(super) struct Part {
    pub(super) what: String,
    pub(super) unit: Option<UnitId>,
    pub(super) ns: f64,
}

impl Chain<'_> {
    /// One pass of `rows` rows through all stages.
    pub(super) fn parts(&self, rows: f64) -> Vec<Part> {
        let mut parts = Vec::new();
        for hop in &self.hops {
            if let Some(link) = hop.link {
                let ns = link.transfer_ns(rows * self.row_bytes);
                parts.push(Part { what: format!("to {}", hop.unit), unit: None, ns });
            }
            parts.push(hop.part(hop.profile.job_ns as f64 + hop.table.at(rows, self.context)));
        }
        parts
    }

    /// Drafting `steps` tokens, the first step with `first_rows` rows: one job if the draft is on one unit, else one pass
    /// a step.
    pub(super) fn draft_parts(&self, first_rows: f64, steps: u32) -> Vec<Part> {
        let more = f64::from(steps) - 1.0;
        if let [hop] = self.hops.as_slice() {
            let first = hop.table.at(first_rows, self.context);
            let each = hop.table.at(1.0, self.context);
            return vec![hop.part(hop.profile.job_ns as f64 + first + more * each)];
        }
        let mut parts = self.parts(first_rows);
        parts.extend(self.parts(1.0).into_iter().map(|part| Part { ns: part.ns * more, ..part }));
        parts
    }

    pub(super) fn pass_ns(&self, rows: f64) -> f64 {
        self.parts(rows).iter().map(|part| part.ns).sum()
    }

    /// Time that a pass of `rows` rows keeps `unit` busy.
    pub(super) fn busy_ns(&self, unit: &UnitId, rows: f64) -> f64 {
        let on_unit = |part: &&Part| part.unit.as_ref() == Some(unit);
        self.parts(rows).iter().filter(on_unit).map(|part| part.ns).sum()
    }
}

impl Hop<'_> {
    fn part(&self, ns: f64) -> Part {
        Part { what: self.stage.to_string(), unit: Some(self.unit.clone()), ns }
    }
}
