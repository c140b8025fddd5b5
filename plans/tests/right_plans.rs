//! What holds for every accepted plan: it covers once, it can be written and read back, and diffs undo each other.

#![expect(clippy::unwrap_used, reason = "a test")]

mod board;

use std::collections::BTreeSet;

use outrider_plans::{
    CacheFormat, CacheLimits, Core, Machine, ModelRole, PartitionPlan, PlanContext, PlanDiff,
    PlanSpec, UnitSpec,
};
use proptest::prelude::{Strategy, any, prop_assert, prop_assert_eq, proptest};
use proptest::{collection, option, sample};

const CORES: usize = 4;
const TARGET: usize = 9;
const DRAFT: usize = 3;

fn context() -> PlanContext {
    let core = |id| Core {
        id,
        capacity: if id < 2 { 400 } else { 1024 },
        cluster: id as u32 / 2,
        physical: id as u32,
    };
    PlanContext {
        machine: Machine { cores: (0..CORES).map(core).collect(), ..board::two_cores().machine },
        target: board::model(TARGET),
        draft: Some(board::model(DRAFT)),
        caches: CacheLimits { sequences_max: 2, positions_max: 128, format: CacheFormat::F16 },
    }
}

/// Cuts `layers` at the marked places, and puts the parts on units by number.
fn stages(role: &'static str, layers: usize) -> impl Strategy<Value = Vec<(String, usize)>> {
    let cuts = sample::subsequence((1..layers).collect::<Vec<_>>(), 0..layers);
    (cuts, collection::vec(0..4usize, layers)).prop_map(move |(cuts, units)| {
        let starts = [0].into_iter().chain(cuts.iter().copied());
        let ends = cuts.iter().copied().chain([layers]);
        let range = |(first, end)| format!("[[{role}]]\nlayers = \"{first}..{end}\"\n");
        starts.zip(ends).map(range).zip(units).collect()
    })
}

/// The text of a plan that has to be accepted on [`context`].
fn plan_text() -> impl Strategy<Value = String> {
    let modes = (0..4usize, option::of(0..=15u32), 0..=15u32, option::of(1..=8u32));
    let kinds = collection::vec(0..4usize, 4);
    let draft = (any::<bool>(), stages("draft", DRAFT));
    let target = stages("target", TARGET).prop_shuffle();
    (modes, kinds, target, draft).prop_map(|(mode, kinds, target, (lookup_drafts, draft))| {
        let mut text = "name = \"any\"\n".to_owned();
        text += &mode_text(mode);
        let drafts = matches!(mode.0, 1 | 2) || (mode.0 == 3 && lookup_drafts);
        let stages: Vec<_> =
            target.into_iter().chain(draft.into_iter().filter(|_| drafts)).collect();
        let used: BTreeSet<usize> = stages.iter().map(|(_, unit)| *unit).collect();
        let mut gpu_taken = false;
        for unit in used {
            let kind = match kinds[unit] {
                0 => "\"reference\"".to_owned(),
                1 => "\"sim\"".to_owned(),
                2 if !gpu_taken => {
                    gpu_taken = true;
                    "\"gpu\"\nadapter = \"mali\"".to_owned()
                }
                3 => format!("\"cpu\"\ncores = [{unit}]"),
                _ => "\"cpu\"\ncores = 1".to_owned(),
            };
            text += &format!("[units.u{unit}]\nkind = {kind}\n");
        }
        for (stage, unit) in stages {
            text += &format!("{stage}unit = \"u{unit}\"\n");
        }
        text
    })
}

fn mode_text((mode, depth, wait, ngram): (usize, Option<u32>, u32, Option<u32>)) -> String {
    let name = ["plain", "sequential", "overlap", "lookup"][mode];
    let mut text = format!("mode = \"{name}\"\n");
    match (mode, depth) {
        (1 | 2, Some(0)) => text += "draft_tokens = \"auto\"\n",
        (1.., Some(depth)) => text += &format!("draft_tokens = {}\n", depth.max(1)),
        _ => {}
    }
    if mode == 2 {
        let most = depth.map_or(4, |depth| if depth == 0 { 15 } else { depth });
        text += &format!("wait = {}\n", wait.min(most));
    }
    if let (3, Some(ngram)) = (mode, ngram) {
        text += &format!("lookup_ngram = {ngram}\n");
    }
    text
}

