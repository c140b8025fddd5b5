//! HTTP: the OpenAI routes, text tools, operations.
//!
//! *Invariant:* handlers check and word; all work is behind [`Engine`]. A client that leaves drops its event stream,
//! which cancels its request within the round.

mod answer;
mod ask;
mod completion;
mod cross_origin;
mod document;
mod error;
mod inference;
mod keys;
mod letterhead;
mod logprobs;
mod open_requests;
mod openai;
mod operations;
mod page;
mod plan;
mod request_id;
mod routes;
mod words;

use std::rc::Rc;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use actix_web::body::{EitherBody, MessageBody};
use actix_web::dev::{Extensions, ServiceRequest, ServiceResponse};
use actix_web::error::JsonPayloadError;
use actix_web::middleware::{Next, from_fn};
use actix_web::{App, HttpRequest, HttpServer, ResponseError, web};
use outrider_observability::{HttpMethod, RejectionReason};
use serde_json::Value;
use tracing::{Instrument, info, info_span};

pub use completion::WireTimings;
pub use error::ServeError;
pub use keys::Keys;
pub use letterhead::wire_timings;

use crate::engine::Engine;
use crate::office::Office;
use cross_origin::Origins;
use open_requests::OpenRequests;
use request_id::{RequestIds, X_REQUEST_ID};

/// How the gateway listens.
#[derive(Clone, Debug)]
pub struct GatewayOptions {
    /// Address to bind, such as `127.0.0.1`.
    pub host: String,
    /// Port to bind; 0 lets the system choose.
    pub port: u16,
    /// Who may ask what.
    pub keys: Keys,
    /// Origins whose pages may read answers.
    pub cors_origins: Vec<String>,
    /// Largest body of a request, bytes.
    pub body_bytes_max: usize,
    /// Largest head of a request, bytes.
    pub head_bytes_max: usize,
    /// Connections at one time; more wait to be accepted.
    pub connections_max: usize,
    /// Longest time that a request may take, waiting included.
    pub deadline: Duration,
    /// How long open requests may take to end after a termination signal, seconds.
    pub drain_s: u64,
}

/// Starts listening. Signals are the caller's: the server ends when its handle is stopped.
pub fn listen(
    office: Office,
    options: &GatewayOptions,
) -> std::io::Result<(actix_web::dev::Server, Vec<std::net::SocketAddr>)> {
    let body_bytes_max = options.body_bytes_max;
    let open = web::Data::new(OpenRequests::default());
    let ids = web::Data::new(RequestIds::new());
    let machine = web::Data::new(OnceLock::<Value>::new());
    let document = web::Data::new(document::document());
    let keys = web::Data::new(options.keys.clone());
    let origins = web::Data::new(Origins(options.cors_origins.clone()));
    let deadline = web::Data::new(options.deadline);
    let head = web::Data::new(HeadLimit(options.head_bytes_max));
    let office = web::Data::new(office);
    let server = HttpServer::new(move || {
        let json = web::JsonConfig::default()
            .limit(body_bytes_max)
            // A page of another origin can send text, but not JSON, without asking first.
            .content_type_required(true)
            .error_handler(|error, request| {
                count_invalid(request);
                body_error(&error).into()
            });
        App::new()
            .app_data(open.clone())
            .app_data(ids.clone())
            .app_data(machine.clone())
            .app_data(document.clone())
            .app_data(keys.clone())
            .app_data(origins.clone())
            .app_data(deadline.clone())
            .app_data(head.clone())
            .app_data(office.clone())
            .app_data(json)
            .app_data(
                web::PathConfig::default()
                    .error_handler(|error, _| unreadable("path", &error).into()),
            )
            .app_data(
                web::QueryConfig::default()
                    .error_handler(|error, _| unreadable("query", &error).into()),
            )
            .wrap(from_fn(keys::guarded))
            .wrap(from_fn(cross_origin::cross_origin))
            .wrap(from_fn(short_heads))
            .wrap(from_fn(measured))
            .wrap(from_fn(appointed))
            .configure(routes::routes)
    })
    .workers(1)
    // A token leaves as it comes, without waiting for the one before to be acknowledged.
    .tcp_nodelay(true)
    // Whoever closes the connection has left, also with an answer on its way of which nothing was written yet.
    .h1_allow_half_closed(false)
    .disable_signals()
    .max_connections(options.connections_max)
    .shutdown_timeout(options.drain_s)
    .bind((options.host.as_str(), options.port))?;
    let addresses = server.addrs();
    Ok((server.run(), addresses))
}

