//! Who may read `/metrics`: whoever's bearer token the API server knows, if that user may `get` the
//! path `/metrics`.

use std::{
    collections::BTreeMap,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use axum::{
    http::{
        HeaderMap, StatusCode,
        header::{AUTHORIZATION, WWW_AUTHENTICATE},
    },
    response::{IntoResponse, Response},
};
use k8s_openapi::api::{
    authentication::v1::{TokenReview, TokenReviewSpec},
    authorization::v1::{NonResourceAttributes, SubjectAccessReview, SubjectAccessReviewSpec},
};
use kube::{Api, Client, api::PostParams};
use ring::digest::{SHA256, digest};
use tokio::{sync::Semaphore, time::Instant};
use tracing::warn;

use crate::client::{RequestError, request};

/// The path in rules of `nonResourceURLs`.
pub const METRICS_PATH: &str = "/metrics";
/// So long a token that was allowed is not asked about again.
const REMEMBERED: Duration = Duration::from_secs(60);
/// Tokens that are remembered; there are a few Prometheis.
const MAX_REMEMBERED: usize = 256;
/// Reviews under way: whoever floods us with tokens must not flood the API server.
const MAX_REVIEWS: usize = 4;

/// What the API server says of a token.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    Allowed,
    /// It is nobody's, or not valid any more.
    Unknown,
    /// Its user may not read metrics.
    Forbidden {
        user: String,
    },
}

/// Whoever can tell.
pub trait Reviewer: Send + Sync + 'static {
    /// # Errors
    /// When it could not be found out.
    fn review(&self, token: &str) -> impl Future<Output = Result<Verdict, RequestError>> + Send;
}

/// Asks the API server: a TokenReview, then a SubjectAccessReview.
#[derive(Clone)]
pub struct ApiReviewer(pub Client);

impl std::fmt::Debug for ApiReviewer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ApiReviewer").finish_non_exhaustive()
    }
}

impl Reviewer for ApiReviewer {
    async fn review(&self, token: &str) -> Result<Verdict, RequestError> {
        let spec = TokenReviewSpec { token: Some(token.to_owned()), ..TokenReviewSpec::default() };
        let review = TokenReview { spec, ..TokenReview::default() };
        let params = PostParams::default();
        let review = request(Api::all(self.0.clone()).create(&params, &review)).await?;
        let status = review.status.unwrap_or_default();
        let Some(user) = status.user.filter(|_| status.authenticated == Some(true)) else {
            return Ok(Verdict::Unknown);
        };
        let name = user.username.clone().unwrap_or_default();
        let spec = SubjectAccessReviewSpec {
            user: user.username,
            uid: user.uid,
            groups: user.groups,
            extra: user.extra,
            non_resource_attributes: Some(NonResourceAttributes {
                path: Some(METRICS_PATH.to_owned()),
                verb: Some("get".to_owned()),
            }),
            ..SubjectAccessReviewSpec::default()
        };
        let review = SubjectAccessReview { spec, ..SubjectAccessReview::default() };
        let review = request(Api::all(self.0.clone()).create(&params, &review)).await?;
        Ok(if review.status.is_some_and(|status| status.allowed) {
            Verdict::Allowed
        } else {
            Verdict::Forbidden { user: name }
        })
    }
}

/// Asks a [`Reviewer`] and remembers for a minute whom it allowed.
#[derive(Debug)]
pub struct Authorizer<R> {
    reviewer: R,
    /// By the SHA-256 of the token: until when.
    allowed: Mutex<BTreeMap<Vec<u8>, Instant>>,
    reviews: Semaphore,
}

impl<R: Reviewer> Authorizer<R> {
    pub fn new(reviewer: R) -> Self {
        Self { reviewer, allowed: Mutex::default(), reviews: Semaphore::new(MAX_REVIEWS) }
    }

    /// Whether the request with these headers may be answered.
    ///
    /// # Errors
    /// Why not; made to be the answer.
    pub async fn check(&self, headers: &HeaderMap) -> Result<(), Refusal> {
        let token = bearer_token(headers).ok_or(Refusal::NoToken)?;
        let hash = digest(&SHA256, token.as_bytes()).as_ref().to_vec();
        if self.remembers(&hash) {
            return Ok(());
        }
        let _place = self.reviews.acquire().await;
        match self.reviewer.review(token).await {
            Ok(Verdict::Allowed) => {
                self.remember(hash);
                Ok(())
            }
            Ok(Verdict::Unknown) => Err(Refusal::UnknownToken),
            Ok(Verdict::Forbidden { user }) => Err(Refusal::Forbidden { user }),
            Err(error) => {
                warn!(%error, "cannot have the token of a scrape reviewed");
                Err(Refusal::NoAnswer)
            }
        }
    }

    fn remembers(&self, hash: &[u8]) -> bool {
        let allowed = self.allowed.lock().unwrap_or_else(PoisonError::into_inner);
        allowed.get(hash).is_some_and(|until| Instant::now() < *until)
    }

