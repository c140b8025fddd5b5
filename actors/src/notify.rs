//! What systemd is told: that the service is ready, that it stops, and that it still lives.
//!
//! *Invariant:* without systemd (no `NOTIFY_SOCKET`) nothing happens; a message that cannot be sent is never a fault.

use std::ffi::OsStr;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::time::Duration;

/// The line to systemd.
pub(crate) struct Notifier {
    socket: Option<(UnixDatagram, SocketAddr)>,
    interval: Option<Duration>,
}

impl Notifier {
    /// The line that the environment names, if it names one.
    pub(crate) fn from_env() -> Self {
        let socket = std::env::var_os("NOTIFY_SOCKET").and_then(|name| connect(&name));
        let limit_us = std::env::var("WATCHDOG_USEC").ok().and_then(|text| text.parse().ok());
        let mine =
            std::env::var("WATCHDOG_PID").map_or(true, |pid| pid == std::process::id().to_string());
        // Twice within the limit, as systemd asks.
        let interval = limit_us.filter(|_| mine).map(|us| Duration::from_micros(us) / 2);
        Self { socket, interval }
    }

    /// Requests are taken from now on.
    pub(crate) fn ready(&self) {
        self.send("READY=1");
    }

    /// No new requests are taken.
    pub(crate) fn stopping(&self) {
        self.send("STOPPING=1");
    }

    /// The service is not stuck.
    pub(crate) fn alive(&self) {
        self.send("WATCHDOG=1");
    }

    /// How often [`Notifier::alive`] is expected, if at all.
    pub(crate) fn interval(&self) -> Option<Duration> {
        self.interval
    }

    fn send(&self, state: &str) {
        if let Some((socket, address)) = &self.socket {
            // systemd times out by itself if it hears nothing.
            let _ = socket.send_to_addr(state.as_bytes(), address);
        }
    }
}

fn connect(name: &OsStr) -> Option<(UnixDatagram, SocketAddr)> {
    let address = match name.as_bytes().strip_prefix(b"@") {
        Some(name) => SocketAddr::from_abstract_name(name),
        None => SocketAddr::from_pathname(name),
    };
    Some((UnixDatagram::unbound().ok()?, address.ok()?))
}
