//! Times of a model on one class of units, measured in a loop through the device's own interface.
//!
//! Points that follow each other in service are visited in turn, round after round, so that a noise on the machine meets
//! them alike; each time is the median of its rounds. Whoever calls does so again and again, and takes the middle. *Invariant:* works with any [`Device`]; nothing here knows what is behind it.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use outrider_devices::{
    Activations, Batch, Device, DeviceError, DraftBatch, DraftSegment, Executable, Output,
    Sampling, Segment, SequenceId, SlotLimits, Want,
};
use outrider_plans::cost::{PartsProfile, ProfileError, RoleProfile, TimeTable};
use outrider_plans::{ModelRole, StageId};

use crate::pair::Pair;
use crate::unit::purpose_of;

/// Rows of a verification pass that are measured.
const VERIFY_ROWS: &[u32] = &[1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 12, 16];
/// Rows of a piece of a prompt.
const FILL_ROWS: &[u32] = &[1, 2, 4, 8, 9, 12, 16, 24, 32, 64, 128];
/// Rows of a pass that may come between two of a few rows. Larger ones are visited apart: wide vector units slow a core's
/// clock for a while, and decoding seldom meets that.
const FEW_ROWS: u32 = 16;
/// Rows of a part of a model.
const PART_ROWS: &[u32] = &[1, 2, 4, 8, 16, 64];
/// Sequences that share a draft job.
const SHARED: &[u32] = &[1, 2, 4];
/// Most rounds over all points after the one that warms up.
const ROUNDS_MAX: usize = 15;
/// A round that takes longer is not done again, whatever the first one was: for units that are slow.
const AGAIN_MAX: Duration = Duration::from_millis(400);
/// Most that a stage runs before it is clocked.
const WARM_UP_MAX: Duration = Duration::from_millis(250);
/// Of a model's time, in thousandths: points of few rows, which decoding is made of; and another series: of many rows, of
/// contexts, of parts.
const FEW_SHARE: u32 = 650;
const OTHER_SHARE: u32 = 250;
/// How often a point is clocked in a round, after one run that makes ready for it.
const CLOCKED: usize = 2;

