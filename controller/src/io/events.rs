//! Publishes Events: behind the status writes, at a bounded rate, and never twice.

use std::{sync::Arc, time::Duration};

use k8s_openapi::api::core::v1::ObjectReference;
use kube::{
    Client,
    runtime::events::{Event, EventType, Recorder, Reporter},
};
use tokio::{
    sync::mpsc,
    time::{Instant, sleep_until, timeout},
};
use tracing::debug;

use super::{FIELD_MANAGER, REQUEST_TIMEOUT, metrics::Metrics};
use crate::status::{Notice, NoticeKind, Regarding};

/// Enough for a restart with 10,000 Services; what does not fit is dropped and counted.
const QUEUE: usize = 16_384;
/// The API server stores some 2,000 a second and has better things to do.
const INTERVAL: Duration = Duration::from_millis(20);
/// So many may follow each other at once after a pause.
const BURST: u32 = 50;
/// The API server refuses longer notes.
const LONGEST_NOTE: usize = 1024;

/// Where notices are dropped into.
#[derive(Clone)]
pub struct Publisher {
    queue: mpsc::Sender<(Regarding, Notice)>,
    metrics: Arc<Metrics>,
}

impl Publisher {
    /// Starts the task that publishes; it ends with the last `Publisher`.
    pub fn start(client: Client, instance: Option<String>, metrics: Arc<Metrics>) -> Self {
        let (queue, notices) = mpsc::channel(QUEUE);
        let reporter = Reporter { controller: FIELD_MANAGER.to_owned(), instance };
        let recorder = Recorder::new(client, reporter);
        tokio::spawn(publish_all(recorder, notices, metrics.clone()));
        Self { queue, metrics }
    }

    pub fn publish(&self, regarding: Regarding, notice: Notice) {
        if self.queue.try_send((regarding, notice)).is_err() {
            self.metrics.events_dropped.inc();
        }
    }
}

async fn publish_all(
    recorder: Recorder,
    mut notices: mpsc::Receiver<(Regarding, Notice)>,
    metrics: Arc<Metrics>,
) {
    // A token bucket, kept as the instant at which it will be full again.
    let mut full_at = Instant::now();
    while let Some((regarding, notice)) = notices.recv().await {
        full_at = full_at.max(Instant::now()) + INTERVAL;
        sleep_until(full_at - INTERVAL * BURST).await;
        let (event, reference) = (event(notice), reference(regarding));
        match timeout(REQUEST_TIMEOUT, recorder.publish(&event, &reference)).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => {
                metrics.events_dropped.inc();
                debug!(%error, "Event not published");
            }
            Err(_) => {
                metrics.events_dropped.inc();
            }
        }
    }
}

fn event(notice: Notice) -> Event {
    let mut note = notice.note;
    if note.len() > LONGEST_NOTE {
        let end = (0..=LONGEST_NOTE).rev().find(|end| note.is_char_boundary(*end)).unwrap_or(0);
        note.truncate(end);
    }
    Event {
        type_: match notice.kind {
            NoticeKind::Normal => EventType::Normal,
            NoticeKind::Warning => EventType::Warning,
        },
        reason: notice.reason.to_owned(),
        note: Some(note),
        action: "Assign".to_owned(),
        secondary: None,
    }
}

fn reference(regarding: Regarding) -> ObjectReference {
    ObjectReference {
        api_version: Some(regarding.api_version.to_owned()),
        kind: Some(regarding.kind.to_owned()),
        namespace: Some(regarding.namespace),
        name: Some(regarding.name),
        uid: Some(regarding.uid).filter(|uid| !uid.is_empty()),
        ..ObjectReference::default()
    }
}
