//! What can be seen from outside: metrics as fields of typed structs, and the timeline.
//!
//! A [`Registry`] owns every metric of one service and writes them in the Prometheus text format; whoever measures holds
//! a clone of one struct, such as [`RequestMetrics`], and never writes a metric's name. `METRICS.md` lists them all.
//!
//! *Invariant:* no global recorder and no clock: registries can stand side by side, and times come in from outside.

mod bound;
pub mod buckets;
pub mod catalogue;
mod exposition;
pub mod http;
pub mod instrument;
pub mod label;
pub mod overlap;
pub mod plan;
pub mod registry;
pub mod requests;
pub mod speculation;
pub mod timeline;
pub mod units;

pub use http::{HttpMethod, HttpMetrics};
pub use instrument::{GaugeGuard, SecondsCounter};
pub use label::{Label, LabelledCounters};
pub use metrics::Counter;
pub use overlap::OverlapMeter;
pub use plan::{PlanMetrics, RunningPlan, SwapResult};
pub use registry::{BuildInfo, Registry};
pub use requests::{FailureReason, FinishedReason, RejectionReason, RequestMetrics};
pub use speculation::{DiscardReason, GuardLabel, GuardSwitch, SpeculationMetrics};
pub use timeline::{SharedTimeline, Timeline, TimelineEvent};
pub use units::{MemoryPurpose, UnitJob, UnitMetrics};
