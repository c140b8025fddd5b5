//! What a plan will yield: measured times, the texts to decode, and the speed that follows.
//!
//! | module | what it answers |
//! |---|---|
//! | [`class`] | which units are alike, so that one measurement holds for both |
//! | [`profile`] | how long a class of units takes for a model, by rows and context, and a link for its bytes |
//! | [`middle`](mod@middle) | what several rounds of measuring say together |
//! | [`model`], [`times`] | how long each job of a whole plan takes, piece by piece |
//! | [`workload`], [`acceptance`] | what is decoded, and how often drafts are right |
//! | [`forecast`] | tokens per second and utilisation of a plan, and where the time goes |
//! | [`formula`], [`stop`] | expected speed-up in closed form, and whether one more drafted token pays |
//!
//! A forecast comes of rehearsing the plan: the real scheduler decodes the workload's texts, and each of its jobs takes the
//! time that the model gives it (`outrider-pipeline`, `rehearsal`). The closed forms say the same where everything is even.
//!
//! *Invariant:* times are whole nanoseconds and forecasts integers; the formulas are sums, products and quotients of 64-bit
//! floats, which are rounded alike on every machine. Ties break alike everywhere.

pub mod acceptance;
pub mod class;
pub mod forecast;
pub mod formula;
pub mod middle;
pub mod model;
pub mod profile;
pub mod stop;
pub mod times;
pub mod workload;

pub use acceptance::Acceptance;
pub use class::UnitClass;
pub use forecast::{Forecast, Share};
pub use formula::Costs;
pub use middle::middle;
pub use model::{Contention, CostModel, ForecastError, Link};
pub use profile::{
    AroundJobs, LinkProfile, MemoryDomain, PartsProfile, ProfileError, RoleProfile, TimeTable,
    UnitProfile,
};
pub use times::{
    Before, DRAFT_ROWS_MAX, DraftShape, PassShape, Piece, PlanTimes, Purpose, StageTimes,
};
pub use workload::{Guess, SampleText, Workload};
