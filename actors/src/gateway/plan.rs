//! The running plan over HTTP: looked at, changed, changed back.
//!
//! *Invariant:* a plan is checked before it is proposed, and a proposal says which generation it was made for if its
//! sender cares; nothing here decides whether a swap is done.

use std::time::Duration;

use actix_web::http::StatusCode;
use actix_web::{HttpRequest, HttpResponse, web};
use outrider_plans::swap::Forecasted;
use outrider_plans::{Forecast, PartitionPlan, PlanEpoch, Proposal, Reason, SwapError, SwapReport};
use serde::Deserialize;
use serde_json::{Map, Value, json};
use utoipa::IntoParams;

use super::document::Refusals;
use super::error::ServeError;
use crate::engine::{Engine, PlanTextError};
use crate::office::Office;
use crate::supervisor::HistoryEntry;

/// What goes with a plan, in the query or beside the plan's own keys in a JSON body.
#[derive(Clone, Copy, Debug, Default, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
pub(super) struct Conditions {
    /// Refuse unless this generation is running.
    expected_generation: Option<u64>,
    /// Only say what would happen.
    #[serde(default)]
    dry_run: bool,
}

/// How much of the timeline to show.
#[derive(Clone, Copy, Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
pub(super) struct Window {
    /// So many milliseconds before the newest job's end; everything that is remembered, if left out.
    last_ms: Option<u32>,
}

/// The running plan, as data, as TOML and in words.
#[utoipa::path(
    get, path = "/v1/plan", tag = "operations",
    responses((status = 200, description = "The plan.", body = Object), Refusals)
)]
pub(super) async fn show(engine: web::Data<Engine>) -> Result<HttpResponse, ServeError> {
    let view = engine.plan_view();
    let mut body = described(&view.plan)?;
    body["generation"] = json!(view.epoch);
    body["explanation"] = json!(view.plan.to_string());
    body["units_given_up"] = json!(view.gone);
    let draft = view.pair.draft.as_ref().map(|draft| draft.name());
    body["models"] = json!({"target": view.pair.target.name(), "draft": draft});
    Ok(HttpResponse::Ok().json(body))
}

/// Runs another plan while requests go on, or says what that would lead to.
#[utoipa::path(
    put, path = "/v1/plan", tag = "operations", params(Conditions),
    request_body(
        description = "The plan.",
        content((String = "application/toml"), (Object = "application/json"))
    ),
    responses((status = 200, description = "What was done, or would be.", body = Object), Refusals)
)]
pub(super) async fn put(
    office: web::Data<Office>,
    engine: web::Data<Engine>,
    request: HttpRequest,
    query: web::Query<Conditions>,
    body: web::Bytes,
) -> Result<HttpResponse, ServeError> {
    let text = std::str::from_utf8(&body).map_err(|_| wrong("the plan is not UTF-8 text"))?;
    let is_json = request
        .headers()
        .get("content-type")
        .is_some_and(|kind| kind.to_str().is_ok_and(|kind| kind.starts_with("application/json")));
    let (text, conditions) =
        if is_json { from_json(text, *query)? } else { (text.to_owned(), *query) };
    let plan = engine.read_plan(&text, None).await.map_err(|error| match error {
        // A place in text that was made from JSON means nothing to its sender.
        PlanTextError::Plan(error) if is_json => wrong(&error.problem.to_string()),
        error => wrong(&error.to_string()),
    })?;
    let expected = conditions.expected_generation.map(PlanEpoch);
    let proposal = Proposal { plan, expected, reason: Reason::Operator };
    if conditions.dry_run {
        let forecasted = engine.preview(proposal.clone()).await?;
        let mut body = foreseen(&proposal.plan, &forecasted)?;
        body["forecast"] = compared(&office, &engine.plan(), &proposal.plan).await;
        return Ok(HttpResponse::Ok().json(body));
    }
    Ok(HttpResponse::Ok().json(reported(&engine.propose(proposal).await?)))
}

/// The plans that were proposed, and what came of each.
#[utoipa::path(
    get, path = "/v1/plan/history", tag = "operations",
    responses((status = 200, description = "The history.", body = Object), Refusals)
)]
pub(super) async fn history(engine: web::Data<Engine>) -> Result<HttpResponse, ServeError> {
    let view = engine.plan_view();
    let entries = view.history.iter().map(remembered).collect::<Result<Vec<_>, _>>()?;
    Ok(HttpResponse::Ok().json(json!({"generation": view.epoch, "history": entries})))
}

/// Runs the plan before this one again.
#[utoipa::path(
    post, path = "/v1/plan/rollback", tag = "operations",
    responses((status = 200, description = "What was done.", body = Object), Refusals)
)]
pub(super) async fn rollback(engine: web::Data<Engine>) -> Result<HttpResponse, ServeError> {
    Ok(HttpResponse::Ok().json(reported(&engine.roll_back().await?)))
}

