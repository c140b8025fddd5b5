//! Each mistake in a plan is answered with its place and the way out, word for word.

mod board;

use outrider_plans::{AdapterKind, CacheFormat, PartitionPlan, PlanContext, PlanSpec};

/// A right plan; every test breaks one thing in it. The first line of the text is line 1.
const RIGHT: &str = r#"name = "two-cores"
mode = "sequential"
draft_tokens = 4
[units.cpu0]
kind = "cpu"
cores = [0]
[units.cpu1]
kind = "cpu"
cores = [1]
[[target]]
unit = "cpu0"
layers = "0..4"
[[target]]
unit = "cpu1"
layers = "4..8"
[[draft]]
unit = "cpu1"
layers = "all"
"#;

fn answer(text: &str, context: &PlanContext) -> String {
    match PartitionPlan::from_toml(text, Some("p.toml"), context) {
        Ok(plan) => format!("accepted:\n{plan}"),
        Err(error) => error.to_string(),
    }
}

/// Replaces `from`, which must be there, and compares the answer.
#[track_caller]
fn refused(from: &str, to: &str, expected: &str) {
    assert!(RIGHT.contains(from), "nothing to replace");
    let text = RIGHT.replacen(from, to, 1);
    assert_eq!(answer(&text, &board::two_cores()), expected);
}

#[test]
fn the_unbroken_plan_is_accepted() {
    assert!(answer(RIGHT, &board::two_cores()).starts_with("accepted"));
}

#[test]
fn text_that_is_not_toml() {
    refused("draft_tokens = 4", "draft_tokens 4", "p.toml:3:14: key with no value, expected `=`");
}

#[test]
fn unknown_key() {
    refused(
        "cores = [0]",
        "coers = [0]",
        "p.toml:6:1: unknown key `coers`, expected one of `kind`, `cores`, `adapter`",
    );
}

#[test]
fn unknown_mode() {
    refused(
        "\"sequential\"",
        "\"parallel\"",
        "p.toml:2:8: unknown variant `parallel`, expected one of `plain`, `sequential`, `overlap`, `lookup`",
    );
}

#[test]
fn missing_key() {
    refused(
        "kind = \"cpu\"\ncores = [1]",
        "cores = [1]",
        "p.toml:7:1: key `kind` is missing: add it",
    );
    refused("layers = \"4..8\"\n", "", "p.toml:13:1: key `layers` is missing: add it");
    refused("name = \"two-cores\"\n", "", "p.toml:1:1: key `name` is missing: add it");
}

#[test]
fn unusable_name() {
    refused(
        "two-cores",
        "two cores",
        "p.toml:1:8: plan name `two cores` is no usable name: take 1 to 64 letters, digits, `-` or `_`",
    );
}

#[test]
fn depth_out_of_range() {
    refused("= 4", "= 16", "p.toml:3:16: draft_tokens = 16 is out of range: choose 1 to 15");
    refused(
        "= 4",
        "= \"many\"",
        "p.toml:3:16: draft_tokens is \"many\": write a number from 1 to 15, or \"auto\"",
    );
    refused(
        "\"sequential\"\ndraft_tokens = 4",
        "\"lookup\"\ndraft_tokens = \"auto\"",
        "p.toml:3:16: draft_tokens = \"auto\" is for sequential and overlap: give mode lookup a number",
    );
    refused("= 4", "= -1", "p.toml:3:16: draft_tokens = -1 is out of range: choose 1 to 15");
}

#[test]
fn wait_without_overlap_and_beyond_the_depth() {
    refused(
        "= 4",
        "= 4\nwait = 2",
        "p.toml:4:8: `wait` means nothing in mode sequential: remove it, or choose another mode",
    );
    refused(
        "\"sequential\"",
        "\"overlap\"\nwait = 5",
        "p.toml:3:8: wait = 5 is out of range: choose 0 to draft_tokens, which is 4",
    );
}

#[test]
fn overlapping_layers() {
    refused(
        "\"4..8\"",
        "\"3..8\"",
        "p.toml:15:10: target layers 3..8 overlap 0..4 of line 12: every layer belongs to one stage, so start this \
         one at 4 or end that one at 3",
    );
}

