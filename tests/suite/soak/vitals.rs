//! What a process holds, and how that moves.

use std::fs;

/// What the process held when so many requests had been begun.
pub(super) struct Sample {
    pub(super) request: usize,
    kib: f64,
    pub(super) files: usize,
}

impl Sample {
    pub(super) fn of(process_id: u32, request: usize) -> Self {
        let status = fs::read_to_string(format!("/proc/{process_id}/status")).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
        let kib = line.trim().split(' ').next().unwrap().parse().unwrap();
        let files = fs::read_dir(format!("/proc/{process_id}/fd")).unwrap().count();
        Self { request, kib, files }
    }

    pub(super) fn mib(&self) -> f64 {
        self.kib / 1024.0
    }
}

/// Bytes by which resident memory grew for each request: the slope of the line of least squares.
pub(super) fn slope(samples: &[&Sample]) -> f64 {
    let n = samples.len() as f64;
    let x = samples.iter().map(|s| s.request as f64).sum::<f64>() / n;
    let y = samples.iter().map(|s| s.kib).sum::<f64>() / n;
    let over: f64 = samples.iter().map(|s| (s.request as f64 - x) * (s.kib - y)).sum();
    let under: f64 = samples.iter().map(|s| (s.request as f64 - x).powi(2)).sum();
    1024.0 * over / under.max(f64::MIN_POSITIVE)
}

/// The longest of the latencies but for one in a hundred, seconds.
pub(super) fn p99(latencies: &[(usize, f64)]) -> f64 {
    let mut sorted: Vec<f64> = latencies.iter().map(|&(_, seconds)| seconds).collect();
    sorted.sort_by(f64::total_cmp);
    sorted.get(sorted.len() * 99 / 100).copied().unwrap_or(0.0)
}
