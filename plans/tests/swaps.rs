//! The swap protocol on paper: what is touched, what stays, what is refused, what a lost unit leaves.

#![expect(clippy::unwrap_used, reason = "a test")]

mod board;

use std::collections::BTreeSet;

use outrider_plans::swap::{Action, Event, fallbacks};
use outrider_plans::{
    Caches, Machine, Mode, ModeKind, ModelRole, PartitionPlan, PlanEpoch, Proposal, Reason, Swap,
    SwapError, UnitId,
};

fn plan(mode: &str, stages: &[(&str, &str, &str)]) -> PartitionPlan {
    let used = |unit: &str| stages.iter().any(|(_, on, _)| *on == unit);
    let mut text = format!("name = \"test\"\nmode = \"{mode}\"\n");
    for (unit, core) in [("a", 0), ("b", 1)] {
        if used(unit) {
            text += &format!("[units.{unit}]\nkind = \"cpu\"\ncores = [{core}]\n");
        }
    }
    for (role, unit, layers) in stages {
        text += &format!("[[{role}]]\nunit = \"{unit}\"\nlayers = \"{layers}\"\n");
    }
    PartitionPlan::from_toml(&text, None, &board::two_cores())
        .unwrap_or_else(|e| panic!("{e}\n{text}"))
}

fn apart() -> PartitionPlan {
    plan("overlap", &[("target", "a", "all"), ("draft", "b", "all")])
}

fn proposal(plan: PartitionPlan) -> Proposal {
    Proposal { plan, expected: None, reason: Reason::Operator }
}

fn room() -> Machine {
    board::two_cores().machine
}

/// The actions from a proposal to its end, everything going well.
fn carried_out(swap: &mut Swap, plan: PartitionPlan) -> Vec<Action> {
    let mut done = Vec::new();
    let mut todo = swap.propose(proposal(plan), &room()).unwrap();
    while let Some(action) = todo.pop() {
        let event = match &action {
            Action::Install(stage) => Some(Event::Installed(stage.clone())),
            Action::Warm(_) => Some(Event::Warmed),
            Action::CutOver { .. } => Some(Event::CutOver),
            Action::Evict(stage) => Some(Event::Evicted(stage.clone())),
            Action::HandOver { .. } => Some(Event::HandedOver),
            Action::StopWarming | Action::End(_) => None,
        };
        done.push(action);
        todo.extend(event.into_iter().flat_map(|event| swap.step(event)));
    }
    done
}

#[test]
fn a_stage_that_stays_is_not_touched() {
    let mut swap = Swap::new(apart());
    let alone = plan("plain", &[("target", "a", "all")]);
    let done = carried_out(&mut swap, alone.clone());
    assert!(!done.iter().any(|action| matches!(action, Action::Install(_) | Action::Warm(_))));
    let cut = |a: &Action| matches!(a, Action::CutOver { target: Caches::Kept, draft: None, .. });
    assert!(done.iter().any(cut), "{done:?}");
    assert_eq!(swap.installed(), &alone.installed());
    assert_eq!(swap.epoch(), PlanEpoch(2));
}

#[test]
fn a_model_that_moves_as_a_whole_is_warmed_and_one_that_keeps_a_stage_is_filled_later() {
    let mut swap = Swap::new(apart());
    let swapped = plan("overlap", &[("target", "b", "all"), ("draft", "a", "all")]);
    let seen = swap.preview(&proposal(swapped.clone()), &room()).unwrap();
    assert_eq!((seen.target, seen.draft), (Caches::Warmed, Some(Caches::Warmed)));
    carried_out(&mut swap, swapped);
    let split = plan("plain", &[("target", "a", "0..4"), ("target", "b", "4..8")]);
    carried_out(&mut swap, split);
    let other =
        plan("plain", &[("target", "a", "0..4"), ("target", "b", "4..6"), ("target", "a", "6..8")]);
    let seen = swap.preview(&proposal(other), &room()).unwrap();
    assert_eq!((seen.target, seen.draft), (Caches::Empty, None));
    assert_eq!(seen.diff.installs.len(), 2, "the first half stays");
}

