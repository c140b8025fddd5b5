//! Stages: each model that the mode runs is covered, every layer exactly once.

use super::{Fault, unit_id};
use crate::context::PlanContext;
use crate::error::{PlanProblem, Position};
use crate::mode::ModeKind;
use crate::plan::Placement;
use crate::role::{ModelRole, StageId};
use crate::spec::{At, PlanSpec, StageEntry};

/// All stages: the target's in layer order, then the draft's.
pub(super) fn stages(spec: &PlanSpec, context: &PlanContext) -> Result<Vec<Placement>, Fault> {
    let mut stages = chain(spec, context, ModelRole::Target)?;
    stages.extend(draft(spec, context)?);
    Ok(stages)
}

fn draft(spec: &PlanSpec, context: &PlanContext) -> Result<Vec<Placement>, Fault> {
    let first = spec.stages.iter().find(|stage| stage.value.role == ModelRole::Draft);
    let Some(At { at, .. }) = first else {
        if spec.mode.value.needs_draft() {
            let (role, mode) = (ModelRole::Draft, spec.mode.value);
            return Err(PlanProblem::RoleMissing { role, mode }.at(spec.mode.at));
        }
        return Ok(Vec::new());
    };
    if spec.mode.value == ModeKind::Plain {
        return Err(PlanProblem::DraftInPlain.at(*at));
    }
    let Some(shape) = &context.draft else {
        return Err(PlanProblem::DraftNotLoaded.at(*at));
    };
    if shape.vocabulary != context.target.vocabulary {
        let (draft, target) = (shape.vocabulary, context.target.vocabulary);
        return Err(PlanProblem::Vocabulary { draft, target }.at(*at));
    }
    chain(spec, context, ModelRole::Draft)
}

/// The stages of one model in layer order.
fn chain(spec: &PlanSpec, context: &PlanContext, role: ModelRole) -> Result<Vec<Placement>, Fault> {
    let layers = context.shape(role).map_or(0, |shape| shape.layers());
    let mut chain: Vec<(Placement, Position)> = Vec::new();
    for entry in spec.stages.iter().filter(|stage| stage.value.role == role) {
        let stage = read_layers(&entry.value, layers)?;
        chain.push((
            Placement { stage, unit: unit_id(&entry.value.unit.value) },
            entry.value.layers.at,
        ));
    }
    chain.sort_by_key(|(placement, at)| (placement.stage, *at));
    let Some((_, at)) = chain.first() else {
        return Err(PlanProblem::RoleMissing { role, mode: spec.mode.value }.at(spec.mode.at));
    };
    let mut covered = (0, *at);
    let mut previous: Option<(StageId, Position)> = None;
    for (Placement { stage, .. }, at) in &chain {
        let &StageId { layer_first: first, layer_end: end, .. } = stage;
        match previous {
            Some((other, other_at)) if first < other.layer_end => {
                return Err(overlap((*stage, *at), (other, other_at)));
            }
            _ if first > covered.0 => {
                return Err(
                    PlanProblem::LayersMissing { role, first: covered.0, end: first }.at(*at)
                );
            }
            _ => {}
        }
        covered = (end, *at);
        previous = Some((*stage, *at));
    }
    if covered.0 < layers {
        let (first, end) = (covered.0, layers);
        return Err(PlanProblem::LayersMissing { role, first, end }.at(covered.1));
    }
    Ok(chain.into_iter().map(|(placement, _)| placement).collect())
}

/// Says of the entry further down in the file that it overlaps the one further up.
fn overlap(one: (StageId, Position), two: (StageId, Position)) -> Fault {
    let ((other, other_at), (stage, at)) = if one.1 < two.1 { (one, two) } else { (two, one) };
    PlanProblem::LayersOverlap {
        role: stage.role,
        first: stage.layer_first,
        end: stage.layer_end,
        other_first: other.layer_first,
        other_end: other.layer_end,
        other_line: other_at.line,
    }
    .at(at)
}

fn read_layers(entry: &StageEntry, layers: usize) -> Result<StageId, Fault> {
    let At { value, at } = &entry.layers;
    let range = value.as_str().and_then(|text| match text {
        "all" => Some((0, layers)),
        _ => {
            let (first, end) = text.split_once("..")?;
            Some((first.trim().parse().ok()?, end.trim().parse().ok()?))
        }
    });
    let Some((first, end)) = range else {
        return Err(PlanProblem::LayersUnreadable { given: value.to_string() }.at(*at));
    };
    let role = entry.role;
    if first >= end {
        return Err(PlanProblem::LayersEmpty { role, first, end }.at(*at));
    }
    if end > layers {
        return Err(PlanProblem::LayersBeyond { role, first, end, layers }.at(*at));
    }
    Ok(StageId { role, layer_first: first, layer_end: end })
}
