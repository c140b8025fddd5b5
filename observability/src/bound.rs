//! A lid on labels whose values come from outside, such as the names of units in a plan that somebody sent.
//!
//! *Invariant:* however many values are offered, at most a fixed number, and `other`, are ever shown.

use std::collections::BTreeSet;
use std::sync::{Mutex, PoisonError};

/// The value that stands for all that came after the lid was reached.
pub(crate) const OTHER: &str = "other";

/// Remembers the values that were let through.
#[derive(Debug)]
pub(crate) struct LabelBound {
    most: usize,
    admitted: Mutex<BTreeSet<String>>,
}

impl LabelBound {
    pub(crate) fn new(most: usize) -> Self {
        Self { most, admitted: Mutex::default() }
    }

    /// `value` itself if it is among the first `most` values, else `other`.
    pub(crate) fn admit<'a>(&self, value: &'a str) -> &'a str {
        let mut admitted = self.admitted.lock().unwrap_or_else(PoisonError::into_inner);
        if admitted.contains(value) {
            return value;
        }
        if admitted.len() == self.most {
            return OTHER;
        }
        admitted.insert(value.to_owned());
        value
    }
}

#[cfg(test)]
mod tests {
    use super::LabelBound;

    #[test]
    fn values_beyond_the_lid_become_other() {
        let bound = LabelBound::new(2);
        assert_eq!(
            ["a", "b", "c", "a", "d"].map(|v| bound.admit(v)),
            ["a", "b", "other", "a", "other"]
        );
    }
}
