//! `outrider serve`: loads, listens, and ends in order on SIGTERM or SIGINT. SIGHUP reads the plan file again.
//!
//! *Invariant:* no door is open by mistake: beyond loopback it needs a key, or the operator's word that it needs none.

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use actix_web::dev::ServerHandle;
use clap::{ArgAction, Args};
use outrider_pipeline::Guarding;
use tokio::signal::unix::{SignalKind, signal};
use tracing::{info, warn};

use super::calibrate;
use super::logging::LogArguments;
use super::plan_file::{self, Watch};
use super::{CliError, OwnUnits, Selection, in_system};
use crate::gateway::{self, GatewayOptions, Keys};
use crate::notify::Notifier;
use crate::office::Office;
use crate::planner::{self, Planner, Policy};

/// How often samples are moved into their histograms.
const UPKEEP: Duration = Duration::from_secs(5);

/// How to serve.
#[derive(Args, Debug)]
pub(super) struct ServeArguments {
    #[command(flatten)]
    pub(super) selection: Selection,
    /// Address to listen on. Beyond loopback a key is needed.
    #[arg(long, value_name = "ADDRESS", env = "OUTRIDER_HOST", default_value = "127.0.0.1")]
    pub(super) host: String,
    /// Port to listen on; 0 lets the system choose one.
    #[arg(long, value_name = "PORT", env = "OUTRIDER_PORT", default_value_t = 8080)]
    pub(super) port: u16,
    /// Listen beyond loopback without a key: everybody who reaches the port may use it.
    #[arg(long, env = "OUTRIDER_OPEN", num_args = 0..=1, default_missing_value = "true")]
    #[arg(default_value_t = false, action = ArgAction::Set, value_name = "YES")]
    open: bool,
    /// Keys that open inference, separated by commas. Others on the machine can see a command line: prefer the file.
    #[arg(long, value_name = "KEYS", env = "OUTRIDER_API_KEY", value_delimiter = ',')]
    #[arg(hide_env_values = true)]
    api_key: Vec<String>,
    /// File with keys that open inference, one a line.
    #[arg(long, value_name = "FILE", env = "OUTRIDER_API_KEY_FILE")]
    api_key_file: Option<PathBuf>,
    /// Key that opens everything; without one, a service with API keys has its operations routes closed.
    #[arg(long, value_name = "KEY", env = "OUTRIDER_ADMIN_KEY", hide_env_values = true)]
    admin_key: Option<String>,
    /// File with the admin key.
    #[arg(long, value_name = "FILE", env = "OUTRIDER_ADMIN_KEY_FILE")]
    admin_key_file: Option<PathBuf>,
    /// Origins whose pages may read answers, separated by commas; `*` stands for all. Default: none.
    #[arg(long, value_name = "ORIGINS", env = "OUTRIDER_CORS_ORIGIN", value_delimiter = ',')]
    cors_origin: Vec<String>,
    /// Largest request body, bytes.
    #[arg(long, value_name = "BYTES", env = "OUTRIDER_BODY_BYTES_MAX", default_value_t = 1 << 20)]
    body_bytes_max: usize,
    /// Largest request head, bytes.
    #[arg(long, value_name = "BYTES", env = "OUTRIDER_HEAD_BYTES_MAX", default_value_t = 16 << 10)]
    head_bytes_max: usize,
    /// Connections at one time; more wait to be accepted.
    #[arg(long, value_name = "N", env = "OUTRIDER_CONNECTIONS", default_value_t = 1024)]
    #[arg(value_parser = clap::value_parser!(u64).range(1..))]
    connections: u64,
    /// Longest time that a request may take, waiting included, seconds.
    #[arg(long, value_name = "S", env = "OUTRIDER_DEADLINE_S", default_value_t = 600)]
    #[arg(value_parser = clap::value_parser!(u64).range(1..=86_400))]
    deadline_s: u64,
    /// Look at the plan file once a second and run what it says whenever it has changed. Needs a plan that is a file.
    #[arg(long, env = "OUTRIDER_WATCH", num_args = 0..=1, default_missing_value = "true")]
    #[arg(default_value_t = false, action = ArgAction::Set, value_name = "YES")]
    watch: bool,
    /// What the planner does with a plan that would be faster: auto runs it, advise says so in the log, off does neither. Works
    /// where a calibration holds.
    #[arg(long, value_name = "POLICY", env = "OUTRIDER_PLANNER", default_value_t)]
    planner: Policy,
    /// Switch drafts off while they bring less than the target alone would, also with a fixed depth; without it a fixed depth is
    /// drafted whatever it costs.
    #[arg(long, env = "OUTRIDER_GUARD", num_args = 0..=1, default_missing_value = "true")]
    #[arg(default_value_t = true, action = ArgAction::Set, value_name = "YES")]
    guard: bool,
    /// Calibrate anew before requests are taken where the kept calibration is stale: after an update of the program, the driver
    /// or a model. Takes half a minute.
    #[arg(long, env = "OUTRIDER_RECALIBRATE", num_args = 0..=1, default_missing_value = "true")]
    #[arg(default_value_t = false, action = ArgAction::Set, value_name = "YES")]
    recalibrate: bool,
    /// How long open requests may take to end after SIGTERM, seconds.
    #[arg(long, value_name = "S", env = "OUTRIDER_DRAIN_S", default_value_t = 30)]
    drain_s: u64,
    #[command(flatten)]
    pub(super) log: LogArguments,
}

