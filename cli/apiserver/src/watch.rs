//! Watches: a stream of changes, one JSON object a line, read from the log of the store.

use std::{collections::VecDeque, io, sync::Arc, time::Duration};

use bytes::Bytes;
use futures::stream;
use http_body::Frame;
use http_body_util::{BodyExt, StreamBody};
use serde_json::{Value, json};
use tokio::{
    sync::watch,
    time::{Instant, sleep_until},
};

use crate::{
    ApiError, ApiServer, api,
    http::{ResponseBody, View, show},
    resource::Resource,
    selector::Selector,
    store::Change,
};

/// A watch without `timeoutSeconds` ends after this time.
const DEFAULT_TIMEOUT: Duration = Duration::from_secs(30 * 60);

/// The query of a watch.
#[derive(Debug)]
pub(crate) struct WatchQuery {
    pub namespace: Option<String>,
    pub selector: Selector,
    pub start: Start,
    pub bookmarks: bool,
    /// Seconds.
    pub timeout: Option<u64>,
    pub view: View,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Start {
    /// The present objects as additions, a bookmark if those are wanted, then changes.
    Present,
    /// The changes after a revision.
    After(u64),
}

struct Watch {
    server: ApiServer,
    resource: Arc<Resource>,
    query: WatchQuery,
    /// All changes up to this revision are in `pending` or sent.
    position: u64,
    pending: VecDeque<Bytes>,
    news: watch::Receiver<u64>,
    available: watch::Receiver<bool>,
    deadline: Instant,
    next_bookmark: Option<Instant>,
    columns_sent: bool,
    ended: bool,
}

/// Begins a watch.
///
/// # Errors
/// 504 for a revision that does not exist yet. A revision that is no longer known gives a stream
/// with nothing but an error 410, as from an API server.
pub(crate) fn start(
    server: &ApiServer,
    resource: Arc<Resource>,
    query: WatchQuery,
) -> Result<ResponseBody, ApiError> {
    let api = server.lock();
    let current = api.store.revision();
    let timeout = query.timeout.map_or(DEFAULT_TIMEOUT, Duration::from_secs);
    let mut watch = Watch {
        server: server.clone(),
        position: current,
        pending: VecDeque::new(),
        news: api.store.subscribe(resource.storage),
        available: server.inner.available.subscribe(),
        deadline: Instant::now() + timeout,
        next_bookmark: None,
        columns_sent: false,
        ended: false,
        resource,
        query,
    };
    match watch.query.start {
        Start::After(revision) if revision > current => {
            return Err(ApiError::future_resource_version(revision, current));
        }
        Start::After(revision) => {
            watch.position = revision;
            if let Err(lost) = api.store.changes_after(watch.resource.storage, revision) {
                let error = api::too_old(revision, lost).to_status();
                watch.pending.push_back(line("ERROR", &error));
                watch.ended = true;
            }
        }
        Start::Present => {
            for object in api.store.objects(watch.resource.storage).values() {
                if watch.is_wanted(object) {
                    watch.push("ADDED", object);
                }
            }
            if watch.query.bookmarks {
                watch.push_bookmark(&json!({"k8s.io/initial-events-end": "true"}));
            }
        }
    }
    drop(api);
    watch.plan_bookmark();
    let lines = stream::unfold(watch, |mut watch| async move {
        let line = watch.next().await?;
        Some((line.map(Frame::data), watch))
    });
    Ok(StreamBody::new(lines).boxed_unsync())
}

impl Watch {
    async fn next(&mut self) -> Option<io::Result<Bytes>> {
        loop {
            if !*self.available.borrow() {
                return Some(Err(io::ErrorKind::ConnectionReset.into()));
            }
            if let Some(line) = self.pending.pop_front() {
                return Some(Ok(line));
            }
            if self.ended || self.read_log().is_none() {
                return None;
            }
            if !self.pending.is_empty() {
                continue;
            }
            let bookmark = self.next_bookmark.unwrap_or(self.deadline);
            tokio::select! {
                changed = self.news.changed() => changed.ok()?,
                changed = self.available.changed() => changed.ok()?,
                () = sleep_until(self.deadline) => return None,
                () = sleep_until(bookmark), if self.next_bookmark.is_some() => {
                    self.push_bookmark(&Value::Null);
                    self.plan_bookmark();
                }
            }
        }
    }

    /// Takes the new changes from the log; none if some of them are lost.
    fn read_log(&mut self) -> Option<()> {
        self.news.mark_unchanged();
        let server = self.server.clone();
        let api = server.lock();
        let changes: Vec<_> =
            api.store.changes_after(self.resource.storage, self.position).ok()?.cloned().collect();
        self.position = api.store.revision();
        drop(api);
        for change in &changes {
            self.push_change(change);
        }
        Some(())
    }

    /// Says of a change what it means to those who only see what their selector matches.
    fn push_change(&mut self, change: &Change) {
        let wanted =
            |object: &Option<Arc<Value>>| object.clone().filter(|object| self.is_wanted(object));
        match (wanted(&change.old), wanted(&change.new)) {
            (None, None) => {}
            (None, Some(new)) => self.push("ADDED", &new),
            (Some(_), Some(new)) => self.push("MODIFIED", &new),
            (Some(old), None) => {
                let mut last = (*old).clone();
                last["metadata"]["resourceVersion"] = json!(change.revision.to_string());
                self.push("DELETED", &Arc::new(last));
            }
        }
    }

    fn is_wanted(&self, object: &Value) -> bool {
        let namespace = object["metadata"]["namespace"].as_str();
        self.query.namespace.as_deref().is_none_or(|wanted| namespace == Some(wanted))
            && api::matches(&self.resource, &self.query.selector, object)
    }

    fn push(&mut self, kind: &str, object: &Arc<Value>) {
        let now = (self.server.inner.now)();
        let mut shown = show(&self.resource, std::slice::from_ref(object), self.query.view, now);
        if let View::Table(_) = self.query.view {
            // Only the first Table of a watch repeats the columns.
            if self.columns_sent {
                shown["columnDefinitions"] = Value::Null;
            }
            self.columns_sent = true;
        }
        self.pending.push_back(line(kind, &shown));
    }

    fn push_bookmark(&mut self, annotations: &Value) {
        let mut metadata =
            json!({"resourceVersion": self.position.to_string(), "creationTimestamp": null});
        if !annotations.is_null() {
            metadata["annotations"] = annotations.clone();
        }
        let bookmark = json!({
            "kind": self.resource.kind, "apiVersion": self.resource.api_version(),
            "metadata": metadata,
        });
        self.pending.push_back(line("BOOKMARK", &bookmark));
    }

    fn plan_bookmark(&mut self) {
        let next = Instant::now() + self.server.inner.bookmark_interval;
        self.next_bookmark = self.query.bookmarks.then_some(next);
    }
}

fn line(kind: &str, object: &Value) -> Bytes {
    Bytes::from(format!("{}\n", json!({"type": kind, "object": object})))
}
