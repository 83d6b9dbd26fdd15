//! Which web pages may use the plain HTTP routes. A browser sends a request of any page to any server
//! it can reach, this member on the machine of its user included; it names the page's origin. What
//! does not come from this member's own address is refused unless that origin was allowed.
//!
//! etcd allows every origin unless told otherwise (`--cors`, `--host-whitelist`); here the default is
//! to allow none. Programs, which send no origin, are not concerned.

use std::collections::BTreeSet;
use std::sync::Arc;

use axum::extract::{Request, State};
use axum::http::uri::Authority;
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};

/// What etcd tells browsers of allowed origins.
const METHODS: HeaderValue = HeaderValue::from_static("POST, GET, OPTIONS, PUT, DELETE");
const HEADERS: HeaderValue = HeaderValue::from_static("accept, content-type, authorization");

/// Who may ask over plain HTTP. The default: every host name, no foreign origin.
#[derive(Debug, Clone, Default)]
pub struct Access {
    origins: Arc<BTreeSet<String>>,
    hosts: Arc<BTreeSet<String>>,
}

impl Access {
    /// Also lets pages of these origins ask (`https://example.com`); `*` lets all.
    #[must_use]
    pub fn origins(mut self, origins: impl IntoIterator<Item = String>) -> Self {
        self.origins = Arc::new(origins.into_iter().map(|name| lower(&name)).collect());
        self
    }

    /// Answers only requests to these host names, without port; `*` or none at all means any.
    #[must_use]
    pub fn hosts(mut self, hosts: impl IntoIterator<Item = String>) -> Self {
        self.hosts = Arc::new(hosts.into_iter().map(|name| lower(&name)).collect());
        self
    }

    fn allows_host(&self, authority: Option<&str>) -> bool {
        let named = |authority: &str| self.hosts.contains(&lower(host(authority)));
        self.hosts.is_empty() || self.hosts.contains("*") || authority.is_some_and(named)
    }

    fn allows_origin(&self, origin: &str) -> bool {
        self.origins.contains("*") || self.origins.contains(&lower(origin))
    }
}

fn lower(text: &str) -> String {
    text.trim_end_matches('/').to_ascii_lowercase()
}

/// The host of an authority, without its port.
fn host(authority: &str) -> &str {
    match authority.rsplit_once(':') {
        Some((host, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => host,
        _ => authority,
    }
}

/// What becomes of a request.
enum Verdict {
    /// It comes from no page, or from one of this member's own.
    Own,
    /// It comes from a page of this origin, which is allowed.
    Allowed(HeaderValue),
    Refused(StatusCode, &'static str),
}

impl Access {
    fn judge(&self, request: &Request) -> Verdict {
        let named = request.headers().get(header::HOST);
        let in_uri = request.uri().authority().map(Authority::as_str);
        let authority = named.and_then(|host| host.to_str().ok()).or(in_uri);
        if !self.allows_host(authority) {
            let refusal = "this host name is not among those allowed by --host-whitelist\n";
            return Verdict::Refused(StatusCode::MISDIRECTED_REQUEST, refusal);
        }
        let Some(origin) = request.headers().get(header::ORIGIN) else {
            return Verdict::Own;
        };
        let name = origin.to_str().unwrap_or("null");
        let page = name.split_once("://").map_or("", |(_, page)| page);
        if authority.is_some_and(|authority| authority.eq_ignore_ascii_case(page)) {
            return Verdict::Own;
        }
        if self.allows_origin(name) {
            return Verdict::Allowed(origin.clone());
        }
        let refusal = "pages of this origin may not ask; see --cors\n";
        Verdict::Refused(StatusCode::FORBIDDEN, refusal)
    }
}

/// Lets through what may ask.
pub(crate) async fn guard(State(access): State<Access>, request: Request, next: Next) -> Response {
    let origin = match access.judge(&request) {
        Verdict::Own => return next.run(request).await,
        Verdict::Refused(status, refusal) => return (status, refusal).into_response(),
        Verdict::Allowed(origin) => origin,
    };
    let mut response = if request.method() == Method::OPTIONS {
        StatusCode::OK.into_response()
    } else {
        next.run(request).await
    };
    tell(response.headers_mut(), origin);
    response
}

fn tell(headers: &mut HeaderMap, origin: HeaderValue) {
    headers.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, origin);
    headers.insert(header::ACCESS_CONTROL_ALLOW_METHODS, METHODS);
    headers.insert(header::ACCESS_CONTROL_ALLOW_HEADERS, HEADERS);
    headers.append(header::VARY, HeaderValue::from_static("Origin"));
}

#[cfg(test)]
mod tests {
    use axum::Router;
    use axum::body::Body;
    use axum::middleware::from_fn_with_state;
    use axum::routing::get;
    use tower::ServiceExt;

    use super::*;

    async fn ask(access: &Access, method: Method, host: &str, origin: Option<&str>) -> Response {
        let router = Router::new()
            .route("/", get(async || "ok"))
            .layer(from_fn_with_state(access.clone(), guard));
        let mut request = axum::http::Request::builder()
            .method(method)
            .uri("/")
            .header(header::HOST, host);
        if let Some(origin) = origin {
            request = request.header(header::ORIGIN, origin);
        }
        let request = request.body(Body::empty()).unwrap();
        router.oneshot(request).await.unwrap()
    }

    #[tokio::test]
    async fn foreign_pages_are_refused_unless_allowed() {
        let (closed, get) = (Access::default(), Method::GET);
        let status = async |access: &Access, origin| {
            ask(access, get.clone(), "db:2379", origin).await.status()
        };
        assert_eq!(status(&closed, None).await, StatusCode::OK);
        assert_eq!(
            status(&closed, Some("http://DB:2379")).await,
            StatusCode::OK
        );
        for foreign in ["http://db:80", "http://evil.example", "null", "http://"] {
            assert_eq!(status(&closed, Some(foreign)).await, StatusCode::FORBIDDEN);
        }
        let open = Access::default().origins(["https://ui.example/".to_owned()]);
        assert_eq!(
            status(&open, Some("https://ui.example")).await,
            StatusCode::OK
        );
        assert_eq!(
            status(&open, Some("http://ui.example")).await,
            StatusCode::FORBIDDEN
        );
        let any = Access::default().origins(["*".to_owned()]);
        let asked = ask(&any, Method::OPTIONS, "db", Some("http://x")).await;
        assert_eq!(asked.status(), StatusCode::OK);
        let told = asked.headers().get(header::ACCESS_CONTROL_ALLOW_ORIGIN);
        assert_eq!(told.unwrap(), "http://x");
    }

    #[tokio::test]
    async fn other_host_names_are_refused_when_some_are_named() {
        let named = Access::default().hosts(["db.example".to_owned(), "[::1]".to_owned()]);
        for (host, expected) in [
            ("db.example:2379", StatusCode::OK),
            ("DB.example", StatusCode::OK),
            ("[::1]:2379", StatusCode::OK),
            ("evil.example:2379", StatusCode::MISDIRECTED_REQUEST),
        ] {
            let answer = ask(&named, Method::GET, host, None).await;
            assert_eq!(answer.status(), expected, "{host}");
        }
    }
}
