//! How sizes, cores and lists of names are written in errors and explanations.
//!
//! *Invariant:* pure functions of their arguments; the same value is always written alike.

/// `bytes` with a binary prefix and one decimal: `41.2 MiB`; below 1 KiB in bytes.
pub(crate) fn bytes(bytes: u64) -> String {
    const PREFIXES: [&str; 4] = ["KiB", "MiB", "GiB", "TiB"];
    if bytes < 1024 {
        return format!("{bytes} B");
    }
    let power = ((63 - bytes.leading_zeros()) / 10).min(4);
    let unit = 1u128 << (10 * power);
    let tenths = (u128::from(bytes) * 10 + unit / 2) / unit;
    format!("{}.{} {}", tenths / 10, tenths % 10, PREFIXES[power as usize - 1])
}

/// Ascending core ids with runs joined: `core 0`, `cores 0-3, 6`.
pub(crate) fn cores(ids: &[usize]) -> String {
    let mut runs: Vec<(usize, usize)> = Vec::new();
    for &id in ids {
        match runs.last_mut() {
            Some((_, last)) if *last + 1 == id => *last = id,
            _ => runs.push((id, id)),
        }
    }
    let runs: Vec<_> = runs
        .into_iter()
        .map(|(a, b)| if a == b { a.to_string() } else { format!("{a}-{b}") })
        .collect();
    let noun = if ids.len() == 1 { "core" } else { "cores" };
    format!("{noun} {}", if runs.is_empty() { "(none)".to_owned() } else { runs.join(", ") })
}

/// Names in backquotes: `` `a`, `b` ``; `none` for an empty list.
pub(crate) fn names<N: AsRef<str>>(names: impl IntoIterator<Item = N>) -> String {
    let quoted: Vec<_> = names.into_iter().map(|n| format!("`{}`", n.as_ref())).collect();
    if quoted.is_empty() { "none".to_owned() } else { quoted.join(", ") }
}

#[cfg(test)]
mod tests {
    #[test]
    fn sizes_and_cores_are_short() {
        let sizes = [0, 1023, 1024, 1536, 43_200_000, 24 << 30, u64::MAX].map(super::bytes);
        assert_eq!(
            sizes,
            ["0 B", "1023 B", "1.0 KiB", "1.5 KiB", "41.2 MiB", "24.0 GiB", "16777216.0 TiB"]
        );
        assert_eq!(super::cores(&[0]), "core 0");
        assert_eq!(super::cores(&[0, 1, 2, 6, 8, 9]), "cores 0-2, 6, 8-9");
        assert_eq!(super::names(["a", "b"]), "`a`, `b`");
    }
}