fn read(text: &str) -> PartitionPlan {
    PartitionPlan::from_toml(text, None, &context()).unwrap_or_else(|e| panic!("{e}\n{text}"))
}

proptest! {
    #[test]
    fn every_accepted_plan_covers_each_layer_once(text in plan_text()) {
        let plan = read(&text);
        for (role, layers) in [(ModelRole::Target, TARGET), (ModelRole::Draft, DRAFT)] {
            let covered: Vec<usize> = plan
                .chain(role)
                .iter()
                .flat_map(|p| p.stage.layer_first..p.stage.layer_end)
                .collect();
            let placed = role == ModelRole::Target || plan.has_draft();
            prop_assert_eq!(covered, if placed { (0..layers).collect() } else { Vec::new() });
        }
        prop_assert!(plan.has_draft() || !plan.mode.kind().needs_draft());
    }

    #[test]
    fn no_two_units_share_a_core(text in plan_text()) {
        let mut seen = BTreeSet::new();
        for spec in read(&text).units.values() {
            if let UnitSpec::Cpu { cores } = spec {
                prop_assert!(!cores.is_empty());
                for &core in cores {
                    prop_assert!(core < CORES && seen.insert(core));
                }
            }
        }
    }

    #[test]
    fn a_written_plan_is_read_back_equal(text in plan_text()) {
        let plan = read(&text);
        let again = read(&plan.to_toml());
        prop_assert_eq!(again.fingerprint(), plan.fingerprint());
        prop_assert_eq!(again, plan);
    }

    #[test]
    fn a_diff_leads_there_and_its_inverse_back(old in plan_text(), new in plan_text()) {
        let (old, new) = (read(&old), read(&new));
        let there = PlanDiff::between(&old, &new);
        let mut installed = old.installed();
        there.apply(&mut installed);
        prop_assert_eq!(&installed, &new.installed());
        there.invert().apply(&mut installed);
        prop_assert_eq!(&installed, &old.installed());
        prop_assert_eq!(there.invert(), PlanDiff::between(&new, &old));
        prop_assert_eq!(there.invert().invert(), there);
    }

    #[test]
    fn plans_differ_exactly_if_their_ids_do(old in plan_text(), new in plan_text()) {
        let (old, new) = (read(&old), read(&new));
        let empty = PlanDiff::between(&old, &new).is_empty();
        prop_assert_eq!(empty, old.fingerprint() == new.fingerprint());
        prop_assert!(PlanDiff::between(&old, &old.clone()).is_empty());
    }

    #[test]
    fn broken_text_is_an_error_and_no_panic(
        text in plan_text(), at in any::<sample::Index>(), len in 0..12usize, with in ".{0,6}",
    ) {
        let chars: Vec<char> = text.chars().collect();
        let from = at.index(chars.len());
        let rest = &chars[(from + len).min(chars.len())..];
        let broken: String =
            chars[..from].iter().chain(&with.chars().collect::<Vec<_>>()).chain(rest).collect();
        match PlanSpec::parse(&broken, None).and_then(|spec| spec.check(&context())) {
            Ok(plan) => drop(read(&plan.to_toml())),
            Err(error) => prop_assert!(error.at.is_some(), "{}", error),
        }
    }
}

#[test]
fn a_stage_that_stays_is_not_installed_again() {
    let text = |units: &str| {
        format!(
            "name = \"p\"\nmode = \"plain\"\n[units.a]\nkind = \"cpu\"\ncores = [0]\n[units.b]\nkind = \"cpu\"\n\
             {units}[[target]]\nunit = \"a\"\nlayers = \"0..4\"\n[[target]]\nunit = \"b\"\nlayers = \"4..9\"\n"
        )
    };
    let (old, new) = (read(&text("cores = [1]\n")), read(&text("cores = [1, 2]\n")));
    let diff = PlanDiff::between(&old, &new);
    assert_eq!(
        diff.to_string(),
        "- target[4..9] on b (cpu, core 1)\n+ target[4..9] on b (cpu, cores 1-2)\n"
    );
    assert_eq!(diff.units_started(&old).iter().map(|u| u.as_str()).collect::<Vec<_>>(), ["b"]);
    let deeper = old.with_mode(outrider_plans::Mode::Lookup { draft_tokens: 2, ngram: 2 }).unwrap();
    let diff = PlanDiff::between(&old, &deeper);
    assert!(diff.installs.is_empty() && diff.evictions.is_empty() && !diff.is_empty());
}
