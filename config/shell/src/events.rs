//! Kubernetes Events, sent from a queue that never holds anybody up.

use std::{
    collections::{BTreeSet, VecDeque, hash_map::RandomState},
    hash::BuildHasher as _,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use k8s_openapi::{
    api::{core::v1::ObjectReference, events},
    apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta},
    jiff::Timestamp,
};
use kube::{
    Api, Client,
    api::PostParams,
    runtime::events::{Event, EventType},
};
use prometheus_client::metrics::counter::Counter;
use tokio::{
    sync::mpsc,
    time::{Duration, Instant, sleep, sleep_until},
};
use tracing::debug;

use crate::client::{RequestError, request};

/// So many wait; what comes then is dropped. In a flood the status of each object tells the same, and
/// these take about a kilobyte each.
const QUEUE: usize = 1024;
/// 25 a second: every speaker of a large cluster sends its own, and the API server stores some
/// 2,000 a second and has better things to do.
const INTERVAL: Duration = Duration::from_millis(40);
/// While statuses wait to be written.
const INTERVAL_ON_HOLD: Duration = Duration::from_secs(1);
/// So many may follow each other at once after a pause.
const BURST: u32 = 100;
/// The same is not told again for so long.
const REPEAT: Duration = Duration::from_secs(600);
/// So much is remembered of what was told.
const REMEMBERED: usize = 4096;
/// In bytes; the API server refuses longer notes.
const LONGEST_NOTE: usize = 1024;

/// Publishes Events in the background.
#[derive(Debug, Clone)]
pub struct Events {
    queue: mpsc::Sender<(ObjectReference, Event)>,
    hold: Arc<AtomicBool>,
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
        let hold = Arc::new(AtomicBool::new(false));
        let publisher = Publisher {
            client,
            component: component.to_owned(),
            instance: instance.unwrap_or_else(|| component.to_owned()),
            hold: Arc::clone(&hold),
            told: Told::default(),
            dropped: dropped.clone(),
        };
        tokio::spawn(publisher.run(waiting));
        Self { queue, hold, dropped }
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

    /// Whether something more important than Events waits for the API server.
    pub fn hold(&self, hold: bool) {
        self.hold.store(hold, Ordering::Relaxed);
    }
}

struct Publisher {
    client: Client,
    component: String,
    instance: String,
    hold: Arc<AtomicBool>,
    told: Told,
    dropped: Counter,
}

impl Publisher {
    async fn run(mut self, mut waiting: mpsc::Receiver<(ObjectReference, Event)>) {
        // A token bucket, kept as the instant at which it will be full again.
        let mut full_at = Instant::now();
        while let Some((regarding, event)) = waiting.recv().await {
            if !self.told.is_news(&regarding, &event, Instant::now()) {
                self.dropped.inc();
                continue;
            }
            full_at = full_at.max(Instant::now()) + INTERVAL;
            sleep_until(full_at - INTERVAL * BURST).await;
            if self.hold.load(Ordering::Relaxed) {
                sleep(INTERVAL_ON_HOLD).await;
            }
            // An Event that cannot be sent is lost: it tells of something that the status shows
            // too.
            if let Err(error) = self.publish(regarding, event).await {
                self.dropped.inc();
                debug!(%error, "Event not published");
            }
        }
    }

    async fn publish(&self, regarding: ObjectReference, event: Event) -> Result<(), RequestError> {
        // Objects without a namespace have theirs in this one.
        let namespace = regarding.namespace.clone().unwrap_or_else(|| "default".to_owned());
        let name = regarding.name.clone().unwrap_or_default();
        let now = Timestamp::now();
        let object = events::v1::Event {
            metadata: ObjectMeta {
                // As client-go names them.
                name: Some(format!("{name}.{:x}", now.as_nanosecond())),
                namespace: Some(namespace.clone()),
                ..ObjectMeta::default()
            },
            action: Some(event.action),
            event_time: Some(MicroTime(now)),
            note: event.note,
            reason: Some(event.reason),
            regarding: Some(regarding),
            related: event.secondary,
            reporting_controller: Some(self.component.clone()),
            reporting_instance: Some(self.instance.clone()),
            type_: Some(
                match event.type_ {
                    EventType::Normal => "Normal",
                    EventType::Warning => "Warning",
                }
                .to_owned(),
            ),
            ..events::v1::Event::default()
        };
        let api = Api::<events::v1::Event>::namespaced(self.client.clone(), &namespace);
        request(api.create(&PostParams::default(), &object)).await.map(|_| ())
    }
}

/// What was told lately.
#[derive(Debug, Default)]
struct Told {
    hasher: RandomState,
    known: BTreeSet<u64>,
    /// The oldest first.
    by_age: VecDeque<(Instant, u64)>,
}

impl Told {
    /// False for what was told before and not long ago.
    fn is_news(&mut self, regarding: &ObjectReference, event: &Event, now: Instant) -> bool {
        while let Some((at, hash)) = self.by_age.front().copied()
            && (now - at > REPEAT || self.by_age.len() >= REMEMBERED)
        {
            self.by_age.pop_front();
            self.known.remove(&hash);
        }
        let object = (&regarding.kind, &regarding.namespace, &regarding.name, &regarding.uid);
        let hash = self.hasher.hash_one((object, &event.reason, &event.note));
        let news = self.known.insert(hash);
        if news {
            self.by_age.push_back((now, hash));
        }
        news
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

    #[tokio::test(start_paused = true)]
    async fn the_same_is_not_told_again_for_a_while() {
        let mut told = Told::default();
        let mut is_news = |name: &str, note: &str| {
            let regarding =
                ObjectReference { name: Some(name.to_owned()), ..ObjectReference::default() };
            let event = Event {
                type_: EventType::Normal,
                reason: "Because".to_owned(),
                note: Some(note.to_owned()),
                action: "Assign".to_owned(),
                secondary: None,
            };
            told.is_news(&regarding, &event, Instant::now())
        };
        assert!(is_news("a", "x"));
        assert!(!is_news("a", "x"));
        assert!(is_news("a", "y"));
        assert!(is_news("b", "x"));
        tokio::time::advance(REPEAT + Duration::from_secs(1)).await;
        assert!(is_news("a", "x"));
        // What is forgotten for want of room may be told again; the memory does not grow.
        for index in 0..REMEMBERED {
            assert!(is_news("c", &index.to_string()));
        }
        assert!(is_news("a", "x"));
        assert!(told.by_age.len() <= REMEMBERED && told.known.len() == told.by_age.len());
    }

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
