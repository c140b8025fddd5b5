//! Cross-origin requests from browsers: refused unless the operator names the origin.
//!
//! *Invariant:* an origin that is not listed sees no header that would let its page read an answer.

use actix_web::body::{EitherBody, MessageBody};
use actix_web::dev::{ServiceRequest, ServiceResponse};
use actix_web::http::Method;
use actix_web::http::header::{
    ACCESS_CONTROL_ALLOW_HEADERS, ACCESS_CONTROL_ALLOW_METHODS, ACCESS_CONTROL_ALLOW_ORIGIN,
    ACCESS_CONTROL_EXPOSE_HEADERS, ACCESS_CONTROL_MAX_AGE, ACCESS_CONTROL_REQUEST_METHOD,
    HeaderValue, ORIGIN, VARY,
};
use actix_web::middleware::Next;
use actix_web::{HttpResponse, web};

/// The origins whose pages may read answers; `*` stands for all.
#[derive(Clone, Debug, Default)]
pub(super) struct Origins(pub(super) Vec<String>);

impl Origins {
    /// The origin of a request, if its page may read the answer.
    fn allowed(&self, request: &ServiceRequest) -> Option<HeaderValue> {
        let origin = request.headers().get(ORIGIN)?;
        let listed = |own: &String| own == "*" || own.as_bytes() == origin.as_bytes();
        self.0.iter().any(listed).then(|| origin.clone())
    }
}

/// Answers a browser's question before a cross-origin request, and marks the answers that its page may read.
pub(super) async fn cross_origin<B: MessageBody>(
    origins: web::Data<Origins>,
    request: ServiceRequest,
    next: Next<B>,
) -> Result<ServiceResponse<EitherBody<B>>, actix_web::Error> {
    let Some(origin) = origins.allowed(&request) else {
        return Ok(next.call(request).await?.map_into_left_body());
    };
    let asks = request.headers().contains_key(ACCESS_CONTROL_REQUEST_METHOD);
    let mut response = if request.method() == Method::OPTIONS && asks {
        let answer = HttpResponse::NoContent()
            .insert_header((ACCESS_CONTROL_ALLOW_METHODS, "GET, POST, PUT, DELETE"))
            .insert_header((
                ACCESS_CONTROL_ALLOW_HEADERS,
                "authorization, content-type, x-request-id",
            ))
            .insert_header((ACCESS_CONTROL_MAX_AGE, "600"))
            .finish();
        request.into_response(answer).map_into_right_body()
    } else {
        next.call(request).await?.map_into_left_body()
    };
    let headers = response.headers_mut();
    headers.insert(ACCESS_CONTROL_ALLOW_ORIGIN, origin);
    headers.insert(
        ACCESS_CONTROL_EXPOSE_HEADERS,
        HeaderValue::from_static("x-request-id, retry-after"),
    );
    headers.append(VARY, HeaderValue::from_static("origin"));
    Ok(response)
}
