//! The service under everything at once, for long: answers of every kind, clients that leave, bodies that are none,
//! requests that are ended, plans that are swapped, and a unit that is lost half-way.
//!
//! A short one is always run. The long one is ignored by default, because it takes as long as it is told to:
//!
//! ```sh
//! OUTRIDER_SOAK_REQUESTS=20000 cargo test --release -p outrider-tests -- --ignored --nocapture soak
//! ```
//!
//! `OUTRIDER_SOAK_CORES=0,1,2,3` gives the service other cores than the first, `OUTRIDER_SOAK_CLIENTS` another number of
//! clients than 8. With `OUTRIDER_UNDER_TEST` naming the program, the test binary runs on a machine without sources.

mod load;
mod vitals;

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use outrider_tests::frail::FRAIL;

use crate::frailty::Frailty;
use crate::process::Service;
use load::{Counts, Expected, Outcome};
use vitals::{Sample, p99, slope};

/// Requests of the short soak.
const SHORT: usize = 400;
/// Requests of the long one, if nobody says otherwise.
const LONG: usize = 20_000;
/// Share of the requests after which memory and files must have settled.
const SETTLED: f64 = 0.2;
/// Share of the requests after which the frail unit is lost.
const LOSS: f64 = 0.5;

fn number(variable: &str, default: usize) -> usize {
    std::env::var(variable).map_or(default, |text| text.parse().unwrap())
}

/// The cores that the service may use.
fn cores() -> Vec<usize> {
    match std::env::var("OUTRIDER_SOAK_CORES") {
        Ok(cores) => cores.split(',').map(|core| core.parse().unwrap()).collect(),
        Err(_) => {
            let most = std::thread::available_parallelism().map_or(1, usize::from);
            (0..most.min(2)).collect()
        }
    }
}

#[test]
fn a_short_soak_with_a_lost_unit_loses_nothing() {
    soak(SHORT);
}

#[test]
#[ignore = "takes as long as OUTRIDER_SOAK_REQUESTS says"]
fn twenty_thousand_requests_of_every_kind() {
    soak(number("OUTRIDER_SOAK_REQUESTS", LONG));
}

/// What was seen while it ran.
#[derive(Default)]
struct Seen {
    /// Seconds that each request took whose text was awaited, by its number.
    latencies: Mutex<Vec<(usize, f64)>>,
    samples: Mutex<Vec<Sample>>,
}

fn soak(requests: usize) {
    let (frailty, plans) = (Frailty::new(), load::plans(&cores()));
    let arguments = ["--parallel", "8", "--queue", "64", "--log", "warn"];
    let service = frailty.serve(&plans[0], load::frail_cores(&cores()), &arguments);
    let expected = Expected::ask(&service);
    let (next, counts, seen) = (AtomicUsize::new(0), Counts::default(), Seen::default());
    let started = Instant::now();
    std::thread::scope(|scope| {
        for _ in 0..number("OUTRIDER_SOAK_CLIENTS", 8) {
            scope.spawn(|| {
                loop {
                    let number = next.fetch_add(1, Ordering::Relaxed);
                    if number >= requests {
                        return;
                    }
                    if number == (requests as f64 * LOSS) as usize {
                        frailty.lose();
                    }
                    let began = Instant::now();
                    let outcome = load::one(&service, number, &plans, &expected);
                    if outcome == Outcome::Answered {
                        let took = (number, began.elapsed().as_secs_f64());
                        seen.latencies.lock().unwrap_or_else(PoisonError::into_inner).push(took);
                    }
                    counts.add(outcome);
                }
            });
        }
        scope.spawn(|| {
            while next.load(Ordering::Relaxed) < requests {
                let sample = Sample::of(service.process_id(), next.load(Ordering::Relaxed));
                seen.samples.lock().unwrap_or_else(PoisonError::into_inner).push(sample);
                std::thread::sleep(Duration::from_millis(200));
            }
        });
    });
    println!("{requests} requests in {:.0} s: {counts}", started.elapsed().as_secs_f64());
    service.await_metric("outrider_num_requests_running", 0.0);
    service.await_metric("outrider_num_requests_waiting", 0.0);
    println!("{} tokens written", service.metric("outrider_generation_tokens_total"));
    judge(&service, requests, seen);
    assert_eq!((counts.of(Outcome::Wrong), counts.of(Outcome::Lost)), (0, 0), "wrong and lost");
    assert!(counts.of(Outcome::Swapped) > 0, "no plan was swapped");
    let lost = format!("outrider_device_lost_total{{device=\"{FRAIL}\"}}");
    assert_eq!(service.metric(&lost), 1.0, "the unit was lost once");
    assert_eq!(service.get("/health").0, 200);
}

/// Memory, files and latency over the run.
fn judge(service: &Service, requests: usize, seen: Seen) {
    let samples = seen.samples.into_inner().unwrap_or_else(PoisonError::into_inner);
    let between = |from: f64, to: f64| -> Vec<&Sample> {
        let within = |s: &&Sample| {
            let share = s.request as f64 / requests as f64;
            share >= from && share <= to
        };
        samples.iter().filter(within).collect()
    };
    // The loss is a step: the unit's weights are packed anew.
    let parts = [
        ("before the loss", SETTLED, LOSS),
        ("after it", LOSS + 0.1, 1.0),
        ("in all", SETTLED, 1.0),
    ];
    for (what, from, to) in parts {
        let part = between(from, to);
        let (Some(first), Some(last)) = (part.first(), part.last()) else { continue };
        println!(
            "{what}: {:.0} bytes a request, {:.1} MiB to {:.1} MiB, {} to {} open files",
            slope(&part),
            first.mib(),
            last.mib(),
            first.files,
            last.files
        );
    }
    let mut latencies = seen.latencies.into_inner().unwrap_or_else(PoisonError::into_inner);
    latencies.sort_by_key(|&(number, _)| number);
    let tenth = (latencies.len() / 10).max(1);
    let first = p99(&latencies[..tenth]);
    let last = p99(&latencies[latencies.len() - tenth..]);
    println!("p99 of the first tenth {:.1} ms, of the last {:.1} ms", first * 1e3, last * 1e3);
    let tenths = latencies.chunks(tenth).take(10);
    let tenths: Vec<String> = tenths.map(|part| format!("{:.1}", p99(part) * 1e3)).collect();
    println!("p99 of each tenth, ms: {}", tenths.join(", "));
    let at = |tenth: usize| between(tenth as f64 / 10.0, (tenth + 1) as f64 / 10.0);
    let held = (0..10).filter_map(|tenth| at(tenth).last().map(|s| format!("{:.1}", s.mib())));
    println!("memory after each tenth, MiB: {}", held.collect::<Vec<_>>().join(", "));

    // Connections that are open differ from moment to moment; a leak does not go when all have gone.
    let settled = between(SETTLED, 1.0);
    let most = settled.first().map_or(usize::MAX, |sample| sample.files + 24);
    let at_rest = Sample::of(service.process_id(), requests);
    assert!(at_rest.files <= most, "{} files are open, {most} at most expected", at_rest.files);
    let after: Vec<_> = between(LOSS + 0.1, 1.0);
    let grown = at_rest.mib() - after.first().map_or(f64::MAX, |sample| sample.mib());
    let allowed = 16.0 + requests as f64 * 256.0 / f64::from(1 << 20);
    assert!(grown <= allowed, "memory grew by {grown:.1} MiB after the loss, {allowed:.1} allowed");
}
