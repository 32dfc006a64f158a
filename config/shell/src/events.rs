//! Kubernetes Events, sent from a queue that never holds anybody up.

use k8s_openapi::api::core::v1::ObjectReference;
use kube::{
    Client,
    runtime::events::{Event, EventType, Recorder, Reporter},
};
use tokio::{
    sync::mpsc,
    time::{Duration, Instant, sleep_until, timeout},
};
use tracing::debug;

use crate::client::REQUEST_TIMEOUT;

/// Events waiting to be sent; the oldest matter most, so a full queue drops the newest.
const QUEUE: usize = 1000;
/// Kept below what status writes need of the API server: 25 a second after a burst of 100.
const INTERVAL: Duration = Duration::from_millis(40);
const BURST: u32 = 100;

/// One Event to send.
#[derive(Debug, Clone, PartialEq)]
pub struct Message {
    pub regarding: ObjectReference,
    pub warning: bool,
    pub reason: String,
    pub note: String,
}

/// Sends Events in the background.
#[derive(Debug, Clone)]
pub struct Events(mpsc::Sender<Message>);

impl Events {
    /// Starts the sender. `component` is what `kubectl describe` shows as the source.
    pub fn start(client: Client, component: &str, instance: Option<String>) -> Self {
        let (sender, receiver) = mpsc::channel(QUEUE);
        let reporter = Reporter { controller: component.to_owned(), instance };
        tokio::spawn(send_all(Recorder::new(client, reporter), receiver));
        Self(sender)
    }

    /// Queues an Event; dropped when the queue is full.
    pub fn send(&self, message: Message) {
        if let Err(error) = self.0.try_send(message) {
            debug!(%error, "Event dropped");
        }
    }
}

async fn send_all(recorder: Recorder, mut queue: mpsc::Receiver<Message>) {
    // A token bucket in the form of the instant from which on it would be full.
    let mut paid_until = Instant::now();
    while let Some(message) = queue.recv().await {
        paid_until = paid_until.max(Instant::now()) + INTERVAL;
        sleep_until(paid_until - INTERVAL * BURST).await;
        let event = Event {
            type_: if message.warning { EventType::Warning } else { EventType::Normal },
            reason: message.reason,
            // The API refuses notes of 1 kB and more.
            note: Some(message.note.chars().take(1000).collect()),
            action: "Reconcile".to_owned(),
            secondary: None,
        };
        // An Event that cannot be sent is lost: it tells of something that the status shows too.
        match timeout(REQUEST_TIMEOUT, recorder.publish(&event, &message.regarding)).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => debug!(%error, "Event not sent"),
            Err(_) => debug!("Event not sent in time"),
        }
    }
}
