//! Measured times: of a stage on a unit by rows and context, and of bytes between two units.
//!
//! *Invariant:* a [`TimeTable`] has a time for each pair of its rows and contexts, both ascending.

use std::collections::BTreeMap;

use crate::role::StageId;

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
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TimeTable {
    rows: Vec<u32>,
    contexts: Vec<u32>,
    /// `rows x contexts`, row-major.
    times_ns: Vec<u64>,
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

    /// Time in nanoseconds of a job of `rows` rows (a real number, for averages) after `context` cached positions.
    ///
    /// Linear between measured points. Below the first point the first time holds; beyond the last one the slope of the
    /// last two goes on, but never falls.
    pub fn at(&self, rows: f64, context: f64) -> f64 {
        let along_contexts: Vec<f64> = self
            .times_ns
            .chunks(self.contexts.len())
            .map(|times| interpolate(&self.contexts, |i| times[i] as f64, context))
            .collect();
        interpolate(&self.rows, |i| along_contexts[i], rows)
    }
}

fn interpolate(axis: &[u32], value: impl Fn(usize) -> f64, at: f64) -> f64 {
    let last = axis.len() - 1;
    if last == 0 || at <= f64::from(axis[0]) {
        return value(0);
    }
    let right = axis.iter().position(|&x| at <= f64::from(x)).unwrap_or(last);
    let (left_x, right_x) = (f64::from(axis[right - 1]), f64::from(axis[right]));
    let (left, right_value) = (value(right - 1), value(right));
    let slope = (right_value - left) / (right_x - left_x);
    if at > right_x {
        return right_value + slope.max(0.0) * (at - right_x);
    }
    left + slope * (at - left_x)
}

/// Where a unit's weights lie.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MemoryDomain {
    /// In main memory, whose bandwidth the units in it share.
    Main,
    /// In memory of its own.
    Own,
}

/// What was measured of one unit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UnitProfile {
    /// Where its weights lie.
    pub memory: MemoryDomain,
    /// Time of a job beyond its stage's own: message, submission, read-back.
    pub job_ns: u64,
    /// Times of the stages that were measured on it.
    pub stages: BTreeMap<StageId, TimeTable>,
}

/// What was measured of the way from one unit to another.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LinkProfile {
    /// Time of an empty message.
    pub latency_ns: u64,
    /// Bytes per second; 0 if bytes take no time beyond the latency.
    pub bytes_per_second: u64,
}

impl LinkProfile {
    /// Time in nanoseconds of a message of `bytes`.
    pub fn transfer_ns(&self, bytes: f64) -> f64 {
        let moving = match self.bytes_per_second {
            0 => 0.0,
            rate => bytes * 1e9 / rate as f64,
        };
        self.latency_ns as f64 + moving
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
        assert_eq!(table.at(1.0, 0.0), 10.0);
        assert_eq!(table.at(1.0, 50.0), 15.0);
        assert_eq!(table.at(3.0, 0.0), 16.0);
        assert_eq!(table.at(3.0, 100.0), 26.0);
        assert_eq!(table.at(6.0, 0.0), 28.0);
        assert_eq!(table.at(0.0, 0.0), 10.0);
        assert_eq!(table.at(1.0, 200.0), 30.0);
    }

    #[test]
    fn noise_does_not_make_long_batches_free() {
        let table = TimeTable::new(vec![1, 2], vec![0], vec![10, 8]).unwrap();
        assert_eq!(table.at(9.0, 0.0), 8.0);
    }

    #[test]
    fn broken_tables_are_refused() {
        let axis = TimeTable::new(vec![2, 1], vec![0], vec![1, 2]).unwrap_err();
        assert_eq!(axis, ProfileError::Axis { axis: "rows" });
        assert!(TimeTable::new(vec![1], vec![0, 1], vec![1]).is_err());
    }

    #[test]
    fn links_have_latency_and_bandwidth() {
        let link = LinkProfile { latency_ns: 500, bytes_per_second: 1_000_000_000 };
        assert_eq!(link.transfer_ns(1000.0), 1500.0);
        assert_eq!(LinkProfile::default().transfer_ns(1e9), 0.0);
    }
}
