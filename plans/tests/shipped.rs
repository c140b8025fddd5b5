//! The shipped plans and the default plan hold on the machine they are meant for.

#![expect(clippy::unwrap_used, reason = "a test")]

mod board;

use outrider_plans::{
    DraftTokens, Machine, Mode, ModeKind, ModelRole, PartitionPlan, PlanProblem, UnitId, UnitSpec,
    default_plan, default_plan_in, shipped, shipped_plan,
};

fn load(name: &str) -> PartitionPlan {
    let text = shipped_plan(name).unwrap().text;
    PartitionPlan::from_toml(text, Some(name), &board::two_cores()).unwrap()
}

fn cores(plan: &PartitionPlan, unit: &str) -> Vec<usize> {
    match plan.unit(&UnitId::new(unit)) {
        UnitSpec::Cpu { cores } => cores.clone(),
        other => panic!("{unit} is {other}"),
    }
}

#[test]
fn every_shipped_plan_is_accepted_under_its_own_name() {
    for file in shipped() {
        let plan = load(file.name);
        assert_eq!(plan.name, file.name);
        assert_eq!(plan.notes(), Vec::<String>::new(), "{}", file.name);
    }
}

#[test]
fn every_file_of_the_folder_is_shipped() {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/files");
    let mut found: Vec<_> = std::fs::read_dir(folder)
        .unwrap()
        .map(|file| file.unwrap().file_name().into_string().unwrap())
        .collect();
    let mut named: Vec<_> = shipped().iter().map(|plan| format!("{}.toml", plan.name)).collect();
    found.sort();
    named.sort();
    assert_eq!(found, named);
}

#[test]
fn shipped_plans_are_told_apart_by_their_ids() {
    let mut ids: Vec<_> = shipped().iter().map(|file| load(file.name).fingerprint()).collect();
    ids.sort();
    ids.dedup();
    assert_eq!(ids.len(), shipped().len());
}

#[test]
fn overlap_gives_each_model_a_core_of_its_own() {
    let plan = load("overlap-two-cores");
    assert_eq!((cores(&plan, "cpu0"), cores(&plan, "cpu1")), (vec![0], vec![1]));
    assert_eq!(plan.mode, Mode::Overlap { draft_tokens: DraftTokens::Fixed(4), wait: 1 });
}

#[test]
fn split_target_is_a_chain_in_layer_order() {
    let plan = load("split-two-cores");
    let chain: Vec<_> =
        plan.chain(ModelRole::Target).iter().map(|p| format!("{} {}", p.stage, p.unit)).collect();
    assert_eq!(chain, ["target[0..4] cpu0", "target[4..8] cpu1"]);
}

#[test]
fn the_explanation_says_what_runs_where() {
    let words = load("split-two-cores").to_string();
    assert_eq!(
        words,
        "\
plan split-two-cores (ID)
  mode    sequential: 4 drafted at most, then one pass verifies them
  target  layers 0..4    on cpu0  8.0 MiB weights, 4.0 MiB caches
  target  layers 4..8    on cpu1  8.0 MiB weights, 4.0 MiB caches
  draft   layers 0..3    on cpu1  7.0 MiB weights, 3.0 MiB caches
  unit    cpu0  cpu, core 0; 12.0 MiB
  unit    cpu1  cpu, core 1; 22.0 MiB
"
        .replace("ID", &load("split-two-cores").fingerprint().to_string())
    );
}

#[test]
fn ids_are_the_same_in_every_version() {
    assert_eq!(load("plain-all-cores").fingerprint().to_string(), "f36530bd");
    assert_eq!(load("overlap-two-cores").fingerprint().to_string(), "6c036050");
}

#[test]
fn the_name_is_not_a_part_of_the_id() {
    let mut plan = load("plain-all-cores");
    let id = plan.fingerprint();
    plan.name = "other".to_owned();
    assert_eq!(plan.fingerprint(), id);
}

#[test]
fn plain_mode_drops_the_draft_and_its_unit() {
    let plan = load("overlap-two-cores").with_mode(Mode::Plain).unwrap();
    assert!(!plan.has_draft());
    assert_eq!(plan.units.len(), 1);
    let back = plan.with_mode(ModeKind::Sequential.with_defaults()).unwrap_err();
    assert_eq!(
        back.to_string(),
        "mode sequential needs the draft model placed: add a [[draft]] entry with its unit and layers"
    );
}

#[test]
fn overlap_on_one_unit_is_noted() {
    let plan = load("sequential-all-cores").with_mode(ModeKind::Overlap.with_defaults()).unwrap();
    assert_eq!(
        plan.notes(),
        [
            "draft and target share unit cpu, so nothing overlaps: move one of them, or choose sequential"
        ]
    );
}

#[test]
fn the_default_uses_all_big_cores_and_speculates_if_it_can() {
    let mut context = board::two_cores();
    context.machine.cores = Machine::uniform(6, 0).cores;
    context.machine.cores[..4].iter_mut().for_each(|core| core.capacity = 300);
    let plan = default_plan(&context).unwrap();
    assert_eq!(plan.mode, Mode::Sequential { draft_tokens: DraftTokens::Fixed(4) });
    assert_eq!(cores(&plan, "cpu"), [4, 5]);
    let apart = default_plan_in(ModeKind::Overlap, &context).unwrap();
    assert_eq!((cores(&apart, "cpu0"), cores(&apart, "cpu1")), (vec![4], vec![5]));
    context.draft = None;
    assert_eq!(default_plan(&context).unwrap().mode, Mode::Plain);
    let refused = default_plan_in(ModeKind::Overlap, &context).unwrap_err();
    assert_eq!(refused.problem, PlanProblem::DraftNotLoaded);
}

#[test]
fn the_default_leaves_the_draft_out_where_only_the_target_fits() {
    let mut context = board::two_cores();
    context.machine.memory_bytes = 25 << 20;
    assert_eq!(default_plan(&context).unwrap().mode, Mode::Plain);
    context.machine.memory_bytes = 1 << 20;
    assert!(matches!(default_plan(&context).unwrap_err().problem, PlanProblem::Memory { .. }));
}