#[test]
fn memory_is_counted_for_what_is_new_and_a_plan_without_room_is_refused() {
    let mut swap = Swap::new(apart());
    let shared = plan("sequential", &[("target", "a", "all"), ("draft", "a", "all")]);
    let seen = swap.preview(&proposal(shared.clone()), &room()).unwrap();
    // A draft of 3 layers of 1 MiB, an embedding of 4 MiB, and caches of 512 bytes for 4 times 512 positions and 3 layers.
    let extra = 7 * (1 << 20) + 3 * 512 * 4 * 512;
    assert_eq!((seen.memory.0[0].extra_bytes, seen.memory.0[0].freed_bytes), (extra, extra));
    let tight = Machine { memory_bytes: extra - 1, ..room() };
    let refused = swap.propose(proposal(shared.clone()), &tight).unwrap_err();
    assert!(matches!(refused, SwapError::Memory { extra_bytes, .. } if extra_bytes == extra));
    let enough = Machine { memory_bytes: extra, ..room() };
    assert!(swap.propose(proposal(shared), &enough).is_ok());
}

#[test]
fn a_failure_before_the_cut_over_leaves_nothing_behind() {
    let running = apart();
    let swapped = plan("overlap", &[("target", "b", "all"), ("draft", "a", "all")]);
    for fails_at in 0..3 {
        let mut swap = Swap::new(running.clone());
        let mut todo = swap.propose(proposal(swapped.clone()), &room()).unwrap();
        let (mut step, mut ended) = (0, None);
        while let Some(action) = todo.pop() {
            let fails = step == fails_at;
            let event = match action {
                Action::Install(stage) if fails => Event::InstallFailed(stage, "full".into()),
                Action::Install(stage) => Event::Installed(stage),
                Action::Warm(_) if fails => Event::WarmFailed("lost".into()),
                Action::Evict(stage) => Event::Evicted(stage),
                Action::StopWarming => continue,
                Action::End(result) => {
                    ended = Some(result);
                    continue;
                }
                other => panic!("{other:?} after a failure"),
            };
            step += 1;
            todo.extend(swap.step(event));
        }
        assert!(!ended.unwrap().unwrap_err().is_refusal());
        assert_eq!((swap.running(), swap.epoch()), (&running, PlanEpoch(1)));
        assert_eq!(swap.installed(), &running.installed());
    }
}

/// The same plan for other models.
fn with_models(plan: &PartitionPlan, models: &str) -> PartitionPlan {
    let text = format!("{}\n[models]\n{models}\n", plan.to_toml());
    PartitionPlan::from_toml(&text, None, &board::two_cores()).unwrap()
}

#[test]
fn another_draft_is_installed_warmed_and_cut_over_and_the_target_is_not_touched() {
    let mut swap = Swap::new(apart());
    let other = with_models(&apart(), "draft = \"/models/a \\\"small\\\" one.gguf\"");
    assert_ne!(other.fingerprint(), apart().fingerprint());
    let again = PartitionPlan::from_toml(&other.to_toml(), None, &board::two_cores()).unwrap();
    assert_eq!(again, other, "{}", other.to_toml());
    let done = carried_out(&mut swap, other.clone());
    let draft = |stages: &[Action]| {
        let of_draft = |a: &&Action| match a {
            Action::Install(s) | Action::Evict(s) => s.stage.role == ModelRole::Draft,
            _ => false,
        };
        stages.iter().filter(of_draft).count()
    };
    assert_eq!(draft(&done), 2, "one comes and one goes: {done:?}");
    let cut = |a: &Action| {
        let warmed = Some(Caches::Warmed);
        matches!(a, Action::CutOver { target: Caches::Kept, draft, .. } if *draft == warmed)
    };
    assert!(done.iter().any(cut), "{done:?}");
    assert_eq!((swap.running(), swap.installed()), (&other, &other.installed()));
}

#[test]
fn another_target_is_handed_over_and_whoever_is_superseded_serves_what_has_begun() {
    let other = with_models(&apart(), "target = \"large.gguf\"");
    let mut swap = Swap::new(apart());
    let seen = swap.preview(&proposal(other.clone()), &room()).unwrap();
    assert_eq!((seen.target, seen.draft), (Caches::Fresh, Some(Caches::Fresh)));
    let extra = seen.memory.0[0].extra_bytes;
    let tight = Machine { memory_bytes: extra - 1, ..room() };
    let refused = swap.propose(proposal(other.clone()), &tight).unwrap_err();
    assert!(matches!(refused, SwapError::Memory { .. }), "everything is installed a second time");

    let asked = swap.propose(proposal(other.clone()), &room()).unwrap();
    assert_eq!(asked, [Action::HandOver { plan: other.clone(), epoch: PlanEpoch(2) }]);
    assert_eq!(swap.propose(proposal(apart()), &room()).unwrap_err(), SwapError::Busy);
    let ended = swap.step(Event::HandOverFailed("no such file".into()));
    assert!(matches!(&ended[..], [Action::End(Err(SwapError::Successor { .. }))]), "{ended:?}");
    assert!(swap.is_steady() && !swap.is_superseded());

    let done = carried_out(&mut swap, other);
    let Some(Action::End(Ok(report))) = done.last() else { panic!("{done:?}") };
    assert_eq!((report.generation, swap.epoch()), (PlanEpoch(2), PlanEpoch(1)));
    assert_eq!((swap.running(), swap.installed()), (&apart(), &apart().installed()));
    assert_eq!(swap.propose(proposal(apart()), &room()).unwrap_err(), SwapError::Busy);
    let without = plan("plain", &[("target", "a", "all")]);
    let loss = Proposal { reason: Reason::Loss(UnitId::new("b")), ..proposal(without) };
    assert!(swap.propose(loss, &room()).is_ok(), "a loss is answered all the same");
}