/// Why the service does not open its door.
#[derive(Debug, thiserror::Error)]
enum DoorError {
    #[error(
        "{host} lets other machines in, and there is no key: give one with --api-key-file FILE, or say --open if \
         everybody who reaches the port may use it"
    )]
    Unguarded { host: String },
    #[error("cannot read the keys in {}: {source}", file.display())]
    Unreadable { file: PathBuf, source: std::io::Error },
    #[error("{} holds {found} keys, but {wanted}", file.display())]
    Count { file: PathBuf, found: usize, wanted: &'static str },
    #[error("a key is empty or holds a space: keys are sent in a header, as one word")]
    Key,
    #[error(
        "`{0}` is not an origin as browsers send it: write scheme, host and port alone, such as https://app.example, or * for \
         all"
    )]
    Origin(String),
    #[error("--watch needs --plan with a file; a shipped plan does not change")]
    Watch,
}

impl ServeArguments {
    /// Files that hold keys.
    pub(super) fn key_files(&self) -> impl Iterator<Item = &Path> {
        self.api_key_file.iter().chain(&self.admin_key_file).map(PathBuf::as_path)
    }

    /// How the gateway is to listen.
    pub(super) fn gateway(&self) -> Result<GatewayOptions, CliError> {
        let keys = self.keys()?;
        if !keys.guard_inference() && !self.open && !is_loopback(&self.host) {
            return Err(DoorError::Unguarded { host: self.host.clone() }.into());
        }
        if let Some(wrong) = self.cors_origin.iter().find(|origin| !is_origin(origin)) {
            return Err(DoorError::Origin(wrong.clone()).into());
        }
        if self.watch && self.plan_file().is_none() {
            return Err(DoorError::Watch.into());
        }
        Ok(GatewayOptions {
            host: self.host.clone(),
            port: self.port,
            keys,
            cors_origins: self.cors_origin.clone(),
            body_bytes_max: self.body_bytes_max,
            head_bytes_max: self.head_bytes_max,
            connections_max: self.connections as usize,
            deadline: Duration::from_secs(self.deadline_s),
            drain_s: self.drain_s,
        })
    }

    /// The plan's file, if it is not a shipped one.
    fn plan_file(&self) -> Option<PathBuf> {
        self.selection.plan.as_ref().map(PathBuf::from).filter(|file| file.is_file())
    }

    fn keys(&self) -> Result<Keys, DoorError> {
        let mut api = self.api_key.clone();
        if let Some(file) = &self.api_key_file {
            let found = keys_in(file)?;
            if found.is_empty() {
                let wanted = "at least one is needed, on a line of its own";
                return Err(DoorError::Count { file: file.clone(), found: 0, wanted });
            }
            api.extend(found);
        }
        let mut admin = self.admin_key.clone();
        if let Some(file) = &self.admin_key_file {
            let mut found = keys_in(file)?;
            if found.len() != 1 {
                let wanted = "the admin key is one";
                return Err(DoorError::Count { file: file.clone(), found: found.len(), wanted });
            }
            admin = found.pop();
        }
        let wrong = |key: &String| key.is_empty() || !key.bytes().all(|b| b.is_ascii_graphic());
        if api.iter().chain(&admin).any(wrong) {
            return Err(DoorError::Key);
        }
        Ok(Keys { api, admin })
    }
}

