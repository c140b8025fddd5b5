//! Labels with a fixed set of values.
//!
//! *Invariant:* a label of this kind cannot take a value that is not listed, so its series are bounded.

use std::fmt;

use metrics::Counter;

use crate::catalogue::Metric;
use crate::instrument::Instruments;

/// A closed set of label values.
pub trait Label: Copy + Eq + 'static {
    /// Every value.
    const ALL: &'static [Self];

    /// The value as it is shown.
    fn as_str(self) -> &'static str;
}

/// One counter for each value of a label, all shown from the start with 0.
#[derive(Clone)]
pub struct LabelledCounters<L> {
    counters: Vec<(L, Counter)>,
}

impl<L: Label> LabelledCounters<L> {
    pub(crate) fn new(instruments: &Instruments, metric: &Metric) -> Self {
        let counter = |&label: &L| (label, instruments.counter(metric, &[label.as_str()]));
        Self { counters: L::ALL.iter().map(counter).collect() }
    }

    /// Counts one event.
    pub fn increment(&self, label: L) {
        self.add(label, 1);
    }

    /// Counts `events` at once.
    pub fn add(&self, label: L, events: u64) {
        let found = self.counters.iter().find(|(known, _)| *known == label);
        found.expect("ALL lists every value").1.increment(events);
    }
}

impl<L> fmt::Debug for LabelledCounters<L> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "LabelledCounters({})", self.counters.len())
    }
}

/// Implements [`Label`] for an enum: each variant with the word that stands for it.
macro_rules! label_values {
    ($label:ty { $($variant:ident => $word:literal),* $(,)? }) => {
        impl crate::label::Label for $label {
            const ALL: &'static [Self] = &[$(Self::$variant),*];

            fn as_str(self) -> &'static str {
                match self {
                    $(Self::$variant => $word),*
                }
            }
        }
    };
}
pub(crate) use label_values;
