//! What a GPU does beside the processor: both at once, the same text but for near ties, and every byte between them counted.

use std::sync::Arc;

use outrider::engine::{Engine, EngineLimits, EngineOptions};
use outrider_devices::Sampling;
use serde_json::Value;

use crate::equivalence::{pair, plan, registry, tokens};
use crate::process::outrider_ok;

const SENTENCE: &str = "Please restart the computer to finish the installation.";
const UNITS: &str =
    "[units.a]\nkind = \"cpu\"\ncores = 1\n[units.g]\nkind = \"gpu\"\nadapter = 0\n";

/// Jobs of one lane: name, start and end in microseconds.
fn jobs(trace: &Value, lane: &str) -> Vec<(String, u64, u64)> {
    let events = trace["traceEvents"].as_array().unwrap();
    let named = |e: &&Value| e["ph"] == "M" && e["args"]["name"] == lane;
    let thread = &events.iter().find(named).unwrap_or_else(|| panic!("no lane {lane}"))["tid"];
    let job = |e: &Value| {
        let start = e["ts"].as_u64().unwrap();
        (e["name"].as_str().unwrap().to_owned(), start, start + e["dur"].as_u64().unwrap())
    };
    events.iter().filter(|e| e["ph"] == "X" && e["tid"] == *thread).map(job).collect()
}

#[actix::test]
async fn the_trace_shows_draft_and_verification_on_two_units_at_the_same_time() {
    if crate::gpu::unit().is_none() {
        return;
    }
    for (target, draft) in [("g", "a"), ("a", "g")] {
        let plan = plan(&format!(
            "name = \"both\"\nmode = \"overlap\"\ndraft_tokens = 4\nwait = 1\n{UNITS}\
             [[target]]\nunit = \"{target}\"\nlayers = \"all\"\n\
             [[draft]]\nunit = \"{draft}\"\nlayers = \"all\"\n"
        ));
        let options = EngineOptions::new(pair(), plan, EngineLimits::default(), registry());
        let engine = Engine::start(options).await.unwrap();
        // On cores that are shared with others it is chance whether two jobs meet: a few sentences give it many.
        let mut both = 0;
        for _ in 0..30 {
            tokens(&engine, SENTENCE, &Sampling::default()).await;
            let trace: Value = serde_json::from_str(&engine.timeline(None)).unwrap();
            let (verified, drafted) = (jobs(&trace, target), jobs(&trace, draft));
            assert!(verified.iter().all(|(name, ..)| name.starts_with("target")), "{verified:?}");
            assert!(drafted.iter().all(|(name, ..)| name.starts_with("draft")), "{drafted:?}");
            let together = |(_, start, end): &&(String, u64, u64)| {
                drafted.iter().any(|(_, s, e)| s.max(start) < e.min(end))
            };
            both = verified.iter().filter(together).count();
            if both >= 3 {
                break;
            }
        }
        engine.stop();
        assert!(both >= 3, "{both} verifications beside a draft");
    }
}

#[actix::test]
async fn activations_that_cross_between_units_are_counted() {
    if crate::gpu::unit().is_none() {
        return;
    }
    let plan = plan(&format!(
        "name = \"split\"\nmode = \"plain\"\n{UNITS}[[target]]\nunit = \"a\"\nlayers = \"0..3\"\n\
         [[target]]\nunit = \"g\"\nlayers = \"3..8\"\n"
    ));
    let registry = registry();
    let options = EngineOptions::new(pair(), plan, EngineLimits::default(), Arc::clone(&registry));
    let engine = Engine::start(options).await.unwrap();
    let written = tokens(&engine, SENTENCE, &Sampling::default()).await.len();
    engine.stop();
    let text = registry.render();
    let name = "outrider_device_transfer_bytes_total{from=\"a\",to=\"g\"} ";
    let line = text.lines().find(|line| line.starts_with(name)).unwrap_or_else(|| panic!("{text}"));
    let bytes: usize = line[name.len()..].parse().unwrap();
    // A row is the target's width in floats, and a token; the prompt's rows come on top.
    let row = 512 * 4 + 4;
    assert!(bytes.is_multiple_of(row) && bytes / row > written, "{bytes} bytes, {written} tokens");
}

/// The development sentences are many: `outrider bench --check-devices --prompts FILE` reads them all.
fn checked(limit: &str) -> Value {
    let report = ["bench", "--check-devices", "--limit", limit, "--json"];
    serde_json::from_str(&outrider_ok(&report)).unwrap()
}

#[test]
fn processor_and_gpu_write_the_same_but_for_proven_near_ties() {
    if crate::gpu::unit().is_none() {
        return;
    }
    let report = checked("12");
    let count = |key: &str| report[key].as_u64().unwrap();
    assert_eq!(count("texts"), 12);
    assert_eq!(count("identical") + count("near_ties"), 12, "{report:#}");
    assert!(count("identical") >= 8, "{report:#}");
    let bound = report["bound"].as_f64().unwrap() / report["largest_logit"].as_f64().unwrap();
    assert!((1e-7..0.1).contains(&bound), "the devices compute apart, and alike: {report:#}");
}

#[test]
fn bench_times_the_kernels_of_a_gpu() {
    if crate::gpu::unit().is_none() {
        return;
    }
    let asked = ["bench", "kernels", "--gpu", "0", "--runs", "1", "--json"];
    let report: Value = serde_json::from_str(&outrider_ok(&asked)).unwrap();
    let models = report["models"].as_array().unwrap();
    assert_eq!(models.len(), 2, "{report:#}");
    for model in models {
        let rows: Vec<_> = model["passes"].as_array().unwrap().iter().map(|p| &p["rows"]).collect();
        assert_eq!(rows, [1, 2, 4, 8]);
        for figure in ["dispatches", "floor_us", "prompt_us", "draft_of_4_us"] {
            assert!(model[figure].as_f64().unwrap() > 0.0, "{figure}: {report:#}");
        }
    }
}
