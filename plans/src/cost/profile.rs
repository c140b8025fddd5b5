//! Measured times: of a model on a class of units by rows and context, and of bytes between two units.
//!
//! *Invariant:* whole nanoseconds, and interpolation in integers: the same forecast on every machine.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::middle::middle;
use crate::role::ModelRole;

/// Why numbers are not a table of times.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ProfileError {
    /// An axis is empty or does not ascend.
    #[error(
        "the {axis} of a time table must ascend and not be empty: measure each value once, in order"
    )]
    Axis {
        /// `rows` or `contexts`.
        axis: &'static str,
    },
    /// The number of times is not the product of the axes.
    #[error(
        "a time table of {rows} x {contexts} needs as many times, not {times}: measure every pair"
    )]
    Times {
        /// Values on the row axis.
        rows: usize,
        /// Values on the context axis.
        contexts: usize,
        /// Times given.
        times: usize,
    },
}

/// Time of one job by number of rows and context length, linear between the measured points.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "RawTable")]
pub struct TimeTable {
    rows: Vec<u32>,
    contexts: Vec<u32>,
    /// `rows x contexts`, row-major.
    times_ns: Vec<u64>,
}

#[derive(Deserialize)]
struct RawTable {
    rows: Vec<u32>,
    contexts: Vec<u32>,
    times_ns: Vec<u64>,
}

impl TryFrom<RawTable> for TimeTable {
    type Error = ProfileError;

    fn try_from(raw: RawTable) -> Result<Self, ProfileError> {
        TimeTable::new(raw.rows, raw.contexts, raw.times_ns)
    }
}

impl TimeTable {
    /// A table from `times_ns[r * contexts.len() + c]`, the time of a job of `rows[r]` rows after `contexts[c]` cached
    /// positions.
    pub fn new(
        rows: Vec<u32>,
        contexts: Vec<u32>,
        times_ns: Vec<u64>,
    ) -> Result<Self, ProfileError> {
        for (axis, values) in [("rows", &rows), ("contexts", &contexts)] {
            if values.is_empty() || !values.is_sorted_by(|a, b| a < b) {
                return Err(ProfileError::Axis { axis });
            }
        }
        if times_ns.len() != rows.len() * contexts.len() {
            let (rows, contexts, times) = (rows.len(), contexts.len(), times_ns.len());
            return Err(ProfileError::Times { rows, contexts, times });
        }
        Ok(Self { rows, contexts, times_ns })
    }

    /// A table that depends on the rows alone.
    pub fn by_rows(points: &[(u32, u64)]) -> Result<Self, ProfileError> {
        let (rows, times_ns) = points.iter().copied().unzip();
        Self::new(rows, vec![0], times_ns)
    }

    /// Time in nanoseconds of a job of `rows` rows after `context` cached positions.
    ///
    /// Linear between measured points. Below the first point the first time holds; beyond the last one the slope of the
    /// last two goes on, but never falls. More rows may be quicker than fewer, where a kernel is made for them.
    pub fn at_ns(&self, rows: u32, context: u32) -> u64 {
        let contexts = self.contexts.len();
        let along = |row: usize| {
            interpolate(&self.contexts, |i| self.times_ns[row * contexts + i], context)
        };
        interpolate(&self.rows, along, rows)
    }

    /// The same points with each time changed; `change` is given rows, context and time.
    pub fn map(&self, mut change: impl FnMut(u32, u32, u64) -> u64) -> Self {
        let points = self.rows.iter().flat_map(|r| self.contexts.iter().map(move |c| (*r, *c)));
        let times = points.zip(&self.times_ns).map(|((r, c), ns)| change(r, c, *ns)).collect();
        Self { times_ns: times, ..self.clone() }
    }

    /// Of tables with the same axes one whose times are the middle ones, point by point: the mean of those that are left
    /// when a quarter at either end is put aside. `None` if there are none, or axes differ.
    pub fn middle(tables: &[&Self]) -> Option<Self> {
        let first = *tables.first()?;
        let alike = |t: &&Self| t.rows == first.rows && t.contexts == first.contexts;
        if !tables.iter().all(alike) {
            return None;
        }
        let time = |i: usize| middle(tables.iter().map(|table| table.times_ns[i] as i64)) as u64;
        let times_ns = (0..first.times_ns.len()).map(time).collect();
        Some(Self { times_ns, ..first.clone() })
    }

    /// The same without spikes: a single number of rows that took over a quarter longer than both the fewer and the more
    /// beside it was held up, and takes what the longer of these takes. (Where a kernel ends, times rise and stay up.)
    pub fn without_spikes(&self) -> Self {
        let width = self.contexts.len();
        let mut smooth = self.clone();
        for (i, time) in smooth.times_ns.iter_mut().enumerate() {
            let before = i.checked_sub(width).map(|i| self.times_ns[i]);
            if let Some((before, after)) = before.zip(self.times_ns.get(i + width)) {
                let beside = before.max(*after);
                *time = if *time > beside + beside / 4 { beside } else { *time };
            }
        }
        smooth
    }

