//! The table of routes.
//!
//! *Invariant:* a path is also its label in the metrics, so it is a pattern of this table and never what a client sent.

use actix_web::http::header::{ALLOW, HeaderValue};
use actix_web::{HttpRequest, HttpResponse, Resource, ResponseError, web};

use super::error::ServeError;
use super::{document, inference, operations, page, plan, words};

/// Every path with the methods that it takes.
pub(super) const ROUTES: &[(&str, &str)] = &[
    ("/v1/chat/completions", "POST"),
    ("/v1/completions", "POST"),
    ("/v1/models", "GET"),
    ("/v1/models/{model}", "GET"),
    ("/tokenize", "POST"),
    ("/detokenize", "POST"),
    ("/apply-template", "POST"),
    ("/health", "GET"),
    ("/ready", "GET"),
    ("/version", "GET"),
    ("/metrics", "GET"),
    ("/v1/devices", "GET"),
    ("/v1/requests", "GET"),
    ("/v1/requests/{id}", "DELETE"),
    ("/v1/plan", "GET, PUT"),
    ("/v1/plan/history", "GET"),
    ("/v1/plan/rollback", "POST"),
    ("/v1/timeline", "GET"),
    ("/openapi.json", "GET"),
    ("/", "GET"),
    ("/page/{part}", "GET"),
];

/// Who may use a route.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Access {
    /// Everybody.
    Open,
    /// Who may have text written.
    Inference,
    /// Who holds any key.
    Watch,
    /// The operator.
    Operate,
}

/// Who may use the route with this pattern. A route that nobody thought of is the operator's.
pub(super) fn access(pattern: Option<&str>) -> Access {
    match label(pattern) {
        "/health" | "/ready" | "/version" | "/openapi.json" | "other" => Access::Open,
        // The page shows only what its reader's key opens.
        "/" | "/page/{part}" => Access::Open,
        "/v1/chat/completions"
        | "/v1/completions"
        | "/v1/models"
        | "/v1/models/{model}"
        | "/tokenize"
        | "/detokenize"
        | "/apply-template" => Access::Inference,
        "/metrics" => Access::Watch,
        _ => Access::Operate,
    }
}

/// The table's own words for a route; `other` for what is not in it.
pub(super) fn label(pattern: Option<&str>) -> &'static str {
    let known = ROUTES.iter().find(|(path, _)| pattern == Some(path));
    known.map_or("other", |(path, _)| path)
}

/// Each path with its handlers. Another method is answered 405 with those allowed, another path 404.
pub(super) fn routes(config: &mut web::ServiceConfig) {
    let at = |path: &'static str| -> Resource {
        assert_ne!(label(Some(path)), "other", "{path} is not in the table");
        web::resource(path).default_service(web::to(wrong_method))
    };
    config
        .service(at("/v1/chat/completions").route(web::post().to(inference::chat_completions)))
        .service(at("/v1/completions").route(web::post().to(inference::completions)))
        .service(at("/v1/models").route(web::get().to(operations::models)))
        .service(at("/v1/models/{model}").route(web::get().to(operations::one_model)))
        .service(at("/tokenize").route(web::post().to(words::tokenize)))
        .service(at("/detokenize").route(web::post().to(words::detokenize)))
        .service(at("/apply-template").route(web::post().to(words::apply_template)))
        .service(at("/health").route(web::get().to(operations::health)))
        .service(at("/ready").route(web::get().to(operations::ready)))
        .service(at("/version").route(web::get().to(operations::version)))
        .service(at("/metrics").route(web::get().to(operations::metrics)))
        .service(at("/v1/devices").route(web::get().to(operations::devices)))
        .service(at("/v1/requests").route(web::get().to(operations::requests)))
        .service(at("/v1/requests/{id}").route(web::delete().to(operations::cancel)))
        .service(at("/v1/plan").route(web::get().to(plan::show)).route(web::put().to(plan::put)))
        .service(at("/v1/plan/history").route(web::get().to(plan::history)))
        .service(at("/v1/plan/rollback").route(web::post().to(plan::rollback)))
        .service(at("/v1/timeline").route(web::get().to(plan::timeline)))
        .service(at("/openapi.json").route(web::get().to(document::openapi)))
        .service(at("/").route(web::get().to(page::page)))
        .service(at("/page/{part}").route(web::get().to(page::part)))
        .default_service(web::to(no_route));
}

async fn no_route(request: HttpRequest) -> HttpResponse {
    ServeError::NotFound(format!("there is no route {}", request.path())).error_response()
}

async fn wrong_method(request: HttpRequest) -> HttpResponse {
    let (method, path) = (request.method(), request.path());
    let pattern = label(request.match_pattern().as_deref());
    let allowed = ROUTES.iter().find(|(path, _)| *path == pattern).map_or("", |(_, m)| m);
    let message = format!("{path} does not take {method}, but {allowed}");
    let mut response = ServeError::MethodNotAllowed(message).error_response();
    response.headers_mut().insert(ALLOW, HeaderValue::from_static(allowed));
    response
}
