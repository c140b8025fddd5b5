//! What jobs of the two models take, learnt from those that ran: a pass of the target by its rows, a step of the draft by
//! the sequences that draft together.
//!
//! *Invariant:* estimates are finite, positive once anything ran, and a pass of more rows never takes less.

/// Rows that have an entry of their own; wider passes share one by eights.
const SINGLE_ROWS: u32 = 16;
/// Entries: 16 single ones and 14 of eight rows.
const ENTRIES: usize = 30;

/// A mean that follows what it is told.
#[derive(Clone, Copy, Debug, Default)]
struct Mean {
    ns: f64,
    weight: f64,
}

impl Mean {
    const MEMORY: f64 = 48.0;

    fn note(&mut self, ns: f64) {
        // One long wait (another program had the processor) must not pass for the time of a job.
        let ns = if self.weight >= 4.0 { ns.min(3.0 * self.ns) } else { ns };
        self.weight = (self.weight + 1.0).min(Self::MEMORY);
        self.ns += (ns - self.ns) / self.weight;
    }
}

/// Time of a target's pass by its number of rows.
#[derive(Clone, Debug)]
pub(crate) struct PassTimes {
    /// At the machine's usual speed.
    entries: [Mean; ENTRIES],
    /// What passes take at present, of that: another program, or heat, slows all of them down alike.
    pace: f64,
}

impl PassTimes {
    /// Without any other knowledge a row costs this share of a pass of one.
    const ROW_SHARE: f64 = 0.1;
    /// How fast the pace follows.
    const DRIFT: f64 = 0.2;

    /// Starts from times that were measured before: rows and nanoseconds.
    pub(crate) fn new(known: &[(u32, u64)]) -> Self {
        let mut times = Self { entries: [Mean::default(); ENTRIES], pace: 1.0 };
        for &(rows, ns) in known.iter().filter(|(rows, ns)| *rows > 0 && *ns > 0) {
            times.entries[entry_of(rows)] = Mean { ns: ns as f64, weight: 2.0 };
        }
        times
    }

    /// A pass of so many rows took so long.
    pub(crate) fn note(&mut self, rows: u32, ns: u64) {
        let ns = (ns as f64).max(1.0);
        if let Some(expected) = self.at(rows) {
            // One long wait must not pass for a slow machine.
            let ratio = (ns / expected).clamp(0.6, 1.5);
            self.pace = (self.pace * (1.0 + Self::DRIFT * (ratio - 1.0))).clamp(0.1, 10.0);
        }
        self.entries[entry_of(rows)].note(ns / self.pace);
    }

    /// Time of a pass of `rows` rows in nanoseconds; `None` before anything ran.
    pub(crate) fn at(&self, rows: u32) -> Option<f64> {
        let known = self.known();
        let (&(first, first_ns), &(last, last_ns)) = (known.first()?, known.last()?);
        let x = f64::from(rows.max(1));
        if x <= first {
            return Some(first_ns * share(x) / share(first));
        }
        if x >= last {
            let one = first_ns / share(first);
            let slope = match known.len() {
                1 => one * Self::ROW_SHARE,
                _ => ((last_ns - first_ns) / (last - first)).max(one * Self::ROW_SHARE / 4.0),
            };
            return Some(last_ns + (x - last) * slope);
        }
        let after = known.partition_point(|(rows, _)| *rows < x);
        let ((x0, y0), (x1, y1)) = (known[after - 1], known[after]);
        Some(y0 + (x - x0) / (x1 - x0) * (y1 - y0))
    }

