//! Whether there is a GPU to test with: in CI a software rasteriser, which the test command installs.

use std::process::Command;

use outrider_devices::gpu::{GpuDevice, GpuOptions, GpuSelector, discover};

use crate::process::program;

/// The best adapter's unit. `None`, so that its tests are skipped, if there is no adapter; but if
/// `OUTRIDER_REQUIRE_GPU=1` says that there must be one, a test without it fails.
pub(crate) fn unit() -> Option<GpuDevice> {
    match GpuDevice::open(&GpuSelector::Best, GpuOptions::default()) {
        Ok(device) => Some(device),
        Err(error) if std::env::var_os("OUTRIDER_REQUIRE_GPU").is_some_and(|v| v == "1") => {
            panic!("OUTRIDER_REQUIRE_GPU is set, but: {error}")
        }
        Err(error) => {
            eprintln!("skipped: {error}");
            None
        }
    }
}

#[test]
fn devices_lists_every_adapter_as_plans_number_them() {
    let Some(gpu) = unit() else { return };
    let listed = Command::new(program()).args(["devices"]).output().unwrap();
    let listed = String::from_utf8(listed.stdout).unwrap();
    let (index, name) = (gpu.adapter().index, &gpu.adapter().name);
    assert!(listed.contains(&format!("gpu {index}: {name}")), "{listed}");
    let planned = outrider::fleet::machine().adapters;
    let named: Vec<_> = discover().usable().map(|adapter| adapter.name.clone()).collect();
    assert_eq!(planned.into_iter().map(|adapter| adapter.name).collect::<Vec<_>>(), named);
}

#[test]
fn without_a_driver_the_program_runs_on_the_processor_and_devices_says_why() {
    // The loader finds no driver where this names none.
    let without = |arguments: &[&str]| {
        let output = Command::new(program())
            .args(arguments)
            .env("VK_DRIVER_FILES", "/no/such/driver.json")
            .env("VK_ICD_FILENAMES", "/no/such/driver.json")
            .output()
            .unwrap();
        (
            output.status.success(),
            String::from_utf8_lossy(&output.stdout).into_owned(),
            output.stderr,
        )
    };
    let (ok, listed, _) = without(&["devices"]);
    assert!(ok && listed.contains("no GPU: ") && listed.contains("driver"), "{listed}");
    let (ok, text, _) = without(&["generate", "Good morning."]);
    assert!(ok && !text.trim().is_empty(), "{text}");
    let (ok, _, refused) = without(&["generate", "--plan", "both-gpu", "Good morning."]);
    let refused = String::from_utf8_lossy(&refused);
    assert!(!ok && refused.contains("this machine has none, so use a cpu unit"), "{refused}");
}
