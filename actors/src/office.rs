//! Which engine takes new requests. Another target writes other text, so it has an engine of its own; the one before it
//! finishes what it has begun, on the target that it began on, and ends.
//!
//! ```text
//!   engine 1  ▇▇▇▇▇▇▇▇▇▇▇▇▇▇▇▇▇ its last requests ▏ ends with nobody holding it and nothing running
//!   engine 2          starts ▏▇▇▇▇▇▇▇▇▇▇▇▇▇▇▇▇▇▇▇▇▇▇▇▇▇▇▇▇▇▇▇▇▇▇▇▇▇▇▇▇▇▇▇▇
//!                            └─ from here on new requests are its own
//! ```
//!
//! *Invariant:* whoever handles a request asks once who holds the office and stays with that engine. An engine that has left
//! takes whatever such a handler still brings, and ends when no handler, no request and no stream is left.

use std::collections::VecDeque;
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use outrider_plans::{Forecast, PartitionPlan, PlanEpoch, Reason};
use tokio::sync::watch;
use tracing::{info, warn};

use crate::engine::{Engine, EngineError, EngineOptions, Standing};
use crate::foresight::Foresight;
use crate::library::Library;
use crate::supervisor::HistoryEntry;

/// How often an engine that has left is asked whether it is done.
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// A plan with another target, for the engine that is to run it.
#[derive(Clone, Debug)]
pub struct Succession {
    /// The plan.
    pub plan: PartitionPlan,
    /// Its number.
    pub epoch: PlanEpoch,
    /// Why it is to run.
    pub reason: Reason,
    /// When it was proposed.
    pub proposed: Instant,
    /// What ran before.
    pub history: VecDeque<HistoryEntry>,
}

/// Starts the engine of a plan and gives it all new requests.
pub type Successor =
    Arc<dyn Fn(Succession) -> Pin<Box<dyn Future<Output = Result<(), String>>>> + Send + Sync>;

/// Who takes new requests.
#[derive(Clone)]
pub struct Office {
    holder: Arc<watch::Sender<Engine>>,
    left: Arc<Mutex<Vec<Engine>>>,
    /// Forecasts for the models that the service was started with, if a calibration holds.
    foresight: Option<Arc<Foresight>>,
}

impl Office {
    /// Starts the first engine. Runs inside an actix system.
    ///
    /// # Errors
    /// As [`Engine::start`].
    pub async fn open(options: EngineOptions) -> Result<Self, EngineError> {
        let (known, office) = watch::channel(None::<Office>);
        let library = Library::new(options.pair.clone());
        let template = EngineOptions {
            standing: Standing { library: Some(library), ..Standing::default() },
            ..options
        };
        let successor: Successor = {
            let template = template.clone();
            Arc::new(move |succession| {
                let office = office.borrow().clone();
                let template = template.clone();
                Box::pin(async move {
                    // Nobody can ask for another target before the first engine is there.
                    let office = office.ok_or("the service is still starting")?;
                    office.hand_over(template, succession).await.map_err(|error| error.to_string())
                })
            })
        };
        let standing = Standing { successor: Some(successor), ..template.standing.clone() };
        let engine = Engine::start(EngineOptions { standing, ..template }).await?;
        let (holder, left) = (Arc::new(watch::Sender::new(engine)), Arc::default());
        let office = Self { holder, left, foresight: None };
        known.send_replace(Some(office.clone()));
        Ok(office)
    }

    /// With forecasts.
    pub fn with_foresight(self, foresight: Option<Foresight>) -> Self {
        Self { foresight: foresight.map(Arc::new), ..self }
    }

    /// What a plan is expected to yield. It takes a moment, on a thread that may wait.
    ///
    /// # Errors
    /// Why there is no forecast.
    pub async fn forecast(&self, plan: &PartitionPlan) -> Result<Forecast, String> {
        let uncalibrated =
            "no calibration of this machine with these models: run `outrider calibrate`";
        if !plan.models.are_the_first() {
            return Err(uncalibrated.to_owned());
        }
        let (foresight, plan) = (self.foresight.clone().ok_or(uncalibrated)?, plan.clone());
        let foreseen = tokio::task::spawn_blocking(move || foresight.forecast(&plan)).await;
        foreseen.map_err(|error| error.to_string())?.map_err(|error| error.to_string())
    }

    /// The engine for a request that comes now.
    pub fn engine(&self) -> Engine {
        self.holder.borrow().clone()
    }

    async fn hand_over(
        self,
        template: EngineOptions,
        succession: Succession,
    ) -> Result<(), EngineError> {
        let before = self.engine();
        let Succession { plan, epoch, reason, proposed, history } = succession;
        let standing = Standing {
            epoch,
            reason,
            proposed,
            history,
            successor: before.successor(),
            predecessor: Some(before.clone()),
            ..template.standing.clone()
        };
        let engine = Engine::start(EngineOptions { plan, standing, ..template }).await?;
        info!(target = engine.model_name(), %epoch, "another target takes the new requests");
        drop(before);
        let before = self.holder.send_replace(engine);
        self.left().push(before.clone());
        actix::spawn(self.clone().see_off(before));
        Ok(())
    }

    /// Ends an engine that has left, once it is done.
    async fn see_off(self, engine: Engine) {
        loop {
            tokio::time::sleep(LOOK_EVERY).await;
            // Held by this task and by the book of those who have left.
            if engine.holders() <= 2 && engine.is_idle().await {
                break;
            }
        }
        info!(target = engine.model_name(), "its last request has ended: the target is given up");
        self.left().retain(|left| !left.is(&engine));
        engine.dissolve().await;
        engine.stop();
    }

    fn left(&self) -> std::sync::MutexGuard<'_, Vec<Engine>> {
        self.left.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn all(&self) -> Vec<Engine> {
        self.left().iter().cloned().chain([self.engine()]).collect()
    }

    /// Takes no more requests from now on; open ones go on.
    pub async fn drain(&self) {
        for engine in self.all() {
            engine.drain().await;
        }
    }

    /// Ends all engines. Open requests end unanswered.
    pub fn stop(&self) {
        let left = self.all();
        if left.len() > 1 {
            warn!("requests of a target that has left are cut off");
        }
        left.iter().for_each(Engine::stop);
    }
}
