//! The webhook: what API servers ask before they store an object (admission), and to show one in
//! another version (conversion).
//!
//! Admission is answered by the owner of the controller, from memory. What cannot be asked in time
//! is let through with a warning: what is wrong about it is then shown on the object.

use std::{net::SocketAddr, path::PathBuf, sync::Arc, time::Duration};

use anyhow::Result;
use axum::{
    Json, Router,
    body::to_bytes,
    extract::{Request, State},
    http::StatusCode,
    response::{IntoResponse as _, Response},
    routing::post,
};
use config::{Candidate, ConfigError, Operation};
use kube::core::{
    DynamicObject, Status,
    admission::{self, AdmissionRequest, AdmissionResponse, AdmissionReview},
    conversion::{ConversionRequest, ConversionResponse, ConversionReview},
};
use serde::de::DeserializeOwned;
use serde_json::Value;
use shell::{
    client::Clients,
    metrics::ApiMetrics,
    probes::{Ready, listen},
    tls::{self, Certificate, Tls, follow_files},
};
use tokio::{
    sync::{Semaphore, mpsc, oneshot, watch},
    time::timeout,
};
use tokio_util::sync::CancellationToken;
use tracing::debug;

use super::certificates::{self, keep};
use crate::controller::Controller;

/// The paths that MetalLB's ValidatingWebhookConfiguration names, and the kinds they are for. One
/// function answers them all.
const ADMISSION_PATHS: [&str; 6] = [
    "/validate-metallb-io-v1beta1-ipaddresspool",
    "/validate-metallb-io-v1beta1-l2advertisement",
    "/validate-metallb-io-v1beta1-bgpadvertisement",
    "/validate-metallb-io-v1beta2-bgppeer",
    "/validate-metallb-io-v1beta1-bfdprofile",
    "/validate-metallb-io-v1beta1-community",
];
const CONVERSION_PATH: &str = "/convert";
/// The object before and after; an API server takes none above 3 MiB.
const ADMISSION_LIMIT: usize = 8 << 20;
/// A list of objects.
const CONVERSION_LIMIT: usize = 32 << 20;
/// Requests that are read and answered at once; more wait for their turn, and for so long at most.
const MAX_REQUESTS: usize = 16;
const ADMISSION_TIMEOUT: Duration = Duration::from_millis(1900);
/// API servers wait 30 s.
const CONVERSION_TIMEOUT: Duration = Duration::from_secs(25);
/// For the answer of the owner: leaves time to let the object through instead.
const OWNER_TIMEOUT: Duration = Duration::from_millis(1500);
const NOT_READ: &str =
    "Berth has not read the configuration yet; the object was not checked, see its status later";
const NOT_CHECKED: &str = "Berth is too busy; the object was not checked, see its status later";

/// How the webhook is served.
#[derive(Debug, Clone)]
pub struct Options {
    pub address: SocketAddr,
    pub tls: Tls,
    pub certificates: Certificates,
}

/// Where the certificate comes from.
#[derive(Debug, Clone)]
pub enum Certificates {
    /// Made, renewed and made known here.
    Rotated {
        secret: String,
        /// The Service by which API servers reach us.
        service: String,
    },
    /// Files `tls.crt` and `tls.key`, renewed and made known by somebody else.
    Files(PathBuf),
}

/// A question to the owner of the controller.
#[derive(Debug)]
pub struct Admission {
    pub operation: Operation,
    pub candidate: Candidate,
    pub reply: oneshot::Sender<Verdict>,
}

impl Admission {
    /// Answers it from what the controller knows.
    pub fn answer(self, controller: &Controller) {
        let verdict = if controller.is_ready() {
            controller.admit(self.operation, &self.candidate)
        } else {
            Ok(vec![NOT_READ.to_owned()])
        };
        // Nobody minds when the API server did not wait.
        let _ = self.reply.send(verdict);
    }
}

/// Warnings, or every reason against it.
pub type Verdict = Result<Vec<String>, Vec<ConfigError>>;

/// What the webhook shares with the rest of the process.
#[derive(Debug)]
pub struct Context<'a> {
    pub namespace: &'a str,
    pub clients: &'a Clients,
    pub metrics: &'a ApiMetrics,
    pub ready: &'a Ready,
    pub stop: &'a CancellationToken,
}

/// Serves the webhook until the end of the process, which is not ready before there is a
/// certificate; questions go to `admissions`. Certificates are made while `leads`.
///
/// # Errors
/// When the address cannot be bound.
pub async fn serve(
    options: Options,
    context: Context<'_>,
    leads: watch::Receiver<bool>,
    admissions: mpsc::Sender<Admission>,
) -> Result<()> {
    let Context { namespace, clients, metrics, ready, stop } = context;
    let certificate = Certificate::default();
    let listener = listen(options.address).await?;
    tls::serve(listener, &options.tls, &certificate, router(admissions), stop.clone())?;
    let (served, shown) = (ready.waits_for("the certificate of the webhook"), certificate.clone());
    tokio::spawn(async move {
        shown.available().await;
        served.fulfill();
    });
    match options.certificates {
        Certificates::Files(directory) => follow_files(directory, certificate, stop.clone()),
        Certificates::Rotated { secret, service } => {
            let settings =
                certificates::Settings { namespace: namespace.to_owned(), secret, service };
            let kept = keep(settings, clients.clone(), metrics.clone(), leads, certificate);
            tokio::spawn(stop.clone().run_until_cancelled_owned(kept));
        }
    }
    Ok(())
}