/// Whether a browser could name itself so: `*` stands for all.
fn is_origin(text: &str) -> bool {
    let host = text.strip_prefix("http://").or_else(|| text.strip_prefix("https://"));
    text == "*" || host.is_some_and(|host| !host.is_empty() && !host.contains(['/', '?', '#', ' ']))
}

/// Whether only this machine can reach an address.
fn is_loopback(host: &str) -> bool {
    host == "localhost" || host.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
}

/// The keys of a file: one a line; empty lines and those that begin with `#` are none.
fn keys_in(file: &Path) -> Result<Vec<String>, DoorError> {
    let text = std::fs::read_to_string(file);
    let text = text.map_err(|source| DoorError::Unreadable { file: file.to_owned(), source })?;
    let lines = text.lines().map(str::trim);
    Ok(lines.filter(|l| !l.is_empty() && !l.starts_with('#')).map(str::to_owned).collect())
}

#[expect(clippy::print_stderr, reason = "the command's own output")]
pub(super) fn run(arguments: ServeArguments, units: OwnUnits) -> Result<(), CliError> {
    let options = arguments.gateway()?;
    in_system(async move {
        if arguments.recalibrate {
            calibrate::refresh(&arguments.selection).await?;
        }
        let (tap, timings) = crossbeam_channel::bounded(planner::TIMINGS_MAX);
        let foresight = arguments.selection.foresight();
        let guarding = if arguments.guard { Guarding::On } else { Guarding::Off };
        let office = arguments.selection.office(units, (tap, guarding)).await?;
        let office = office.with_foresight(foresight.clone());
        let engine = office.engine();
        if let Some(foresight) = foresight {
            let planner = Planner::new(foresight, (*engine.plan()).clone());
            let watch = planner::watch(office.clone(), timings, (planner, arguments.planner));
            actix::spawn(watch);
        }
        let (server, addresses) = gateway::listen(office.clone(), &options).map_err(|error| {
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
        info!(keys = ?options.keys, "listening");
        drop(engine);
        actix::spawn(keep_up(office.clone()));
        actix::spawn(end_in_order(office.clone(), server.handle()));
        if let Some(file) = arguments.plan_file() {
            let watch = if arguments.watch { Watch::EverySecond } else { Watch::OnHangUp };
            actix::spawn(plan_file::follow(office.clone(), file, watch));
        }
        server.await?;
        info!("stopped listening; open requests have ended");
        office.stop();
        Ok(())
    })
}

/// Keeps the metrics small, and tells systemd that the engine answers.
async fn keep_up(office: Office) {
    let notifier = Notifier::from_env();
    notifier.ready();
    let watchdog = async {
        let Some(interval) = notifier.interval() else { return std::future::pending().await };
        let mut tick = tokio::time::interval(interval);
        loop {
            tick.tick().await;
            // A coordinator that does not answer leaves systemd without news, which then starts the service again.
            if tokio::time::timeout(interval, office.engine().answers()).await.unwrap_or(false) {
                notifier.alive();
            }
        }
    };
    let upkeep = async {
        let mut tick = tokio::time::interval(UPKEEP);
        loop {
            tick.tick().await;
            office.engine().tidy_metrics();
        }
    };
    tokio::join!(watchdog, upkeep);
}

/// The first signal ends the service after its open requests, a second one at once.
async fn end_in_order(office: Office, server: ServerHandle) {
    let signals = (signal(SignalKind::terminate()), signal(SignalKind::interrupt()));
    let (Ok(mut terminate), Ok(mut interrupt)) = signals else {
        warn!("signals cannot be heard: the service will not end in order");
        return;
    };
    let mut hear = async || {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    };
    hear().await;
    info!("ending: no more requests are taken");
    Notifier::from_env().stopping();
    office.drain().await;
    tokio::select! {
        () = server.stop(true) => {}
        () = hear() => {
            warn!("ending at once: open requests are cut off");
            server.stop(false).await;
        }
    }
}
