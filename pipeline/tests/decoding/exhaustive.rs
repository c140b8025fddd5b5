//! The acceptance rule, by enumeration: whatever the draft says and whenever it says it, the output has exactly the
//! target's distribution.
//!
//! Two tokens, three positions, so seven prefixes. A draw of the noise fixes the target's pick after each prefix: one
//! of 128 tables, whose probability is the product over its prefixes. A draft is any of 128 tables as well.

use outrider_devices::Pick;
use outrider_pipeline::speculator::Task;
use outrider_pipeline::{DraftPolicy, Speculator};

const POSITIONS: usize = 3;
const PREFIXES: usize = (1 << POSITIONS) - 1;

/// Probability, in eighths, that the target picks token 1 after each prefix.
const EIGHTHS: [u64; PREFIXES] = [3, 1, 6, 7, 2, 5, 4];

/// Number of the prefix: 0 for the empty one, then by length and tokens.
fn prefix(output: &[u32]) -> usize {
    output.iter().fold(0, |node, &token| 2 * node + 1 + token as usize)
}

fn lookup(table: usize, output: &[u32]) -> Pick {
    let token = (table >> prefix(output)) as u32 & 1;
    Pick { token, probability: 0.5, top: Vec::new() }
}

/// Decodes with two tables. `patient` jobs are answered only when the other model has nothing left to do.
fn decode(target: usize, draft: usize, policy: DraftPolicy, patient_target: bool) -> Vec<u32> {
    let length_max = 1 + POSITIONS as u32;
    let task = Task { prompt: vec![0], length_max, draft_length_max: 9, stop_tokens: [].into() };
    let mut speculator = Speculator::new(task, policy);
    let (mut verify, mut drafts) = (None, None);
    while !speculator.is_finished() {
        if verify.is_none() {
            verify = speculator.take_verify(9).map(|work| (work, speculator.text().to_vec()));
        }
        if drafts.is_none() {
            drafts = speculator.take_draft(9).map(|work| (work, speculator.text().to_vec()));
        }
        let target_first = drafts.is_none() || verify.is_some() && !patient_target;
        if target_first {
            let (work, text) = verify.take().expect("something to do");
            let end = work.base as usize + work.tokens.len();
            let first = end + 1 - work.picks_wanted as usize;
            speculator.verified((first..=end).map(|len| lookup(target, &text[1..len])).collect());
        } else if let Some((work, mut text)) = drafts.take() {
            let mut picks = Vec::new();
            for _ in 0..work.steps {
                picks.push(lookup(draft, &text[1..]));
                text.push(picks[picks.len() - 1].token);
            }
            speculator.drafted(work.epoch, work.base, &picks);
        }
    }
    speculator.confirmed()[1..].to_vec()
}

/// Weight of a table: the product of its picks' probabilities, in units of 8^-7.
fn weight(table: usize) -> u64 {
    (0..PREFIXES)
        .map(|node| if table >> node & 1 == 1 { EIGHTHS[node] } else { 8 - EIGHTHS[node] })
        .product()
}

#[test]
fn the_output_has_exactly_the_targets_distribution() {
    let mut expected = [0u64; 1 << POSITIONS];
    for (output, mass) in expected.iter_mut().enumerate() {
        let tokens: Vec<u32> =
            (0..POSITIONS).map(|i| (output >> (POSITIONS - 1 - i)) as u32 & 1).collect();
        *mass = 8u64.pow((PREFIXES - POSITIONS) as u32);
        for i in 0..POSITIONS {
            let eighths = EIGHTHS[prefix(&tokens[..i])];
            *mass *= if tokens[i] == 1 { eighths } else { 8 - eighths };
        }
    }
    let policies = [
        DraftPolicy::sequential(1),
        DraftPolicy::sequential(2),
        DraftPolicy::overlap(1, 1, 0),
        DraftPolicy::overlap(2, 1, 1),
        DraftPolicy::overlap(2, 2, 0),
    ];
    for (policy, patient_target) in policies.into_iter().flat_map(|p| [(p, false), (p, true)]) {
        for draft in 0..1 << PREFIXES {
            let mut found = [0u64; 1 << POSITIONS];
            for target in 0..1 << PREFIXES {
                let output = decode(target, draft, policy, patient_target);
                assert_eq!(output.len(), POSITIONS);
                let index = output.iter().fold(0, |index, &t| 2 * index + t as usize);
                found[index] += weight(target);
            }
            assert_eq!(found, expected, "draft {draft}, {policy:?}, patient {patient_target}");
        }
    }
}
