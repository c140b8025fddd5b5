//! What operators and their programs ask: health, metrics, version, units, open requests.

use std::sync::OnceLock;

use actix_web::{HttpResponse, Responder, web};
use outrider_devices::discovery;
use serde::Serialize;
use serde_json::Value;
use utoipa::ToSchema;

use super::document::Refusals;
use super::error::ServeError;
use super::open_requests::{OpenRequests, RequestEntry};
use crate::engine::Engine;

/// A state, and what is behind it.
#[derive(Serialize, ToSchema)]
pub(super) struct StatusAnswer {
    /// `ok`, or `unavailable`.
    status: &'static str,
    /// Why not.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    reason: Option<String>,
}

/// What runs.
#[derive(Serialize, ToSchema)]
pub(super) struct VersionAnswer {
    /// The program.
    name: &'static str,
    /// Its version.
    version: &'static str,
    /// What it was built for, such as `x86_64-linux`.
    target: String,
}

/// Models that are served.
#[derive(Serialize, ToSchema)]
pub(super) struct ModelList {
    /// `list`.
    object: &'static str,
    /// The models; there is one.
    data: Vec<ModelEntry>,
}

/// A model that is served.
#[derive(Serialize, ToSchema)]
pub(super) struct ModelEntry {
    /// Its name in requests.
    id: String,
    /// `model`.
    object: &'static str,
    /// When the service loaded it, seconds since 1970.
    created: u64,
    /// `outrider`.
    owned_by: &'static str,
    /// Most tokens of a prompt and its answer together.
    context_length: usize,
    /// The model that drafts for it.
    draft: Option<String>,
}

/// The machine, and what the plan does with it.
#[derive(Serialize, ToSchema)]
pub(super) struct DevicesAnswer {
    /// What was found: processors, clusters, memory, limits, and what is not known.
    #[schema(value_type = Object)]
    machine: Value,
    /// The units of the running plan.
    units: Vec<UnitEntry>,
    /// Name of the running plan.
    plan: String,
}

/// A unit of the running plan.
#[derive(Serialize, ToSchema)]
pub(super) struct UnitEntry {
    /// Its name in the plan.
    unit: String,
    /// `cpu`, `gpu`, `reference` or `sim`.
    kind: String,
    /// What runs there, such as `target[0..8]`.
    stages: Vec<String>,
}

/// Requests that are open.
#[derive(Serialize, ToSchema)]
pub(super) struct RequestsAnswer {
    /// By id.
    requests: Vec<RequestEntry>,
}

/// What was ended.
#[derive(Serialize, ToSchema)]
pub(super) struct CancelAnswer {
    /// The id that was given.
    id: String,
    /// Texts that were being written for it.
    cancelled: usize,
}

/// Whether requests can be served: the service lives, and some unit can run the target.
#[utoipa::path(
    get, path = "/health", tag = "operations",
    responses(
        (status = 200, description = "It can.", body = StatusAnswer),
        (status = 503, description = "It cannot.", body = StatusAnswer),
    )
)]
pub(super) async fn health(engine: web::Data<Engine>) -> HttpResponse {
    status(engine.health().await)
}

/// Whether a request that is sent now would be taken: as `/health`, and the service is not about to stop.
#[utoipa::path(
    get, path = "/ready", tag = "operations",
    responses(
        (status = 200, description = "It would.", body = StatusAnswer),
        (status = 503, description = "It would not.", body = StatusAnswer),
    )
)]
pub(super) async fn ready(engine: web::Data<Engine>) -> HttpResponse {
    status(engine.ready().await)
}

fn status(state: Result<(), String>) -> HttpResponse {
    match state {
        Ok(()) => HttpResponse::Ok().json(StatusAnswer { status: "ok", reason: None }),
        Err(reason) => HttpResponse::ServiceUnavailable()
            .insert_header(("retry-after", "5"))
            .json(StatusAnswer { status: "unavailable", reason: Some(reason) }),
    }
}

/// What runs.
#[utoipa::path(
    get, path = "/version", tag = "operations",
    responses((status = 200, description = "The program.", body = VersionAnswer))
)]
pub(super) async fn version() -> impl Responder {
    web::Json(VersionAnswer {
        name: "outrider",
        version: env!("CARGO_PKG_VERSION"),
        target: format!("{}-{}", std::env::consts::ARCH, std::env::consts::OS),
    })
}

