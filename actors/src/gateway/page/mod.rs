//! The page at `/`: one look at what the service does, made of a few files inside the binary.
//!
//! *Invariant:* the page fetches from this service alone and runs no script but its own, which its content security
//! policy holds the browser to; it shows nothing that the other routes do not answer, under the same keys.

use actix_web::http::header::{
    CACHE_CONTROL, CONTENT_SECURITY_POLICY, REFERRER_POLICY, X_CONTENT_TYPE_OPTIONS,
};
use actix_web::{HttpResponse, web};
use outrider_plans::shipped;
use serde_json::json;

use super::document::Refusals;
use super::error::ServeError;

const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; \
                      base-uri 'none'; form-action 'none'; frame-ancestors 'none'";
const SCRIPT: &str = "text/javascript; charset=utf-8";

/// Name, media type and text of each part.
const FILES: &[(&str, &str, &str)] = &[
    ("style.css", "text/css; charset=utf-8", include_str!("style.css")),
    ("icon.svg", "image/svg+xml", include_str!("icon.svg")),
    ("main.js", SCRIPT, include_str!("main.js")),
    ("api.js", SCRIPT, include_str!("api.js")),
    ("figures.js", SCRIPT, include_str!("figures.js")),
    ("lanes.js", SCRIPT, include_str!("lanes.js")),
    ("metrics.js", SCRIPT, include_str!("metrics.js")),
    ("plan.js", SCRIPT, include_str!("plan.js")),
    ("prompt.js", SCRIPT, include_str!("prompt.js")),
    ("words.js", SCRIPT, include_str!("words.js")),
];

/// The page: what the service does, live, and a box to try a text.
#[utoipa::path(
    get, path = "/", tag = "page",
    responses((status = 200, description = "The page.", body = String, content_type = "text/html"), Refusals)
)]
pub(super) async fn page() -> HttpResponse {
    served("text/html; charset=utf-8", include_str!("index.html"))
}

/// A file of the page, or `plans.json`, the shipped plans that it offers.
#[utoipa::path(
    get, path = "/page/{part}", tag = "page",
    params(("part" = String, Path, description = "The file's name.")),
    responses(
        (status = 200, description = "The file.", content(
            (String = "text/css"), (String = "text/javascript"), (String = "image/svg+xml"), (Value = "application/json")
        )),
        Refusals,
    )
)]
pub(super) async fn part(name: web::Path<String>) -> Result<HttpResponse, ServeError> {
    if *name == "plans.json" {
        let plans = shipped().iter().map(|plan| json!({"name": plan.name, "text": plan.text}));
        let list = json!(plans.collect::<Vec<_>>()).to_string();
        return Ok(HttpResponse::Ok().content_type("application/json").body(list));
    }
    let file = FILES.iter().find(|(file, ..)| *file == *name);
    let (_, kind, text) =
        file.ok_or_else(|| ServeError::NotFound(format!("the page has no part `{name}`")))?;
    Ok(served(kind, text))
}

fn served(kind: &str, text: &'static str) -> HttpResponse {
    HttpResponse::Ok()
        .content_type(kind)
        // Another version of the program brings another page.
        .insert_header((CACHE_CONTROL, "no-cache"))
        .insert_header((CONTENT_SECURITY_POLICY, POLICY))
        .insert_header((X_CONTENT_TYPE_OPTIONS, "nosniff"))
        .insert_header((REFERRER_POLICY, "no-referrer"))
        .body(text)
}