/// Most bytes of a request's head.
struct HeadLimit(usize);

/// Turns away a request whose head is too large.
async fn short_heads<B: MessageBody>(
    limit: web::Data<HeadLimit>,
    request: ServiceRequest,
    next: Next<B>,
) -> Result<ServiceResponse<EitherBody<B>>, actix_web::Error> {
    let lines = request.headers().iter().map(|(name, value)| name.as_str().len() + value.len() + 4);
    let bytes = lines.sum::<usize>() + request.uri().to_string().len();
    if bytes <= limit.0 {
        return Ok(next.call(request).await?.map_into_left_body());
    }
    let error = ServeError::HeadTooLarge(format!(
        "the request's head has {bytes} bytes, more than the {} allowed",
        limit.0
    ));
    Ok(request.into_response(error.error_response()).map_into_right_body())
}

fn count_invalid(request: &HttpRequest) {
    if let Some(engine) = request.app_data::<web::Data<Engine>>() {
        engine.count_rejection(RejectionReason::Invalid);
    }
}

fn body_error(error: &JsonPayloadError) -> ServeError {
    match error {
        JsonPayloadError::Overflow { limit } => {
            ServeError::TooLarge(format!("the body is larger than the {limit} bytes allowed"))
        }
        JsonPayloadError::OverflowKnownLength { length, limit } => ServeError::TooLarge(format!(
            "the body has {length} bytes, more than the {limit} allowed"
        )),
        JsonPayloadError::ContentType => ServeError::UnsupportedMedia(
            "the body must be JSON: send `content-type: application/json`".into(),
        ),
        other => ServeError::BadRequest {
            message: format!("the body is not a valid request: {other}"),
            param: None,
        },
    }
}

fn unreadable(part: &str, error: &dyn std::error::Error) -> ServeError {
    ServeError::BadRequest { message: format!("the {part} is not valid: {error}"), param: None }
}

/// Gives each request the engine that holds the office as it comes: whatever is asked on its way is answered by that one.
async fn appointed(
    office: web::Data<Office>,
    mut request: ServiceRequest,
    next: Next<impl MessageBody>,
) -> Result<ServiceResponse<impl MessageBody>, actix_web::Error> {
    let mut own = Extensions::new();
    own.insert(web::Data::new(office.engine()));
    request.add_data_container(Rc::new(own));
    next.call(request).await
}

/// Names, counts, times and logs each HTTP request, under the path of its route, so that labels stay bounded.
async fn measured(
    engine: web::Data<Engine>,
    ids: web::Data<RequestIds>,
    request: ServiceRequest,
    next: Next<impl MessageBody>,
) -> Result<ServiceResponse<impl MessageBody>, actix_web::Error> {
    let started = Instant::now();
    let method = HttpMethod::from(request.method().as_str());
    let path = routes::label(request.match_pattern().as_deref());
    let (id, header) = ids.name(&request);
    let span = info_span!("http", request_id = id.0);
    let mut response = next.call(request).instrument(span.clone()).await?;
    response.headers_mut().insert(X_REQUEST_ID, header);
    let (status, took) = (response.status().as_u16(), started.elapsed());
    engine.http_metrics().answered(method, path, status, took);
    let ms = took.as_secs_f64() * 1e3;
    span.in_scope(|| info!(path, status, ms, "{:?}", method));
    Ok(response)
}
