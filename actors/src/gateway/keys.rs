//! Who may ask what: API keys for inference, an admin key for operations.
//!
//! | keys of the service | inference, text | metrics | operations |
//! |---|---|---|---|
//! | none | open | open | open |
//! | API keys | an API key | any key | closed |
//! | admin key | open | admin key | admin key |
//! | both | any key | any key | admin key |
//!
//! *Invariant:* a key is compared with every key of its kind in a time that does not depend on where they differ, and
//! no key is ever written to the log.

use std::fmt;
use std::hint::black_box;

use actix_web::body::{EitherBody, MessageBody};
use actix_web::dev::{ServiceRequest, ServiceResponse};
use actix_web::http::header::{AUTHORIZATION, HeaderMap};
use actix_web::middleware::Next;
use actix_web::{ResponseError, web};
use outrider_observability::RejectionReason;

use super::error::ServeError;
use super::routes::{Access, access};
use crate::engine::Engine;

/// The keys that open a service.
#[derive(Clone, Default)]
pub struct Keys {
    /// Open inference.
    pub api: Vec<String>,
    /// Opens everything.
    pub admin: Option<String>,
}

impl fmt::Debug for Keys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let admin = if self.admin.is_some() { "an" } else { "no" };
        write!(f, "{} API keys, {admin} admin key", self.api.len())
    }
}

/// What a key opens.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Held {
    Nothing,
    Api,
    Admin,
}

impl Keys {
    /// Whether inference needs a key.
    pub fn guard_inference(&self) -> bool {
        !self.api.is_empty()
    }

    fn held(&self, headers: &HeaderMap) -> Held {
        let bearer = headers.get(AUTHORIZATION).and_then(|value| value.to_str().ok());
        let key = bearer.and_then(|value| {
            let (scheme, key) = value.split_once(' ')?;
            scheme.eq_ignore_ascii_case("bearer").then(|| key.trim())
        });
        let Some(key) = key else { return Held::Nothing };
        // All are compared, so that the time does not tell which one was nearly right.
        let api = self.api.iter().fold(false, |found, own| found | same(own, key));
        let admin = self.admin.iter().fold(false, |found, own| found | same(own, key));
        match (admin, api) {
            (true, _) => Held::Admin,
            (_, true) => Held::Api,
            _ => Held::Nothing,
        }
    }

    /// Whether a request with these headers may use a route.
    fn admits(&self, access: Access, headers: &HeaderMap) -> Result<(), ServeError> {
        let (api, admin) = (self.guard_inference(), self.admin.is_some());
        let needed = match access {
            Access::Open => return Ok(()),
            Access::Inference => api,
            Access::Watch | Access::Operate => api || admin,
        };
        if !needed {
            return Ok(());
        }
        match (access, self.held(headers)) {
            (_, Held::Admin) | (Access::Inference | Access::Watch, Held::Api) => Ok(()),
            (Access::Operate, Held::Api) if admin => {
                Err(ServeError::Forbidden("this route needs the admin key".into()))
            }
            (Access::Operate, Held::Api) => Err(ServeError::Forbidden(
                "this route needs an admin key, and the service was started without one".into(),
            )),
            _ => Err(ServeError::Unauthorised),
        }
    }
}

/// Whether two keys are equal; takes as long as the given one is, wherever they differ.
fn same(own: &str, given: &str) -> bool {
    let (own, given) = (own.as_bytes(), given.as_bytes());
    let mut differs = u8::from(own.len() != given.len());
    for (index, byte) in given.iter().enumerate() {
        differs |= black_box(byte ^ own.get(index).copied().unwrap_or(0));
    }
    black_box(differs) == 0
}

/// Turns away who holds no key.
pub(super) async fn guarded<B: MessageBody>(
    keys: web::Data<Keys>,
    engine: web::Data<Engine>,
    request: ServiceRequest,
    next: Next<B>,
) -> Result<ServiceResponse<EitherBody<B>>, actix_web::Error> {
    let access = access(request.match_pattern().as_deref());
    match keys.admits(access, request.headers()) {
        Ok(()) => Ok(next.call(request).await?.map_into_left_body()),
        Err(error) => {
            engine.count_rejection(RejectionReason::Unauthorised);
            let answer = error.error_response();
            Ok(request.into_response(answer).map_into_right_body())
        }
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests {
    use actix_web::http::header::{AUTHORIZATION, HeaderMap, HeaderValue};

    use super::{Access, Keys, same};

    #[test]
    fn equal_keys_are_the_same_and_others_are_not() {
        assert!(same("secret", "secret") && same("", ""));
        for other in ["", "s", "secre", "secret0", "Secret", "sesret"] {
            assert!(!same("secret", other) && !same(other, "secret"), "{other}");
        }
    }

    #[test]
    fn keys_open_what_the_table_says() {
        let keys = |api: &[&str], admin: Option<&str>| Keys {
            api: api.iter().map(|key| key.to_string()).collect(),
            admin: admin.map(str::to_owned),
        };
        let opens = |keys: &Keys, key: Option<&str>| {
            let mut headers = HeaderMap::new();
            if let Some(key) = key {
                let value = HeaderValue::from_str(&format!("Bearer {key}")).unwrap();
                headers.insert(AUTHORIZATION, value);
            }
            [Access::Open, Access::Inference, Access::Watch, Access::Operate]
                .map(|access| keys.admits(access, &headers).is_ok())
        };
        let (none, api) = (keys(&[], None), keys(&["a", "b"], None));
        let (admin, both) = (keys(&[], Some("z")), keys(&["a", "b"], Some("z")));
        assert_eq!(opens(&none, None), [true; 4]);
        assert_eq!(opens(&none, Some("x")), [true; 4]);
        assert_eq!(opens(&api, None), [true, false, false, false]);
        assert_eq!(opens(&api, Some("x")), [true, false, false, false]);
        assert_eq!(opens(&api, Some("b")), [true, true, true, false]);
        assert_eq!(opens(&admin, None), [true, true, false, false]);
        assert_eq!(opens(&admin, Some("z")), [true; 4]);
        assert_eq!(opens(&both, Some("a")), [true, true, true, false]);
        assert_eq!(opens(&both, Some("z")), [true; 4]);
        assert_eq!(format!("{both:?}"), "2 API keys, an admin key");
    }
}
