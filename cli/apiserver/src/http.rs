//! HTTP requests in, answers out: paths, query parameters, media types and the three forms of an
//! answer (object, metadata only, Table).

use std::{collections::BTreeMap, io, sync::Arc};

use bytes::Bytes;
use http::{HeaderMap, Method, Request, Response, StatusCode, header};
use http_body_util::{BodyExt, Full, Limited, combinators::UnsyncBoxBody};
use serde_json::{Value, json};

use crate::{
    ApiError, ApiServer,
    api::{
        ListQuery, Outcome, Part, Patch, Persistence, Preconditions, Target, UnknownFields,
        WriteOptions, Written,
    },
    apply::OnConflict,
    convert, discovery,
    resource::{Resource, Scope, Subresources},
    selector::Selector,
    table::{self, Include},
    watch::{self, Start, WatchQuery},
};

/// Body of an answer: whole, or for a watch one JSON object a line until it ends.
pub type ResponseBody = UnsyncBoxBody<Bytes, io::Error>;

/// Larger request bodies are refused, as by an API server.
const BODY_LIMIT: usize = 3 * 1024 * 1024;

/// The form in which a client wants objects.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum View {
    Object,
    Metadata,
    Table(Include),
}

/// A path that names a kind.
struct Place<'a> {
    resource: Arc<Resource>,
    namespace: Option<&'a str>,
    name: Option<&'a str>,
    part: Part,
}

type Query = BTreeMap<String, String>;

/// Answers one request.
///
/// # Errors
/// The server is switched off, or the body of the request broke off.
pub(crate) async fn answer<B>(
    server: &ApiServer,
    request: Request<B>,
) -> io::Result<Response<ResponseBody>>
where
    B: http_body::Body<Data = Bytes>,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    let latency = *server.inner.latency.borrow();
    if !latency.is_zero() {
        tokio::time::sleep(latency).await;
    }
    if !*server.inner.available.borrow() {
        return Err(io::ErrorKind::ConnectionRefused.into());
    }
    let (head, body) = request.into_parts();
    let body = match Limited::new(body, BODY_LIMIT).collect().await {
        Ok(body) => body.to_bytes(),
        Err(error) if error.is::<http_body_util::LengthLimitError>() => {
            let limit = format!("the request is larger than {BODY_LIMIT} bytes");
            return Ok(refusal(&ApiError::too_large(limit)));
        }
        Err(error) => return Err(io::Error::other(error)),
    };
    let answered = route(server, &head, &body);
    tracing::debug!(
        method = %head.method, uri = %head.uri,
        status = answered.as_ref().map_or_else(|error| error.code, |answer| answer.status().as_u16()),
        "request"
    );
    Ok(answered.unwrap_or_else(|error| refusal(&error)))
}

