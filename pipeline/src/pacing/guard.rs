//! The never-slower guard: drafting goes on while it pays, measured against what the target alone would have done.
//!
//! Its account is in tokens: a cycle that gave `n` tokens in time `T`, in which the target alone gives `T / t`, brings
//! `n - T / t`. Every token of text earns a little besides, whoever made it, up to a small credit. A draft that has used
//! the credit up is switched off; when waiting has earned enough for a try, one request tries again, and after each
//! failure the next try waits longer. A try that succeeded and after which drafts gained nothing has failed, too.
//!
//! A draft that runs all steps that it is asked for may lose a share of the account only in a single cycle: a few long ones that
//! are wrong from the start would else use up what many short ones live on for long, and a draft that pays would be switched off
//! by bad luck. One that stops where it is unsure goes far only where it is sure.
//!
//! *Invariant:* over any 500 tokens drafts lose at most, as the guard reckons it, what the account held ([`CREDIT`] 5), what
//! those tokens earn (2.5, and 4 for reading), and what a single cycle may go beyond it (1.2): 13 tokens, 2.6 %; and
//! 2 tokens more for the second try of a draft that had gained much. (A smaller credit would be lost by bad luck alone.)

/// Most that a draft which did well may lose before it is switched off, in tokens.
const CREDIT: f64 = 5.0;
/// What a draft may lose before it has ever gained.
const FIRST_CREDIT: f64 = 4.0;
/// What every token of text adds to the account.
const EARNED: f64 = 0.005;
/// What every token written without drafts adds to what may be spent on reading missed text, and the most of that.
const READING: (f64, f64) = (0.008, 3.0);
/// What one cycle may lose beyond the account, if all that it drafts is wrong.
const BEYOND: f64 = 1.0;
/// What it may lose if the draft runs on: a share of the account, or so many tokens.
const RUNNING_ON: (f64, f64) = (0.3, 1.2);
/// What a try may lose.
const TRIAL: f64 = 1.2;
/// What a try must gain to switch drafting on again.
const GAIN: f64 = 1.0;
/// Tokens before the first try, and the most that later tries wait, unless they have still to earn what they may lose.
const WAIT: (u32, u32) = (64, 256);
/// What a draft must have gained to be tried again after so many tokens.
const MERIT: f64 = 5.0;
const SOON: u32 = 16;
/// A try reads at most so much of what its draft missed, in tokens. More than that is read before, in such pieces.
const CATCH_UP_MAX: f64 = 3.5;
const PIECE: f64 = 2.0;

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
    /// The part of that time in which the draft read what it had missed, in the same tokens.
    pub(crate) reading: f64,
}

/// The guard.
#[derive(Clone, Debug)]
pub(crate) struct Guard {
    state: GuardState,
    balance: f64,
    /// What the present try has gained, reading apart.
    gained: f64,
    /// What drafts have gained since they were switched off last.
    merit: f64,
    /// What may be spent on reading missed text.
    reading: f64,
    wait: u32,
    waited: u32,
    /// Times that drafting was switched off, and on again.
    switches: (u64, u64),
}

impl Default for Guard {
    fn default() -> Self {
        let (state, balance) = (GuardState::On, FIRST_CREDIT);
        Self {
            state,
            balance,
            gained: 0.0,
            merit: 0.0,
            reading: 0.0,
            wait: 0,
            waited: 0,
            switches: (0, 0),
        }
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

    /// Tokens that the account holds.
    pub(crate) fn balance(&self) -> f64 {
        self.balance
    }

    /// What the next cycle may lose, in tokens, if all that it drafts is wrong, by a draft that runs all steps that it is asked for
    /// or stops where it is unsure.
    pub(crate) fn at_stake_max(&self, runs_on: bool) -> f64 {
        match self.state {
            GuardState::On if runs_on => (RUNNING_ON.0 * self.balance).max(RUNNING_ON.1),
            GuardState::On => self.balance.max(0.0) + BEYOND,
            GuardState::Trial => self.balance.max(0.0),
            GuardState::Off => 0.0,
        }
    }

    /// A cycle with drafts is over.
    pub(crate) fn drafted(&mut self, cycle: Cycle) {
        let gain = f64::from(cycle.tokens) - cycle.plain;
        let earned = EARNED * f64::from(cycle.tokens);
        match self.state {
            // Nothing was drafted but missed text was read.
            GuardState::Off => {
                self.reading += gain;
                self.balance += earned;
            }
            GuardState::On => {
                self.balance = (self.balance + gain + earned).min(CREDIT);
                self.merit += gain;
                if self.balance < 0.0 {
                    // A draft that has gained much was perhaps unlucky: it may soon try again, once.
                    let trusted = self.merit > MERIT;
                    self.wait = match trusted {
                        true => SOON,
                        // What came of the last try was nothing: it has failed after all.
                        false if self.merit <= 0.0 => self.longer_wait(),
                        false => WAIT.0,
                    };
                    self.merit = 0.0;
                    self.balance = if trusted { TRIAL + 0.5 } else { self.balance };
                    self.switch_off();
                    self.switches.0 += 1;
                }
            }
            GuardState::Trial => {
                self.balance += gain + earned;
                self.gained += gain + cycle.reading;
                if self.balance < 0.0 {
                    self.wait = self.longer_wait();
                    self.switch_off();
                } else if self.gained > GAIN {
                    self.state = GuardState::On;
                    self.balance = self.balance.min(CREDIT);
                    self.switches.1 += 1;
                }
            }
        }
    }

    fn longer_wait(&self) -> u32 {
        (2 * self.wait).clamp(WAIT.0, WAIT.1)
    }

    fn switch_off(&mut self) {
        (self.state, self.waited) = (GuardState::Off, 0);
    }

    /// Tokens came without drafts; to try again would first cost `catch_up` tokens for reading what the draft missed.
    pub(crate) fn alone(&mut self, tokens: u32, catch_up: f64) {
        let earned = EARNED * f64::from(tokens);
        match self.state {
            GuardState::On => self.balance = (self.balance + earned).min(CREDIT),
            GuardState::Trial => {}
            GuardState::Off => {
                let all = self.balance + earned;
                self.balance = all.min(TRIAL + 1.0);
                // What a full account has no room for goes into reading: a long text would be missed faster than it is read.
                let reading = READING.0 * f64::from(tokens) + all - self.balance;
                self.reading = (self.reading + reading).min(READING.1);
                self.waited = self.waited.saturating_add(tokens);
                let due = self.waited >= self.wait || catch_up > CATCH_UP_MAX / 2.0;
                let spare = (self.balance - TRIAL).max(0.0) + self.reading.max(0.0);
                if due && self.balance >= TRIAL && catch_up <= spare {
                    let paid = self.reading.clamp(0.0, catch_up);
                    (self.balance, self.reading) = (self.balance + paid, self.reading - paid);
                    (self.state, self.gained) = (GuardState::Trial, 0.0);
                }
            }
        }
    }

    /// What may be spent on reading now although nothing is drafted, in tokens, where a try would have to read text for so
    /// many.
    pub(crate) fn reading_ahead(&self, catch_up: f64) -> f64 {
        let ahead = self.state == GuardState::Off && catch_up > CATCH_UP_MAX;
        if ahead && self.reading >= PIECE { PIECE } else { 0.0 }
    }
}

#[cfg(test)]
mod tests {
    use super::{Cycle, Guard, GuardState};