#[test]
fn one_swap_at_a_time_and_only_for_the_plan_that_its_proposer_saw() {
    let mut swap = Swap::new(apart());
    let shared = plan("sequential", &[("target", "a", "all"), ("draft", "a", "all")]);
    let late = Proposal { expected: Some(PlanEpoch(7)), ..proposal(shared.clone()) };
    let (expected, running) = (PlanEpoch(7), PlanEpoch(1));
    assert_eq!(swap.propose(late, &room()).unwrap_err(), SwapError::Conflict { expected, running });
    swap.propose(proposal(shared.clone()), &room()).unwrap();
    assert_eq!(swap.propose(proposal(shared), &room()).unwrap_err(), SwapError::Busy);
}

#[test]
fn a_unit_that_dies_in_a_swap_ends_it_and_takes_nothing_else() {
    let running = apart();
    let mut swap = Swap::new(running.clone());
    let shared = plan("sequential", &[("target", "a", "all"), ("draft", "a", "all")]);
    swap.propose(proposal(shared.clone()), &room()).unwrap();
    let (unit, spec) = running.units.iter().nth(1).map(|(u, s)| (u.clone(), s.clone())).unwrap();
    let lost = Event::Lost { unit: unit.clone(), spec: spec.clone(), detail: "gone".into() };
    assert!(swap.step(lost).is_empty(), "an installation is still under way");
    let late = shared.installed().difference(&running.installed()).next().unwrap().clone();
    assert_eq!(swap.step(Event::Installed(late.clone())), [Action::Evict(late.clone())]);
    let ended = swap.step(Event::Evicted(late));
    assert!(matches!(&ended[..], [Action::End(Err(SwapError::UnitLost { .. }))]), "{ended:?}");
    let lookup = Mode::Lookup { draft_tokens: 2, ngram: 2 };
    let rebuilding = swap.propose(proposal(apart().with_mode(lookup).unwrap()), &room());
    assert_eq!(rebuilding.unwrap_err(), SwapError::Rebuilding { unit: unit.clone() });
    swap.step(Event::Rebuilt { unit, spec });
    assert_eq!(swap.installed(), &running.installed());
}

#[test]
fn plans_without_a_unit_keep_what_can_stay() {
    let context = board::two_cores();
    let lost =
        |names: &[&str]| names.iter().map(|name| UnitId::new(*name)).collect::<BTreeSet<_>>();
    let found = fallbacks(&apart(), &lost(&["b"]), &context);
    assert_eq!(found[0].name, "test-without-b");
    assert_eq!(found[0].mode.kind(), ModeKind::Sequential);
    assert_eq!(found[1].mode, Mode::Plain);
    for plan in &found {
        assert!(!plan.units.contains_key(&UnitId::new("b")));
        assert!(apart().installed().is_superset(&plan.installed_of(ModelRole::Target)));
    }
    let split = plan("plain", &[("target", "a", "0..4"), ("target", "b", "4..8")]);
    let found = fallbacks(&split, &lost(&["a"]), &context);
    assert_eq!(found[0].stages.len(), 1, "neighbours become one stage");
    assert!(fallbacks(&apart(), &lost(&["a", "b"]), &context).is_empty(), "no core is left");
    let gpu = "name = \"gpu\"\nmode = \"plain\"\n[units.g]\nkind = \"gpu\"\n[[target]]\nunit = \"g\"\nlayers = \"all\"\n";
    let gpu = PartitionPlan::from_toml(gpu, None, &context).unwrap();
    assert_eq!(fallbacks(&gpu, &lost(&["g"]), &context)[0].name, "default-sequential");
}