fn route(
    server: &ApiServer,
    head: &http::request::Parts,
    body: &Bytes,
) -> Result<Response<ResponseBody>, ApiError> {
    let segments: Vec<_> = head.uri.path().split('/').filter(|part| !part.is_empty()).collect();
    let query: Query = form_urlencoded::parse(head.uri.query().unwrap_or_default().as_bytes())
        .into_owned()
        .collect();
    if let ["healthz" | "livez" | "readyz", ..] = segments.as_slice() {
        let body = Full::new(Bytes::from_static(b"ok")).map_err(|never| match never {});
        return Ok(Response::new(body.boxed_unsync()));
    }
    let Some(place) = place(server, &segments)? else {
        let document = discovery::document(&server.inner.registry, &segments)?;
        return Ok(json_response(StatusCode::OK, &document, &[]));
    };
    let view = view(&head.headers, &query)?;
    let now = (server.inner.now)();
    let manager = manager_name(&head.headers, &query);
    let options = WriteOptions {
        manager: &manager,
        persistence: match query.get("dryRun").map(String::as_str) {
            None => Persistence::Stored,
            Some("All") => Persistence::DryRun,
            Some(other) => {
                return Err(ApiError::unprocessable(format!(
                    "dryRun: unsupported value {other:?}"
                )));
            }
        },
        unknown_fields: match query.get("fieldValidation").map(String::as_str) {
            None | Some("Warn") => UnknownFields::Warn,
            Some("Strict") => UnknownFields::Refuse,
            Some("Ignore") => UnknownFields::Ignore,
            Some(other) => {
                let message = format!("fieldValidation: unsupported value {other:?}");
                return Err(ApiError::unprocessable(message));
            }
        },
        now,
    };
    let resource = &*place.resource;
    if !resource.access.allows(&head.method) {
        return Err(ApiError::method_not_allowed());
    }
    if resource.scope == Scope::Namespaced
        && place.namespace.is_none()
        && head.method != Method::GET
    {
        return Err(ApiError::method_not_allowed());
    }
    let target = Target {
        resource,
        namespace: place.namespace.unwrap_or_default(),
        name: place.name.unwrap_or_default(),
        part: place.part,
    };
    let (written, code) = match (&head.method, place.name) {
        (&Method::GET, Some(_)) => {
            let object = server.lock().get(target)?;
            let shown = show(resource, &[object], view, now);
            return Ok(json_response(StatusCode::OK, &shown, resource_warning(resource)));
        }
        (&Method::GET, None) if query.get("watch").is_some_and(|on| is_true(on)) => {
            return start_watch(server, &place, &query, view);
        }
        (&Method::GET, None) => return list(server, &place, &query, view),
        (&Method::POST, None) => {
            let body = parse(&head.headers, body)?;
            (server.lock().create(target, &body, options)?, StatusCode::CREATED)
        }
        (&Method::PUT, Some(_)) => {
            let written = server.lock().replace(target, &parse(&head.headers, body)?, options)?;
            let code = match written.outcome {
                Outcome::Created => StatusCode::CREATED,
                Outcome::Updated | Outcome::Deleting | Outcome::Deleted => StatusCode::OK,
            };
            (written, code)
        }
        (&Method::PATCH, Some(_)) => {
            let body = json_of(body)?;
            let patch = patch_of(&head.headers, &query, &body)?;
            let written = server.lock().patch(target, patch, options)?;
            let code = match written.outcome {
                Outcome::Created => StatusCode::CREATED,
                Outcome::Updated | Outcome::Deleting | Outcome::Deleted => StatusCode::OK,
            };
            (written, code)
        }
        (&Method::DELETE, Some(_)) if place.part == Part::Main => {
            let asked = if body.is_empty() { Value::Null } else { json_of(body)? };
            let text = |field: &str| asked["preconditions"][field].as_str().map(str::to_owned);
            let preconditions =
                Preconditions { uid: text("uid"), resource_version: text("resourceVersion") };
            let dry_run = asked["dryRun"].as_array().is_some_and(|dry| !dry.is_empty());
            let persistence = if dry_run { Persistence::DryRun } else { options.persistence };
            let options = WriteOptions { persistence, ..options };
            (server.lock().delete(target, &preconditions, options)?, StatusCode::OK)
        }
        (&Method::DELETE, None) => return delete_all(server, &place, &query, options, view),
        _ => return Err(ApiError::method_not_allowed()),
    };
    let Written { object, outcome, mut warnings } = written;
    warnings.extend(resource.warning.clone());
    if outcome == Outcome::Deleted {
        let status = json!({
            "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success",
            "details": {"name": target.name, "group": resource.group, "kind": resource.plural,
                        "uid": object["metadata"]["uid"]},
        });
        return Ok(json_response(code, &status, &warnings));
    }
    Ok(json_response(code, &show(resource, &[object], view, now), &warnings))
}

