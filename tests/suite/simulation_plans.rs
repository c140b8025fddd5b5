//! The plans that the simulated worlds swap among.
//!
//! *Invariant:* they differ in mode, depth, placement, split, number of cores and draft, and fit every world.

use std::collections::BTreeSet;

use outrider_pipeline::DraftPolicy;
use outrider_pipeline::scheduler::Units;
use outrider_plans::{
    CacheFormat, CacheLimits, HeadWeights, Machine, Mode, ModelRole, ModelShape, PartitionPlan,
    PlanContext,
};

/// Tokens of the toy language.
pub(crate) const VOCABULARY: u64 = 20;
/// Positions of one sequence.
pub(crate) const POSITIONS: u32 = 96;

/// What the plans are checked against.
pub(crate) fn context() -> PlanContext {
    let model = |layers| ModelShape {
        layer_bytes: vec![1; layers],
        embedding_bytes: 1,
        head_bytes: 1,
        head: HeadWeights::Tied,
        cache_bytes: 1,
        width: 8,
        vocabulary: VOCABULARY as usize,
    };
    PlanContext {
        machine: Machine::uniform(4, 1 << 30),
        target: model(8),
        draft: Some(model(2)),
        caches: CacheLimits {
            sequences_max: 4,
            positions_max: POSITIONS as usize,
            format: CacheFormat::F16,
        },
    }
}

/// Plans that differ in mode, depth, placement, split, number of cores and draft.
pub(crate) fn plans() -> Vec<PartitionPlan> {
    let mut found = Vec::new();
    let a = "[units.a]\nkind = \"cpu\"\ncores = [0]\n";
    let a2 = "[units.a]\nkind = \"cpu\"\ncores = [0, 2]\n";
    let b = "[units.b]\nkind = \"cpu\"\ncores = [1]\n";
    let on = |role: &str, unit: &str, layers: &str| {
        format!("[[{role}]]\nunit = \"{unit}\"\nlayers = \"{layers}\"\n")
    };
    let whole = on("target", "a", "all") + &on("draft", "b", "all");
    let split = on("target", "a", "0..3") + &on("target", "b", "3..8");
    let other = on("target", "a", "0..5") + &on("target", "b", "5..8");
    let texts = [
        format!("mode = \"overlap\"\n{a}{b}{whole}"),
        format!("mode = \"sequential\"\ndraft_tokens = 2\n{a2}{b}{whole}"),
        format!("mode = \"plain\"\n{a}{}", on("target", "a", "all")),
        format!("mode = \"sequential\"\n{a}{b}{split}{}", on("draft", "b", "all")),
        format!("mode = \"plain\"\n{a}{b}{other}"),
        format!(
            "mode = \"overlap\"\ndraft_tokens = 6\n{a}{b}{}{}",
            on("target", "b", "all"),
            on("draft", "a", "all")
        ),
        format!("mode = \"lookup\"\n{a2}{}", on("target", "a", "all")),
        format!(
            "mode = \"sequential\"\n{a2}{}{}",
            on("target", "a", "all"),
            on("draft", "a", "all")
        ),
        format!("mode = \"overlap\"\n[models]\ndraft = \"other\"\n{a}{b}{whole}"),
    ];
    for (index, text) in texts.iter().enumerate() {
        let text = format!("name = \"p{index}\"\n{text}");
        found.push(PartitionPlan::from_toml(&text, None, &context()).unwrap());
    }
    found
}

/// The plan's mode as rules for drafting, and whether its models share units.
pub(crate) fn rules(plan: &PartitionPlan) -> (DraftPolicy, Units) {
    let policy = match plan.mode {
        Mode::Sequential { .. } => DraftPolicy::sequential(plan.mode.draft_tokens()),
        Mode::Overlap { wait, .. } => DraftPolicy::overlap(plan.mode.draft_tokens(), 2, wait),
        Mode::Lookup { .. } => {
            DraftPolicy::lookup(4, outrider_pipeline::lookup::Ngrams { min: 1, max: 3 })
        }
        Mode::Plain => DraftPolicy::plain(),
    };
    let on = |role| plan.chain(role).iter().map(|p| p.unit.clone()).collect::<BTreeSet<_>>();
    let apart = on(ModelRole::Target).is_disjoint(&on(ModelRole::Draft));
    (policy, if apart { Units::Separate } else { Units::Shared })
}
