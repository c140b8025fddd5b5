//! The command line, as its users and other tools rely on it.

use serde_json::Value;

use crate::process::{outrider, outrider_fails, outrider_ok, program};

const SENTENCE: &str = "Please restart the computer to finish the installation.";

fn generate_json(arguments: &[&str]) -> Value {
    let mut all = vec!["generate", "--json"];
    all.extend(arguments);
    all.push(SENTENCE);
    serde_json::from_str(&outrider_ok(&all)).unwrap()
}

#[test]
fn generate_writes_german_to_stdout_and_statistics_to_stderr() {
    let output = outrider(&["generate", SENTENCE]);
    let (out, err) =
        (String::from_utf8(output.stdout).unwrap(), String::from_utf8(output.stderr).unwrap());
    assert!(output.status.success(), "{err}");
    assert!(out.contains("Computer") && out.ends_with(".\n"), "{out}");
    assert!(err.contains("tokens/s") && err.contains("accepted"), "{err}");
}

#[test]
fn generate_json_is_one_object_with_the_agreed_fields() {
    let report = generate_json(&[]);
    assert!(report["text"].as_str().unwrap().contains("Computer"));
    let tokens = report["tokens"].as_array().unwrap();
    assert_eq!(report["finish_reason"], "stop");
    assert!(report["plan"]["id"].is_string());
    let timings = &report["timings"];
    for field in
        ["prompt_n", "prompt_ms", "predicted_n", "predicted_ms", "draft_n", "draft_n_accepted"]
    {
        assert!(timings[field].is_number(), "{field} in {timings}");
    }
    assert_eq!(timings["predicted_n"].as_u64().unwrap() as usize, tokens.len());
    assert!(timings["draft_n"].as_u64() >= timings["draft_n_accepted"].as_u64());
    assert!(timings["draft_n_accepted"].as_u64().unwrap() > 0);
}

#[test]
fn every_mode_writes_the_same_tokens() {
    let plain = generate_json(&["--mode", "plain"]);
    assert_eq!(plain["timings"]["draft_n"], 0);
    for mode in ["sequential", "overlap", "lookup"] {
        let other = generate_json(&["--mode", mode]);
        assert_eq!(other["tokens"], plain["tokens"], "{mode}");
        assert_eq!(other["plan"]["mode"], mode);
    }
}

#[test]
fn a_seed_fixes_sampled_text_in_every_mode() {
    let sampled = |mode| generate_json(&["--mode", mode, "--temperature", "0.8", "--seed", "7"]);
    let plain = sampled("plain");
    for mode in ["sequential", "overlap"] {
        assert_eq!(sampled(mode)["tokens"], plain["tokens"], "{mode}");
    }
}

#[test]
fn max_tokens_and_stop_end_the_text() {
    let cut = generate_json(&["--max-tokens", "3"]);
    assert_eq!(cut["finish_reason"], "length");
    assert_eq!(cut["tokens"].as_array().unwrap().len(), 3);
    let stopped = generate_json(&["--stop", "Computer"]);
    assert_eq!(stopped["finish_reason"], "stop");
    assert!(!stopped["text"].as_str().unwrap().contains("Computer"));
}

#[test]
fn raw_takes_the_prompt_as_it_is() {
    let raw = ["generate", "--json", "--raw", &format!(">>de<<{SENTENCE}<sep>")].map(str::to_owned);
    let raw: Vec<&str> = raw.iter().map(String::as_str).collect();
    let report: Value = serde_json::from_str(&outrider_ok(&raw)).unwrap();
    assert_eq!(report["tokens"], generate_json(&[])["tokens"]);
}

#[test]
fn wrong_input_is_named_with_the_way_out() {
    let missing = outrider_fails(&["generate", "--target", "/no/such/model.gguf", "x"]);
    assert!(missing.contains("/no/such/model.gguf"), "{missing}");
    let plan = outrider_fails(&["generate", "--plan", "no-such-plan", "x"]);
    assert!(plan.contains("no-such-plan") && plan.contains("sequential-all-cores"), "{plan}");
    let depth = outrider(&["generate", "--draft-tokens", "99", "x"]);
    assert_eq!(depth.status.code(), Some(2));
    assert!(String::from_utf8(depth.stderr).unwrap().contains("99"));
    let hot = outrider_fails(&["generate", "--temperature", "-1", "x"]);
    assert!(hot.contains("temperature"), "{hot}");
    let long = "word ".repeat(3000);
    let context = outrider_fails(&["generate", &long]);
    assert!(context.contains("context"), "{context}");
    assert_eq!(outrider(&["generate", "--no-such-flag"]).status.code(), Some(2));
}

#[test]
fn a_file_that_is_not_a_model_is_refused_by_name() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("letter.gguf");
    std::fs::write(&path, "Dear reader, this is no model at all.").unwrap();
    let error = outrider_fails(&["models", "inspect", path.to_str().unwrap()]);
    assert!(error.contains("letter.gguf"), "{error}");
}

#[test]
fn models_inspect_and_check_describe_the_shipped_pair() {
    let inspected = outrider_ok(&["models", "inspect"]);
    assert!(inspected.contains("llama") && inspected.contains("8192"), "{inspected}");
    assert!(outrider_ok(&["models", "check"]).contains("can draft for"));
}

#[test]
fn plans_are_listed_explained_and_validated() {
    assert!(outrider_ok(&["plan", "list"]).contains("sequential-all-cores"));
    let explained = outrider_ok(&["plan", "explain"]);
    assert!(explained.contains("layers 0..8") && explained.contains("MiB weights"), "{explained}");
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("gap.toml");
    let text = "name = \"gap\"\nmode = \"plain\"\n\n[units.cpu0]\nkind = \"cpu\"\ncores = [0]\n\n[[target]]\nunit = \"cpu0\"\nlayers = \"0..3\"\n";
    std::fs::write(&path, text).unwrap();
    let error = outrider_fails(&["plan", "validate", path.to_str().unwrap()]);
    assert!(error.contains("gap.toml:10") || error.contains("line 10"), "{error}");
}

#[test]
fn devices_lists_the_processor() {
    assert!(outrider_ok(&["devices"]).to_lowercase().contains("cpu"));
    let listed: Value = serde_json::from_str(&outrider_ok(&["devices", "--json"])).unwrap();
    assert!(listed.is_object(), "{listed}");
}

#[test]
fn bench_compares_plans_and_finds_identical_text() {
    let out = outrider_ok(&["bench", "--limit", "3", "--runs", "1", "--json"]);
    let report: Value = serde_json::from_str(&out).unwrap();
    let plans = report["plans"].as_array().unwrap();
    let modes: Vec<_> = plans.iter().map(|p| p["mode"].as_str().unwrap()).collect();
    for mode in ["plain", "sequential", "lookup"] {
        assert!(modes.contains(&mode), "{modes:?}");
    }
    for plan in plans {
        assert_eq!(plan["identical"], true, "{plan}");
        assert!(plan["tokens_per_second"].as_f64().unwrap() > 0.0);
    }
    assert!(plans.iter().any(|p| p["acceptance"].as_f64().is_some_and(|a| a > 0.5)));
}

#[test]
fn the_program_under_test_is_built() {
    assert!(program().is_file());
}
