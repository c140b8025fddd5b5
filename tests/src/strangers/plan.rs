//! Plan files of any text: for the shipped pair on a made-up machine, with all that is done with a plan.
//!
//! *Invariant:* a text is an error with its line, or a plan that reads the same after it was written.

use std::sync::OnceLock;

use outrider_plans::{Board, PartitionPlan, PlanContext, shipped_boards};

/// A board of the catalogue: cores of two kinds and a GPU.
fn context() -> &'static PlanContext {
    static CONTEXT: OnceLock<PlanContext> = OnceLock::new();
    CONTEXT.get_or_init(|| {
        let texts = shipped_boards().iter().map(|board| board.text);
        let board = texts.filter_map(|text| Board::parse(text).ok()).next();
        board.expect("a shipped board is right").context()
    })
}

/// Holds one input against the invariant; panics where it does not hold.
pub fn check(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    let _ = Board::parse(text);
    match PartitionPlan::from_toml(text, Some("fuzzed.toml"), context()) {
        Ok(plan) => {
            let written = plan.to_toml();
            let read = PartitionPlan::from_toml(&written, None, context());
            let read = read.unwrap_or_else(|error| panic!("{error}\n{written}"));
            assert_eq!(read.fingerprint(), plan.fingerprint(), "{written}");
        }
        Err(error) => assert!(!error.to_string().is_empty()),
    }
}
