//! The text of `/metrics`: word for word, in agreement with the catalogue and with `METRICS.md`, and clean for promtool.

#![expect(clippy::unwrap_used, clippy::print_stderr, reason = "a test")]

use std::collections::BTreeSet;
use std::io::Write;
use std::process::{Command, Stdio};
use std::time::Duration;

use outrider_observability::catalogue::{ALIASES, ALL};
use outrider_observability::{
    BuildInfo, DiscardReason, FailureReason, FinishedReason, GaugeGuard, GuardLabel, GuardSwitch,
    HttpMethod, MemoryPurpose, Registry, RejectionReason, RunningPlan, SwapResult, UnitJob,
};
use outrider_plans::{
    CacheFormat, CacheLimits, HeadWeights, Machine, ModelRole, ModelShape, PlanContext, StageId,
    UnitId, UnitKind, default_plan,
};

fn registry() -> Registry {
    Registry::new(BuildInfo { version: "1.2.3".to_owned(), target: "x86_64-linux".to_owned() })
}

/// A registry in which something of everything has happened.
fn busy_registry() -> Registry {
    let registry = registry();
    let requests = &registry.requests;
    requests.running.set(2.0);
    requests.success.increment(FinishedReason::Stop);
    requests.failures.increment(FailureReason::Cancelled);
    requests.rejections.add(RejectionReason::QueueFull, 3);
    requests.time_to_first_token.record(0.03);
    requests.inter_token_latency.record(Duration::from_micros(700));
    requests.prompt_tokens.increment(17);
    requests.prefix_cache_hits.increment(9);
    requests.kv_cache_usage.set(0.25);
    registry.speculation.round(4, 2);
    registry.speculation.round(4, 4);
    registry.speculation.round(0, 0);
    registry.speculation.discarded.add(DiscardReason::Diverged, 5);
    registry.speculation.passes(4, 2);
    registry.speculation.judged(13, 7, 6);
    registry.speculation.guard(GuardLabel::Trial);
    registry.speculation.guard_switches.increment(GuardSwitch::Off);
    let (cpu0, cpu1) = (UnitId::new("cpu0"), UnitId::new("cpu1"));
    let stage = |role, layer_end| StageId { role, layer_first: 0, layer_end };
    let mut target = registry.unit(&cpu0, UnitKind::Cpu);
    let mut draft = registry.unit(&cpu1, UnitKind::Cpu);
    draft.job(&UnitJob { stage: stage(ModelRole::Draft, 3), at_ns: 0..1_000_000 });
    draft.job(&UnitJob { stage: stage(ModelRole::Draft, 3), at_ns: 1_250_000..2_000_000 });
    target.job(&UnitJob { stage: stage(ModelRole::Target, 8), at_ns: 500_000..4_000_000_001 });
    target.queue_depth.set(1.0);
    target.memory(MemoryPurpose::Weights, 25 << 20);
    draft.lost.increment(1);
    registry.transfer_bytes(&cpu1, &cpu0).increment(16);
    registry.plan.running(RunningPlan::new(&default_plan(&context()).unwrap(), 7));
    registry.plan.swaps.increment(SwapResult::Committed);
    registry.plan.predicted_tokens_per_second.set(410.5);
    registry.plan.error_ratio.set(-0.02);
    let took = Duration::from_millis(12);
    registry.http.answered(HttpMethod::Post, "/v1/completions", 200, took);
    registry.http.answered(HttpMethod::from("BREW"), "other", 404, took);
    registry
}

fn context() -> PlanContext {
    let model = ModelShape {
        layer_bytes: vec![1; 8],
        embedding_bytes: 1,
        head_bytes: 1,
        head: HeadWeights::Tied,
        cache_bytes: 1,
        width: 8,
        vocabulary: 8,
    };
    PlanContext {
        machine: Machine::uniform(2, 1 << 20),
        target: model.clone(),
        draft: Some(model),
        caches: CacheLimits { sequences_max: 1, positions_max: 1, format: CacheFormat::F16 },
    }
}

/// With `OUTRIDER_BLESS` set the text is written instead, to be read through before it is committed.
#[test]
fn the_text_is_as_it_was() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/metrics.golden.txt");
    let text = busy_registry().render();
    if std::env::var_os("OUTRIDER_BLESS").is_some() {
        std::fs::write(path, &text).unwrap();
    }
    let expected = std::fs::read_to_string(path).unwrap();
    for (line, (found, expected)) in text.lines().zip(expected.lines()).enumerate() {
        assert_eq!(found, expected, "line {}", line + 1);
    }
    assert_eq!(text.lines().count(), expected.lines().count());
}

#[test]
fn the_same_values_give_the_same_text() {
    assert_eq!(busy_registry().render(), busy_registry().render());
}

#[test]
fn busy_time_and_overlap_are_exact_to_the_nanosecond() {
    let text = busy_registry().render();
    for line in [
        "outrider_device_busy_seconds_total{device=\"cpu0\",kind=\"cpu\",role=\"target\"} 3.999500001",
        "outrider_device_busy_seconds_total{device=\"cpu1\",kind=\"cpu\",role=\"draft\"} 0.00175",
        "outrider_device_overlap_seconds_total 0.00125",
        "# TYPE outrider_device_busy_seconds_total counter",
    ] {
        assert!(text.lines().any(|l| l == line), "{line} is not in\n{text}");
    }
}

