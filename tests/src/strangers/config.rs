//! Configuration files of any text.
//!
//! *Invariant:* a text is right, or an error that names the file and a line of it.

use outrider::cli::check_configuration;

/// Holds one input against the invariant; panics where it does not hold.
pub fn check(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    if let Err(error) = check_configuration(text) {
        let told = error.to_string();
        let line = told.strip_prefix("outrider.toml:").and_then(|rest| rest.split(':').next());
        let line: usize = line.and_then(|line| line.parse().ok()).expect(&told);
        assert!((1..=1 + text.matches('\n').count()).contains(&line), "{told}");
    }
}
