//! The rules that hold for every file: who may import whom, what a file begins with, how long it may grow.

use std::fs;
use std::path::{Path, PathBuf};

/// Crate folders and the crates of this workspace that each may use.
const MAY_IMPORT: &[(&str, &[&str])] = &[
    ("plans", &[]),
    ("devices", &[]),
    ("pipeline", &["outrider-plans", "outrider-devices"]),
    ("observability", &["outrider-plans"]),
    (
        "actors",
        &["outrider-plans", "outrider-devices", "outrider-pipeline", "outrider-observability"],
    ),
];

/// Words that may not be in a crate's sources, because the crate must not know what they name.
const MUST_NOT_KNOW: &[(&str, &[&str])] = &[
    ("plans", &["std::time", "std::thread", "tokio", "actix", "Instant", "SystemTime"]),
    ("pipeline", &["std::time", "std::thread", "tokio", "actix", "metrics::", "Instant", "await"]),
    ("devices", &["actix", "tokio", "ModelRole", "outrider_plans"]),
];

/// Lines that a file may have; a ratchet, to be lowered.
const LINES_MAX: usize = 700;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the workspace").to_owned()
}

/// Every Rust file below `folder`, but for what a build put there.
fn sources(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() && !path.ends_with("target") {
            found.extend(sources(&path));
        } else if path.extension().is_some_and(|e| e == "rs") {
            found.push(path);
        }
    }
    found
}

#[test]
fn crates_import_only_what_the_architecture_allows() {
    for (folder, allowed) in MAY_IMPORT {
        let manifest = fs::read_to_string(root().join(folder).join("Cargo.toml")).unwrap();
        for line in manifest.lines().filter(|line| line.starts_with("outrider-")) {
            let name = line.split(['.', ' ', '=']).next().unwrap();
            assert!(allowed.contains(&name), "{folder} must not depend on {name}");
        }
    }
}

#[test]
fn crates_do_not_know_what_they_must_not_know() {
    for (folder, words) in MUST_NOT_KNOW {
        for file in sources(&root().join(folder).join("src")) {
            for (number, line) in fs::read_to_string(&file).unwrap().lines().enumerate() {
                let code = line.split("//").next().unwrap();
                for word in *words {
                    let place = format!("{}:{}", file.display(), number + 1);
                    assert!(!code.contains(word), "{place} must not know `{word}`");
                }
            }
        }
    }
}

#[test]
fn every_file_says_what_it_is_for() {
    for folder in ["actors", "devices", "observability", "pipeline", "plans", "tests"] {
        for file in sources(&root().join(folder)) {
            let text = fs::read_to_string(&file).unwrap();
            assert!(text.starts_with("//!"), "{} does not begin with //!", file.display());
            let lines = text.lines().count();
            assert!(lines <= LINES_MAX, "{} has {lines} lines of {LINES_MAX}", file.display());
        }
    }
}

#[test]
fn unsafe_code_is_in_devices_only() {
    for folder in ["actors", "observability", "pipeline", "plans"] {
        for file in sources(&root().join(folder).join("src")) {
            let text = fs::read_to_string(&file).unwrap();
            let code = |line: &str| line.split("//").next().unwrap().to_owned();
            let found =
                text.lines().map(code).any(|l| l.contains("unsafe ") || l.contains("unsafe{"));
            assert!(!found, "{} has unsafe code", file.display());
        }
    }
}

#[test]
fn the_top_level_is_what_it_shall_be() {
    let allowed = [
        "ARCHITECTURE.md",
        "Cargo.lock",
        "Cargo.toml",
        "LICENSE",
        "README.md",
        "actors",
        "devices",
        "observability",
        "pipeline",
        "plans",
        "target",
        "tests",
    ];
    for entry in fs::read_dir(root()).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        assert!(name.starts_with('.') || allowed.contains(&name.as_str()), "{name} is at the top");
    }
}