#[test]
fn gaps_within_and_at_either_end() {
    let way_out = "run nowhere: add a [[target]] entry that gives them to a unit";
    refused("\"4..8\"", "\"5..8\"", &format!("p.toml:15:10: target layers 4..5 {way_out}"));
    refused("\"4..8\"", "\"4..7\"", &format!("p.toml:15:10: target layers 7..8 {way_out}"));
    refused("\"0..4\"", "\"1..4\"", &format!("p.toml:12:10: target layers 0..1 {way_out}"));
}

#[test]
fn layers_that_are_not_in_the_model_or_not_a_range() {
    refused(
        "\"4..8\"",
        "\"4..9\"",
        "p.toml:15:10: target layers 4..9 reach beyond the model: its 8 layers are 0..8",
    );
    refused(
        "\"4..8\"",
        "\"4..4\"",
        "p.toml:15:10: target layers 4..4 are none: the end, which is not included, must lie above the start",
    );
    refused(
        "\"4..8\"",
        "\"4-8\"",
        "p.toml:15:10: `layers = \"4-8\"` is not a range of layers: write \"0..4\" (first, one past the last) or \
         \"all\"",
    );
}

#[test]
fn unknown_unit() {
    refused(
        "unit = \"cpu0\"",
        "unit = \"npu\"",
        "p.toml:11:8: there is no unit `npu` in this plan: its units are `cpu0`, `cpu1`",
    );
}

#[test]
fn unused_unit() {
    refused(
        "[[target]]",
        "[units.spare]\nkind = \"sim\"\n[[target]]",
        "p.toml:10:8: unit `spare` runs nothing: give it layers, or remove it",
    );
}

#[test]
fn cores_that_do_not_exist() {
    refused(
        "cores = [0]",
        "cores = [7]",
        "p.toml:6:9: core 7 of unit `cpu0` cannot be used here: choose among cores 0-1",
    );
}

#[test]
fn cores_of_two_units() {
    refused(
        "cores = [1]",
        "cores = [0]",
        "p.toml:9:9: core 0 belongs to both `cpu0` and `cpu1`: give each unit cores of its own",
    );
}

#[test]
fn more_cores_than_are_left() {
    refused(
        "cores = [1]",
        "cores = 2",
        "p.toml:9:9: unit `cpu1` asks for 2 cores but 1 are left: this machine has 2, so ask for fewer here or \
         elsewhere",
    );
}

#[test]
fn cores_that_cannot_be_read_or_are_missing() {
    refused(
        "cores = [1]",
        "cores = \"most\"",
        "p.toml:9:9: `cores = \"most\"` of unit `cpu1` is not a choice of cores: write a list such as [0, 1], a number \
         of cores, \"all\", \"big\" or \"little\"",
    );
    refused(
        "cores = [1]",
        "cores = \"little\"",
        "p.toml:9:9: this machine has no little cores for unit `cpu1`: all are of one speed, so write \"all\" or a \
         number",
    );
    refused(
        "cores = [1]\n",
        "",
        "p.toml:7:8: unit `cpu1` names no cores: add a list such as `cores = [0, 1]`, a number such as `cores = 2`, or \
         `cores = \"all\"`",
    );
}

#[test]
fn keys_of_another_kind_of_unit() {
    refused(
        "kind = \"cpu\"\ncores = [1]",
        "kind = \"gpu\"\ncores = [1]",
        "p.toml:9:9: `cores` means nothing for a gpu unit: remove it from `cpu1`",
    );
}

#[test]
fn adapters_that_are_not_here() {
    refused(
        "kind = \"cpu\"\ncores = [1]",
        "kind = \"gpu\"\nadapter = \"nvidia\"",
        "p.toml:9:11: unit `cpu1` asks for GPU adapter \"nvidia\", which is not here: 0 is `Mali-G310`",
    );
    let text = RIGHT.replace("kind = \"cpu\"\ncores = [1]", "kind = \"gpu\"");
    let mut context = board::two_cores();
    context.machine.adapters.clear();
    assert_eq!(
        answer(&text, &context),
        "p.toml:7:8: unit `cpu1` asks for GPU adapter 0, which is not here: this machine has none, so use a cpu unit"
    );
}