    /// Largest number of rows that was measured.
    pub fn rows_max(&self) -> u32 {
        *self.rows.last().expect("a table has rows")
    }
}

/// Linear between the points of an ascending axis, in integers, rounded down.
fn interpolate(axis: &[u32], value: impl Fn(usize) -> u64, at: u32) -> u64 {
    let last = axis.len() - 1;
    if last == 0 || at <= axis[0] {
        return value(0);
    }
    let right = axis.iter().position(|&x| at <= x).unwrap_or(last);
    let (left_x, right_x) = (i128::from(axis[right - 1]), i128::from(axis[right]));
    let (left, right_value) = (i128::from(value(right - 1)), i128::from(value(right)));
    let (rise, run, at) = (right_value - left, right_x - left_x, i128::from(at));
    if at > right_x {
        return (right_value + rise.max(0) * (at - right_x) / run) as u64;
    }
    (left + rise * (at - left_x) / run) as u64
}

/// Where a unit's weights lie.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum MemoryDomain {
    /// In main memory, whose bandwidth the units in it share.
    Main,
    /// In memory of its own.
    Own,
}

/// What was measured of one model on one class of units, in a loop of nothing else.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RoleProfile {
    /// Blocks of the model.
    pub layers: u32,
    /// A pass of the whole model of which every row runs through the head, as when drafts are verified: 1 to 16 rows.
    pub verify: TimeTable,
    /// A pass of which only the last row does, as when a prompt is read: 1 to 128 rows.
    pub fill: TimeTable,
    /// Each step of a draft job after the first, by the number of sequences that take part.
    pub draft_step: TimeTable,
    /// Stages that hold only a part of the model, if they were measured.
    pub parts: Option<PartsProfile>,
    /// Bytes of scratch buffers of the whole model.
    pub scratch_bytes: u64,
}

impl RoleProfile {
    /// Of profiles that were taken at different times the one in the middle, point by point; `None` of none, or of
    /// different models.
    pub fn middle(profiles: &[Self]) -> Option<Self> {
        let first = profiles.first()?;
        let table = |of: fn(&Self) -> &TimeTable| {
            let middle = TimeTable::middle(&profiles.iter().map(of).collect::<Vec<_>>())?;
            Some(middle.without_spikes())
        };
        let parts: Option<Vec<&PartsProfile>> =
            profiles.iter().map(|profile| profile.parts.as_ref()).collect();
        let part = |of: fn(&PartsProfile) -> &TimeTable| {
            TimeTable::middle(&parts.as_ref()?.iter().map(|p| of(p)).collect::<Vec<_>>())
        };
        let parts = part(|p| &p.base).zip(part(|p| &p.layer)).zip(part(|p| &p.head));
        Some(Self {
            layers: first.layers,
            verify: table(|p| &p.verify)?,
            fill: table(|p| &p.fill)?,
            draft_step: table(|p| &p.draft_step)?,
            parts: parts.map(|((base, layer), head)| PartsProfile { base, layer, head }),
            scratch_bytes: profiles.iter().map(|p| p.scratch_bytes).max().unwrap_or(0),
        })
    }
}

/// Of a stage that is a part of a model.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PartsProfile {
    /// Everything but blocks and head, by rows.
    pub base: TimeTable,
    /// One block, in a stage of half of the blocks, by rows and context.
    pub layer: TimeTable,
    /// The head, by the rows that run through it.
    pub head: TimeTable,
}

/// What was measured of one class of units.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct UnitProfile {
    /// Where its weights lie.
    pub memory: MemoryDomain,
    /// The models that were measured on it.
    pub roles: BTreeMap<ModelRole, RoleProfile>,
    /// What happens around its jobs in the running engine.
    pub around: AroundJobs,
    /// Power while it computes, milliwatts, as far as anything says; for energy as a proxy only.
    pub power_mw: u64,
}

/// Times around a unit's jobs in the running engine, beyond what the same jobs take in a loop.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct AroundJobs {
    /// From the end of a pass of the target to the begin of the next job that was waiting for its answer: report, the
    /// scheduler's step, the text to its reader, message, wake-up.
    pub target_hop_ns: u64,
    /// The same after a draft job.
    pub draft_hop_ns: u64,
    /// How much longer a pass of the target takes than in the loop; negative if it takes less.
    pub target_ns: i64,
    /// The same of each row of a pass after its first.
    pub target_row_ns: i64,
    /// How much longer a pass that reads a prompt takes, instead of the two before.
    pub target_prompt_ns: i64,
    /// How much longer a draft job takes than in the loop.
    pub draft_ns: i64,
    /// The same of each of its steps after the first.
    pub draft_step_ns: i64,
    /// How much longer a draft job that reads a prompt takes, instead of `draft_ns` and `draft_after_target_ns`.
    pub draft_prompt_ns: i64,
    /// Further time of a target job right after a draft job on the same unit: its weights have left the nearer caches.
    pub target_after_draft_ns: i64,
    /// Further time of a draft job right after one of the target on the same unit.
    pub draft_after_target_ns: i64,
    /// From a request's arrival to its first job, and from its last job to its end.
    pub request_ns: u64,
}

