//! `outrider serve`: loads, listens, and ends in order on SIGTERM or SIGINT. SIGHUP reads the plan file again.

use std::path::PathBuf;

use std::time::Duration;

use clap::Args;
use tracing::info;

use super::plan_file::{self, Watch};
use super::{CliError, Selection, in_system};
use crate::engine::Engine;
use crate::gateway::{self, GatewayOptions};
use crate::planner::{self, Planner, Policy};

/// How often samples of the metrics are moved into their buckets.
const METRICS_UPKEEP: Duration = Duration::from_secs(5);

/// How to serve.
#[derive(Args, Debug)]
pub(super) struct ServeArguments {
    #[command(flatten)]
    selection: Selection,
    /// Address to listen on. Anything but a loopback address lets other machines in: there is no key yet.
    #[arg(long, value_name = "ADDRESS", env = "OUTRIDER_HOST", default_value = "127.0.0.1")]
    host: String,
    /// Port to listen on; 0 lets the system choose one.
    #[arg(long, value_name = "PORT", env = "OUTRIDER_PORT", default_value_t = 8080)]
    port: u16,
    /// Largest request body, bytes.
    #[arg(long, value_name = "BYTES", env = "OUTRIDER_BODY_BYTES_MAX", default_value_t = 1 << 20)]
    body_bytes_max: usize,
    /// Look at the plan file once a second and run what it says whenever it has changed. Needs --plan with a file.
    #[arg(long, env = "OUTRIDER_WATCH", requires = "plan")]
    watch: bool,
    /// What the planner does with a plan that would be faster: auto runs it, advise says so in the log, off does neither. Works
    /// where a calibration holds.
    #[arg(long, value_name = "POLICY", env = "OUTRIDER_PLANNER", default_value_t)]
    planner: Policy,
    /// How long open requests may take to end after SIGTERM, seconds.
    #[arg(long, value_name = "S", env = "OUTRIDER_DRAIN_S", default_value_t = 30)]
    drain_s: u64,
}

#[expect(clippy::print_stderr, reason = "the command's own output")]
pub(super) fn run(arguments: ServeArguments) -> Result<(), CliError> {
    in_system(async move {
        let (tap, timings) = crossbeam_channel::bounded(planner::TIMINGS_MAX);
        let engine = arguments.selection.engine_watched(Some(tap)).await?;
        if let Some(foresight) = arguments.selection.foresight() {
            let planner = Planner::new(foresight, (*engine.plan()).clone());
            let watch = planner::watch(engine.clone(), timings, (planner, arguments.planner));
            actix::spawn(watch);
        }
        let options = GatewayOptions {
            host: arguments.host,
            port: arguments.port,
            body_bytes_max: arguments.body_bytes_max,
            drain_s: arguments.drain_s,
        };
        actix_web::rt::spawn(upkeep(engine.clone()));
        let (server, addresses) = gateway::listen(engine.clone(), &options).map_err(|error| {
            format!("cannot listen on {}:{}: {error}", options.host, options.port)
        })?;
        for address in addresses {
            eprintln!(
                "serving {} at http://{address} with plan {} ({})",
                engine.model_name(),
                engine.plan().name,
                engine.plan().fingerprint()
            );
        }
        let file = arguments.selection.plan.map(PathBuf::from).filter(|file| file.is_file());
        if arguments.watch && file.is_none() {
            return Err("--watch needs --plan with a file; a shipped plan does not change".into());
        }
        if let Some(file) = file {
            let watch = if arguments.watch { Watch::EverySecond } else { Watch::OnHangUp };
            actix::spawn(plan_file::follow(engine.clone(), file, watch));
        }
        server.await?;
        info!("stopped listening; open requests have ended");
        engine.stop();
        Ok(())
    })
}

async fn upkeep(engine: Engine) {
    let mut turns = tokio::time::interval(METRICS_UPKEEP);
    loop {
        turns.tick().await;
        engine.tidy_metrics();
    }
}
