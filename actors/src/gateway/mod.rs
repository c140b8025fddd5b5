//! HTTP: the OpenAI routes, health and metrics.
//!
//! *Invariant:* handlers check and word; all work is behind [`Engine`]. A client that leaves drops its event stream,
//! which cancels its request within the round.

mod answer;
mod ask;
mod error;
mod openai;
mod plan;

use std::time::Instant;

use actix_web::body::MessageBody;
use actix_web::dev::{ServiceRequest, ServiceResponse};
use actix_web::error::JsonPayloadError;
use actix_web::middleware::{Next, from_fn};
use actix_web::{App, HttpRequest, HttpResponse, HttpServer, ResponseError, web};
use outrider_observability::HttpMethod;
use serde_json::json;

pub use answer::wire_timings;
pub use error::ServeError;
pub use openai::WireTimings;

use crate::engine::Engine;
use answer::Dialect;
use openai::{ChatRequest, CompletionRequest};

/// How the gateway listens.
#[derive(Clone, Debug)]
pub struct GatewayOptions {
    /// Address to bind, such as `127.0.0.1`.
    pub host: String,
    /// Port to bind; 0 lets the system choose.
    pub port: u16,
    /// Largest body of a request, bytes.
    pub body_bytes_max: usize,
    /// How long open requests may take to end after a termination signal, seconds.
    pub drain_s: u64,
}

/// Starts listening. The server ends by itself on SIGTERM and SIGINT, after open requests have ended.
pub fn listen(
    engine: Engine,
    options: &GatewayOptions,
) -> std::io::Result<(actix_web::dev::Server, Vec<std::net::SocketAddr>)> {
    let body_bytes_max = options.body_bytes_max;
    let server = HttpServer::new(move || {
        App::new()
            .app_data(web::Data::new(engine.clone()))
            .app_data(
                web::JsonConfig::default()
                    .limit(body_bytes_max)
                    .content_type_required(false)
                    .error_handler(|error, _| body_error(&error).into()),
            )
            .wrap(from_fn(measured))
            .configure(routes)
    })
    .workers(1)
    .shutdown_timeout(options.drain_s)
    .bind((options.host.as_str(), options.port))?;
    let addresses = server.addrs();
    Ok((server.run(), addresses))
}

/// The paths that are served, which are also their labels in the metrics.
const PATHS: [&str; 9] = [
    "/v1/chat/completions",
    "/v1/completions",
    "/v1/models",
    "/health",
    "/metrics",
    "/v1/plan",
    "/v1/plan/history",
    "/v1/plan/rollback",
    "/v1/timeline",
];

/// The table of routes. Each path knows its methods; another method is answered 405 with those allowed.
fn routes(config: &mut web::ServiceConfig) {
    let resource = |path: &'static str| web::resource(path).default_service(web::to(wrong_method));
    let [chat, completion, listing, healthy, measured, ..] = PATHS;
    let [.., running, earlier, back, timeline] = PATHS;
    config
        .service(resource(chat).route(web::post().to(chat_completions)))
        .service(resource(completion).route(web::post().to(completions)))
        .service(resource(listing).route(web::get().to(models)))
        .service(resource(healthy).route(web::get().to(health)))
        .service(resource(measured).route(web::get().to(metrics)))
        .service(resource(running).route(web::get().to(plan::show)).route(web::put().to(plan::put)))
        .service(resource(earlier).route(web::get().to(plan::history)))
        .service(resource(back).route(web::post().to(plan::rollback)))
        .service(resource(timeline).route(web::get().to(plan::timeline)))
        .default_service(web::to(no_route));
}

async fn chat_completions(
    engine: web::Data<Engine>,
    request: web::Json<ChatRequest>,
) -> Result<HttpResponse, ServeError> {
    let ask = ask::chat(request.into_inner(), &engine)?;
    answer::answer(&engine, Dialect::Chat, ask).await
}

async fn completions(
    engine: web::Data<Engine>,
    request: web::Json<CompletionRequest>,
) -> Result<HttpResponse, ServeError> {
    let ask = ask::completion(request.into_inner(), &engine)?;
    answer::answer(&engine, Dialect::Completion, ask).await
}

async fn models(engine: web::Data<Engine>) -> HttpResponse {
    HttpResponse::Ok().json(json!({"object": "list", "data": [{
        "id": engine.model_name(),
        "object": "model",
        "created": engine.started_at_s(),
        "owned_by": "outrider",
        "context_length": engine.context_length(),
        "draft": engine.draft_name(),
    }]}))
}

async fn health(engine: web::Data<Engine>) -> HttpResponse {
    match engine.health().await {
        Ok(()) => HttpResponse::Ok().json(json!({"status": "ok"})),
        Err(reason) => HttpResponse::ServiceUnavailable()
            .json(json!({"status": "unavailable", "reason": reason})),
    }
}

async fn metrics(engine: web::Data<Engine>) -> HttpResponse {
    HttpResponse::Ok()
        .content_type("text/plain; version=0.0.4; charset=utf-8")
        .body(engine.render_metrics().await)
}

async fn no_route(request: HttpRequest) -> HttpResponse {
    ServeError::NotFound(format!("there is no route {}", request.path())).error_response()
}

async fn wrong_method(request: HttpRequest) -> HttpResponse {
    let (method, path) = (request.method(), request.path());
    ServeError::MethodNotAllowed(format!("{path} does not take {method}")).error_response()
}

fn body_error(error: &JsonPayloadError) -> ServeError {
    match error {
        JsonPayloadError::Overflow { limit } => {
            ServeError::TooLarge(format!("the body is larger than the {limit} bytes allowed"))
        }
        JsonPayloadError::OverflowKnownLength { length, limit } => ServeError::TooLarge(format!(
            "the body has {length} bytes, more than the {limit} allowed"
        )),
        other => ServeError::BadRequest {
            message: format!("the body is not a valid request: {other}"),
            param: None,
        },
    }
}

/// Counts and times each HTTP request under the path of its route, so that labels stay bounded.
async fn measured(
    request: ServiceRequest,
    next: Next<impl MessageBody>,
) -> Result<ServiceResponse<impl MessageBody>, actix_web::Error> {
    let started = Instant::now();
    let method = HttpMethod::from(request.method().as_str());
    let pattern = request.match_pattern();
    let known = PATHS.iter().find(|path| pattern.as_deref() == Some(**path));
    let path = known.copied().unwrap_or("other");
    let engine = request.app_data::<web::Data<Engine>>().cloned();
    let response = next.call(request).await;
    if let Some(engine) = engine {
        let status = match &response {
            Ok(response) => response.status(),
            Err(error) => error.as_response_error().status_code(),
        };
        engine.http_metrics().answered(method, path, status.as_u16(), started.elapsed());
    }
    response
}
