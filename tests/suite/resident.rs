//! How much memory the served pair takes: its weights once, the caches that its requests use, and little besides.

use serde_json::json;

use crate::process::Service;

/// Bytes of the shipped pair's files.
const WEIGHTS: u64 = 36_376_736;
/// Bytes of the caches of one sequence: keys and values of 512 positions, 8 layers of 4 heads and 3 of 2, 64 halves each.
const CACHE: u64 = 2 * 2 * 512 * 64 * (8 * 4 + 3 * 2);
/// The program's own: tokenizer, templates, threads, buffers.
const OWN: u64 = 8 << 20;

/// A line of `/proc/PID/status`, in bytes.
fn status(process: u32, key: &str) -> Option<u64> {
    let text = std::fs::read_to_string(format!("/proc/{process}/status")).ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix(key))?;
    Some(line.split_whitespace().nth(1)?.parse::<u64>().ok()? << 10)
}

#[test]
fn a_served_pair_is_resident_once() {
    // Software drivers of GPUs bring a compiler along, which is not this program's.
    let none = [("VK_DRIVER_FILES", "/nonexistent"), ("VK_ICD_FILENAMES", "/nonexistent")];
    let service = Service::start_in(&["--mode", "sequential"], &none);
    let body = json!({ "messages": [{ "role": "user", "content": "Where is the station?" }] });
    let (code, answer) = service.post("/v1/chat/completions", &body);
    assert_eq!(code, 200, "{answer}");
    let Some(anonymous) = status(service.id(), "RssAnon") else { return };
    let bound = WEIGHTS * 115 / 100 + CACHE + OWN;
    assert!(anonymous <= bound, "{anonymous} bytes of its own are resident, {bound} allowed");
    assert!(anonymous > WEIGHTS * 9 / 10, "{anonymous} bytes cannot hold the weights");
}