    const BAD: Cycle = Cycle { tokens: 1, plain: 1.5, reading: 0.0 };
    const GOOD: Cycle = Cycle { tokens: 3, plain: 1.5, reading: 0.0 };

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

    /// Three long drafts that are wrong do not use up the account.
    #[test]
    fn no_single_cycle_may_lose_much_of_the_account() {
        let mut guard = Guard::default();
        lost(&mut guard, 500, GOOD);
        for _ in 0..3 {
            let loss = guard.at_stake_max(true);
            assert!(loss <= 1.5, "{loss} of {}", guard.balance());
            guard.drafted(Cycle { tokens: 1, plain: 1.0 + loss, reading: 0.0 });
        }
        assert_eq!(guard.state(), GuardState::On);
    }

    /// Cycles that go far beyond the account are paid back before the next try.
    #[test]
    fn what_was_lost_beyond_the_account_is_earned_before_another_try() {
        let mut guard = Guard::default();
        let ruinous = Cycle { tokens: 1, plain: 8.0, reading: 0.0 };
        for _ in 0..20 {
            let lost = lost(&mut guard, 1000, ruinous);
            assert!(lost < 15.0, "{lost}");
        }
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

    /// A try that succeeds by luck is a failed one if nothing is gained after it: the next waits for the longest wait, or as long as
    /// it takes to earn what the last one lost.
    #[test]
    fn drafts_that_only_flicker_are_tried_seldom() {
        let mut guard = Guard::default();
        let mut waits = Vec::new();
        for _ in 0..5 {
            while guard.state() == GuardState::On {
                guard.drafted(BAD);
            }
            let mut waited = 0;
            while guard.state() == GuardState::Off {
                guard.alone(1, 0.0);
                waited += 1;
            }
            waits.push(waited);
            while guard.state() == GuardState::Trial {
                guard.drafted(GOOD);
            }
        }
        assert!(waits[0] < 400 && waits[2..].iter().all(|wait| *wait >= 256), "{waits:?}");
    }

    /// A draft that gains a little is not switched off by a run of bad luck that is made up for.
    #[test]
    fn a_small_gain_is_kept_through_bad_luck() {
        let mut guard = Guard::default();
        let (good, bad) = (Cycle { plain: 1.4, ..GOOD }, Cycle { plain: 1.9, ..BAD });
        for round in 0..500 {
            let lucky = round % 7 < 3;
            guard.drafted(if lucky { good } else { bad });
        }
        assert_eq!((guard.state(), guard.switches().0), (GuardState::On, 0));
    }

    #[test]
    fn much_missed_text_is_read_in_pieces_that_were_earned() {
        let mut guard = Guard::default();
        while guard.state() != GuardState::Off {
            guard.drafted(BAD);
        }
        let (mut missed, mut waited, mut lost) = (10.0, 0, 0.0);
        while guard.state() == GuardState::Off {
            guard.alone(1, missed);
            waited += 1;
            let piece = guard.reading_ahead(missed);
            if piece > 0.0 {
                guard.drafted(Cycle { tokens: 1, plain: 1.0 + piece, reading: piece });
                (missed, lost) = (missed - piece, lost + piece);
            }
        }
        assert!(lost >= 6.0 && lost < 0.01 * f64::from(waited), "{lost} in {waited}");
        // Reading what is left does not end the try.
        guard.drafted(Cycle { tokens: 1, plain: 1.0 + missed, reading: missed });
        assert_eq!(guard.state(), GuardState::Trial);
    }
}
