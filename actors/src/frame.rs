//! What the scheduler is told of a plan: bounds, rules for drafting, and whether the models share units.
//!
//! *Invariant:* the same plan gives the same frame in service and in a rehearsal.

use std::collections::BTreeSet;
use std::sync::Arc;

use outrider_pipeline::lookup::Ngrams;
use outrider_pipeline::scheduler::{RoleLimits, Scheduler, SchedulerConfig, Units};
use outrider_pipeline::{Detokenizer, DraftPolicy, Guarding, TextStart};
use outrider_plans::{DraftTokens, Mode, ModelRole, PartitionPlan};

use crate::engine::{EngineLimits, ROWS_MAX};
use crate::pair::Pair;

/// Tokens of one draft job in overlap: few, so that drafts reach the target while they are wanted.
const OVERLAP_CHUNK: u32 = 2;

/// The scheduler of an engine: its frame, and the pair's tokenizer to make text with.
pub(crate) fn scheduler(
    pair: &Pair,
    (plan, policy): (&PartitionPlan, DraftPolicy),
    limits: EngineLimits,
    context: usize,
) -> Scheduler {
    let tokenizer = Arc::clone(pair.target.tokenizer());
    let vocabulary = pair.target.config().shape.vocabulary as u32;
    let end_of_text = pair.target.config().special.eos.iter().copied().collect();
    Scheduler::new(
        SchedulerConfig { policy, ..frame(plan, (vocabulary, end_of_text), limits, context) },
        Box::new(move |begins| {
            let tokenizer = Arc::clone(&tokenizer);
            Box::new(match begins {
                TextStart::Anew => Detokenizer::at_start(tokenizer),
                TextStart::Continues => Detokenizer::continuing(tokenizer),
            })
        }),
    )
}

/// The scheduler's frame under a plan: the same in service and in a rehearsal. `tokens` are the number of tokens and those
/// that end a text, `context` the positions of one sequence.
pub(crate) fn frame(
    plan: &PartitionPlan,
    tokens: (u32, Arc<[u32]>),
    limits: EngineLimits,
    context: usize,
) -> SchedulerConfig {
    let (vocabulary, end_of_text) = tokens;
    let role = RoleLimits { rows_max: ROWS_MAX as u32, positions_max: context as u32 };
    let (policy, units) = rules_as_written(plan);
    SchedulerConfig {
        sequences_max: limits.parallel,
        queue_max: limits.queue,
        queue_tokens_max: limits.queue_tokens,
        prefixes: limits.prefixes,
        target: role,
        draft: role,
        vocabulary,
        end_of_text,
        policy,
        units,
    }
}

/// The rules for drafting under a plan, with the guard for all that drafts, and whether its models share units.
pub(crate) fn rules_with_guard(plan: &PartitionPlan) -> (DraftPolicy, Units) {
    (policy(plan, Guarding::On), units(plan))
}

/// The same without the guard for a fixed depth.
pub(crate) fn rules_as_written(plan: &PartitionPlan) -> (DraftPolicy, Units) {
    (policy(plan, Guarding::Off), units(plan))
}

fn units(plan: &PartitionPlan) -> Units {
    let units_of = |role| -> BTreeSet<_> {
        plan.chain(role).into_iter().map(|placement| placement.unit.clone()).collect()
    };
    let apart = units_of(ModelRole::Target).is_disjoint(&units_of(ModelRole::Draft));
    if apart { Units::Separate } else { Units::Shared }
}

/// The plan's mode as rules for drafting.
fn policy(plan: &PartitionPlan, guarding: Guarding) -> DraftPolicy {
    let policy = match plan.mode {
        Mode::Plain => DraftPolicy::plain(),
        Mode::Sequential { draft_tokens } => DraftPolicy::sequential(draft_tokens.most()),
        Mode::Overlap { draft_tokens, wait } => {
            DraftPolicy::overlap(draft_tokens.most(), OVERLAP_CHUNK, wait)
        }
        Mode::Lookup { draft_tokens, ngram } => {
            let ngrams = Ngrams { min: 1, max: ngram as usize };
            if plan.has_draft() {
                DraftPolicy::sequential(draft_tokens).with_lookup(ngrams)
            } else {
                DraftPolicy::lookup(draft_tokens, ngrams)
            }
        }
    };
    match (plan.mode.depth(), guarding) {
        (Some(DraftTokens::Auto), _) => policy.by_worth(),
        (Some(DraftTokens::Fixed(_)), Guarding::On) => policy.guarded(),
        _ => policy,
    }
}
