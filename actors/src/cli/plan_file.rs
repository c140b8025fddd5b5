//! The plan file of a running service: read again when it changes, or on SIGHUP, and proposed.
//!
//! *Invariant:* a file that cannot be read or is wrong changes nothing; the log says which line, once for each edit.

use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use outrider_plans::{Proposal, Reason, SwapError};
use tokio::signal::unix::{SignalKind, signal};
use tracing::{error, info, warn};

use crate::engine::Engine;
use crate::office::Office;

/// When the file is read again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Watch {
    /// On SIGHUP.
    OnHangUp,
    /// On SIGHUP, and within a second of every change.
    EverySecond,
}

/// What tells one edit from another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Edition {
    modified: SystemTime,
    bytes: u64,
}

fn edition(file: &Path) -> Option<Edition> {
    let found = std::fs::metadata(file).ok()?;
    Some(Edition { modified: found.modified().ok()?, bytes: found.len() })
}

/// Follows the file until the service ends.
pub(super) async fn follow(office: Office, file: PathBuf, watch: Watch) {
    let mut hang_up = match signal(SignalKind::hangup()) {
        Ok(hang_up) => hang_up,
        Err(error) => {
            return error!(%error, "cannot listen for SIGHUP; the plan file is not read again");
        }
    };
    let mut seen = edition(&file);
    loop {
        let pause = tokio::time::sleep(Duration::from_secs(1));
        let asked = tokio::select! {
            _ = hang_up.recv() => true,
            () = pause, if watch == Watch::EverySecond => false,
        };
        let now = edition(&file);
        if asked || (now.is_some() && now != seen) {
            // What is busy now is tried again in a second.
            if apply(&office.engine(), &file).await {
                seen = now;
            }
        }
    }
}

/// Proposes what the file says. False if it should be tried again.
async fn apply(engine: &Engine, file: &Path) -> bool {
    let name = file.display().to_string();
    let text = match std::fs::read_to_string(file) {
        Ok(text) => text,
        Err(error) => {
            warn!(file = name, %error, "cannot read the plan file; the running plan goes on");
            return true;
        }
    };
    let plan = match engine.read_plan(&text, Some(&name)).await {
        Ok(plan) => plan,
        Err(error) => {
            warn!(%error, "the plan file is wrong; the running plan goes on");
            return true;
        }
    };
    let proposal = Proposal { plan, expected: None, reason: Reason::File(name.clone()) };
    match engine.propose(proposal).await {
        Ok(report) => {
            info!(file = name, plan = report.plan, generation = %report.generation, "plan file applied");
            true
        }
        Err(SwapError::Busy | SwapError::Rebuilding { .. }) => false,
        Err(error) => {
            warn!(file = name, %error, "the plan file's plan does not run; the running plan goes on");
            true
        }
    }
}
