//! HTTP: the OpenAI routes, text tools, operations.
//!
//! *Invariant:* handlers check and word; all work is behind [`Engine`]. A client that leaves drops its event stream,
//! which cancels its request within the round.

mod answer;
mod ask;
mod completion;
mod document;
mod error;
mod inference;
mod letterhead;
mod logprobs;
mod open_requests;
mod openai;
mod operations;
mod page;
mod request_id;
mod routes;
mod words;

use std::sync::OnceLock;
use std::time::Instant;

use actix_web::body::MessageBody;
use actix_web::dev::{ServiceRequest, ServiceResponse};
use actix_web::error::{JsonPayloadError, PathError};
use actix_web::middleware::{Next, from_fn};
use actix_web::{App, HttpServer, web};
use outrider_observability::HttpMethod;
use serde_json::Value;
use tracing::{Instrument, info, info_span};

pub use completion::WireTimings;
pub use error::ServeError;
pub use letterhead::wire_timings;

use crate::engine::Engine;
use open_requests::OpenRequests;
use request_id::{RequestIds, X_REQUEST_ID};

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
    let engine = web::Data::new(engine);
    let open = web::Data::new(OpenRequests::default());
    let ids = web::Data::new(RequestIds::new());
    let machine = web::Data::new(OnceLock::<Value>::new());
    let document = web::Data::new(document::document());
    let server = HttpServer::new(move || {
        let json = web::JsonConfig::default()
            .limit(body_bytes_max)
            .content_type_required(false)
            .error_handler(|error, _| body_error(&error).into());
        App::new()
            .app_data(engine.clone())
            .app_data(open.clone())
            .app_data(ids.clone())
            .app_data(machine.clone())
            .app_data(document.clone())
            .app_data(json)
            .app_data(
                web::PathConfig::default().error_handler(|error, _| path_error(&error).into()),
            )
            .wrap(from_fn(measured))
            .configure(routes::routes)
    })
    .workers(1)
    .shutdown_timeout(options.drain_s)
    .bind((options.host.as_str(), options.port))?;
    let addresses = server.addrs();
    Ok((server.run(), addresses))
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

fn path_error(error: &PathError) -> ServeError {
    ServeError::BadRequest { message: format!("the path is not valid: {error}"), param: None }
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