fn list(
    server: &ApiServer,
    place: &Place<'_>,
    query: &Query,
    view: View,
) -> Result<Response<ResponseBody>, ApiError> {
    let resource = &place.resource;
    let version = query.get("resourceVersion").map(|text| revision(text)).transpose()?.flatten();
    let is_exact = query.get("resourceVersionMatch").is_some_and(|how| how == "Exact");
    let asked = ListQuery {
        selector: selector(resource, query)?,
        limit: match query.get("limit") {
            None => 0,
            Some(text) => text
                .parse()
                .map_err(|_| ApiError::bad_request(format!("limit: {text:?} is no number")))?,
        },
        continue_from: query.get("continue").filter(|token| !token.is_empty()).cloned(),
        exactly_at: version.filter(|_| is_exact),
        not_older_than: version.filter(|_| !is_exact),
    };
    let page = server.lock().list(resource, place.namespace, &asked)?;
    let mut metadata = json!({"resourceVersion": page.revision.to_string()});
    if let Some(token) = page.continue_from {
        metadata["continue"] = json!(token);
    }
    if let Some(remaining) = page.remaining {
        metadata["remainingItemCount"] = json!(remaining);
    }
    let shown = show_list(resource, &page.objects, view, metadata, (server.inner.now)());
    Ok(json_response(StatusCode::OK, &shown, resource_warning(resource)))
}

fn start_watch(
    server: &ApiServer,
    place: &Place<'_>,
    query: &Query,
    view: View,
) -> Result<Response<ResponseBody>, ApiError> {
    let on = |name: &str| query.get(name).is_some_and(|value| is_true(value));
    let version = query.get("resourceVersion").map(|text| revision(text)).transpose()?.flatten();
    let initial = on("sendInitialEvents");
    let matching = query.get("resourceVersionMatch").map(String::as_str);
    if initial && matching != Some("NotOlderThan") {
        return Err(ApiError::unprocessable(
            "resourceVersionMatch: sendInitialEvents is only possible with NotOlderThan",
        ));
    }
    let timeout = match query.get("timeoutSeconds") {
        None => None,
        Some(text) => Some(text.parse().map_err(|_| {
            ApiError::bad_request(format!("timeoutSeconds: {text:?} is no number of seconds"))
        })?),
    };
    let asked = WatchQuery {
        namespace: place.namespace.map(str::to_owned),
        selector: selector(&place.resource, query)?,
        start: match version {
            Some(version) if !initial => Start::After(version),
            _ => Start::Present,
        },
        bookmarks: on("allowWatchBookmarks"),
        timeout,
        view,
    };
    let body = watch::start(server, place.resource.clone(), asked)?;
    let mut response = Response::new(body);
    response.headers_mut().insert(header::CONTENT_TYPE, JSON);
    Ok(response)
}

fn delete_all(
    server: &ApiServer,
    place: &Place<'_>,
    query: &Query,
    options: WriteOptions<'_>,
    view: View,
) -> Result<Response<ResponseBody>, ApiError> {
    let resource = &place.resource;
    let selected = ListQuery { selector: selector(resource, query)?, ..ListQuery::default() };
    let mut api = server.lock();
    let page = api.list(resource, place.namespace, &selected)?;
    for object in &page.objects {
        let text = |field: &str| object["metadata"][field].as_str().unwrap_or_default();
        let (namespace, name) = (text("namespace"), text("name"));
        let target = Target { resource, namespace, name, part: Part::Main };
        api.delete(target, &Preconditions::default(), options)?;
    }
    let metadata = json!({"resourceVersion": api.store.revision().to_string()});
    let shown = show_list(resource, &page.objects, view, metadata, options.now);
    Ok(json_response(StatusCode::OK, &shown, resource_warning(resource)))
}