impl AroundJobs {
    /// Times of the jobs of one model become `permille` thousandths of what they were; hops and requests stay.
    pub fn scale(&mut self, role: ModelRole, permille: i64) {
        let times = match role {
            ModelRole::Target => [
                &mut self.target_ns,
                &mut self.target_row_ns,
                &mut self.target_prompt_ns,
                &mut self.target_after_draft_ns,
            ],
            ModelRole::Draft => [
                &mut self.draft_ns,
                &mut self.draft_step_ns,
                &mut self.draft_prompt_ns,
                &mut self.draft_after_target_ns,
            ],
        };
        for time in times {
            *time = *time * permille / 1000;
        }
    }
}

/// What was measured of the way from one unit to another.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LinkProfile {
    /// Time of an empty message.
    pub latency_ns: u64,
    /// Bytes per second; 0 if bytes take no time beyond the latency.
    pub bytes_per_second: u64,
}

impl LinkProfile {
    /// Time in nanoseconds of a message of `bytes`.
    pub fn transfer_ns(&self, bytes: u64) -> u64 {
        let moving = match self.bytes_per_second {
            0 => 0,
            rate => (u128::from(bytes) * 1_000_000_000 / u128::from(rate)) as u64,
        };
        self.latency_ns + moving
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::{LinkProfile, ProfileError, TimeTable};

    #[test]
    fn times_are_linear_between_points_and_go_on_beyond_the_last() {
        let table =
            TimeTable::new(vec![1, 2, 4], vec![0, 100], vec![10, 20, 12, 22, 20, 30]).unwrap();
        let of = |rows, context| table.at_ns(rows, context);
        assert_eq!([of(1, 0), of(1, 50), of(3, 0), of(3, 100)], [10, 15, 16, 26]);
        assert_eq!([of(6, 0), of(0, 0), of(1, 200)], [28, 10, 30]);
    }

    #[test]
    fn rows_that_a_kernel_is_made_for_may_be_quicker_than_fewer() {
        let table = TimeTable::by_rows(&[(1, 10), (2, 20), (3, 14)]).unwrap();
        assert_eq!([2, 3, 9].map(|rows| table.at_ns(rows, 0)), [20, 14, 14]);
    }

    #[test]
    fn broken_tables_are_refused_also_from_a_file() {
        let axis = TimeTable::by_rows(&[(2, 1), (1, 2)]).unwrap_err();
        assert_eq!(axis, ProfileError::Axis { axis: "rows" });
        assert!(TimeTable::new(vec![1], vec![0, 1], vec![1]).is_err());
        let text = "rows = [2, 1]\ncontexts = [0]\ntimes_ns = [1, 2]\n";
        assert!(toml::from_str::<TimeTable>(text).is_err());
    }

    /// A visit while the machine was busy otherwise does not count; one alone does.
    #[test]
    fn of_some_tables_the_middle_is_taken() {
        let table = |ns: u64| TimeTable::by_rows(&[(1, ns), (4, 2 * ns)]).unwrap();
        let tables = [table(100), table(900), table(110), table(10)];
        let of = |count: usize| TimeTable::middle(&tables[..count].iter().collect::<Vec<_>>());
        assert_eq!(of(4), Some(table(105)));
        assert_eq!(of(1), Some(table(100)));
        assert_eq!(of(0), None);
        let other = TimeTable::by_rows(&[(1, 1), (2, 2)]).unwrap();
        assert_eq!(TimeTable::middle(&[&tables[0], &other]), None);
    }

    #[test]
    fn a_point_far_above_both_beside_it_was_held_up() {
        let of = |times: [u64; 5]| {
            let rows = vec![1, 2, 3, 4, 8];
            TimeTable::new(rows, vec![0], times.to_vec()).unwrap().without_spikes().times_ns
        };
        assert_eq!(of([555, 498, 1666, 723, 990]), [555, 498, 723, 723, 990]);
        // A kernel that is slow for two rows, and one that ends at three.
        assert_eq!(of([1182, 1363, 1215, 1123, 1800]), [1182, 1363, 1215, 1123, 1800]);
        assert_eq!(of([100, 110, 190, 200, 210]), [100, 110, 190, 200, 210]);
    }

    #[test]
    fn links_have_latency_and_bandwidth() {
        let link = LinkProfile { latency_ns: 500, bytes_per_second: 1_000_000_000 };
        assert_eq!(link.transfer_ns(1000), 1500);
        assert_eq!(LinkProfile::default().transfer_ns(1 << 30), 0);
    }
}
