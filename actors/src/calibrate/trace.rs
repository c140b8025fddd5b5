//! What was clocked, answer by answer and job by job, as lines of JSON: for whoever asks why a forecast was wrong.
//!
//! *Invariant:* nothing reads these lines back; a trace changes no figure.

use std::cell::RefCell;
use std::fs::File;
use std::io::{BufWriter, Write as _};
use std::path::Path;

use outrider_plans::{ModelRole, PartitionPlan};
use serde::Serialize;

use super::rounds::Answered;

/// A file that traces go to.
#[derive(Debug)]
pub struct Trace {
    file: RefCell<BufWriter<File>>,
}

/// One line: an answer under a plan.
#[derive(Serialize)]
struct Line<'a> {
    plan: &'a str,
    id: String,
    prompt_tokens: usize,
    tokens: usize,
    drafted: u32,
    accepted: u32,
    lasted_ns: u64,
    jobs: Vec<Job<'a>>,
}

/// Role, unit, first layer, end of layers, rows, rows through the head, draft steps, context, begin and end in nanoseconds.
type Job<'a> = (char, &'a str, usize, usize, [u32; 4], [u64; 2]);

impl Trace {
    /// Writes to this file, over what was there.
    ///
    /// # Errors
    /// What the system says.
    pub fn create(path: &Path) -> std::io::Result<Self> {
        Ok(Self { file: RefCell::new(BufWriter::new(File::create(path)?)) })
    }

    /// Adds a line for each answer.
    pub(crate) fn add<'a>(
        &self,
        plan: &PartitionPlan,
        answers: impl IntoIterator<Item = &'a Answered>,
    ) {
        for answered in answers {
            let jobs = answered.jobs.iter().map(|job| {
                let role = if job.stage.role == ModelRole::Target { 't' } else { 'd' };
                let work = [job.work.rows, job.work.head_rows, job.work.steps, job.work.context];
                let at = [job.at_ns.start, job.at_ns.end];
                let (first, end) = (job.stage.layer_first, job.stage.layer_end);
                (role, job.unit.as_str(), first, end, work, at)
            });
            let line = Line {
                plan: &plan.name,
                id: plan.fingerprint().to_string(),
                prompt_tokens: answered.prompt.len(),
                tokens: answered.output.len(),
                drafted: answered.statistics.draft_n,
                accepted: answered.statistics.draft_n_accepted,
                lasted_ns: answered.lasted.as_nanos() as u64,
                jobs: jobs.collect(),
            };
            self.write(&line);
        }
    }

    fn write(&self, line: &Line<'_>) {
        let mut file = self.file.borrow_mut();
        let written = serde_json::to_writer(&mut *file, line)
            .map_err(std::io::Error::from)
            .and_then(|()| file.write_all(b"\n"))
            .and_then(|()| file.flush());
        if let Err(error) = written {
            tracing::warn!(%error, "a line of the trace is lost");
        }
    }
}
