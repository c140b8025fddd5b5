//! The kernel's notation for sets of CPUs: `0-3,8`.
//!
//! *Invariant:* a list in memory is sorted and has no CPU twice.

/// No machine has more CPUs than this; a list that says otherwise is not one.
const CPUS_MAX: usize = 1 << 16;

/// Reads a list; `None` if it is not one. White space around it is ignored, the empty list is one.
pub fn parse_cpu_list(text: &str) -> Option<Vec<usize>> {
    let mut cpus = Vec::new();
    for part in text.trim().split(',').filter(|_| !text.trim().is_empty()) {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let (first, last): (usize, usize) = (number(first)?, number(last)?);
        if first > last || last >= CPUS_MAX {
            return None;
        }
        cpus.extend(first..=last);
    }
    cpus.sort_unstable();
    cpus.dedup();
    Some(cpus)
}

/// Digits alone: no sign, no space.
fn number(text: &str) -> Option<usize> {
    text.bytes().all(|b| b.is_ascii_digit()).then(|| text.parse().ok())?
}

/// Writes a list that is sorted and has no CPU twice.
pub fn format_cpu_list(cpus: &[usize]) -> String {
    let runs = cpus.chunk_by(|a, b| a + 1 == *b);
    let runs = runs.map(|run| match run {
        [one] => one.to_string(),
        [first, .., last] => format!("{first}-{last}"),
        [] => unreachable!("a run has a CPU"),
    });
    runs.collect::<Vec<_>>().join(",")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::{any, proptest};
    use proptest::prop_assert_eq;

    use super::*;

    #[test]
    fn lists_as_the_kernel_writes_them() {
        assert_eq!(parse_cpu_list("0-3,8\n"), Some(vec![0, 1, 2, 3, 8]));
        assert_eq!(parse_cpu_list("5"), Some(vec![5]));
        assert_eq!(parse_cpu_list("\n"), Some(vec![]));
        for wrong in ["3-1", "a", "1,,2", "-1", "1-", "+1", "0-99999999999", "0 1"] {
            assert_eq!(parse_cpu_list(wrong), None, "{wrong}");
        }
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_back(cpus in proptest::collection::btree_set(0usize..300, 0..40)) {
            let cpus: Vec<usize> = cpus.into_iter().collect();
            prop_assert_eq!(parse_cpu_list(&format_cpu_list(&cpus)), Some(cpus));
        }

        #[test]
        fn any_text_is_a_sorted_list_or_none(text in "[-0-9,\n ]{0,20}", rest in any::<String>()) {
            parse_cpu_list(&rest);
            let cpus = parse_cpu_list(&text).unwrap_or_default();
            prop_assert_eq!(cpus.is_sorted_by(|a, b| a < b), true);
        }
    }
}
