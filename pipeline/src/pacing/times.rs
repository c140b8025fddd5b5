//! What jobs of the two models take, learnt from those that ran: a pass of the target by its rows, a step of the draft by
//! the sequences that draft together.
//!
//! *Invariant:* estimates are finite, positive once anything ran, and a pass of more rows never takes less.

/// Rows that have an entry of their own; wider passes share one by eights.
const SINGLE_ROWS: u32 = 16;
/// Entries: 16 single ones and 14 of eight rows.
const ENTRIES: usize = 30;

/// What something usually takes: the mean of the middle half of the last times. A few long waits (another program had the
/// processor) must not pass for the time of a job; yet passes that a draft beside them holds up more or less count with what
/// they take on average, where the one in the middle would be one of those that hardly were.
#[derive(Clone, Copy, Debug, Default)]
struct Usual {
    ns: f64,
    last: Recent<31>,
    /// What it took when the target's plain pass was measured last.
    mark: Option<f64>,
}

impl Usual {
    fn note(&mut self, ns: f64) {
        self.last.push(ns);
        self.ns = self.last.middle().unwrap_or(ns);
    }

    /// How much slower the last `count` were than what is usual; 1 if there were no more than that.
    fn change(&self, count: usize) -> f64 {
        let last = self.last.median_of(count).filter(|_| self.last.len > count);
        last.map_or(1.0, |last| last / self.ns)
    }

    /// Remembers the last `count` only.
    fn forget_before(&mut self, count: usize) {
        let mut kept = Recent::default();
        self.last.last(count).for_each(|ns| kept.push(ns));
        self.last = kept;
        self.ns = self.last.middle().unwrap_or(self.ns);
    }

    fn weight(&self) -> f64 {
        self.last.len as f64
    }
}

/// The last `N` of something.
#[derive(Clone, Copy, Debug)]
pub(super) struct Recent<const N: usize> {
    values: [f64; N],
    len: usize,
    next: usize,
}

impl<const N: usize> Default for Recent<N> {
    fn default() -> Self {
        Self { values: [0.0; N], len: 0, next: 0 }
    }
}

impl<const N: usize> Recent<N> {
    pub(super) fn push(&mut self, value: f64) {
        self.values[self.next] = value;
        self.next = (self.next + 1) % N;
        self.len = (self.len + 1).min(N);
    }

    /// The last `count`, oldest first.
    fn last(&self, count: usize) -> impl Iterator<Item = f64> {
        let count = count.min(self.len);
        (0..count).map(move |i| self.values[(self.next + N - count + i) % N])
    }

    /// The one in the middle; of two the lower, since jobs are held up and never hurried.
    pub(super) fn median(&self) -> Option<f64> {
        self.median_of(N)
    }

    /// The mean of the middle half; of few the lower ones, since jobs are held up and never hurried.
    fn middle(&self) -> Option<f64> {
        let (sorted, len) = self.sorted(N);
        let end = match len {
            0 => return None,
            1 => 1,
            _ => len - len.div_ceil(4),
        };
        let middle = &sorted[len / 4..end];
        Some(middle.iter().sum::<f64>() / middle.len() as f64)
    }

    /// The one in the middle of the last `count`.
    fn median_of(&self, count: usize) -> Option<f64> {
        let (sorted, len) = self.sorted(count);
        sorted[..len].get(len.saturating_sub(1) / 2).copied()
    }

    /// The last `count` in order of size, and how many there are.
    fn sorted(&self, count: usize) -> ([f64; N], usize) {
        let mut sorted = [0.0; N];
        let len = self.last(count).zip(&mut sorted).map(|(value, place)| *place = value).count();
        sorted[..len].sort_by(f64::total_cmp);
        (sorted, len)
    }
}

/// Time of a target's pass by its number of rows.
#[derive(Clone, Debug, Default)]
pub(crate) struct PassTimes {
    entries: [Usual; ENTRIES],
    /// Those that something is known of: middle of their rows and time, none shorter than one before it. It is asked for at every
    /// step of the scheduler, dozens of times, and changes with a pass.
    known: Vec<(f64, f64)>,
}

impl PassTimes {
    /// Without any other knowledge a row costs this share of a pass of one.
    const ROW_SHARE: f64 = 0.1;
    /// A machine that has become so much slower or faster is measured anew.
    const DRIFT: f64 = 1.25;
    /// After one pass of each of these: rows and nanoseconds.
    #[cfg(test)]
    pub(crate) fn of(passes: &[(u32, u64)]) -> Self {
        let mut times = Self::default();
        passes.iter().for_each(|(rows, ns)| times.note(*rows, *ns));
        times
    }

    /// A pass of so many rows took so long.
    pub(crate) fn note(&mut self, rows: u32, ns: u64) {
        self.entries[entry_of(rows)].note((ns as f64).max(1.0));
        self.smooth();
    }