/// What a path names, if it names a kind and no document of the discovery.
fn place<'a>(server: &ApiServer, segments: &[&'a str]) -> Result<Option<Place<'a>>, ApiError> {
    let (group, version, rest) = match segments {
        ["api", version, rest @ ..] => ("", *version, rest),
        ["apis", group, version, rest @ ..] => (*group, *version, rest),
        _ => return Ok(None),
    };
    let (namespace, rest) = match rest {
        [] => return Ok(None),
        ["namespaces", namespace, rest @ ..]
            if !rest.is_empty() && !matches!(rest, ["status" | "finalize"]) =>
        {
            (Some(*namespace), rest)
        }
        rest => (None, rest),
    };
    let (plural, name, part) = match rest {
        [plural] => (*plural, None, Part::Main),
        [plural, name] => (*plural, Some(*name), Part::Main),
        [plural, name, "status"] => (*plural, Some(*name), Part::Status),
        _ => return Err(ApiError::no_such_path()),
    };
    let resource = server.inner.registry.by_path(group, version, plural);
    let resource = resource.ok_or_else(ApiError::no_such_path)?.clone();
    let has_status = resource.subresources == Subresources::Status;
    let misplaced = resource.scope == Scope::Cluster && namespace.is_some();
    let needs_namespace = resource.scope == Scope::Namespaced && name.is_some();
    if (part == Part::Status && !has_status)
        || misplaced
        || (needs_namespace && namespace.is_none())
    {
        return Err(ApiError::no_such_path());
    }
    Ok(Some(Place { resource, namespace, name, part }))
}

fn view(headers: &HeaderMap, query: &Query) -> Result<View, ApiError> {
    let accepted = headers.get(header::ACCEPT).and_then(|value| value.to_str().ok());
    for media_type in accepted.unwrap_or("*/*").split(',') {
        let mut parts = media_type.split(';').map(str::trim);
        let name = parts.next().unwrap_or_default();
        if !matches!(name, "application/json" | "application/*" | "*/*") {
            continue;
        }
        let parameters: BTreeMap<_, _> = parts.filter_map(|part| part.split_once('=')).collect();
        let is_v1 = parameters.get("v").is_none_or(|version| *version == "v1");
        match parameters.get("as").copied() {
            None => return Ok(View::Object),
            Some("PartialObjectMetadata" | "PartialObjectMetadataList") if is_v1 => {
                return Ok(View::Metadata);
            }
            Some("Table") if is_v1 => {
                let include = match query.get("includeObject").map(String::as_str) {
                    Some("Object") => Include::Object,
                    Some("None") => Include::None,
                    _ => Include::Metadata,
                };
                return Ok(View::Table(include));
            }
            Some(_) => {}
        }
    }
    Err(ApiError::not_acceptable())
}

/// One object in the form that was asked for.
pub(crate) fn show(
    resource: &Resource,
    objects: &[Arc<Value>],
    view: View,
    now: jiff::Timestamp,
) -> Value {
    let shown: Vec<_> =
        objects.iter().map(|stored| convert::from_stored(resource, stored)).collect();
    match view {
        View::Table(include) => table::table(resource, &shown, include, now),
        View::Metadata => shown.first().map(table::metadata_only).unwrap_or_default(),
        View::Object => shown.into_iter().next().unwrap_or_default(),
    }
}

fn show_list(
    resource: &Resource,
    objects: &[Arc<Value>],
    view: View,
    metadata: Value,
    now: jiff::Timestamp,
) -> Value {
    let shown = || objects.iter().map(|stored| convert::from_stored(resource, stored));
    match view {
        View::Table(include) => {
            let mut table = table::table(resource, &shown().collect::<Vec<_>>(), include, now);
            table["metadata"] = metadata;
            table
        }
        View::Metadata => {
            let items: Vec<_> = shown().map(|object| table::metadata_only(&object)).collect();
            json!({"kind": "PartialObjectMetadataList", "apiVersion": "meta.k8s.io/v1",
                "metadata": metadata, "items": items})
        }
        View::Object => {
            json!({"kind": format!("{}List", resource.kind), "apiVersion": resource.api_version(),
                "metadata": metadata, "items": shown().collect::<Vec<_>>()})
        }
    }
}

