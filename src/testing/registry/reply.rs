//! Answers made by hand.

use axum::body::Body;
use axum::http::StatusCode;
use axum::http::header::{CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue};
use axum::response::Response;

/// An answer with this status, these headers and this body. A number that is no status is 500.
pub fn plain(status: u16, headers: &[(HeaderName, &str)], body: impl Into<Body>) -> Response {
    let status = StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let mut map = HeaderMap::new();
    for (name, value) in headers {
        set(&mut map, name.clone(), value);
    }
    response(status, map, body.into())
}

/// An answer as the distribution specification words a refusal.
pub(super) fn refusal(status: u16, code: &str, message: &str) -> Response {
    let errors = serde_json::json!({ "errors": [{ "code": code, "message": message }] });
    plain(status, &[(CONTENT_TYPE, "application/json")], errors.to_string())
}

pub(super) fn response(status: StatusCode, headers: HeaderMap, body: Body) -> Response {
    let mut response = Response::new(body);
    *response.status_mut() = status;
    *response.headers_mut() = headers;
    response
}

/// Sets a header; a value that cannot be one is left out.
pub(super) fn set(headers: &mut HeaderMap, name: HeaderName, value: &str) {
    if let Ok(value) = HeaderValue::from_str(value) {
        headers.insert(name, value);
    }
}
