//! What several rounds of measuring say together.
//!
//! A machine that is held up for a while, by a neighbour or by its host, is slow in whatever is measured then. Each round says
//! what a thing takes on average, and the rounds in the middle are believed. *Invariant:* less than a quarter of the rounds
//! moves no figure beyond what the others said.

/// The mean of some figures without a quarter of them at either end; 0 of none.
pub fn middle(figures: impl IntoIterator<Item = i64>) -> i64 {
    let mut figures: Vec<i64> = figures.into_iter().collect();
    figures.sort_unstable();
    let aside = figures.len() / 4;
    let kept = &figures[aside..figures.len() - aside];
    if kept.is_empty() { 0 } else { kept.iter().sum::<i64>() / kept.len() as i64 }
}

#[cfg(test)]
mod tests {
    use super::middle;

    #[test]
    fn a_round_that_was_held_up_is_put_aside() {
        assert_eq!(middle([10, 12, 900, 11]), 11);
        assert_eq!(middle([10, 12, -900, 11]), 10);
        assert_eq!(middle([10, 20]), 15);
        assert_eq!(middle([7]), 7);
        assert_eq!(middle([]), 0);
    }
}
