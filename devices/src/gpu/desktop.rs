//! Mesa's layer that chooses a device for a desktop complains on every look at the adapters where there is no desktop.
//!
//! *Invariant:* whoever has a desktop, or has told the layer anything, is left alone.

/// What the layer reads: where one of them is set, somebody has a desktop or has said what is wanted.
const TOLD: [&str; 5] =
    ["NODEVICE_SELECT", "MESA_VK_DEVICE_SELECT", "XDG_RUNTIME_DIR", "DISPLAY", "WAYLAND_DISPLAY"];

/// Asks that layer to stay out where there is no desktop. For the first line of a program: with a second thread running it does
/// nothing.
pub fn do_without_desktop() {
    let told = TOLD.iter().any(|name| std::env::var_os(name).is_some());
    let alone = std::fs::read_dir("/proc/self/task").is_ok_and(|tasks| tasks.count() == 1);
    if !told && alone {
        // SAFETY: this is the only thread, so nobody reads the environment meanwhile.
        unsafe { std::env::set_var("NODEVICE_SELECT", "1") }
    }
}
