//! One suite over all devices: numbers beside the reference, and the contract of an executable to the bit.

use outrider_devices::CacheFormat;
use outrider_devices::conformance::{FORMATS, Tolerance, check, check_contract, check_with_cache};
use outrider_devices::cpu::{CpuDevice, CpuOptions};
use outrider_devices::gpu::StoredFormat;
use outrider_devices::graph::WeightFormat;

/// The CPU unit's tolerance: largest difference in a row over the root mean square of the reference's row. The cache holds
/// 16-bit floats; beside quantised weights activations are rounded to eight bits, and formats without a kernel are
/// converted at load, which adds to it.
fn cpu_tolerance(format: WeightFormat) -> f32 {
    match format {
        WeightFormat::F32 | WeightFormat::F16 | WeightFormat::BF16 => 0.005,
        _ => 0.12,
    }
}

#[test]
fn the_cpu_unit_agrees_with_the_reference_in_every_format() {
    let formats = FORMATS.iter().map(|&format| (format, cpu_tolerance(format))).collect();
    for threads in [1, 2] {
        let options = CpuOptions { threads, ..CpuOptions::default() };
        let mut device = CpuDevice::new(options).unwrap();
        let tolerance = Tolerance { formats: Vec::clone(&formats) };
        let report = check(&mut device, &tolerance).unwrap_or_else(|failure| panic!("{failure}"));
        println!("{report:?}");
    }
}

#[test]
fn the_cpu_unit_keeps_the_contract_of_an_executable() {
    let mut device = CpuDevice::new(CpuOptions::default()).unwrap();
    check_contract(&mut device, WeightFormat::Q8_0).unwrap_or_else(|failure| panic!("{failure}"));
}

#[test]
fn the_cpu_unit_with_caches_of_bytes_agrees_with_the_reference_that_has_them_too() {
    let mut device = CpuDevice::new(CpuOptions::default()).unwrap();
    let formats =
        [(WeightFormat::F32, 0.05), (WeightFormat::Q8_0, 0.15), (WeightFormat::Q4_K, 0.15)];
    let tolerance = Tolerance { formats: formats.to_vec() };
    let report = check_with_cache(&mut device, &tolerance, CacheFormat::Q8)
        .unwrap_or_else(|failure| panic!("{failure}"));
    println!("{report:?}");
}

#[test]
fn the_gpu_unit_refuses_caches_of_bytes_by_name() {
    let Some(mut device) = crate::gpu::unit() else { return };
    let tolerance = Tolerance { formats: vec![(WeightFormat::F32, 0.01)] };
    let refused = check_with_cache(&mut device, &tolerance, CacheFormat::Q8).unwrap_err();
    assert!(refused.to_string().contains("unsupported"), "{refused}");
    assert!(refused.to_string().contains("a cache of q8: this unit keeps f16"), "{refused}");
}

/// The GPU unit's tolerance: activations are 32-bit floats, the cache holds 16-bit ones, and so do weights that are
/// stored wider; formats that are rounded to eight bits at load add to it.
fn gpu_tolerance(format: WeightFormat) -> f32 {
    match (StoredFormat::of(format), format) {
        (StoredFormat::Q8, WeightFormat::Q8_0 | WeightFormat::Q5_0) => 0.01,
        (StoredFormat::Q8, _) => 0.1,
        _ => 0.01,
    }
}

#[test]
fn the_gpu_unit_agrees_with_the_reference_in_every_format() {
    let Some(mut device) = crate::gpu::unit() else { return };
    let formats = FORMATS.iter().map(|&format| (format, gpu_tolerance(format))).collect();
    let report = check(&mut device, &Tolerance { formats }).unwrap_or_else(|e| panic!("{e}"));
    println!("{report:?}");
}

#[test]
fn the_gpu_unit_keeps_the_contract_of_an_executable() {
    let Some(mut device) = crate::gpu::unit() else { return };
    check_contract(&mut device, WeightFormat::Q8_0).unwrap_or_else(|failure| panic!("{failure}"));
}
