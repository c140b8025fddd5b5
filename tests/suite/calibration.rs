//! A calibration is kept with the fingerprint of what it was taken on, used again for that, and refused for anything else.

use std::collections::BTreeMap;
use std::path::PathBuf;

use outrider::calibrate::{Calibration, Fingerprint, StoreError, VERSION, load, save};
use outrider_plans::{Board, shipped_boards};

fn fingerprint() -> Fingerprint {
    Fingerprint {
        hardware: "4xA76@1024 [dotprod]".to_owned(),
        driver: "Mali-G610".to_owned(),
        target: "0123".to_owned(),
        draft: "4567".to_owned(),
        binary: "0.1.0 1 2".to_owned(),
        positions: 512,
        cache: "f16".to_owned(),
    }
}

fn calibration() -> Calibration {
    let board = Board::parse(shipped_boards()[1].text).unwrap();
    Calibration {
        version: VERSION,
        fingerprint: fingerprint(),
        taken_at_s: 1,
        took_ms: 2,
        model: board.model(),
        texts: board.workload().texts[..2].to_vec(),
        best_plan: "name = \"best\"\n".to_owned(),
        left_out: BTreeMap::new(),
    }
}

fn kept() -> (tempfile::TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("deeper").join("calibration.json");
    save(&path, &calibration()).unwrap();
    (folder, path)
}

#[test]
fn what_was_kept_is_read_back_as_it_was() {
    let (folder, path) = kept();
    let fresh = load(&path, &fingerprint()).unwrap();
    assert_eq!((fresh.path, fresh.calibration), (path.clone(), calibration()));
    // Nothing half-written is left beside it.
    let beside: Vec<_> = std::fs::read_dir(path.parent().unwrap()).unwrap().collect();
    assert_eq!(beside.len(), 1, "{beside:?}");
    drop(folder);
}

#[test]
fn another_calibration_takes_its_place_whole() {
    let (_folder, path) = kept();
    let newer = Calibration { taken_at_s: 9, ..calibration() };
    save(&path, &newer).unwrap();
    assert_eq!(load(&path, &fingerprint()).unwrap().calibration.taken_at_s, 9);
}

#[test]
fn one_of_anything_else_is_stale_and_says_what_has_changed() {
    let (_folder, path) = kept();
    type Change = fn(&mut Fingerprint);
    let changes: [(Change, &str); 7] = [
        (|f| f.hardware.push('x'), "the hardware has changed"),
        (|f| f.driver.push('x'), "the GPU's driver has changed"),
        (|f| f.target.push('x'), "the target model has changed"),
        (|f| f.draft.clear(), "the draft model has changed"),
        (|f| f.binary.push('x'), "the program has changed"),
        (|f| f.positions += 1, "the context length has changed"),
        (|f| f.cache.push('x'), "the format of the caches has changed"),
    ];
    for (change, words) in changes {
        let mut wanted = fingerprint();
        change(&mut wanted);
        let error = load(&path, &wanted).unwrap_err();
        assert!(matches!(error, StoreError::Stale { .. }), "{error}");
        let said = error.to_string();
        assert!(said.contains(words) && said.contains("outrider calibrate"), "{said}");
    }
}

#[test]
fn a_missing_a_broken_and_an_old_file_say_what_to_do() {
    let (folder, path) = kept();
    let nowhere = folder.path().join("none.json");
    let error = load(&nowhere, &fingerprint()).unwrap_err();
    assert!(matches!(error, StoreError::Missing(_)), "{error}");
    assert!(error.to_string().contains("outrider calibrate"), "{error}");
    std::fs::write(&path, b"{\"version\": 1").unwrap();
    let error = load(&path, &fingerprint()).unwrap_err();
    assert!(matches!(error, StoreError::Format { .. }), "{error}");
    save(&path, &Calibration { version: VERSION + 1, ..calibration() }).unwrap();
    let error = load(&path, &fingerprint()).unwrap_err().to_string();
    assert!(error.contains("version") && error.contains("outrider calibrate"), "{error}");
    let folder_as_file = load(folder.path(), &fingerprint()).unwrap_err();
    assert!(matches!(folder_as_file, StoreError::Io { .. }), "{folder_as_file}");
}