    /// Entries that something is known of: middle of their rows and time, none shorter than one before it.
    fn known(&self) -> Vec<(f64, f64)> {
        let mut known: Vec<(f64, f64, f64)> = Vec::with_capacity(ENTRIES);
        for (index, entry) in self.entries.iter().enumerate().filter(|(_, e)| e.weight > 0.0) {
            known.push((rows_of(index), entry.ns * self.pace, entry.weight));
        }
        // Pool neighbours that contradict each other (isotonic regression).
        let mut pooled: Vec<(usize, f64, f64)> = Vec::with_capacity(known.len());
        for &(_, ns, weight) in &known {
            pooled.push((1, ns, weight));
            while let [.., (_, before, _), (_, after, _)] = pooled[..]
                && before > after
            {
                let (count, ns, weight) = pooled.pop().expect("there are two");
                let last = pooled.last_mut().expect("there are two");
                last.1 = (last.1 * last.2 + ns * weight) / (last.2 + weight);
                (last.0, last.2) = (last.0 + count, last.2 + weight);
            }
        }
        let smooth = pooled.into_iter().flat_map(|(count, ns, _)| std::iter::repeat_n(ns, count));
        known.iter().map(|(rows, ..)| *rows).zip(smooth).collect()
    }
}

fn share(rows: f64) -> f64 {
    1.0 + PassTimes::ROW_SHARE * (rows - 1.0)
}

fn entry_of(rows: u32) -> usize {
    if rows <= SINGLE_ROWS {
        return rows.max(1) as usize - 1;
    }
    let eights = (rows - SINGLE_ROWS - 1) / 8;
    (SINGLE_ROWS as usize + eights as usize).min(ENTRIES - 1)
}

fn rows_of(entry: usize) -> f64 {
    let single = SINGLE_ROWS as usize;
    if entry < single {
        return entry as f64 + 1.0;
    }
    f64::from(SINGLE_ROWS) + 8.0 * (entry - single) as f64 + 4.5
}

/// Time of a draft's job: what it takes to start, and each step.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct DraftTime {
    pub(crate) start_ns: f64,
    pub(crate) step_ns: f64,
}

/// Moments of steps and times of the jobs of equal company.
#[derive(Clone, Copy, Debug, Default)]
struct Moments {
    weight: f64,
    steps: f64,
    ns: f64,
    steps_variance: f64,
    covariance: f64,
}

impl Moments {
    const MEMORY: f64 = 32.0;

    fn note(&mut self, steps: f64, ns: f64) {
        let ns = if self.weight >= 4.0 { ns.min(3.0 * self.time().of(steps)) } else { ns };
        self.weight = (self.weight + 1.0).min(Self::MEMORY);
        let (more_steps, more_ns) = (steps - self.steps, ns - self.ns);
        self.steps += more_steps / self.weight;
        self.ns += more_ns / self.weight;
        let variance = more_steps * (steps - self.steps);
        self.steps_variance += (variance - self.steps_variance) / self.weight;
        self.covariance += (more_steps * (ns - self.ns) - self.covariance) / self.weight;
    }

    /// Jobs of different lengths tell the start from the steps; without them, all of it is steps.
    fn time(&self) -> DraftTime {
        let mean = self.ns / self.steps.max(1.0);
        let told_apart = self.weight >= 8.0 && self.steps_variance > 0.2;
        let slope = if told_apart { self.covariance / self.steps_variance } else { mean };
        let step_ns = slope.clamp(0.5 * mean, mean);
        DraftTime { start_ns: (self.ns - step_ns * self.steps).max(0.0), step_ns }
    }
}

impl DraftTime {
    pub(crate) fn of(self, steps: f64) -> f64 {
        self.start_ns + self.step_ns * steps
    }
}

/// Time of draft jobs by the number of sequences in them: 1, 2, up to 4, up to 8, more.
#[derive(Clone, Debug, Default)]
pub(crate) struct DraftTimes {
    company: [Moments; 5],
    /// A row of text that the draft had missed.
    row: Mean,
}

impl DraftTimes {
    /// Starts from a step that was measured before, in nanoseconds.
    pub(crate) fn new(step_ns: Option<u64>) -> Self {
        let mut times = Self::default();
        if let Some(ns) = step_ns.filter(|ns| *ns > 0) {
            times.company[0] =
                Moments { weight: 2.0, steps: 1.0, ns: ns as f64, ..Default::default() };
        }
        times
    }

    /// A job of so many sequences and steps took so long.
    pub(crate) fn note(&mut self, sequences: u32, steps: u32, ns: u64) {
        self.company[class_of(sequences)].note(f64::from(steps.max(1)), (ns as f64).max(1.0));
    }

