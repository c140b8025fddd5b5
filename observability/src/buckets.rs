//! Bucket bounds of the histograms, in seconds.
//!
//! The bounds that OpenTelemetry's conventions give for generative models, so that panels made for other services work
//! here. Where a small model on an edge device is faster than the lowest of them, finer bounds are added below; none is
//! left out.

/// Whole requests and their phases: the conventions' request duration.
pub const REQUEST: &[f64] =
    &[0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56, 5.12, 10.24, 20.48, 40.96, 81.92];

/// Time to the first token: the conventions' own.
pub const FIRST_TOKEN: &[f64] =
    &[0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0];

/// Time per output token: the conventions' own from 10 ms on, finer below.
pub const PER_TOKEN: &[f64] = &[
    0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75,
    1.0, 2.5,
];

/// One job of a compute unit: times two from 0.1 ms, as the conventions' request duration goes on from 10 ms.
pub const JOB: &[f64] = &[
    0.0001, 0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28,
    2.56, 5.12,
];

/// HTTP requests: the conventions' `http.server.request.duration`.
pub const HTTP: &[f64] =
    &[0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0];