    /// Whether the last `count` passes of so many rows were slower or faster than those before.
    pub(crate) fn have_changed(&self, rows: u32, count: usize) -> bool {
        let change = self.entries[entry_of(rows)].change(count);
        !(1.0 / Self::DRIFT..Self::DRIFT).contains(&change)
    }

    /// Remembers the last `count` passes of each number of rows only.
    pub(crate) fn forget_before(&mut self, count: usize) {
        self.entries.iter_mut().for_each(|entry| entry.forget_before(count));
        self.smooth();
    }

    /// What passes take now is what later ones are compared with.
    pub(crate) fn mark(&mut self) {
        for entry in self.entries.iter_mut().filter(|entry| entry.weight() > 0.0) {
            entry.mark = Some(entry.ns);
        }
    }

    /// Whether passes of so many rows have become slower or faster since they were marked: by another program, or by heat.
    /// So has the machine where passes of `plain` rows, fewer of them, seem to take longer.
    pub(crate) fn has_drifted(&mut self, rows: u32, plain: u32) -> bool {
        let plain_ns = self.entries[entry_of(plain)].ns;
        let entry = &mut self.entries[entry_of(rows)];
        let Some(now_ns) = entry.last.median_of(5).filter(|_| entry.last.len >= 5) else {
            return false;
        };
        let change = now_ns / *entry.mark.get_or_insert(entry.ns);
        rows > plain && plain_ns > 1.1 * now_ns
            || !(1.0 / Self::DRIFT..Self::DRIFT).contains(&change)
    }

