//! What is known, from outside, of one model's cache of a sequence.
//!
//! *Invariant:* the first [`Cache::len`] positions of the model's cache hold the sequence's text, or will once the job
//! that is under way has run.

/// A job under way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Job {
    /// Position of its first row.
    pub(super) base: u32,
    /// One past the position of its last row.
    pub(super) end: u32,
    /// Picks or drafts that are wanted; 0 if it only fills the cache.
    pub(super) wanted: u32,
    /// The speculator's epoch when the job was taken.
    pub(super) epoch: u64,
    /// Its rows below this position still are the text.
    agreed: u32,
    /// The cache was lost since.
    lost: bool,
}

/// One model's cache.
#[derive(Clone, Debug, Default)]
pub(super) struct Cache {
    len: u32,
    job: Option<Job>,
}

impl Cache {
    pub(super) fn len(&self) -> u32 {
        self.len
    }

    pub(super) fn job(&self) -> Option<&Job> {
        self.job.as_ref()
    }

    /// Starts a job that cuts the cache to `base` and appends the rows `base..end`.
    pub(super) fn start(&mut self, base: u32, end: u32, (wanted, epoch): (u32, u64)) {
        assert!(self.job.is_none(), "a second job for one cache");
        assert!(base <= self.len && base < end, "rows {base}..{end} on {} positions", self.len);
        self.len = base;
        self.job = Some(Job { base, end, wanted, epoch, agreed: end, lost: false });
    }

    /// The job has run.
    pub(super) fn done(&mut self) -> Job {
        let job = self.job.take().expect("an answer to no job");
        self.len = if job.lost { 0 } else { job.agreed };
        job
    }

    /// The job has failed; at least its cut has not been undone.
    pub(super) fn failed(&mut self) {
        let job = self.job.take().expect("the failure of no job");
        self.len = if job.lost { 0 } else { job.base.min(job.agreed) };
    }

    /// The job that is just done went on by itself, so that the cache holds the text up to `len`.
    pub(super) fn extend(&mut self, job: Job, len: u32) {
        if !job.lost {
            self.len = len;
        }
    }

    /// The text has changed from position `agreed` on.
    pub(super) fn cut(&mut self, agreed: u32) {
        self.len = self.len.min(agreed);
        if let Some(job) = &mut self.job {
            job.agreed = job.agreed.min(agreed);
        }
    }

    /// The model runs elsewhere from now on, where the cache holds the text up to `len`.
    pub(super) fn moved(&mut self, len: u32) {
        assert!(self.job.is_none(), "the cache of a job under way has moved");
        self.len = len;
    }

    /// The model's unit has lost the cache.
    pub(super) fn lose(&mut self) {
        self.len = 0;
        if let Some(job) = &mut self.job {
            job.lost = true;
        }
    }
}
