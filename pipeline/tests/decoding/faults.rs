//! A harness that cannot fail proves nothing: each kind of mischief must be noticed, by a wrong text or an assertion.

use std::panic::{AssertUnwindSafe, catch_unwind};

use outrider_pipeline::DraftPolicy;

use crate::one::{Case, Mischief, run};

/// How many of 300 seeds notice the mischief.
fn noticed(mischief: Mischief, policy: DraftPolicy, disturbed: bool) -> usize {
    let fails = |seed| {
        let case = Case { seed, policy, pace: (10, 4), disturbed, mischief };
        catch_unwind(AssertUnwindSafe(|| run(&case))).is_err()
    };
    (0..300).filter(|&seed| fails(seed)).count()
}

#[test]
fn mischief_is_noticed_in_every_mode() {
    let sequential = DraftPolicy::sequential(4);
    let overlap = DraftPolicy::overlap(4, 2, 1);
    for (mischief, policies) in [
        (Mischief::TargetNotCut, &[sequential, overlap][..]),
        (Mischief::DraftNotCut, &[sequential, overlap]),
        (Mischief::PicksReversed, &[sequential, overlap]),
        (Mischief::StaleAnswer, &[overlap]),
        (Mischief::EpochIgnored, &[overlap]),
    ] {
        for &policy in policies {
            let found = noticed(mischief, policy, false);
            assert!(found >= 30, "{mischief:?} was noticed by {found} of 300 seeds, {policy:?}");
        }
    }
    let found = noticed(Mischief::SilentLoss, overlap, true);
    assert!(found >= 30, "a silent loss was noticed by {found} of 300 seeds");
    assert_eq!(noticed(Mischief::None, overlap, true), 0, "nothing to notice");
}
