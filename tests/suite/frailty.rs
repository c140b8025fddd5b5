//! What a test does to the frail unit of a service: takes it away, or slows it down until it has seen what it wants to see.
//!
//! *Invariant:* a service under the brake takes many seconds for a text on any machine, so that "while it is being written"
//! is no matter of luck.

use std::fs;
use std::path::PathBuf;

use outrider_tests::frail::{BRAKE, CORES, FOLDER, FRAIL, LOSE};

use crate::process::Service;

/// The fate of one service's frail unit. Drop it after the service.
pub(crate) struct Frailty {
    folder: tempfile::TempDir,
}

impl Frailty {
    /// For a unit that is sound and fast so far.
    pub(crate) fn new() -> Self {
        Self { folder: tempfile::tempdir().unwrap() }
    }

    /// A service whose plan is this text, in which a unit may be the frail one, on these cores.
    pub(crate) fn serve(&self, plan: &str, cores: &[usize], arguments: &[&str]) -> Service {
        let file = self.folder.path().join("plan.toml");
        fs::write(&file, plan).unwrap();
        let cores: Vec<_> = cores.iter().map(usize::to_string).collect();
        let environment =
            [(FOLDER, self.folder.path().to_str().unwrap()), (CORES, &cores.join(","))];
        let plan = ["--plan", file.to_str().unwrap()];
        Service::start_in(&[&plan, arguments].concat(), &environment)
    }

    /// A service with target and draft on one core under the brake.
    pub(crate) fn serve_slowly(&self, arguments: &[&str]) -> Service {
        fs::write(self.brake(), "").unwrap();
        let plan = format!(
            "name = \"slow\"\nmode = \"sequential\"\ndraft_tokens = 4\n\
             [units.{FRAIL}]\nkind = \"cpu\"\ncores = [0]\n\
             [[target]]\nunit = \"{FRAIL}\"\nlayers = \"all\"\n\
             [[draft]]\nunit = \"{FRAIL}\"\nlayers = \"all\"\n"
        );
        self.serve(&plan, &[0], arguments)
    }

    fn brake(&self) -> PathBuf {
        self.folder.path().join(BRAKE)
    }

    /// Lets the unit go at its own speed again.
    pub(crate) fn release(&self) {
        fs::remove_file(self.brake()).unwrap();
    }

    /// Slows the unit down again.
    pub(crate) fn slow_down(&self) {
        fs::write(self.brake(), "").unwrap();
    }

    /// Has the unit lost at its next job.
    pub(crate) fn lose(&self) {
        fs::write(self.folder.path().join(LOSE), "").unwrap();
    }
}