    fn remember(&self, hash: Vec<u8>) {
        let now = Instant::now();
        let mut allowed = self.allowed.lock().unwrap_or_else(PoisonError::into_inner);
        allowed.retain(|_, until| now < *until);
        if allowed.len() < MAX_REMEMBERED {
            allowed.insert(hash, now + REMEMBERED);
        }
    }
}

/// Why a request is not answered.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    #[error("metrics are served to bearer tokens only: send the token of a ServiceAccount")]
    NoToken,
    #[error("the API server does not know this bearer token, or it has expired")]
    UnknownToken,
    #[error(
        "{user} may not read metrics: bind it to a ClusterRole with nonResourceURLs [/metrics] \
         and verbs [get]"
    )]
    Forbidden { user: String },
    #[error("the API server cannot be asked about this bearer token; try again")]
    NoAnswer,
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let text = format!("{self}\n");
        match self {
            Self::NoToken | Self::UnknownToken => {
                (StatusCode::UNAUTHORIZED, [(WWW_AUTHENTICATE, "Bearer")], text).into_response()
            }
            Self::Forbidden { .. } => (StatusCode::FORBIDDEN, text).into_response(),
            Self::NoAnswer => (StatusCode::SERVICE_UNAVAILABLE, text).into_response(),
        }
    }
}

/// RFC 6750, section 2.1; the name of the scheme in any case (RFC 9110, section 11.1).
fn bearer_token(headers: &HeaderMap) -> Option<&str> {
    let (scheme, token) = headers.get(AUTHORIZATION)?.to_str().ok()?.split_once(' ')?;
    let token = token.trim();
    (scheme.eq_ignore_ascii_case("bearer") && !token.is_empty()).then_some(token)
}

#[cfg(test)]
mod tests {
    use std::{
        future,
        sync::{
            Arc,
            atomic::{AtomicUsize, Ordering},
        },
    };

    use super::*;

    /// Knows three tokens and counts how often it is asked.
    #[derive(Clone, Default)]
    struct Fake(Arc<AtomicUsize>);

    impl Reviewer for Fake {
        fn review(
            &self,
            token: &str,
        ) -> impl Future<Output = Result<Verdict, RequestError>> + Send {
            self.0.fetch_add(1, Ordering::Relaxed);
            future::ready(match token {
                "good" => Ok(Verdict::Allowed),
                "poor" => Ok(Verdict::Forbidden { user: "system:anonymous".to_owned() }),
                "away" => Err(RequestError::Silence),
                _ => Ok(Verdict::Unknown),
            })
        }
    }

    fn headers(authorization: &str) -> HeaderMap {
        let mut headers = HeaderMap::new();
        if !authorization.is_empty() {
            headers.insert(AUTHORIZATION, authorization.parse().unwrap());
        }
        headers
    }

    #[tokio::test]
    async fn every_way_to_be_refused_has_its_status() {
        let authorizer = Authorizer::new(Fake::default());
        for (authorization, status) in [
            ("Bearer good", 200),
            ("bearer  good", 200),
            ("Bearer poor", 403),
            ("Bearer away", 503),
            ("Bearer other", 401),
            ("Bearer ", 401),
            ("Basic good", 401),
            ("good", 401),
            ("", 401),
        ] {
            let answer = match authorizer.check(&headers(authorization)).await {
                Ok(()) => StatusCode::OK.into_response(),
                Err(refusal) => refusal.into_response(),
            };
            assert_eq!(answer.status(), status, "{authorization:?}");
            assert_eq!(answer.headers().contains_key(WWW_AUTHENTICATE), status == 401);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn only_an_allowed_token_is_remembered_and_for_a_minute() {
        let asked = Fake::default();
        let authorizer = Authorizer::new(asked.clone());
        for (token, pause, times) in [
            ("good", 0, 1),
            ("good", 59, 1),
            ("good", 1, 2),
            ("poor", 0, 3),
            ("poor", 0, 4),
            ("away", 0, 5),
            ("good", 0, 5),
        ] {
            tokio::time::advance(Duration::from_secs(pause)).await;
            let _ = authorizer.check(&headers(&format!("Bearer {token}"))).await;
            assert_eq!(asked.0.load(Ordering::Relaxed), times, "{token} after {pause} s");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn tokens_without_end_are_not_all_remembered() {
        struct Yes;
        impl Reviewer for Yes {
            fn review(
                &self,
                _: &str,
            ) -> impl Future<Output = Result<Verdict, RequestError>> + Send {
                future::ready(Ok(Verdict::Allowed))
            }
        }
        let authorizer = Authorizer::new(Yes);
        for number in 0..2 * MAX_REMEMBERED {
            authorizer.check(&headers(&format!("Bearer {number}"))).await.unwrap();
        }
        assert_eq!(authorizer.allowed.lock().unwrap().len(), MAX_REMEMBERED);
        tokio::time::advance(REMEMBERED).await;
        authorizer.check(&headers("Bearer new")).await.unwrap();
        assert_eq!(authorizer.allowed.lock().unwrap().len(), 1, "room again");
    }
}
