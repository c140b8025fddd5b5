//! Opens GPUs with kernels of the shape that was measured best for adapter and driver, which the user's cache folder keeps beside
//! what drivers have compiled.
//!
//! Measuring compiles some hundred kernels that are never run again, and that a driver holds for as long as its process lives: so a
//! process of its own measures, `outrider devices --tune`.
//!
//! *Invariant:* the same adapter and driver give the same shape for as long as the folder is kept, so that a restart does
//! not change a text. Where nothing can be kept, nothing is measured: the shape is then what the adapter's kind suggests.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

use outrider_devices::gpu::measure::Timer;
use outrider_devices::gpu::{
    AdapterKind, GpuAdapter, GpuDevice, GpuOptions, GpuSelector, Tuning, autotune, discover, find,
};
use outrider_devices::{DeviceError, whole_file};

use crate::cache_folder::cache_folder;

/// Times that a candidate is run; the least counts.
const REPETITIONS: u32 = 20;

/// Opens the adapter, measuring first if it is new, with all that its driver has compiled before.
pub(crate) fn open(selector: &GpuSelector) -> Result<GpuDevice, DeviceError> {
    let adapter = find(selector)?;
    let options = GpuOptions { compiled: kernels_of(&adapter), ..GpuOptions::default() };
    let Some(file) = tuning_of(&adapter) else { return GpuDevice::open(selector, options) };
    let known = read(&file).or_else(|| {
        measure_apart();
        read(&file)
    });
    let tuning = match known {
        Some(tuning) => Some(tuning),
        None => measure(selector, &file)?,
    };
    let chosen = GpuOptions { tuning, ..options.clone() };
    GpuDevice::open(selector, chosen).or_else(|error| {
        tracing::warn!(file = %file.display(), %error, "a kept GPU tuning does not fit; remove the file");
        GpuDevice::open(selector, options)
    })
}

/// Measures every adapter that is new.
///
/// # Errors
/// An adapter cannot be opened, or is lost.
pub(crate) fn tune_all() -> Result<(), DeviceError> {
    for adapter in discover().usable() {
        if let Some(file) = tuning_of(adapter).filter(|file| read(file).is_none()) {
            measure(&GpuSelector::Index(adapter.index), &file)?;
        }
    }
    Ok(())
}

/// Makes the machine's real GPUs ready that never ran here, each told of by its name: to measure how to shape kernels takes half a
/// minute. Returns whether the driver of any has still to compile them.
pub(crate) fn make_ready(mut tell: impl FnMut(&str)) -> bool {
    let mut any = false;
    for adapter in discover().usable().filter(|adapter| is_real(adapter)) {
        if tuning_of(adapter).is_some_and(|file| read(&file).is_none()) {
            tell(&adapter.name);
            measure_apart();
        }
        any |= kernels_of(adapter).is_some_and(|file| !file.exists());
    }
    any
}

/// Has another process measure every adapter that is new. Where there can be none, nothing is kept, and nothing lost.
fn measure_apart() {
    let Ok(program) = std::env::current_exe() else { return };
    let ended = Command::new(program)
        .args(["devices", "--tune"])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .status();
    if !ended.as_ref().is_ok_and(std::process::ExitStatus::success) {
        tracing::warn!(?ended, "the process that shapes GPU kernels failed; this one does it");
    }
}

fn is_real(adapter: &GpuAdapter) -> bool {
    adapter.kind != AdapterKind::Software
}

/// Where the tuning of a real adapter is kept.
fn tuning_of(adapter: &GpuAdapter) -> Option<PathBuf> {
    Some(cache_folder().filter(|_| is_real(adapter))?.join(file_name("gpu", adapter) + ".json"))
}

/// Where what the driver of an adapter has compiled is kept.
fn kernels_of(adapter: &GpuAdapter) -> Option<PathBuf> {
    Some(cache_folder()?.join(file_name("kernels", adapter) + ".bin"))
}

/// The tuning that measuring chooses, if it can be kept.
fn measure(selector: &GpuSelector, file: &Path) -> Result<Option<Tuning>, DeviceError> {
    if let Err(error) = whole_file::replace(file, b"") {
        tracing::warn!(file = %file.display(), %error, "GPU tunings cannot be kept, so none is measured");
        return Ok(None);
    }
    let begun = Instant::now();
    let clock = || begun.elapsed();
    let tuning = autotune(selector, Timer::new(&clock, REPETITIONS))?;
    tracing::info!(
        ?tuning,
        seconds = begun.elapsed().as_secs_f32(),
        "measured how to shape GPU kernels"
    );
    let text = serde_json::to_string_pretty(&tuning).unwrap_or_default();
    match whole_file::replace(file, text.as_bytes()) {
        Ok(()) => Ok(Some(tuning)),
        Err(error) => {
            tracing::warn!(file = %file.display(), %error, "a GPU tuning could not be kept");
            Ok(None)
        }
    }
}

fn read(file: &Path) -> Option<Tuning> {
    serde_json::from_str(&std::fs::read_to_string(file).ok()?).ok()
}

/// A name of letters and digits for adapter, driver and this program's version, whose kernels may differ from another's.
fn file_name(what: &str, adapter: &GpuAdapter) -> String {
    let GpuAdapter { name, driver, .. } = adapter;
    let words = format!("{what} {name} {driver} {}", env!("CARGO_PKG_VERSION"));
    let plain = |c: char| if c.is_ascii_alphanumeric() { c.to_ascii_lowercase() } else { '-' };
    words.chars().map(plain).collect()
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test")]

    use outrider_devices::gpu::{GpuDevice, GpuOptions, GpuSelector};

    use outrider_devices::whole_file::replace;

    use super::{file_name, read};

    #[test]
    fn a_tuning_is_read_as_it_was_written_and_rubbish_is_not_read() {
        let file = std::env::temp_dir().join(format!("outrider-{}.json", std::process::id()));
        replace(&file, b"{\"backing\": 3}").unwrap();
        assert_eq!(read(&file), None);
        if let Ok(device) = GpuDevice::open(&GpuSelector::Best, GpuOptions::default()) {
            let text = serde_json::to_string(device.tuning()).unwrap();
            replace(&file, text.as_bytes()).unwrap();
            assert_eq!(read(&file).as_ref(), Some(device.tuning()));
            let name = file_name("gpu", device.adapter());
            assert!(name.chars().all(|c| c.is_ascii_alphanumeric() || "-.".contains(c)), "{name}");
        }
        std::fs::remove_file(&file).unwrap();
    }
}
