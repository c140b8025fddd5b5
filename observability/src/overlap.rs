//! How long at least two units computed at once, from the spans of their jobs.
//!
//! Spans come in when jobs end, so a long job's span comes after the spans of short ones that ran beside it. The meter
//! therefore remembers which time was covered once and which twice, for a bounded while. *Invariant:* the order in
//! which the spans of different units come in does not change the sums, as long as they lie within the last
//! [`INTERVALS_MAX`] separate stretches of activity.

use std::collections::BTreeMap;
use std::ops::Range;

use outrider_plans::UnitId;

/// Stretches of activity that are remembered.
pub const INTERVALS_MAX: usize = 1024;

/// Adds up the time that units are busy, and that two or more are at once.
#[derive(Clone, Debug, Default)]
pub struct OverlapMeter {
    busy_until_ns: BTreeMap<UnitId, u64>,
    once: Intervals,
    twice: Intervals,
    overlap_ns: u64,
}

/// What one span added to the sums.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Added {
    /// To the unit's own busy time.
    pub busy_ns: u64,
    /// To the time that at least two units were busy.
    pub overlap_ns: u64,
}

impl OverlapMeter {
    /// Counts a job of `unit` that ran at `span` (nanoseconds of a clock that all units share). The part of the span
    /// that lies before the end of the unit's last job is not counted again.
    pub fn record(&mut self, unit: &UnitId, span: Range<u64>) -> Added {
        let busy_until = self.busy_until_ns.entry(unit.clone()).or_insert(0);
        let span = span.start.max(*busy_until)..span.end;
        if span.start >= span.end {
            return Added::default();
        }
        *busy_until = span.end;
        let shared = self.once.parts_within(&span);
        let mut overlap_ns = 0;
        for part in shared {
            let counted: u64 = self.twice.parts_within(&part).iter().map(|p| p.end - p.start).sum();
            overlap_ns += part.end - part.start - counted;
            self.twice.insert(part);
        }
        self.once.insert(span.clone());
        self.overlap_ns += overlap_ns;
        Added { busy_ns: span.end - span.start, overlap_ns }
    }

    /// Time that at least two units were busy, so far.
    pub fn overlap_ns(&self) -> u64 {
        self.overlap_ns
    }
}

/// Disjoint stretches of time, ascending; touching ones are joined.
#[derive(Clone, Debug, Default)]
struct Intervals(Vec<Range<u64>>);

impl Intervals {
    fn parts_within(&self, span: &Range<u64>) -> Vec<Range<u64>> {
        let first = self.0.partition_point(|i| i.end <= span.start);
        let within = self.0[first..].iter().take_while(|i| i.start < span.end);
        within.map(|i| i.start.max(span.start)..i.end.min(span.end)).collect()
    }

    fn insert(&mut self, span: Range<u64>) {
        let first = self.0.partition_point(|i| i.end < span.start);
        let end = first + self.0[first..].iter().take_while(|i| i.start <= span.end).count();
        let joined = match self.0[first..end].first() {
            None => span,
            Some(leftmost) => leftmost.start.min(span.start)..self.0[end - 1].end.max(span.end),
        };
        self.0.splice(first..end, [joined]);
        if self.0.len() > INTERVALS_MAX {
            self.0.remove(0);
        }
    }
}

#[cfg(test)]
mod tests {
    use outrider_plans::UnitId;

    use super::{Added, OverlapMeter};

    fn overlap(spans: &[(&str, u64, u64)]) -> u64 {
        let mut meter = OverlapMeter::default();
        for (unit, start, end) in spans {
            meter.record(&UnitId::new(*unit), *start..*end);
        }
        meter.overlap_ns()
    }

    #[test]
    fn a_long_job_is_overlapped_by_the_short_ones_that_ran_beside_it() {
        assert_eq!(overlap(&[("d", 0, 10), ("d", 12, 20), ("t", 5, 15)]), 8);
        assert_eq!(overlap(&[("t", 5, 15), ("d", 0, 10), ("d", 12, 20)]), 8);
    }

    #[test]
    fn jobs_that_only_touch_do_not_overlap() {
        assert_eq!(overlap(&[("a", 0, 10), ("b", 10, 20), ("a", 20, 30)]), 0);
        assert_eq!(overlap(&[("a", 0, 10), ("a", 10, 20)]), 0);
    }

    #[test]
    fn three_busy_units_count_once() {
        assert_eq!(overlap(&[("a", 0, 10), ("b", 0, 10), ("c", 0, 10)]), 10);
        assert_eq!(overlap(&[("a", 0, 10), ("b", 5, 12), ("c", 8, 20)]), 7);
    }

    #[test]
    fn a_unit_is_never_busier_than_time_passes() {
        let mut meter = OverlapMeter::default();
        let unit = UnitId::new("a");
        assert_eq!(meter.record(&unit, 0..10).busy_ns, 10);
        assert_eq!(meter.record(&unit, 5..12), Added { busy_ns: 2, overlap_ns: 0 });
        assert_eq!(meter.record(&unit, 3..7), Added::default());
    }

    #[test]
    fn the_order_of_units_does_not_matter_and_agrees_with_counting_ticks() {
        let mut state = 7u64;
        let mut random = |below: u64| {
            state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            (state >> 33) % below
        };
        let names = ["a", "b", "c"];
        let mut jobs = Vec::new();
        let mut busy = vec![0; 2000];
        for name in names {
            let mut now = 0;
            while now < 1900 {
                let start = now + random(9);
                let end = start + 1 + random(9);
                (start..end).for_each(|t| busy[t as usize] += 1);
                jobs.push((name, start, end));
                now = end;
            }
        }
        let expected = busy.iter().filter(|&&units| units >= 2).count() as u64;
        let mut interleaved = jobs.clone();
        interleaved.sort_by_key(|(_, _, end)| *end);
        assert_eq!(overlap(&jobs), expected);
        assert_eq!(overlap(&interleaved), expected);
    }

    #[test]
    fn memory_is_bounded() {
        let mut meter = OverlapMeter::default();
        for i in 0..10_000 {
            meter.record(&UnitId::new("a"), 10 * i..10 * i + 5);
            meter.record(&UnitId::new("b"), 10 * i + 1..10 * i + 3);
        }
        assert_eq!(meter.overlap_ns(), 20_000);
        assert!(meter.once.0.len() <= super::INTERVALS_MAX);
        assert!(meter.twice.0.len() <= super::INTERVALS_MAX);
    }
}