/// Why something was not measured.
#[derive(Debug, thiserror::Error)]
pub enum LoopError {
    /// The device refused.
    #[error(transparent)]
    Device(#[from] DeviceError),
    /// The points make no table.
    #[error(transparent)]
    Table(#[from] ProfileError),
}

/// What to measure: models, caches, and how long it may take.
#[derive(Clone)]
pub(super) struct Ask {
    /// The models.
    pub(super) pair: Pair,
    /// Cache slots of an executable.
    pub(super) limits: SlotLimits,
    /// Time for all models.
    pub(super) budget: Duration,
    /// What a visit before has found: how times grow with the context, and parts, are taken from there.
    pub(super) known: BTreeMap<ModelRole, RoleProfile>,
}

/// One point of a table: what runs, and the medians of its times.
struct Point {
    run: Run,
    times_ns: Vec<u64>,
}

#[derive(Clone, Copy)]
enum Run {
    /// Rows, rows through the head, cached positions.
    Pass(u32, u32, u32),
    /// Rows of the first step, steps, sequences, cached positions.
    Draft(u32, u32, u32, u32),
}

impl Ask {
    /// Measures one model on a device.
    ///
    /// # Errors
    /// See [`LoopError`].
    pub(super) fn measure(
        &self,
        device: &mut dyn Device,
        role: ModelRole,
    ) -> Result<RoleProfile, LoopError> {
        // The target has more points, and passes that take longer.
        let third = self.budget / 3;
        match role {
            ModelRole::Target => Self { budget: 2 * third, ..self.clone() }.target(device),
            ModelRole::Draft => Self { budget: third, ..self.clone() }.draft(device),
        }
    }

    fn layers(&self, role: ModelRole) -> usize {
        self.pair.shape(role).map_or(0, |shape| shape.layers())
    }

    /// Two context lengths: a short one, and most of what there is room for.
    fn contexts(&self) -> [u32; 2] {
        let room = self.limits.positions_max as u32;
        let near = (room / 8).clamp(1, 32);
        [near, (3 * room / 4).min(1024).max(near + 1)]
    }

    /// Prepares a stage whose input is activations of this width, if any. A device that waits while it is prepared, as a GPU
    /// does for its compiler, slows down, and needs as long again to be as fast as it is in service.
    fn prepare(
        &self,
        device: &mut dyn Device,
        (stage, width): (StageId, Option<usize>),
    ) -> Result<Box<dyn Executable>, LoopError> {
        let begun = Instant::now();
        let mut executable = device.prepare(&self.pair.subgraph(stage), self.limits)?;
        executable.rehearse(purpose_of(stage))?;
        let end = Instant::now() + begun.elapsed().min(WARM_UP_MAX);
        while Instant::now() < end {
            pass(executable.as_mut(), (0, 0), (1, 0), width)?;
        }
        Ok(executable)
    }

    fn target(&self, device: &mut dyn Device) -> Result<RoleProfile, LoopError> {
        let role = ModelRole::Target;
        let layers = self.layers(role);
        let [near, far] = self.contexts();
        let whole = StageId { role, layer_first: 0, layer_end: layers };
        let mut executable = self.prepare(device, (whole, None))?;
        let verify = VERIFY_ROWS.iter().map(|&n| Run::Pass(n, n, near));
        let fits = |rows: &&u32| (**rows + near) as usize <= self.limits.positions_max;
        let fill_rows: Vec<u32> = FILL_ROWS.iter().filter(fits).copied().collect();
        let fill = |&n: &u32| Run::Pass(n, 1, near);
        let (few, many) = fill_rows.split_at(fill_rows.partition_point(|n| *n <= FEW_ROWS));
        let runs: Vec<Run> = verify.chain(few.iter().map(fill)).collect();
        let times = self.visit(executable.as_mut(), &runs, (None, FEW_SHARE))?;
        let (verify, fill_few) = times.split_at(VERIFY_ROWS.len());
        let many: Vec<Run> = many.iter().map(fill).collect();
        let many = self.visit(executable.as_mut(), &many, (None, OTHER_SHARE))?;
        let fill = [fill_few, &many].concat();
        let slope = match self.known.get(&role) {
            Some(known) => Slope::known((near, far), &known.verify),
            None => {
                let at = |context| [Run::Pass(1, 1, context), Run::Pass(8, 8, context)];
                let ends = [at(near), at(far)].concat();
                let times = self.visit(executable.as_mut(), &ends, (None, OTHER_SHARE))?;
                Slope::of(near, far, &times)
            }
        };
        let scratch_bytes = executable.memory().scratch;
        drop(executable);
        let parts = match self.known.get(&role) {
            Some(known) => known.parts.clone(),
            None if layers > 1 => Some(self.parts(device, layers)?),
            None => None,
        };
        Ok(RoleProfile {
            layers: layers as u32,
            verify: slope.table(VERIFY_ROWS, verify)?,
            fill: slope.table(&fill_rows, &fill)?,
            draft_step: TimeTable::by_rows(&[(1, verify[0])])?,
            parts,
            scratch_bytes,
        })
    }

    /// One block, the first half and the second half: what blocks, head and everything else cost follows.
    fn parts(&self, device: &mut dyn Device, layers: usize) -> Result<PartsProfile, LoopError> {
        let stage =
            |layer_first, layer_end| StageId { role: ModelRole::Target, layer_first, layer_end };
        let half = layers / 2;
        let [near, _] = self.contexts();
        let runs: Vec<Run> = PART_ROWS.iter().map(|&n| Run::Pass(n, n.min(16), near)).collect();
        let width = self.pair.shape(ModelRole::Target).map_or(0, |shape| shape.width);
        let mut one = self.prepare(device, (stage(0, 1), None))?;
        let one = self.visit(one.as_mut(), &runs, (None, OTHER_SHARE))?;
        let front = if half > 1 {
            let mut front = self.prepare(device, (stage(0, half), None))?;
            self.visit(front.as_mut(), &runs, (None, OTHER_SHARE))?
        } else {
            one.clone()
        };
        let mut back = self.prepare(device, (stage(half, layers), Some(width)))?;
        let back = self.visit(back.as_mut(), &runs, (Some(width), OTHER_SHARE))?;
        let (mut base, mut layer, mut head) = (Vec::new(), Vec::new(), Vec::new());
        for (i, &rows) in PART_ROWS.iter().enumerate() {
            let each = match half {
                0 | 1 => one[i],
                half => front[i].saturating_sub(one[i]) / (half as u64 - 1),
            };
            layer.push((rows, each));
            base.push((rows, one[i].saturating_sub(each)));
            if rows <= 16 {
                head.push((rows, back[i].saturating_sub((layers - half) as u64 * each)));
            }
        }
        Ok(PartsProfile {
            base: TimeTable::by_rows(&base)?,
            layer: TimeTable::by_rows(&layer)?,
            head: TimeTable::by_rows(&head)?,
        })
    }

    fn draft(&self, device: &mut dyn Device) -> Result<RoleProfile, LoopError> {
        let role = ModelRole::Draft;
        let layers = self.layers(role);
        let [near, far] = self.contexts();
        let whole = StageId { role, layer_first: 0, layer_end: layers };
        let mut executable = self.prepare(device, (whole, None))?;
        let fits = |rows: &&u32| (**rows + near) as usize <= self.limits.positions_max;
        let fill_rows: Vec<u32> = FILL_ROWS.iter().filter(fits).copied().collect();
        let shared: Vec<u32> =
            SHARED.iter().copied().filter(|s| *s as usize <= self.limits.sequences_max).collect();
        let first = |&n: &u32| Run::Draft(n, 1, 1, near);
        let (few, many) = fill_rows.split_at(fill_rows.partition_point(|n| *n <= FEW_ROWS));
        let together = shared.iter().map(|&s| Run::Draft(1, 1, s, near));
        let further = shared.iter().map(|&s| Run::Draft(1, 5, s, near));
        let runs: Vec<Run> = few.iter().map(first).chain(together).chain(further).collect();
        let times = self.visit(executable.as_mut(), &runs, (None, FEW_SHARE))?;
        let (fill_few, rest) = times.split_at(few.len());
        let (together, further) = rest.split_at(shared.len());
        let many: Vec<Run> = many.iter().map(first).collect();
        let many = self.visit(executable.as_mut(), &many, (None, OTHER_SHARE))?;
        let fill = [fill_few, &many].concat();
        let slope = match self.known.get(&role) {
            Some(known) => Slope::known((near, far), &known.fill),
            None => {
                let at = |context| [Run::Draft(1, 1, 1, context), Run::Draft(8, 1, 1, context)];
                let ends = [at(near), at(far)].concat();
                let times = self.visit(executable.as_mut(), &ends, (None, OTHER_SHARE))?;
                Slope::of(near, far, &times)
            }
        };
        let steps: Vec<u64> =
            together.iter().zip(further).map(|(one, five)| five.saturating_sub(*one) / 4).collect();
        Ok(RoleProfile {
            layers: layers as u32,
            verify: slope.table(&shared, together)?,
            fill: slope.table(&fill_rows, &fill)?,
            draft_step: slope.table(&shared, &steps)?,
            parts: None,
            scratch_bytes: executable.memory().scratch,
        })
    }

    /// Visits the points in turn, for a share of the time in thousandths, and returns the median of each, nanoseconds. `width`
    /// is that of the input, if it is activations.
    fn visit(
        &self,
        executable: &mut dyn Executable,
        runs: &[Run],
        (width, share): (Option<usize>, u32),
    ) -> Result<Vec<u64>, LoopError> {
        let budget = self.budget * share / 1000;
        let mut points: Vec<Point> =
            runs.iter().map(|run| Point { run: *run, times_ns: Vec::new() }).collect();
        let far = self.contexts()[1];
        let deepest = runs.iter().map(|run| run.context()).max().unwrap_or(0).min(far);
        let sequences = runs.iter().map(|run| run.sequences()).max().unwrap_or(1);
        for sequence in 0..sequences {
            for base in (0..deepest).step_by(64) {
                let rows = 64.min(deepest - base);
                pass(executable, (sequence, base), (rows, 0), width)?;
            }
        }
        // A nearer point cuts the cache, so those that lie further out come first.
        let mut order: Vec<usize> = (0..points.len()).collect();
        order.sort_by_key(|index| std::cmp::Reverse(runs[*index].context()));
        // The first round warms up, compiles what is compiled at first use, and shows how long another one takes.
        let mut deadline = Instant::now();
        for round in 0..=ROUNDS_MAX {
            if round == 1 {
                let once: u64 = points.iter().flat_map(|point| &point.times_ns).sum();
                if Duration::from_nanos(2 * once) > AGAIN_MAX.max(budget) {
                    break;
                }
                points.iter_mut().for_each(|point| point.times_ns.clear());
                deadline = Instant::now() + budget;
            }
            let is_over = || round > 1 && Instant::now() > deadline;
            if is_over() {
                break;
            }
            if round > 0 {
                refill(executable, (sequences, deepest), runs, width)?;
            }
            for &index in &order {
                let point = &mut points[index];
                if is_over() {
                    break;
                }
                // As in service, where passes of one shape follow each other: the first makes ready for the others. One that is
                // not done again makes ready by itself.
                let clocked = if round == 0 { 1 } else { CLOCKED };
                for nth in 0..=clocked {
                    let started = Instant::now();
                    match point.run {
                        Run::Pass(rows, heads, context) => {
                            pass(executable, (0, context.min(deepest)), (rows, heads), width)?;
                        }
                        Run::Draft(rows, steps, sequences, context) => {
                            draft(executable, (sequences, context), (rows, steps))?;
                        }
                    }
                    if nth > 0 {
                        point.times_ns.push(started.elapsed().as_nanos() as u64);
                    }
                }
            }
        }
        Ok(points.into_iter().map(|point| median(point.times_ns)).collect())
    }
}

impl Run {
    fn context(self) -> u32 {
        match self {
            Run::Pass(_, _, context) | Run::Draft(_, _, _, context) => context,
        }
    }

    fn sequences(self) -> u32 {
        match self {
            Run::Pass(..) => 1,
            Run::Draft(_, _, sequences, _) => sequences,
        }
    }
}

/// Fills the caches up to `deepest` again where a point needs that.
fn refill(
    executable: &mut dyn Executable,
    (sequences, deepest): (u32, u32),
    runs: &[Run],
    width: Option<usize>,
) -> Result<(), DeviceError> {
    if runs.iter().all(|run| run.context() == runs[0].context()) {
        return Ok(());
    }
    for sequence in 0..sequences {
        let mut base = executable.cached(SequenceId(u64::from(sequence)));
        while base < deepest {
            let rows = 64.min(deepest - base);
            pass(executable, (sequence, base), (rows, 0), width)?;
            base += rows;
        }
    }
    Ok(())
}

fn segment((sequence, base): (u32, u32), rows: u32, want: Want) -> Segment {
    Segment {
        sequence: SequenceId(u64::from(sequence)),
        base,
        tokens: (0..rows).map(|i| 3 + (base + i) % 29).collect(),
        want,
        sampling: Arc::new(Sampling::default()),
    }
}

fn pass(
    executable: &mut dyn Executable,
    at: (u32, u32),
    (rows, heads): (u32, u32),
    width: Option<usize>,
) -> Result<Output, DeviceError> {
    let want = if heads == 0 { Want::Nothing } else { Want::Picks(heads) };
    let batch = Batch { segments: vec![segment(at, rows, want)] };
    let value = |i: usize| (i % 17) as f32 / 17.0 - 0.5;
    let input = width
        .map(|cols| Activations { cols, data: (0..cols * rows as usize).map(value).collect() });
    executable.run(&batch, input)
}

fn draft(
    executable: &mut dyn Executable,
    (sequences, context): (u32, u32),
    (rows, steps): (u32, u32),
) -> Result<(), DeviceError> {
    let one = |sequence| DraftSegment {
        segment: segment((sequence, context), rows, Want::Picks(1)),
        steps,
        probability_min: 0.0,
    };
    let segments = (0..sequences).map(one).collect();
    executable.draft(&DraftBatch { segments, stop_tokens: Arc::default() }).map(|_| ())
}

/// How times grow with the context: measured for one row and for eight, in between by rows.
struct Slope {
    near: u32,
    far: u32,
    /// Time near and far.
    one: (u64, u64),
    eight: (u64, u64),
}

impl Slope {
    /// From the times of one row and of eight near, and of both far.
    fn of(near: u32, far: u32, ns: &[u64]) -> Self {
        Self { near, far, one: (ns[0], ns[2]), eight: (ns[1], ns[3]) }
    }

    /// As a table says that was made of one.
    fn known((near, far): (u32, u32), table: &TimeTable) -> Self {
        let at = |rows| (table.at_ns(rows, near), table.at_ns(rows, far));
        Self { near, far, one: at(1), eight: at(8) }
    }

    fn table(&self, rows: &[u32], near_ns: &[u64]) -> Result<TimeTable, ProfileError> {
        let more = |(near, far): (u64, u64)| far.saturating_sub(near);
        let (one, eight) = (more(self.one), more(self.eight));
        let each = eight.saturating_sub(one) / 7;
        let times = rows.iter().zip(near_ns).flat_map(|(rows, ns)| {
            let further = one + each * u64::from(rows - 1);
            [*ns, ns + further]
        });
        TimeTable::new(rows.to_vec(), vec![self.near, self.far], times.collect())
    }
}

/// The middle of some times, or of the two in the middle the lower one, since what disturbs makes longer; 0 of none.
fn median(mut values: Vec<u64>) -> u64 {
    values.sort_unstable();
    values.get(values.len().saturating_sub(1) / 2).copied().unwrap_or_default()
}

/// The profiles of both models on one device.
pub(super) type Profiles = BTreeMap<ModelRole, RoleProfile>;