/// The last jobs of every unit as a trace that Perfetto and Chrome open.
#[utoipa::path(
    get, path = "/v1/timeline", tag = "operations", params(Window),
    responses((status = 200, description = "The trace.", body = Object), Refusals)
)]
pub(super) async fn timeline(
    engine: web::Data<Engine>,
    window: web::Query<Window>,
) -> Result<HttpResponse, ServeError> {
    let last_us = window.last_ms.map(|last_ms| u64::from(last_ms) * 1000);
    // Thousands of events take a while to write: other answers go on meanwhile.
    let written = web::block(move || engine.timeline(last_us)).await;
    let trace = written.map_err(|error| ServeError::Failed(error.to_string()))?;
    Ok(HttpResponse::Ok().content_type("application/json").body(trace))
}

fn wrong(message: &str) -> ServeError {
    ServeError::BadRequest { message: message.to_owned(), param: Some("plan".to_owned()) }
}

/// A plan as the JSON twin of its TOML, with conditions beside its keys, which go before those of the query.
fn from_json(text: &str, query: Conditions) -> Result<(String, Conditions), ServeError> {
    let mut object: Map<String, Value> = serde_json::from_str(text)
        .map_err(|error| wrong(&format!("the plan is not a JSON object: {error}")))?;
    let mut conditions = Map::new();
    for key in ["expected_generation", "dry_run"] {
        conditions.extend(object.remove(key).map(|value| (key.to_owned(), value)));
    }
    let given: Conditions = serde_json::from_value(Value::Object(conditions))
        .map_err(|error| wrong(&format!("beside the plan: {error}")))?;
    let text = toml::to_string(&object).map_err(|error| wrong(&error.to_string()))?;
    let expected_generation = given.expected_generation.or(query.expected_generation);
    Ok((text, Conditions { expected_generation, dry_run: given.dry_run || query.dry_run }))
}

/// A plan as data, as text and by its names.
fn described(plan: &PartitionPlan) -> Result<Value, ServeError> {
    let text = plan.to_toml();
    let table: toml::Table =
        toml::from_str(&text).map_err(|error| ServeError::Failed(error.to_string()))?;
    Ok(json!({
        "name": plan.name,
        "id": plan.fingerprint(),
        "mode": plan.mode.kind(),
        "plan": table,
        "toml": text,
    }))
}

fn foreseen(plan: &PartitionPlan, forecasted: &Forecasted) -> Result<Value, ServeError> {
    let Forecasted { running, diff, memory, target, draft } = forecasted;
    let mut body = described(plan)?;
    body["dry_run"] = json!(true);
    body["generation"] = json!(running);
    body["diff"] = json!(diff);
    body["changes"] = json!(diff.to_string());
    body["memory"] = json!(memory);
    body["caches"] = json!({"target": target, "draft": draft});
    Ok(body)
}

/// How fast the plan and the running one are expected to be, or why nobody knows.
async fn compared(office: &Office, running: &PartitionPlan, plan: &PartitionPlan) -> Value {
    let speed = |forecast: Forecast| forecast.microtokens_per_second as f64 / 1e6;
    let both =
        async { Ok::<_, String>((office.forecast(plan).await?, office.forecast(running).await?)) };
    match both.await {
        Ok((plan, running)) => {
            json!({"tokens_per_second": speed(plan), "running_tokens_per_second": speed(running)})
        }
        Err(reason) => json!({ "unknown": reason }),
    }
}

fn reported(report: &SwapReport) -> Value {
    let mut body = json!(report);
    body["because"] = json!(report.reason.to_string());
    body
}

fn remembered(entry: &HistoryEntry) -> Result<Value, ServeError> {
    let HistoryEntry { at_s, plan, reason, took, result } = entry;
    let mut body = described(plan)?;
    body["at_s"] = json!(at_s);
    body["reason"] = json!(reason);
    body["because"] = json!(reason.to_string());
    body["took_ms"] = json!(millis(*took));
    match result {
        Ok(generation) => {
            body["result"] = json!("committed");
            body["generation"] = json!(generation);
        }
        Err(error) => {
            body["result"] = json!(if error.is_refusal() { "refused" } else { "failed" });
            body["error"] = json!(error.to_string());
        }
    }
    Ok(body)
}

fn millis(time: Duration) -> f64 {
    (time.as_secs_f64() * 1e6).round() / 1e3
}

/// Status and code of a swap that did not come to pass.
pub(super) fn status_of(error: &SwapError) -> (StatusCode, &'static str) {
    match error {
        SwapError::Conflict { .. } => (StatusCode::CONFLICT, "plan_conflict"),
        SwapError::NoEarlier => (StatusCode::CONFLICT, "no_earlier_plan"),
        SwapError::Busy => (StatusCode::CONFLICT, "swap_under_way"),
        SwapError::Memory { .. } => (StatusCode::UNPROCESSABLE_ENTITY, "does_not_fit"),
        SwapError::Install { .. } => (StatusCode::UNPROCESSABLE_ENTITY, "install_failed"),
        SwapError::Successor { .. } => (StatusCode::UNPROCESSABLE_ENTITY, "target_not_started"),
        SwapError::Rebuilding { .. } => (StatusCode::SERVICE_UNAVAILABLE, "unit_rebuilding"),
        SwapError::Warming { .. } => (StatusCode::SERVICE_UNAVAILABLE, "warming_failed"),
        SwapError::UnitLost { .. } => (StatusCode::SERVICE_UNAVAILABLE, "unit_lost"),
        SwapError::Ended => (StatusCode::SERVICE_UNAVAILABLE, "shutting_down"),
    }
}