    /// Time of a pass of `rows` rows in nanoseconds; `None` before anything ran.
    pub(crate) fn at(&self, rows: u32) -> Option<f64> {
        let known = &self.known;
        let (&(first, first_ns), &(last, last_ns)) = (known.first()?, known.last()?);
        let x = f64::from(rows.max(1));
        if x <= first {
            return Some(by_share((first, first_ns), x));
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

    /// Time of a pass of `rows` rows by that of one of `few` alone, as if no wider one had been seen.
    pub(crate) fn guess((few, few_ns): (u32, f64), rows: u32) -> f64 {
        by_share((f64::from(few), few_ns), f64::from(rows))
    }

    /// Pools neighbours that contradict each other (isotonic regression).
    fn smooth(&mut self) {
        let mut pooled: Vec<(usize, f64, f64)> = Vec::with_capacity(ENTRIES);
        self.known.clear();
        for (index, entry) in self.entries.iter().enumerate().filter(|(_, e)| e.weight() > 0.0) {
            self.known.push((rows_of(index), entry.ns));
            pooled.push((1, entry.ns, entry.weight()));
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
        self.known.iter_mut().zip(smooth).for_each(|((_, known_ns), ns)| *known_ns = ns);
    }
}

/// What `rows` rows take if only a pass of others is known, and its time.
fn by_share((known, known_ns): (f64, f64), rows: f64) -> f64 {
    known_ns * share(rows) / share(known)
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

/// Moments of steps and times of the jobs of equal company, at the machine's usual speed.
#[derive(Clone, Copy, Debug, Default)]
struct Moments {
    weight: f64,
    steps: f64,
    ns: f64,
    steps_variance: f64,
    covariance: f64,
    /// What the last jobs took, of what is said here.
    ratios: Recent<7>,
}

impl Moments {
    const MEMORY: f64 = 32.0;

    fn note(&mut self, steps: f64, ns: f64) {
        let expected = if self.weight > 0.0 { self.usual().of(steps) } else { ns };
        self.ratios.push(ns / expected);
        let ns = ns / self.pace();
        if ns < 0.4 * expected || ns > 2.5 * expected {
            return;
        }
        self.weight = (self.weight + 1.0).min(Self::MEMORY);
        let (more_steps, more_ns) = (steps - self.steps, ns - self.ns);
        self.steps += more_steps / self.weight;
        self.ns += more_ns / self.weight;
        let variance = more_steps * (steps - self.steps);
        self.steps_variance += (variance - self.steps_variance) / self.weight;
        self.covariance += (more_steps * (ns - self.ns) - self.covariance) / self.weight;
    }

    fn pace(&self) -> f64 {
        self.ratios.median().unwrap_or(1.0).clamp(0.01, 100.0)
    }

    /// What jobs take at present.
    fn time(&self) -> DraftTime {
        let DraftTime { start_ns, step_ns } = self.usual();
        DraftTime { start_ns: start_ns * self.pace(), step_ns: step_ns * self.pace() }
    }

    /// Whether there were jobs of different lengths.
    fn tells_apart(&self) -> bool {
        self.weight >= 8.0 && self.steps_variance > 0.2
    }

    /// Jobs of different lengths tell the start from the steps; without them, all of it is steps.
    fn usual(&self) -> DraftTime {
        let mean = self.ns / self.steps.max(1.0);
        let slope = match self.tells_apart() {
            true => self.covariance / self.steps_variance,
            false => mean,
        };
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
    row: Usual,
}

impl DraftTimes {
    /// A job of so many sequences and steps took so long.
    pub(crate) fn note(&mut self, sequences: u32, steps: u32, ns: u64) {
        self.company[class_of(sequences)].note(f64::from(steps.max(1)), (ns as f64).max(1.0));
    }

    /// A job that first read `rows` rows of missed text took so long.
    pub(crate) fn note_missed(&mut self, rows: u32, (sequences, steps): (u32, u32), ns: u64) {
        let drafting = self.at(sequences).map_or(0.0, |time| time.of(f64::from(steps)));
        self.row.note((ns as f64 - drafting).max(1.0) / f64::from(rows.max(1)));
    }

    /// Jobs of so many sequences that were seen, or of the number of them that most is known of.
    pub(crate) fn seen(&self) -> usize {
        self.company.iter().map(|moments| moments.ratios.len).max().unwrap_or(0)
    }

    /// Whether jobs of so many sequences were of different lengths, which tells what starting one takes.
    pub(crate) fn tells_apart(&self, sequences: u32) -> bool {
        self.company[class_of(sequences)].tells_apart()
    }

    /// Time to read `rows` rows of missed text.
    pub(crate) fn missed(&self, rows: u32) -> f64 {
        // Rows are noted after a step was.
        let Some(DraftTime { step_ns, .. }) = self.at(1) else { return 0.0 };
        // A row that is read never takes longer than a step; what was seen once or twice may have been held up.
        let row = match self.row.weight() {
            0.0 => step_ns / 8.0,
            1.0 | 2.0 => self.row.ns.min(step_ns / 4.0),
            _ => self.row.ns.min(step_ns),
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
        let mut times = PassTimes::default();
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

    /// Few stalls count for nothing, but passes that are held up now less, now more, count with their mean.
    #[test]
    fn what_is_usual_is_a_mean_that_stalls_do_not_move() {
        let mut times = PassTimes::default();
        times.note(1, 1000);
        times.note(1, 50_000);
        close(times.at(1).unwrap(), 1000.0);
        for round in 0..31 {
            let ns = if round % 2 == 0 { 1000 } else { 1100 };
            times.note(1, if round % 8 == 7 { 50_000 } else { ns });
        }
        close(times.at(1).unwrap(), 1050.0);
    }

    #[test]
    fn a_machine_that_slows_down_is_noticed() {
        let mut times = PassTimes::default();
        for _ in 0..20 {
            times.note(1, 1000);
            times.note(5, 1500);
        }
        times.mark();
        (0..2).for_each(|_| times.note(5, 30_000));
        assert!(!times.has_drifted(5, 1), "a job that is held up is no drift");
        (0..6).for_each(|_| times.note(5, 2000));
        assert!(times.have_changed(5, 9) && !times.have_changed(1, 9));
        assert!(times.has_drifted(5, 1));
        times.forget_before(9);
        close(times.at(5).unwrap(), 2000.0);
        times.mark();
        assert!(!times.has_drifted(5, 1));
    }

    #[test]
    fn contradictions_are_pooled() {
        let times = PassTimes::of(&[(1, 1000), (2, 900), (3, 1100)]);
        close(times.at(1).unwrap(), 950.0);
        close(times.at(2).unwrap(), 950.0);
    }

    #[test]
    fn a_long_wait_is_not_the_time_of_a_pass() {
        let mut times = PassTimes::default();
        (0..30).for_each(|_| times.note(1, 1000));
        times.note(1, 1_000_000);
        assert!(times.at(1).unwrap() < 1050.0);
    }

    /// Whichever of the first jobs was held up.
    #[test]
    fn a_first_job_that_was_held_up_is_forgotten_by_the_third() {
        for held_up in 0..3 {
            let (mut passes, mut drafts) = (PassTimes::default(), DraftTimes::default());
            for i in 0..3 {
                let more = if i == held_up { 20 } else { 1 };
                passes.note(1, 1000 * more);
                drafts.note(1, 2, 200 * more);
            }
            close(passes.at(1).unwrap(), 1000.0);
            close(drafts.at(1).unwrap().of(2.0), 200.0);
        }
    }

    /// One job in eight takes twenty times as long: what jobs usually take is still known, and so is what a pass of more
    /// rows takes over one of fewer.
    #[test]
    fn jobs_that_are_held_up_now_and_then_change_little() {
        let (mut passes, mut drafts) = (PassTimes::default(), DraftTimes::default());
        for i in 0..400u64 {
            let more = |i: u64| if i * 7 % 8 == 3 { 20 } else { 1 };
            passes.note(1, 1000 * more(i));
            passes.note(5, 1500 * more(i + 3));
            drafts.note(1, 1 + i as u32 % 4, (1 + i % 4) * 100 * more(i + 5));
        }
        let ratio = passes.at(5).unwrap() / passes.at(1).unwrap();
        assert!((ratio - 1.5).abs() < 0.1, "{ratio}");
        let four = drafts.at(1).unwrap().of(4.0);
        assert!((350.0..500.0).contains(&four), "{four}");
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
