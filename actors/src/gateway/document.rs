//! `/openapi.json`: made of the handlers' own signatures and of the types that they read and write.
//!
//! *Invariant:* what is served is listed and what is listed is served; a test holds the two side by side.

use actix_web::{HttpResponse, web};
use serde_json::{Map, Value, json};
use utoipa::{IntoResponses, OpenApi};

use super::error::ErrorBody;
use super::{inference, operations, page, plan, words};

/// The answers that any route may give instead of its own.
#[derive(IntoResponses)]
#[expect(dead_code, reason = "read by the derive alone; `ServeError` is what is answered")]
pub(super) enum Refusals {
    /// The request is wrong; `error.param` names the field.
    #[response(status = 400)]
    BadRequest(ErrorBody),
    /// A key is needed, and none or a wrong one was given.
    #[response(status = 401)]
    Unauthorised(ErrorBody),
    /// The key does not open this route.
    #[response(status = 403)]
    Forbidden(ErrorBody),
    /// There is no such model, request or route.
    #[response(status = 404)]
    NotFound(ErrorBody),
    /// The route does not take this method; `Allow` says which.
    #[response(status = 405)]
    MethodNotAllowed(ErrorBody),
    /// Another plan runs than the one that was expected, or a swap is under way.
    #[response(status = 409)]
    Conflict(ErrorBody),
    /// The body is larger than allowed.
    #[response(status = 413)]
    TooLarge(ErrorBody),
    /// The body is not JSON.
    #[response(status = 415)]
    UnsupportedMedia(ErrorBody),
    /// The plan is right, but cannot run here.
    #[response(status = 422)]
    CannotRun(ErrorBody),
    /// Too many requests wait; `Retry-After` says when to try again.
    #[response(status = 429)]
    QueueFull(ErrorBody),
    /// The head is larger than allowed.
    #[response(status = 431)]
    HeadTooLarge(ErrorBody),
    /// An operator ended the request.
    #[response(status = 499)]
    Cancelled(ErrorBody),
    /// The service contradicts itself.
    #[response(status = 500)]
    Failed(ErrorBody),
    /// No unit can serve at present, or the service is about to stop; `Retry-After` says when to try again.
    #[response(status = 503)]
    Unavailable(ErrorBody),
    /// The request's deadline passed before its answer was complete.
    #[response(status = 504)]
    DeadlinePassed(ErrorBody),
}

#[derive(OpenApi)]
#[openapi(
    info(
        title = "Outrider",
        description = "Speculative decoding across the compute units of an edge device, behind the OpenAI API."
    ),
    paths(
        inference::chat_completions,
        inference::completions,
        operations::models,
        operations::one_model,
        words::tokenize,
        words::detokenize,
        words::apply_template,
        operations::health,
        operations::ready,
        operations::version,
        operations::metrics,
        operations::devices,
        operations::requests,
        operations::cancel,
        plan::show,
        plan::put,
        plan::history,
        plan::rollback,
        plan::timeline,
        openapi,
        page::page,
        page::part,
    ),
    components(schemas(ErrorBody))
)]
struct Document;

/// This description.
#[utoipa::path(
    get, path = "/openapi.json", tag = "operations",
    responses((status = 200, description = "The description.", body = Object))
)]
pub(super) async fn openapi(document: web::Data<Value>) -> HttpResponse {
    HttpResponse::Ok().json(document.get_ref())
}

/// The description as JSON.
pub(super) fn document() -> Value {
    let document = Document::openapi();
    let mut value = serde_json::to_value(document).expect("an OpenAPI document is JSON");
    let schemas = value.pointer_mut("/components/schemas").and_then(Value::as_object_mut);
    let schemas = schemas.expect("the routes have bodies");
    for name in ["ChatRequest", "CompletionRequest"] {
        let merged = merged(&schemas[name], schemas);
        schemas.insert(name.to_owned(), merged);
    }
    schemas.remove("Common");
    drop_formats(&mut value);
    value["components"]["securitySchemes"] = json!({"key": {
        "type": "http", "scheme": "bearer",
        "description": "Needed if the service was started with keys.",
    }});
    value["security"] = json!([{}, {"key": []}]);
    value
}

/// Takes the integers' formats away: a `u32` is called `int32`, whose range is another. Bounds say what is allowed.
fn drop_formats(value: &mut Value) {
    match value {
        Value::Object(fields) => {
            if fields.get("format").and_then(Value::as_str).is_some_and(|f| f.starts_with("int")) {
                fields.remove("format");
            }
            fields.values_mut().for_each(drop_formats);
        }
        Value::Array(items) => items.iter_mut().for_each(drop_formats),
        _ => {}
    }
}

/// A schema that is the sum of others, as one object that allows nothing else: a sum of closed objects is empty.
fn merged(schema: &Value, schemas: &Map<String, Value>) -> Value {
    let mut properties = Map::new();
    let mut required = Vec::new();
    for part in schema["allOf"].as_array().into_iter().flatten() {
        let name = part["$ref"].as_str().and_then(|path| path.rsplit('/').next());
        let part = name.map_or(part, |name| &schemas[name]);
        properties.extend(part["properties"].as_object().cloned().unwrap_or_default());
        required.extend(part["required"].as_array().cloned().unwrap_or_default());
    }
    json!({
        "type": "object",
        "description": schema["description"],
        "properties": properties,
        "required": required,
        "additionalProperties": false,
    })
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::document;
    use crate::gateway::routes::ROUTES;

    #[test]
    fn what_is_served_is_described_and_what_is_described_is_served() {
        let document = document();
        let mut described = Vec::new();
        for (path, methods) in document["paths"].as_object().unwrap() {
            let methods: Vec<_> = methods.as_object().unwrap().keys().cloned().collect();
            described.push((path.clone(), methods.join(", ").to_uppercase()));
        }
        let served = ROUTES.iter().map(|(path, methods)| (path.to_string(), methods.to_string()));
        let mut served: Vec<_> = served.collect();
        described.sort();
        served.sort();
        assert_eq!(described, served);
    }

    #[test]
    fn a_request_is_one_closed_object() {
        let document = document();
        let chat = &document["components"]["schemas"]["ChatRequest"];
        assert_eq!(chat["additionalProperties"], false);
        assert_eq!(chat["required"], serde_json::json!(["messages"]));
        for field in ["messages", "stream", "speculative", "user"] {
            assert!(chat["properties"][field].is_object(), "{field} in {chat}");
        }
        assert!(chat["properties"]["unknown"].is_null());
    }
}
