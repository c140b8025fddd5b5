//! The mode and its numbers: each within its bounds, and only where the mode reads it.

use toml::Value;

use super::Fault;
use crate::error::{PlanProblem, Position};
use crate::mode::{
    DRAFT_TOKENS_DEFAULT, DRAFT_TOKENS_MAX, DraftTokens, LOOKUP_NGRAM_DEFAULT, LOOKUP_NGRAM_MAX,
    Mode, ModeKind, WAIT_DEFAULT,
};
use crate::spec::{At, PlanSpec};

pub(super) fn mode(spec: &PlanSpec) -> Result<Mode, Fault> {
    let mode = spec.mode.value;
    let refuse = |key: &'static str, given: Option<Position>| match given {
        Some(at) => Err(PlanProblem::KeyNotForMode { key, mode }.at(at)),
        None => Ok(()),
    };
    if mode == ModeKind::Plain {
        refuse("draft_tokens", spec.draft_tokens.as_ref().map(|given| given.at))?;
    }
    if mode != ModeKind::Overlap {
        refuse("wait", spec.wait.as_ref().map(|given| given.at))?;
    }
    if mode != ModeKind::Lookup {
        refuse("lookup_ngram", spec.lookup_ngram.as_ref().map(|given| given.at))?;
    }
    let draft_tokens = depth(spec)?;
    Ok(match mode {
        ModeKind::Plain => Mode::Plain,
        ModeKind::Sequential => Mode::Sequential { draft_tokens },
        ModeKind::Overlap => Mode::Overlap { draft_tokens, wait: wait(spec, draft_tokens.most())? },
        ModeKind::Lookup => {
            Mode::Lookup { draft_tokens: number(spec, draft_tokens)?, ngram: ngram(spec)? }
        }
    })
}

fn depth(spec: &PlanSpec) -> Result<DraftTokens, Fault> {
    let Some(At { value, at }) = &spec.draft_tokens else {
        return Ok(DraftTokens::Fixed(DRAFT_TOKENS_DEFAULT));
    };
    match value {
        Value::Integer(given) => {
            let fixed = within(&At { value: *given, at: *at }, 1, DRAFT_TOKENS_MAX);
            let problem = PlanProblem::Depth { given: *given };
            fixed.map(DraftTokens::Fixed).ok_or_else(|| problem.at(*at))
        }
        Value::String(word) if word == "auto" => Ok(DraftTokens::Auto),
        other => Err(PlanProblem::DepthWord { given: other.to_string() }.at(*at)),
    }
}

/// The depth of a mode that takes a number only.
fn number(spec: &PlanSpec, depth: DraftTokens) -> Result<u32, Fault> {
    match (depth, &spec.draft_tokens) {
        (DraftTokens::Auto, Some(given)) => {
            Err(PlanProblem::AutoDepth { mode: spec.mode.value }.at(given.at))
        }
        (depth, _) => Ok(depth.most()),
    }
}

fn wait(spec: &PlanSpec, draft_tokens: u32) -> Result<u32, Fault> {
    match &spec.wait {
        None => Ok(WAIT_DEFAULT.min(draft_tokens)),
        Some(given) => within(given, 0, draft_tokens)
            .ok_or_else(|| PlanProblem::Wait { given: given.value, draft_tokens }.at(given.at)),
    }
}

fn ngram(spec: &PlanSpec) -> Result<u32, Fault> {
    match &spec.lookup_ngram {
        None => Ok(LOOKUP_NGRAM_DEFAULT),
        Some(given) => within(given, 1, LOOKUP_NGRAM_MAX)
            .ok_or_else(|| PlanProblem::Ngram { given: given.value }.at(given.at)),
    }
}

fn within(given: &At<i64>, least: u32, most: u32) -> Option<u32> {
    u32::try_from(given.value).ok().filter(|value| (least..=most).contains(value))
}
