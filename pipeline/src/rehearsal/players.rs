//! Who answers the jobs of a rehearsal, and how long each job takes.
//!
//! *Invariant:* the target's picks are the recorded text; a draft is right exactly where it was when it was recorded.

use std::collections::BTreeMap;

use outrider_devices::{Batch, DraftBatch, DraftSegment, Drafted, Pick, SequenceId};
use outrider_plans::cost::{Before, DraftShape, PassShape, Piece, PlanTimes, SampleText};

/// An answer, and the time that it took.
pub struct Answer<T> {
    /// What the units answered.
    pub answer: T,
    /// How long the job took, piece by piece.
    pub pieces: Vec<Piece>,
}

/// The units of a rehearsal.
pub trait Players {
    /// A text is begun under this name.
    fn begin(&mut self, sequence: SequenceId, text: &SampleText);
    /// A pass of the target: one pick for each wanted row.
    fn target(&mut self, batch: &Batch, before: Before) -> Answer<Vec<Pick>>;
    /// A draft job: what comes of each segment.
    fn draft(&mut self, batch: &DraftBatch, before: Before) -> Answer<Vec<Drafted>>;
    /// A text has ended.
    fn end(&mut self, sequence: SequenceId);
}

/// Players who know the texts by heart, with the times of a cost model.
pub struct Recorded<'a> {
    times: &'a PlanTimes,
    end_of_text: u32,
    texts: BTreeMap<SequenceId, Memory>,
}

/// One text.
struct Memory {
    tokens: Vec<u32>,
    prompt: usize,
    /// The draft's guess of the token at each position of the output.
    guesses: Vec<(u32, f32)>,
    /// Leading positions of the draft's cache that hold the text.
    agreed: usize,
}

impl<'a> Recorded<'a> {
    /// Players for a plan with these times. What lies beyond a text is `end_of_text`.
    pub fn new(times: &'a PlanTimes, end_of_text: u32) -> Self {
        Self { times, end_of_text, texts: BTreeMap::new() }
    }
}

fn mean_base(bases: impl ExactSizeIterator<Item = u32>) -> u32 {
    let count = bases.len().max(1) as u64;
    (bases.map(u64::from).sum::<u64>() / count) as u32
}

fn pick(token: u32, probability: f32) -> Pick {
    Pick { token, probability, top: Vec::new() }
}

impl Players for Recorded<'_> {
    fn begin(&mut self, sequence: SequenceId, text: &SampleText) {
        let tokens = text.prompt.iter().chain(&text.output).copied().collect();
        let guess =
            |g: &outrider_plans::cost::Guess| (g.token, f32::from(g.probability_permille) / 1000.0);
        let guesses = text.guesses.iter().map(guess).collect();
        let memory = Memory { tokens, prompt: text.prompt.len(), guesses, agreed: 0 };
        self.texts.insert(sequence, memory);
    }

    fn target(&mut self, batch: &Batch, before: Before) -> Answer<Vec<Pick>> {
        let mut picks = Vec::with_capacity(batch.head_rows());
        for segment in &batch.segments {
            let text = &self.texts[&segment.sequence];
            let after = segment.base as usize + segment.tokens.len();
            for position in after + 1 - segment.want.rows()..=after {
                let token = text.tokens.get(position).copied().unwrap_or(self.end_of_text);
                picks.push(pick(token, 1.0));
            }
        }
        let shape = PassShape {
            rows: batch.rows() as u32,
            head_rows: batch.head_rows() as u32,
            context: mean_base(batch.segments.iter().map(|s| s.base)),
            before,
        };
        Answer { answer: picks, pieces: self.times.target_pass(shape) }
    }

    fn draft(&mut self, batch: &DraftBatch, before: Before) -> Answer<Vec<Drafted>> {
        let mut further: Vec<u32> = Vec::new();
        let mut drafted = Vec::with_capacity(batch.segments.len());
        for segment in &batch.segments {
            let text = self.texts.get_mut(&segment.segment.sequence).expect("it was begun");
            let mut came = text.draft(segment, &batch.stop_tokens, self.end_of_text);
            if self.times.drafts_at_once() {
                came.steps = segment.steps;
            }
            let steps = came.steps as usize;
            further.resize(further.len().max(steps - 1), 0);
            further[..steps - 1].iter_mut().for_each(|sequences| *sequences += 1);
            drafted.push(came);
        }
        let rows = batch.segments.iter().map(|s| s.segment.tokens.len() as u32).sum();
        let first = PassShape {
            rows,
            head_rows: batch.segments.len() as u32,
            context: mean_base(batch.segments.iter().map(|s| s.segment.base)),
            before,
        };
        Answer { answer: drafted, pieces: self.times.draft_job(&DraftShape { first, further }) }
    }

    fn end(&mut self, sequence: SequenceId) {
        self.texts.remove(&sequence);
    }
}

impl Memory {
    /// A draft that runs step after step.
    fn draft(&mut self, ask: &DraftSegment, stop: &[u32], end_of_text: u32) -> Drafted {
        let segment = &ask.segment;
        self.agreed = self.agreed.min(segment.base as usize);
        for (i, token) in segment.tokens.iter().enumerate() {
            let position = segment.base as usize + i;
            if self.agreed == position && self.tokens.get(position) == Some(token) {
                self.agreed += 1;
            }
        }
        let mut position = segment.base as usize + segment.tokens.len();
        let mut picks: Vec<Pick> = Vec::new();
        let mut steps = 0;
        while steps < ask.steps {
            steps += 1;
            let guess = position.checked_sub(self.prompt).and_then(|i| self.guesses.get(i));
            let (token, probability) = guess.copied().unwrap_or((end_of_text, 1.0));
            if !picks.is_empty() && probability < ask.probability_min {
                break;
            }
            picks.push(pick(token, probability));
            if self.agreed == position && self.tokens.get(position) == Some(&token) {
                self.agreed += 1;
            }
            position += 1;
            if stop.contains(&token) {
                break;
            }
        }
        Drafted { picks, steps }
    }
}
