//! The acceptance rule: a drafted token is right if the target, with the same noise, picks it too.
//!
//! *Invariant:* only the target's picks become confirmed text, so what the draft said cannot be seen in it.

use outrider_devices::Pick;

use super::Speculator;
use super::work::{Confirmed, End, Verdict};
use crate::pacing::Outcome;

impl Speculator {
    /// Compares the target's picks with the tail and confirms what the target says.
    pub(super) fn judge(&mut self, picks: Vec<Pick>) -> Verdict {
        let tail = self.tail();
        let pass = picks.len() - 1;
        let agreed = tail[..pass].iter().zip(&picks).take_while(|(t, p)| **t == p.token).count();
        let own = picks[agreed].token;
        // The draft that the target's own token judges: the first wrong one, or the one checked for free.
        let judged = tail.get(agreed).copied();
        let guessed = judged == Some(own);
        let offered = pass.max(agreed + usize::from(judged.is_some()));
        let last_drafted = agreed + usize::from(guessed);
        let outcomes = self.outcomes(last_drafted, usize::from(judged.is_some() && !guessed));
        if guessed {
            self.target.cut((self.confirmed + agreed) as u32);
            self.confidences.drain(..last_drafted);
            self.streak += last_drafted as u32;
        } else {
            self.counts.discarded.diverged += (self.tail().len() - offered) as u32;
            self.replace_tail_from(agreed, own, judged.is_some());
            self.streak = 0;
        }
        let tokens: Vec<Confirmed> = picks
            .into_iter()
            .take(agreed + 1)
            .enumerate()
            .map(|(i, pick)| Confirmed { pick, drafted: i < last_drafted })
            .collect();
        self.confirmed += tokens.len();
        let end = self.end_of(&tokens);
        let (offered, accepted) = (offered as u32, last_drafted as u32);
        Verdict { tokens, offered, accepted, end, outcomes }
    }

    /// The first `right` tokens of the tail were right, and the `wrong` after them, 0 or 1, was not.
    fn outcomes(&self, right: usize, wrong: usize) -> Vec<Outcome> {
        let known = self.confidences.iter().take(right + wrong).enumerate();
        let outcome = |(i, &confidence): (usize, &f32)| Outcome {
            place: self.streak + i as u32,
            confidence,
            accepted: i < right,
        };
        known.map(outcome).collect()
    }

    /// The text goes on with `own` after `agreed` tokens of the tail. If that contradicts a draft, the draft model is on
    /// a wrong path; else it has only not come this far.
    fn replace_tail_from(&mut self, agreed: usize, own: u32, contradicts: bool) {
        let len = self.confirmed + agreed;
        self.text.truncate(len);
        self.confidences.clear();
        self.text.push(own);
        self.target.cut(len as u32);
        if contradicts {
            self.draft.cut(len as u32);
            self.epoch += 1;
        }
    }

    fn end_of(&self, tokens: &[Confirmed]) -> Option<End> {
        let last = tokens.last().map(|c| c.pick.token)?;
        if self.stop_tokens.contains(&last) {
            Some(End::Stop)
        } else if self.confirmed == self.length_max as usize {
            Some(End::Length)
        } else {
            None
        }
    }
}
