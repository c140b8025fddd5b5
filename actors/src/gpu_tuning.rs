//! Opens GPUs with kernels of the shape that was measured best for adapter and driver, which the user's cache folder keeps.
//!
//! Measuring compiles some hundred kernels that are never run again. A driver goes on for minutes with what it has compiled, on cores
//! that are wanted, and ends with its process: so a process of its own measures, `outrider devices --tune`.
//!
//! *Invariant:* the same adapter and driver give the same shape for as long as the folder is kept, so that a restart does
//! not change a text. Where nothing can be kept, nothing is measured: the shape is then what the adapter's kind suggests.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

use outrider_devices::DeviceError;
use outrider_devices::gpu::measure::Timer;
use outrider_devices::gpu::{
    AdapterKind, GpuAdapter, GpuDevice, GpuOptions, GpuSelector, Tuning, autotune, discover,
};

/// Times that a candidate is run; the least counts.
const REPETITIONS: u32 = 20;

/// Opens the adapter, measuring first if it is new.
pub(crate) fn open(selector: &GpuSelector) -> Result<GpuDevice, DeviceError> {
    let device = GpuDevice::open(selector, GpuOptions::default())?;
    let Some(file) = file_of(device.adapter()) else { return Ok(device) };
    let known = read(&file).or_else(|| {
        measure_apart();
        read(&file)
    });
    let tuning = match known {
        Some(tuning) => tuning,
        None => match measure(selector, &file)? {
            Some(tuning) => tuning,
            None => return Ok(device),
        },
    };
    let chosen = GpuOptions { tuning: Some(tuning), ..GpuOptions::default() };
    GpuDevice::open(selector, chosen).or_else(|error| {
        tracing::warn!(file = %file.display(), %error, "a kept GPU tuning does not fit; remove the file");
        Ok(device)
    })
}

/// Measures every adapter that is new.
///
/// # Errors
/// An adapter cannot be opened, or is lost.
pub(crate) fn tune_all() -> Result<(), DeviceError> {
    for index in 0..discover().usable().count() {
        let selector = GpuSelector::Index(index);
        let device = GpuDevice::open(&selector, GpuOptions::default())?;
        if let Some(file) = file_of(device.adapter()).filter(|file| read(file).is_none()) {
            measure(&selector, &file)?;
        }
    }
    Ok(())
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

/// Where the tuning of a real adapter is kept.
fn file_of(adapter: &GpuAdapter) -> Option<PathBuf> {
    let real = adapter.kind != AdapterKind::Software;
    Some(cache_folder().filter(|_| real)?.join(file_name(adapter)))
}

/// The tuning that measuring chooses, if it can be kept.
fn measure(selector: &GpuSelector, file: &Path) -> Result<Option<Tuning>, DeviceError> {
    if let Err(error) = write(file, "") {
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
    match write(file, &text) {
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

/// Writes beside the file first, so that no reader sees half of it.
fn write(file: &Path, text: &str) -> std::io::Result<()> {
    if let Some(folder) = file.parent() {
        std::fs::create_dir_all(folder)?;
    }
    let beside = file.with_extension(format!("{}.tmp", std::process::id()));
    std::fs::write(&beside, text)?;
    std::fs::rename(beside, file)
}

/// Where this user's programs keep what can be made again.
fn cache_folder() -> Option<PathBuf> {
    let folder = |name: &str| std::env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from);
    let base = folder("XDG_CACHE_HOME").or_else(|| folder("HOME").map(|home| home.join(".cache")));
    base.map(|base| base.join("outrider"))
}

/// A name of letters and digits for adapter, driver and this program's version, whose kernels may differ from another's.
fn file_name(adapter: &GpuAdapter) -> String {
    let words = format!("gpu {} {} {}", adapter.name, adapter.driver, env!("CARGO_PKG_VERSION"));
    let plain = |c: char| if c.is_ascii_alphanumeric() { c.to_ascii_lowercase() } else { '-' };
    words.chars().map(plain).collect::<String>() + ".json"
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test")]

    use outrider_devices::gpu::{GpuDevice, GpuOptions, GpuSelector};

    use super::{file_name, read, write};

    #[test]
    fn a_tuning_is_read_as_it_was_written_and_rubbish_is_not_read() {
        let file = std::env::temp_dir().join(format!("outrider-{}.json", std::process::id()));
        write(&file, "{\"backing\": 3}").unwrap();
        assert_eq!(read(&file), None);
        if let Ok(device) = GpuDevice::open(&GpuSelector::Best, GpuOptions::default()) {
            let text = serde_json::to_string(device.tuning()).unwrap();
            write(&file, &text).unwrap();
            assert_eq!(read(&file).as_ref(), Some(device.tuning()));
            let name = file_name(device.adapter());
            assert!(name.chars().all(|c| c.is_ascii_alphanumeric() || "-.".contains(c)), "{name}");
        }
        std::fs::remove_file(&file).unwrap();
    }
}