/// All metrics in Prometheus's text format.
#[utoipa::path(
    get, path = "/metrics", tag = "operations",
    responses((status = 200, description = "The metrics.", body = String, content_type = "text/plain"), Refusals)
)]
pub(super) async fn metrics(engine: web::Data<Engine>) -> HttpResponse {
    HttpResponse::Ok()
        .content_type("text/plain; version=0.0.4; charset=utf-8")
        .body(engine.render_metrics().await)
}

fn model(engine: &Engine) -> ModelEntry {
    ModelEntry {
        id: engine.model_name().to_owned(),
        object: "model",
        created: engine.started_at_s(),
        owned_by: "outrider",
        context_length: engine.context_length(),
        draft: engine.draft_name(),
    }
}

/// The models that are served.
#[utoipa::path(
    get, path = "/v1/models", tag = "inference",
    responses((status = 200, description = "The models.", body = ModelList), Refusals)
)]
pub(super) async fn models(engine: web::Data<Engine>) -> impl Responder {
    web::Json(ModelList { object: "list", data: vec![model(&engine)] })
}

/// One model that is served.
#[utoipa::path(
    get, path = "/v1/models/{model}", tag = "inference",
    params(("model" = String, Path, description = "The model's name.")),
    responses((status = 200, description = "The model.", body = ModelEntry), Refusals)
)]
pub(super) async fn one_model(
    engine: web::Data<Engine>,
    name: web::Path<String>,
) -> Result<web::Json<ModelEntry>, ServeError> {
    if *name != engine.model_name() {
        return Err(ServeError::no_model(&name, engine.model_name()));
    }
    Ok(web::Json(model(&engine)))
}

/// The machine's compute units, and what the running plan does on each.
#[utoipa::path(
    get, path = "/v1/devices", tag = "operations",
    responses((status = 200, description = "The units.", body = DevicesAnswer), Refusals)
)]
pub(super) async fn devices(
    engine: web::Data<Engine>,
    machine: web::Data<OnceLock<Value>>,
) -> Result<web::Json<DevicesAnswer>, ServeError> {
    // The machine does not change; looking at it opens files and drivers, so it is done once and off this thread.
    let found = web::block(move || {
        let read = || serde_json::to_value(discovery::Machine::here()).unwrap_or_default();
        machine.get_or_init(read).clone()
    });
    let machine = found.await.map_err(|_| ServeError::ended())?;
    let plan = engine.plan();
    let entry = |(unit, spec): (&outrider_plans::UnitId, &outrider_plans::UnitSpec)| {
        let here = plan.stages.iter().filter(|placement| placement.unit == *unit);
        UnitEntry {
            unit: unit.to_string(),
            kind: spec.kind().to_string(),
            stages: here.map(|placement| placement.stage.to_string()).collect(),
        }
    };
    let units = plan.units.iter().map(entry).collect();
    Ok(web::Json(DevicesAnswer { machine, units, plan: plan.name.clone() }))
}

/// The requests whose answers are being written or wait to be.
#[utoipa::path(
    get, path = "/v1/requests", tag = "operations",
    responses((status = 200, description = "The open requests.", body = RequestsAnswer), Refusals)
)]
pub(super) async fn requests(open: web::Data<OpenRequests>) -> impl Responder {
    web::Json(RequestsAnswer { requests: open.list() })
}

/// Ends a request. Its client is told so.
#[utoipa::path(
    delete, path = "/v1/requests/{id}", tag = "operations",
    params(("id" = String, Path, description = "The answer's `id`, or the request's `x-request-id`.")),
    responses((status = 200, description = "It was ended.", body = CancelAnswer), Refusals)
)]
pub(super) async fn cancel(
    engine: web::Data<Engine>,
    open: web::Data<OpenRequests>,
    id: web::Path<String>,
) -> Result<web::Json<CancelAnswer>, ServeError> {
    let mut cancelled = 0;
    for sequence in open.sequences(&id) {
        cancelled += usize::from(engine.cancel(sequence).await);
    }
    if cancelled == 0 {
        return Err(ServeError::NotFound(format!("there is no open request `{id}`")));
    }
    Ok(web::Json(CancelAnswer { id: id.into_inner(), cancelled }))
}
