//! A guard for sequences that are alone, and one for company: what drafts bring a sequence alone says little of what they bring
//! in a crowd, whose rows are computed and not waited for, and the other way about.
//!
//! *Invariant:* a guard hears of the cycles of its own company alone, and each keeps its own promise over the tokens that were
//! written in it.

use super::guard::{Guard, GuardState};

/// One, and several. (More guards would each have to learn of a bad draft for themselves, and lose by that.)
const COMPANIES: usize = 2;

/// The guards.
#[derive(Clone, Debug, Default)]
pub(super) struct Guards {
    of: [Guard; COMPANIES],
    /// Whose company was met last.
    last: usize,
}

impl Guards {
    fn class(company: u32) -> usize {
        usize::from(company > 1)
    }

    /// The guard of so many sequences.
    pub(super) fn of(&self, company: u32) -> &Guard {
        &self.of[Self::class(company)]
    }

    /// The same, to tell it what came of a cycle.
    pub(super) fn meet(&mut self, company: u32) -> &mut Guard {
        self.last = Self::class(company);
        &mut self.of[self.last]
    }

    /// Of the company that was met last: what it says, and the tokens that its account holds.
    pub(super) fn last(&self) -> (GuardState, f64) {
        let guard = &self.of[self.last];
        (guard.state(), guard.balance())
    }

    /// Times that any of them switched drafting off, and on again.
    pub(super) fn switches(&self) -> (u64, u64) {
        let add = |(off, on): (u64, u64), guard: &Guard| {
            let (more_off, more_on) = guard.switches();
            (off + more_off, on + more_on)
        };
        self.of.iter().fold((0, 0), add)
    }
}

#[cfg(test)]
mod tests {
    use super::super::guard::Cycle;
    use super::{GuardState, Guards};

    #[test]
    fn who_is_left_alone_by_a_crowd_drafts_as_before() {
        let mut guards = Guards::default();
        guards.meet(1).drafted(Cycle { tokens: 3, plain: 1.5, reading: 0.0 });
        while guards.of(8).state() == GuardState::On {
            guards.meet(8).drafted(Cycle { tokens: 8, plain: 9.0, reading: 0.0 });
        }
        assert_eq!(guards.last().0, GuardState::Off);
        for company in [2, 5, 20] {
            assert_eq!(guards.of(company).state(), GuardState::Off, "{company}");
        }
        for company in [0, 1] {
            assert_eq!(guards.of(company).state(), GuardState::On, "{company}");
        }
        assert_eq!(guards.switches(), (1, 0));
    }
}