fn parse(headers: &HeaderMap, body: &Bytes) -> Result<Value, ApiError> {
    match media_type(headers) {
        "" | "application/json" => json_of(body),
        other => Err(ApiError::unsupported_media_type(format!(
            "the body of the request was in an unknown format - {other:?}; accepted media types \
             include: application/json"
        ))),
    }
}

fn json_of(body: &Bytes) -> Result<Value, ApiError> {
    serde_json::from_slice(body)
        .map_err(|error| ApiError::bad_request(format!("the body of the request: {error}")))
}

fn patch_of<'a>(
    headers: &HeaderMap,
    query: &Query,
    body: &'a Value,
) -> Result<Patch<'a>, ApiError> {
    match media_type(headers) {
        "application/json-patch+json" => Ok(Patch::Json(body)),
        "application/merge-patch+json" => Ok(Patch::Merge(body)),
        "application/strategic-merge-patch+json" => Ok(Patch::Strategic(body)),
        "application/apply-patch+yaml" => {
            if query.get("fieldManager").is_none_or(String::is_empty) {
                return Err(ApiError::unprocessable("fieldManager: is required for apply patch"));
            }
            let force = query.get("force").is_some_and(|force| is_true(force));
            let on_conflict = if force { OnConflict::Take } else { OnConflict::Refuse };
            Ok(Patch::Apply(body, on_conflict))
        }
        other => Err(ApiError::unsupported_media_type(format!(
            "the body of the request was in an unknown format - {other:?}"
        ))),
    }
}

fn media_type(headers: &HeaderMap) -> &str {
    let value = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok());
    value.unwrap_or_default().split(';').next().unwrap_or_default().trim()
}

/// The field manager: as the query says, else the name of the program.
fn manager_name(headers: &HeaderMap, query: &Query) -> String {
    let program = || {
        let agent = headers.get(header::USER_AGENT).and_then(|agent| agent.to_str().ok());
        agent.and_then(|agent| agent.split('/').next()).filter(|name| !name.is_empty())
    };
    let asked = query.get("fieldManager").map(String::as_str).filter(|name| !name.is_empty());
    asked.or_else(program).unwrap_or("unknown").to_owned()
}

fn selector(resource: &Resource, query: &Query) -> Result<Selector, ApiError> {
    let text = |name: &str| query.get(name).map(String::as_str).unwrap_or_default();
    Selector::parse(text("labelSelector"), text("fieldSelector"), resource.selectable)
}

/// A resourceVersion of a query; empty and 0 mean any.
fn revision(text: &str) -> Result<Option<u64>, ApiError> {
    match text {
        "" | "0" => Ok(None),
        text => text.parse().map(Some).map_err(|_| {
            ApiError::bad_request(format!("resourceVersion: Invalid value: {text:?}"))
        }),
    }
}

fn is_true(value: &str) -> bool {
    matches!(value, "true" | "True" | "1")
}

fn resource_warning(resource: &Resource) -> &[String] {
    resource.warning.as_slice()
}

const JSON: header::HeaderValue = header::HeaderValue::from_static("application/json");

fn refusal(error: &ApiError) -> Response<ResponseBody> {
    let code = StatusCode::from_u16(error.code).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    json_response(code, &error.to_status(), &[])
}

fn json_response(code: StatusCode, body: &Value, warnings: &[String]) -> Response<ResponseBody> {
    let body = Full::new(Bytes::from(body.to_string())).map_err(|never| match never {});
    let mut response = Response::new(body.boxed_unsync());
    *response.status_mut() = code;
    response.headers_mut().insert(header::CONTENT_TYPE, JSON);
    for warning in warnings {
        // The text is a quoted string (RFC 9110, section 5.6.4).
        let quoted = warning.replace('\\', "\\\\").replace('"', "\\\"");
        if let Ok(value) = header::HeaderValue::from_str(&format!("299 - \"{quoted}\"")) {
            response.headers_mut().append(header::WARNING, value);
        }
    }
    response
}