#[test]
fn adapters_that_cannot_be_told_apart() {
    let text = RIGHT.replace("kind = \"cpu\"\ncores = [1]", "kind = \"gpu\"\nadapter = \"mali\"");
    let mut context = board::two_cores();
    context.machine.adapters.push(context.machine.adapters[0].clone());
    assert_eq!(
        answer(&text, &context),
        "p.toml:9:11: `adapter = \"mali\"` of unit `cpu1` fits several adapters (0 is `Mali-G310`, 1 is `Mali-G310`): \
         use a number or a longer name"
    );
}

#[test]
fn draft_missing_or_too_much() {
    let entry = "[[draft]]\nunit = \"cpu1\"\nlayers = \"all\"\n";
    refused(
        entry,
        "",
        "p.toml:2:8: mode sequential needs the draft model placed: add a [[draft]] entry with its unit and layers",
    );
    refused(
        "\"sequential\"\ndraft_tokens = 4",
        "\"plain\"",
        "p.toml:15:1: mode plain runs no draft: remove the [[draft]] entries, or choose sequential, overlap or lookup",
    );
    refused(
        "\"sequential\"",
        "\"plain\"",
        "p.toml:3:16: `draft_tokens` means nothing in mode plain: remove it, or choose another mode",
    );
}

#[test]
fn draft_that_is_not_loaded_or_does_not_fit_the_target() {
    let mut context = board::two_cores();
    if let Some(draft) = &mut context.draft {
        draft.vocabulary = 32_000;
    }
    assert_eq!(
        answer(RIGHT, &context),
        "p.toml:16:1: the draft has 32000 tokens in its vocabulary and the target 8192: a pair must share one \
         vocabulary, so choose another draft"
    );
    context.draft = None;
    assert_eq!(
        answer(RIGHT, &context),
        "p.toml:16:1: no draft model is loaded: load one, or remove the [[draft]] entries and choose mode plain or \
         lookup"
    );
}

#[test]
fn memory_that_does_not_suffice() {
    let mut context = board::two_cores();
    context.machine.memory_bytes = 32 << 20;
    assert_eq!(
        answer(RIGHT, &context),
        "p.toml:7:8: the plan needs 34.0 MiB of main memory (23.0 MiB weights, 11.0 MiB caches) but 32.0 MiB are \
         free, and unit `cpu1` has the most of it: allow fewer or shorter sequences, take a smaller model, or move \
         layers to another unit"
    );
}

#[test]
fn memory_of_a_discrete_gpu_is_its_own() {
    let text = RIGHT.replace("kind = \"cpu\"\ncores = [1]", "kind = \"gpu\"");
    let mut context = board::two_cores();
    context.machine.memory_bytes = 12 << 20;
    context.machine.adapters[0].kind = AdapterKind::Discrete;
    context.machine.adapters[0].memory_bytes = Some(22 << 20);
    assert!(answer(&text, &context).starts_with("accepted"));
    context.machine.adapters[0].memory_bytes = Some(21 << 20);
    assert!(answer(&text, &context).contains("needs 22.0 MiB of the memory of `Mali-G310`"));
}

#[test]
fn without_a_file_the_line_is_named() {
    let spec = PlanSpec::parse(&RIGHT.replace("0..4", "0..3"), None);
    let error = spec.and_then(|spec| spec.check(&board::two_cores())).map_err(|e| e.to_string());
    assert_eq!(
        error.err().as_deref(),
        Some(
            "line 15, column 10: target layers 3..4 run nowhere: add a [[target]] entry that gives them to a unit"
        )
    );
}

#[test]
fn a_gpu_does_not_keep_caches_of_bytes() {
    let mut context = board::two_cores();
    context.caches.format = CacheFormat::Q8;
    let text = RIGHT.replacen("kind = \"cpu\"\ncores = [0]", "kind = \"gpu\"", 1);
    assert_eq!(
        answer(&text, &context),
        "p.toml:4:8: unit `cpu0` is a gpu, which keeps caches as f16 only, not as q8: give its stages to a cpu unit, or \
         choose f16 caches"
    );
    let explained = answer(RIGHT, &context);
    // 4 sequences of 512 positions, 4 blocks of 512 bytes as halves: 4 MiB, of which nine sixteenths.
    assert!(explained.contains("2.3 MiB q8 caches"), "{explained}");
}
