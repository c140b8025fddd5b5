//! The never-slower guard: drafting goes on while it pays, measured against what the target alone would have done.
//!
//! Its account is in tokens: a cycle that gave `n` tokens in time `T`, in which the target alone gives `T / t`, brings
//! `n - T / t`. A draft that loses more than a small credit is switched off; after some tokens without it one request
//! tries again on a smaller credit, and after each failure the next try waits longer.
//!
//! *Invariant:* what a draft may lose is bounded, over any number of tokens: the credit once, and for each try its own.
//! With [`CREDIT`] 5, [`TRIAL`] 2 and waits of 128, 256 and then 512 tokens that is about 9 of 500 tokens, besides what
//! a single cycle goes beyond. (A smaller credit would be lost by bad luck alone.)

/// Most that a draft which did well may lose before it is switched off, in tokens.
const CREDIT: f64 = 5.0;
/// What a draft may lose before it has ever gained.
const FIRST_CREDIT: f64 = 3.0;
/// What a try may lose.
const TRIAL: f64 = 2.0;
/// What a try must gain to switch drafting on again.
const GAIN: f64 = 1.0;
/// Tokens before the first try, and the most that later tries wait.
const WAIT: (u32, u32) = (128, 512);
/// Reading what the draft missed is done before it costs more tokens than this, and put off if it costs more than that:
/// until it is 1.4 % of what was waited.
const CATCH_UP_DUE: f64 = 3.0;
const CATCH_UP_MAX: f64 = 4.0;
const CATCH_UP_PATIENCE: f64 = 70.0;

/// Whether drafts are made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum GuardState {
    /// They are.
    #[default]
    On,
    /// They lose: the target decodes alone.
    Off,
    /// One request tries whether they pay again.
    Trial,
}

/// One cycle's balance.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Cycle {
    /// Tokens that came of it.
    pub(crate) tokens: u32,
    /// Tokens that the target alone would have given in the same time.
    pub(crate) plain: f64,
}

/// The guard.
#[derive(Clone, Debug)]
pub(crate) struct Guard {
    state: GuardState,
    balance: f64,
    wait: u32,
    waited: u32,
    /// Times that drafting was switched off, and on again.
    switches: (u64, u64),
}

impl Default for Guard {
    fn default() -> Self {
        let (state, balance) = (GuardState::On, FIRST_CREDIT);
        Self { state, balance, wait: WAIT.0, waited: 0, switches: (0, 0) }
    }
}

impl Guard {
    pub(crate) fn state(&self) -> GuardState {
        self.state
    }

    /// Times that drafting was switched off, and on again.
    pub(crate) fn switches(&self) -> (u64, u64) {
        self.switches
    }

    /// What may still be lost, in tokens.
    pub(crate) fn credit(&self) -> f64 {
        self.balance.max(0.0)
    }

    /// A cycle with drafts is over.
    pub(crate) fn drafted(&mut self, cycle: Cycle) {
        let gain = f64::from(cycle.tokens) - cycle.plain;
        match self.state {
            GuardState::Off => {}
            GuardState::On => {
                self.balance = (self.balance + gain).min(CREDIT);
                if self.balance < 0.0 {
                    self.wait = WAIT.0;
                    self.switch_off();
                    self.switches.0 += 1;
                }
            }
            GuardState::Trial => {
                self.balance += gain;
                if self.balance < 0.0 {
                    self.wait = (2 * self.wait).min(WAIT.1);
                    self.switch_off();
                } else if self.balance > TRIAL + GAIN {
                    self.state = GuardState::On;
                    self.switches.1 += 1;
                }
            }
        }
    }

    fn switch_off(&mut self) {
        (self.state, self.waited) = (GuardState::Off, 0);
    }

    /// Tokens came without drafts; to try again would first cost `catch_up` tokens for reading what the draft missed.
    pub(crate) fn alone(&mut self, tokens: u32, catch_up: f64) {
        if self.state != GuardState::Off {
            return;
        }
        self.waited = self.waited.saturating_add(tokens);
        let due = self.waited >= self.wait || catch_up >= CATCH_UP_DUE;
        let cheap =
            catch_up <= CATCH_UP_MAX || f64::from(self.waited) >= CATCH_UP_PATIENCE * catch_up;
        if self.waited >= WAIT.0 && due && cheap {
            (self.state, self.balance) = (GuardState::Trial, TRIAL);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{Cycle, Guard, GuardState};

    const BAD: Cycle = Cycle { tokens: 1, plain: 1.5 };
    const GOOD: Cycle = Cycle { tokens: 3, plain: 1.5 };

    /// Runs until `tokens` came, with these cycles where drafts are made; tokens lost against the target alone.
    fn lost(guard: &mut Guard, tokens: u32, cycle: Cycle) -> f64 {
        let (mut came, mut lost) = (0, 0.0);
        while came < tokens {
            if guard.state() == GuardState::Off {
                guard.alone(1, 0.0);
                came += 1;
            } else {
                guard.drafted(cycle);
                came += cycle.tokens;
                lost += cycle.plain - f64::from(cycle.tokens);
            }
        }
        lost
    }

    #[test]
    fn a_bad_draft_loses_less_than_three_percent_of_any_500_tokens() {
        let mut guard = Guard::default();
        for _ in 0..20 {
            let lost = lost(&mut guard, 500, BAD);
            assert!(lost < 15.0, "{lost}");
        }
        assert_eq!(guard.switches(), (1, 0));
    }

    #[test]
    fn gains_of_long_ago_are_no_licence_to_lose() {
        let mut guard = Guard::default();
        assert!(lost(&mut guard, 5000, GOOD) < 0.0);
        assert_eq!(guard.state(), GuardState::On);
        let lost = lost(&mut guard, 500, BAD);
        assert!((4.0..15.0).contains(&lost), "{lost}");
    }

    #[test]
    fn a_draft_that_became_good_is_back_within_the_longest_wait() {
        let mut guard = Guard::default();
        lost(&mut guard, 3000, BAD);
        let mut came = 0;
        while guard.state() != GuardState::On {
            came += lost(&mut guard, 1, GOOD).abs().max(1.0) as u32;
            assert!(came < 600, "{guard:?}");
        }
        assert_eq!(guard.switches().1, 1);
    }

    #[test]
    fn reading_much_missed_text_is_tried_rarely() {
        let mut guard = Guard::default();
        while guard.state() != GuardState::Off {
            guard.drafted(BAD);
        }
        (0..699).for_each(|_| guard.alone(1, 10.0));
        assert_eq!(guard.state(), GuardState::Off);
        guard.alone(1, 10.0);
        assert_eq!(guard.state(), GuardState::Trial);
    }
}