/// Without TLS.
fn router(admissions: mpsc::Sender<Admission>) -> Router {
    let webhook = Arc::new(Webhook { admissions, places: Semaphore::new(MAX_REQUESTS) });
    let with_admission = |router: Router<_>, path| router.route(path, post(admit));
    ADMISSION_PATHS
        .into_iter()
        .fold(Router::new(), with_admission)
        .route(CONVERSION_PATH, post(convert))
        .with_state(webhook)
}

struct Webhook {
    admissions: mpsc::Sender<Admission>,
    places: Semaphore,
}

async fn admit(State(webhook): State<Arc<Webhook>>, request: Request) -> Response {
    let answer = async {
        let _place = webhook.places.acquire().await;
        let review: AdmissionReview<DynamicObject> = read(request, ADMISSION_LIMIT).await?;
        let request: AdmissionRequest<_> = review.try_into().map_err(|error| bad(&error))?;
        Ok(Json(webhook.answer(&request).await.into_review()))
    };
    in_time(ADMISSION_TIMEOUT, answer).await
}

impl Webhook {
    async fn answer(&self, request: &AdmissionRequest<DynamicObject>) -> AdmissionResponse {
        let mut response = AdmissionResponse::from(request);
        let (operation, object) = match request.operation {
            admission::Operation::Create => (Operation::Create, &request.object),
            admission::Operation::Update => (Operation::Update, &request.object),
            admission::Operation::Delete => (Operation::Delete, &request.old_object),
            admission::Operation::Connect => return response,
        };
        let Some(object) = object else { return response };
        // It goes as soon as its finalizers do: nobody may be kept from removing them.
        if operation == Operation::Update && object.metadata.deletion_timestamp.is_some() {
            return response;
        }
        let candidate = match candidate(object) {
            Ok(Some(candidate)) => candidate,
            Ok(None) => return response,
            // What cannot be read can at least be removed.
            Err(_) if operation == Operation::Delete => return response,
            Err(error) => return deny(response, &error),
        };
        match self.ask(operation, candidate).await {
            Some(Ok(warnings)) => {
                response.warnings = Some(warnings).filter(|warnings| !warnings.is_empty());
                response
            }
            Some(Err(errors)) => {
                let errors: Vec<_> = errors.iter().map(ToString::to_string).collect();
                deny(response, &errors.join("\n"))
            }
            None => {
                debug!(kind = request.kind.kind, name = request.name, "not checked in time");
                response.warnings = Some(vec![NOT_CHECKED.to_owned()]);
                response
            }
        }
    }

    /// `None` when the owner is too busy, or gone.
    async fn ask(&self, operation: Operation, candidate: Candidate) -> Option<Verdict> {
        let (reply, verdict) = oneshot::channel();
        let asked = async {
            self.admissions.send(Admission { operation, candidate, reply }).await.ok()?;
            verdict.await.ok()
        };
        timeout(OWNER_TIMEOUT, asked).await.ok().flatten()
    }
}

fn candidate(object: &DynamicObject) -> Result<Option<Candidate>, String> {
    let object = serde_json::to_value(object).map_err(|error| error.to_string())?;
    Candidate::from_json(&object).map_err(|error| error.to_string())
}

fn deny(mut response: AdmissionResponse, reason: &str) -> AdmissionResponse {
    response.result = Status::failure("", "Forbidden").with_code(403);
    response.deny(reason)
}

async fn convert(State(webhook): State<Arc<Webhook>>, request: Request) -> Response {
    let answer = async {
        let _place = webhook.places.acquire().await;
        let review: ConversionReview = read(request, CONVERSION_LIMIT).await?;
        let mut request = ConversionRequest::from_review(review).map_err(|error| bad(&error))?;
        let objects = std::mem::take(&mut request.objects);
        let converted = converted(&objects, &request.desired_api_version);
        let response = ConversionResponse::for_request(request);
        let response = match converted {
            Ok(objects) => response.success(objects),
            Err(error) => response.failure(Status::failure(&error, "InvalidRequest")),
        };
        Ok(Json(response.into_review()))
    };
    in_time(CONVERSION_TIMEOUT, answer).await
}

/// All of them, in their order.
fn converted(objects: &[Value], desired: &str) -> Result<Vec<Value>, String> {
    objects.iter().map(|object| crds::convert(object, desired)).collect()
}

async fn read<T: DeserializeOwned>(request: Request, limit: usize) -> Result<T, Response> {
    let body = to_bytes(request.into_body(), limit).await.map_err(|error| bad(&error))?;
    serde_json::from_slice(&body).map_err(|error| bad(&error))
}

fn bad(error: &dyn std::error::Error) -> Response {
    (StatusCode::BAD_REQUEST, format!("no review that can be read: {error}\n")).into_response()
}

async fn in_time<T>(
    limit: Duration,
    answer: impl Future<Output = Result<Json<T>, Response>>,
) -> Response
where
    Json<T>: axum::response::IntoResponse,
{
    match timeout(limit, answer).await {
        Ok(Ok(answer)) => answer.into_response(),
        Ok(Err(refusal)) => refusal,
        Err(_) => (StatusCode::SERVICE_UNAVAILABLE, "too busy\n").into_response(),
    }
}

#[cfg(test)]
mod tests;
