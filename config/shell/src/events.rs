//! Kubernetes Events, sent from a queue that never holds anybody up.

use k8s_openapi::api::core::v1::ObjectReference;
use kube::{
    Client,
    runtime::events::{Event, Recorder, Reporter},
};
use prometheus_client::metrics::counter::Counter;
use tokio::{
    sync::mpsc,
    time::{Duration, Instant, sleep_until},
};
use tracing::debug;

use crate::client::request;

/// Enough for a restart with 10,000 Services. The oldest matter most, so a full queue drops the
/// newest.
const QUEUE: usize = 16_384;
/// 25 a second: every speaker of a large cluster sends its own, and the API server stores some
/// 2,000 a second and has better things to do.
const INTERVAL: Duration = Duration::from_millis(40);
/// So many may follow each other at once after a pause.
const BURST: u32 = 100;
/// In bytes; the API server refuses longer notes.
const LONGEST_NOTE: usize = 1024;

/// Publishes Events in the background.
#[derive(Debug, Clone)]
pub struct Events {
    queue: mpsc::Sender<(ObjectReference, Event)>,
    dropped: Counter,
}

impl Events {
    /// Starts the task that publishes; it ends with the last `Events`. `component` is what
    /// `kubectl describe` shows as the source; `dropped` counts Events that nobody will see.
    pub fn start(
        client: Client,
        component: &str,
        instance: Option<String>,
        dropped: Counter,
    ) -> Self {
        let (queue, waiting) = mpsc::channel(QUEUE);
        let reporter = Reporter { controller: component.to_owned(), instance };
        tokio::spawn(publish_all(Recorder::new(client, reporter), waiting, dropped.clone()));
        Self { queue, dropped }
    }

    /// Queues an Event, whose note is cut to what the API server takes.
    pub fn publish(&self, regarding: ObjectReference, mut event: Event) {
        if let Some(note) = &mut event.note {
            shorten(note);
        }
        if self.queue.try_send((regarding, event)).is_err() {
            self.dropped.inc();
        }
    }
}

async fn publish_all(
    recorder: Recorder,
    mut waiting: mpsc::Receiver<(ObjectReference, Event)>,
    dropped: Counter,
) {
    // A token bucket, kept as the instant at which it will be full again.
    let mut full_at = Instant::now();
    while let Some((regarding, event)) = waiting.recv().await {
        full_at = full_at.max(Instant::now()) + INTERVAL;
        sleep_until(full_at - INTERVAL * BURST).await;
        // An Event that cannot be sent is lost: it tells of something that the status shows too.
        if let Err(error) = request(recorder.publish(&event, &regarding)).await {
            dropped.inc();
            debug!(%error, "Event not published");
        }
    }
}

fn shorten(note: &mut String) {
    if note.len() > LONGEST_NOTE {
        let end = (0..=LONGEST_NOTE).rev().find(|end| note.is_char_boundary(*end));
        note.truncate(end.unwrap_or_default());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_note_is_cut_between_characters() {
        for (character, count, left) in
            [("a", 1024, 1024), ("a", 1025, 1024), ("é", 600, 1024), ("€", 600, 1023)]
        {
            let mut note = character.repeat(count);
            shorten(&mut note);
            assert_eq!(note.len(), left, "{count} times {character}");
        }
    }
}
