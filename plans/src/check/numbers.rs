//! The mode and its numbers: each within its bounds, and only where the mode reads it.

use super::Fault;
use crate::error::PlanProblem;
use crate::mode::{
    DRAFT_TOKENS_DEFAULT, DRAFT_TOKENS_MAX, LOOKUP_NGRAM_DEFAULT, LOOKUP_NGRAM_MAX, Mode, ModeKind,
    WAIT_DEFAULT,
};
use crate::spec::{At, PlanSpec};

pub(super) fn mode(spec: &PlanSpec) -> Result<Mode, Fault> {
    let mode = spec.mode.value;
    let refuse = |key: &'static str, given: &Option<At<i64>>| match given {
        Some(given) => Err(PlanProblem::KeyNotForMode { key, mode }.at(given.at)),
        None => Ok(()),
    };
    if mode == ModeKind::Plain {
        refuse("draft_tokens", &spec.draft_tokens)?;
    }
    if mode != ModeKind::Overlap {
        refuse("wait", &spec.wait)?;
    }
    if mode != ModeKind::Lookup {
        refuse("lookup_ngram", &spec.lookup_ngram)?;
    }
    let draft_tokens = depth(spec)?;
    Ok(match mode {
        ModeKind::Plain => Mode::Plain,
        ModeKind::Sequential => Mode::Sequential { draft_tokens },
        ModeKind::Overlap => Mode::Overlap { draft_tokens, wait: wait(spec, draft_tokens)? },
        ModeKind::Lookup => Mode::Lookup { draft_tokens, ngram: ngram(spec)? },
    })
}

fn depth(spec: &PlanSpec) -> Result<u32, Fault> {
    match &spec.draft_tokens {
        None => Ok(DRAFT_TOKENS_DEFAULT),
        Some(given) => within(given, 1, DRAFT_TOKENS_MAX)
            .ok_or_else(|| PlanProblem::Depth { given: given.value }.at(given.at)),
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
