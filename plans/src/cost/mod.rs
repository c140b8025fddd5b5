//! What a plan will yield: speed-up formulas, the rule of when to stop drafting, and forecasts from measured times.
//!
//! | module | what it answers |
//! |---|---|
//! | [`formula`] | expected speed-up over plain decoding, in closed form, from ratios |
//! | [`stop`] | whether one more drafted token, or waiting for one, pays |
//! | [`acceptance`] | how often drafts are right, by their distance from the last correction |
//! | [`profile`] | how long a unit takes for a stage, and a link for its bytes |
//! | [`forecast`], [`round`] | tokens per second and utilisation of a whole plan, and where the time goes |
//!
//! *Invariant:* only sums, products and quotients of 64-bit floats, which are rounded alike on every machine, and results
//! in integers: forecasts can be compared exactly, and ties break alike everywhere.

pub mod acceptance;
pub mod forecast;
pub mod formula;
pub mod profile;
pub mod round;
pub mod stop;

mod chain;
mod overlap;

pub use acceptance::Acceptance;
pub use forecast::{CostModel, ForecastError, Workload};
pub use formula::Costs;
pub use profile::{LinkProfile, MemoryDomain, ProfileError, TimeTable, UnitProfile};
pub use round::{Forecast, Share};