#[test]
fn registries_stand_side_by_side() {
    let (one, two) = (registry(), registry());
    one.requests.generation_tokens.increment(5);
    assert!(one.render().contains("\noutrider_generation_tokens_total 5\n"));
    assert!(two.render().contains("\noutrider_generation_tokens_total 0\n"));
}

#[test]
fn a_guard_lowers_its_gauge_again() {
    let registry = registry();
    let shown = |value: u8| {
        registry.render().contains(&format!("\noutrider_num_requests_running {value}\n"))
    };
    let guard = GaugeGuard::new(&registry.requests.running);
    assert!(shown(1));
    drop(guard);
    assert!(shown(0));
}

#[test]
fn only_the_running_plan_is_shown() {
    let registry = registry();
    assert!(!registry.render().contains("outrider_plan_info"));
    let plan = default_plan(&context()).unwrap();
    (0..50).for_each(|generation| registry.plan.running(RunningPlan::new(&plan, generation)));
    let text = registry.render();
    let shown: Vec<_> =
        text.lines().filter(|line| line.starts_with("outrider_plan_info{")).collect();
    let id = plan.fingerprint();
    assert_eq!(
        shown,
        [format!(
            "outrider_plan_info{{plan=\"default-sequential\",id=\"{id}\",mode=\"sequential\",generation=\"49\"}} 1"
        )]
    );
}

#[test]
fn names_from_outside_make_a_bounded_number_of_series() {
    let registry = registry();
    for i in 0..1000 {
        let mut unit = registry.unit(&UnitId::new(format!("u{i}")), UnitKind::Sim);
        let stage = StageId { role: ModelRole::Target, layer_first: i, layer_end: i + 1 };
        unit.job(&UnitJob { stage, at_ns: 0..1 });
    }
    let text = registry.render();
    let count = |start: &str| text.lines().filter(|line| line.starts_with(start)).count();
    assert_eq!(count("outrider_device_queue_depth{"), 65);
    assert!(count("outrider_stage_duration_seconds_count{") <= 257);
}

#[test]
fn histogram_samples_survive_upkeep() {
    let registry = registry();
    registry.requests.e2e_latency.record(0.5);
    registry.run_upkeep();
    registry.requests.e2e_latency.record(0.6);
    registry.run_upkeep();
    assert!(registry.render().contains("\noutrider_e2e_request_latency_seconds_count 2\n"));
}

#[test]
fn a_second_name_shows_the_same_values() {
    let reference =
        std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/METRICS.md")).unwrap();
    let text = busy_registry().render();
    let of = |name: &str| -> Vec<String> {
        let lines = text.lines().filter_map(|line| line.strip_prefix(name));
        lines.filter(|rest| rest.starts_with('_')).map(str::to_owned).collect()
    };
    for alias in ALIASES {
        let (own, shown) = (of(alias.of.name), of(alias.shown.name));
        assert!(own.len() > 10 && own == shown, "{}", alias.shown.name);
        let row = format!("| `{}` | `{}` |", alias.shown.name, alias.of.name);
        assert!(reference.contains(&row), "METRICS.md has no {row}");
    }
}

/// Name, type and labels of every family in the text.
fn families(text: &str) -> BTreeSet<(String, String)> {
    let types = text.lines().filter_map(|line| line.strip_prefix("# TYPE "));
    types
        .map(|line| line.split_once(' ').unwrap())
        .map(|(n, t)| (n.to_owned(), t.to_owned()))
        .collect()
}

#[test]
fn the_text_has_every_metric_of_the_catalogue_and_no_other() {
    let listed: BTreeSet<_> = ALL
        .iter()
        .chain(ALIASES.iter().map(|alias| &alias.shown))
        .map(|m| (m.name.to_owned(), m.kind.type_name().to_owned()))
        .collect();
    assert_eq!(listed.len(), ALL.len() + ALIASES.len(), "a name is listed twice");
    assert_eq!(families(&busy_registry().render()), listed);
}

#[test]
fn the_reference_lists_every_metric_and_no_other() {
    let reference = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/METRICS.md"));
    let rows: Vec<String> = reference
        .unwrap()
        .lines()
        .filter(|line| line.starts_with("| `outrider_"))
        .map(|line| line.split(" | ").take(3).collect::<Vec<_>>().join(" | "))
        .collect();
    let row = |m: &outrider_observability::catalogue::Metric| {
        let labels: Vec<_> = m.labels.iter().map(|label| format!("`{label}`")).collect();
        let labels = if labels.is_empty() { "-".to_owned() } else { labels.join(", ") };
        format!("| `{}` | {} | {labels}", m.name, m.kind.type_name())
    };
    assert_eq!(rows, ALL.iter().map(row).collect::<Vec<_>>());
}

#[test]
fn promtool_has_nothing_to_say() {
    let promtool = Command::new("promtool")
        .args(["check", "metrics"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn();
    let Ok(mut promtool) = promtool else {
        eprintln!("skipped: promtool is not on the PATH (Debian: apt install prometheus)");
        return;
    };
    promtool.stdin.take().unwrap().write_all(busy_registry().render().as_bytes()).unwrap();
    let output = promtool.wait_with_output().unwrap();
    let said = [output.stdout, output.stderr].concat();
    assert!(output.status.success() && said.is_empty(), "{}", String::from_utf8_lossy(&said));
}