    /// A job that first read `rows` rows of missed text took so long.
    pub(crate) fn note_missed(&mut self, rows: u32, (sequences, steps): (u32, u32), ns: u64) {
        let drafting = self.at(sequences).map_or(0.0, |time| time.of(f64::from(steps)));
        self.row.note((ns as f64 - drafting).max(1.0) / f64::from(rows.max(1)));
    }

    /// Time to read `rows` rows of missed text.
    pub(crate) fn missed(&self, rows: u32) -> f64 {
        let row = if self.row.weight > 0.0 {
            self.row.ns
        } else {
            self.at(1).map_or(0.0, |time| time.step_ns / 8.0)
        };
        row * f64::from(rows)
    }

    /// Time of a job of so many sequences; `None` before anything ran.
    pub(crate) fn at(&self, sequences: u32) -> Option<DraftTime> {
        let wanted = class_of(sequences);
        let known = |class: &usize| self.company[*class].weight > 0.0;
        let nearest = (0..self.company.len()).filter(known).min_by_key(|c| c.abs_diff(wanted))?;
        let time = self.company[nearest].time();
        // Weights are read once for all sequences of a step: more of them cost less than they are more.
        let more = f64::from(sequences.clamp(1, 16)) - SIZES[nearest];
        let factor = if nearest == wanted { 1.0 } else { (1.0 + 0.15 * more).max(0.4) };
        Some(DraftTime { step_ns: time.step_ns * factor, ..time })
    }
}

/// A typical number of sequences of each class.
const SIZES: [f64; 5] = [1.0, 2.0, 3.5, 6.5, 12.0];

fn class_of(sequences: u32) -> usize {
    match sequences {
        0 | 1 => 0,
        2 => 1,
        3..=4 => 2,
        5..=8 => 3,
        _ => 4,
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::{DraftTimes, PassTimes};

    fn close(found: f64, expected: f64) {
        assert!((found - expected).abs() < 0.02 * expected, "{found}, not {expected}");
    }

    #[test]
    fn a_table_of_passes_is_learnt_between_and_beyond_its_entries() {
        let mut times = PassTimes::new(&[]);
        assert_eq!(times.at(3), None);
        for _ in 0..60 {
            for (rows, ns) in [(1, 1000), (5, 1400), (9, 2200)] {
                times.note(rows, ns);
            }
        }
        close(times.at(1).unwrap(), 1000.0);
        close(times.at(3).unwrap(), 1200.0);
        close(times.at(9).unwrap(), 2200.0);
        close(times.at(13).unwrap(), 2800.0);
        assert!(times.at(200).unwrap() > times.at(120).unwrap());
    }

    #[test]
    fn a_machine_that_slows_down_does_so_for_every_pass() {
        let mut times = PassTimes::new(&[]);
        for _ in 0..60 {
            times.note(1, 1000);
            times.note(5, 1500);
        }
        (0..200).for_each(|_| times.note(5, 3000));
        let one = times.at(1).unwrap();
        assert!((1500.0..2300.0).contains(&one), "{one}");
    }

    #[test]
    fn contradictions_are_pooled() {
        let times = PassTimes::new(&[(1, 1000), (2, 900), (3, 1100)]);
        close(times.at(1).unwrap(), 950.0);
        close(times.at(2).unwrap(), 950.0);
    }

    #[test]
    fn a_long_wait_is_not_the_time_of_a_pass() {
        let mut times = PassTimes::new(&[]);
        (0..30).for_each(|_| times.note(1, 1000));
        times.note(1, 1_000_000);
        assert!(times.at(1).unwrap() < 1200.0);
    }

    #[test]
    fn the_start_of_a_draft_is_told_from_its_steps() {
        let mut times = DraftTimes::default();
        for i in 0..200u32 {
            let steps = 1 + i % 5;
            times.note(1, steps, 30 + 100 * u64::from(steps));
        }
        let time = times.at(1).unwrap();
        close(time.step_ns, 100.0);
        assert!((time.start_ns - 30.0).abs() < 5.0, "{time:?}");
        assert!(times.at(8).unwrap().step_ns > time.step_ns, "company costs");
        assert!(times.at(8).unwrap().step_ns < 8.0 * time.step_ns, "but less than each alone");
    }
}
