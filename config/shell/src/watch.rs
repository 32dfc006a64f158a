//! Watches that survive everything: lists are swept, outages waited out.

use std::{collections::BTreeSet, fmt::Debug, time::Duration};

use futures::{
    StreamExt as _, future,
    stream::{self, BoxStream, Stream},
};
use kube::{
    Api, Resource, ResourceExt as _,
    runtime::{
        WatchStreamExt as _,
        utils::Backoff,
        watcher::{self, Event, watcher},
    },
};
use serde::de::DeserializeOwned;
use tokio::time::{Instant, sleep};
use tracing::{debug, warn};

use crate::metrics::ApiMetrics;

/// A watch ends by itself after this many seconds and is resumed, so that a peer which vanished
/// without a word is noticed.
pub(crate) const WATCH_SECONDS: u32 = 60;
/// Objects in one answer to a list.
const PAGE: u32 = 500;
/// A kind that is not served is asked for again so often.
const NOT_SERVED_INTERVAL: Duration = Duration::from_secs(600);
/// While an API server is away every watch fails about once a second.
const WARNING_INTERVAL: Duration = Duration::from_secs(30);

/// Namespace (empty for cluster-scoped kinds) and name.
pub type ObjectKey = (String, String);

/// What a watch tells.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change<K> {
    Applied(Box<K>),
    Deleted(ObjectKey),
    /// The first full list is complete; told once.
    Listed,
}

/// What a watch needs of its objects.
pub trait Object: Clone + Debug + DeserializeOwned + Send + 'static {}
impl<K: Clone + Debug + DeserializeOwned + Send + 'static> Object for K {}

/// As [`changes`], of a kind that the API server may not know (404) or not show us (403): then it
/// counts as listed and empty, and is asked for again only now and then.
pub fn changes_if_served<K>(
    api: Api<K>,
    config: watcher::Config,
    metrics: &ApiMetrics,
) -> BoxStream<'static, Change<K>>
where
    K: Resource<DynamicType: Default> + Object,
{
    swept(follow(api, config, metrics, Need::IfServed))
}

/// All objects of a kind, for ever. Objects that a relist no longer shows are told as deleted, so
/// the receiver needs no bookkeeping of its own.
pub fn changes<K>(
    api: Api<K>,
    config: watcher::Config,
    metrics: &ApiMetrics,
) -> BoxStream<'static, Change<K>>
where
    K: Resource<DynamicType: Default> + Object,
{
    swept(follow(api, config, metrics, Need::Always))
}

/// As [`changes`], for receivers that know by themselves which objects there are: every list is
/// told from its `Init` to its `InitDone`, and nothing is remembered here.
pub fn lists<K>(
    api: Api<K>,
    config: watcher::Config,
    metrics: &ApiMetrics,
) -> BoxStream<'static, Event<K>>
where
    K: Resource<DynamicType: Default> + Object,
{
    follow(api, config, metrics, Need::Always)
}

fn swept<K>(events: BoxStream<'static, Event<K>>) -> BoxStream<'static, Change<K>>
where
    K: Resource + Send + 'static,
{
    let mut sweep = Sweep::default();
    events.flat_map(move |event| stream::iter(sweep.take(event))).boxed()
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Need {
    Always,
    IfServed,
}

/// Failures are logged, counted and waited out.
fn follow<K>(
    api: Api<K>,
    config: watcher::Config,
    metrics: &ApiMetrics,
    need: Need,
) -> BoxStream<'static, Event<K>>
where
    K: Resource<DynamicType: Default> + Object,
{
    let config = config.page_size(PAGE).timeout(WATCH_SECONDS);
    let metrics = metrics.clone();
    let mut warned = None;
    let mut good = move |event| match event {
        Ok(event) => {
            match event {
                Event::Apply(_) | Event::InitApply(_) | Event::Delete(_) => {
                    metrics.updates.inc();
                }
                Event::Init | Event::InitDone => {}
            }
            Some(event)
        }
        Err(error) if need == Need::IfServed && is_not_served(&error) => {
            debug!(kind = %K::kind(&K::DynamicType::default()), %error, "not served");
            Some(Event::InitDone)
        }
        Err(error) => {
            metrics.update_errors.inc();
            log::<K>(&error, &mut warned);
            None
        }
    };
    events(api, config, need)
        .backoff(Fast::default())
        .filter_map(move |event| future::ready(good(event)))
        .boxed()
}

/// What kube's watcher tells, which lists anew only when its version is too old. An API server that
/// was set back to a backup knows no version as new as ours, and would be asked for it for ever.
fn events<K>(
    api: Api<K>,
    config: watcher::Config,
    need: Need,
) -> impl Stream<Item = watcher::Result<Event<K>>>
where
    K: Resource + Clone + Debug + DeserializeOwned + Send + 'static,
{
    let begin = move || watcher(api.clone(), config.clone()).boxed();
    stream::unfold(None, move |watching: Option<BoxStream<'static, _>>| {
        let mut watching = watching.unwrap_or_else(&begin);
        async move {
            let event = watching.next().await?;
            let not_served = need == Need::IfServed && event.as_ref().is_err_and(is_not_served);
            let watching = if not_served {
                // Nobody polls the old one any more; it would ask again at once.
                Some(later(watching))
            } else {
                (!event.as_ref().is_err_and(is_ahead)).then_some(watching)
            };
            Some((event, watching))
        }
    })
}

/// The same watch, which rests for a while first.
fn later<T: Send + 'static>(watching: BoxStream<'static, T>) -> BoxStream<'static, T> {
    stream::once(sleep(NOT_SERVED_INTERVAL)).flat_map(|()| stream::empty()).chain(watching).boxed()
}

/// The kind is unknown to the API server, or we may not see it.
fn is_not_served(error: &watcher::Error) -> bool {
    let watcher::Error::InitialListFailed(kube::Error::Api(status)) = error else { return false };
    matches!(status.code, 403 | 404)
}

/// The API server is behind the version that we have seen.
fn is_ahead(error: &watcher::Error) -> bool {
    let status = match error {
        watcher::Error::WatchStartFailed(kube::Error::Api(status)) => status,
        watcher::Error::WatchError(status) => status,
        watcher::Error::WatchStartFailed(_)
        | watcher::Error::InitialListFailed(_)
        | watcher::Error::WatchFailed(_)
        | watcher::Error::NoResourceVersion => return false,
    };
    let mut causes = status.details.iter().flat_map(|details| &details.causes);
    causes.any(|cause| cause.reason == "ResourceVersionTooLarge")
}

/// Knows which objects there are, to tell what a list does not show any more.
#[derive(Debug, Default)]
struct Sweep {
    known: BTreeSet<ObjectKey>,
    /// Known before the list began and not in it so far.
    unseen: BTreeSet<ObjectKey>,
    listed: bool,
}

impl Sweep {
    fn take<K: Resource>(&mut self, event: Event<K>) -> Vec<Change<K>> {
        match event {
            Event::Init => {
                self.unseen.clone_from(&self.known);
                Vec::new()
            }
            Event::InitApply(object) | Event::Apply(object) => {
                let key = key_of(&object);
                self.unseen.remove(&key);
                self.known.insert(key);
                vec![Change::Applied(Box::new(object))]
            }
            Event::Delete(object) => {
                let key = key_of(&object);
                self.known.remove(&key);
                vec![Change::Deleted(key)]
            }
            Event::InitDone => {
                let gone = std::mem::take(&mut self.unseen);
                for key in &gone {
                    self.known.remove(key);
                }
                let first = !std::mem::replace(&mut self.listed, true);
                let gone = gone.into_iter().map(Change::Deleted);
                gone.chain(first.then_some(Change::Listed)).collect()
            }
        }
    }
}

fn key_of<K: Resource>(object: &K) -> ObjectKey {
    (object.namespace().unwrap_or_default(), object.name_any())
}

/// Warns of a failure, unless that was done lately or nothing is amiss.
fn log<K: Resource<DynamicType: Default>>(error: &watcher::Error, warned: &mut Option<Instant>) {
    let kind = K::kind(&K::DynamicType::default()).into_owned();
    // A connection that ends and a version that is too old belong to the life of a watch; an API
    // server that is away fails the next attempt too.
    let ordinary = match error {
        watcher::Error::WatchFailed(_) => true,
        watcher::Error::WatchError(status) => status.code == 410,
        watcher::Error::InitialListFailed(_)
        | watcher::Error::WatchStartFailed(_)
        | watcher::Error::NoResourceVersion => false,
    };
    if ordinary || warned.is_some_and(|warned| warned.elapsed() < WARNING_INTERVAL) {
        debug!(kind, %error, "watch failed and is tried again");
    } else {
        // kube's own words end before the cause, such as a refused connection.
        let mut cause: &dyn std::error::Error = error;
        while let Some(source) = cause.source() {
            cause = source;
        }
        warn!(kind, %error, %cause, "watch failed and is tried again");
        *warned = Some(Instant::now());
    }
}

/// 50 ms doubling to 0.8 s, plus up to half: a daemon must be there soon after the API server.
///
/// Begins anew after a quiet while, and not on [`Backoff::reset`]: a watch that cannot list says
/// `Init` before each attempt, which counts as a success there.
#[derive(Debug, Default)]
struct Fast {
    failures: u32,
    last: Option<Instant>,
}

/// Longer than the longest wait.
const QUIET: Duration = Duration::from_secs(5);

impl Iterator for Fast {
    type Item = Duration;

    fn next(&mut self) -> Option<Duration> {
        let now = Instant::now();
        if self.last.replace(now).is_some_and(|last| now - last > QUIET) {
            self.failures = 0;
        }
        let base = 50_u64 << self.failures.min(4);
        self.failures += 1;
        Some(Duration::from_millis(base + rand::random_range(0..=base / 2)))
    }
}

impl Backoff for Fast {
    fn reset(&mut self) {}
}

#[cfg(test)]
mod tests {
    use std::{collections::VecDeque, convert::Infallible};

    use http::{Request, Response};
    use k8s_openapi::api::core::v1::ConfigMap;
    use kube::{Client, client::Body};
    use serde_json::{Value, json};

    use super::*;

    fn object(name: &str) -> ConfigMap {
        let mut object = ConfigMap::default();
        object.metadata.namespace = Some("default".to_owned());
        object.metadata.name = Some(name.to_owned());
        object
    }

    fn applied(name: &str) -> Change<ConfigMap> {
        Change::Applied(Box::new(object(name)))
    }

    fn deleted(name: &str) -> Change<ConfigMap> {
        Change::Deleted(("default".to_owned(), name.to_owned()))
    }

    #[test]
    fn what_a_relist_does_not_show_is_deleted() {
        let mut sweep = Sweep::default();
        for (event, changes) in [
            (Event::Init, vec![]),
            (Event::InitApply(object("a")), vec![applied("a")]),
            // The list broke off and is begun again.
            (Event::Init, vec![]),
            (Event::InitApply(object("b")), vec![applied("b")]),
            (Event::InitDone, vec![deleted("a"), Change::Listed]),
            (Event::Apply(object("c")), vec![applied("c")]),
            (Event::Delete(object("b")), vec![deleted("b")]),
            (Event::Init, vec![]),
            (Event::InitApply(object("d")), vec![applied("d")]),
            (Event::InitDone, vec![deleted("c")]),
            (Event::Init, vec![]),
            (Event::InitApply(object("d")), vec![applied("d")]),
            (Event::InitDone, vec![]),
        ] {
            let what = format!("{event:?}");
            assert_eq!(sweep.take(event), changes, "{what}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn an_api_server_that_was_set_back_is_listed_anew() {
        let list = |version: &str, name: &str| {
            json!({"apiVersion": "v1", "kind": "ConfigMapList",
                   "metadata": {"resourceVersion": version}, "items": [object(name)]})
        };
        let too_large = json!({
            "kind": "Status", "apiVersion": "v1", "status": "Failure", "code": 504,
            "message": "Too large resource version: 10, current: 5", "reason": "Timeout",
            "details": {"causes": [{"reason": "ResourceVersionTooLarge",
                                    "message": "Too large resource version"}]}});
        let script = [
            ("limit=500", 200, list("10", "a")),
            ("watch=true", 504, too_large),
            ("limit=500", 200, list("5", "b")),
        ];
        let api = Api::<ConfigMap>::all(scripted(script));
        let config = watcher::Config::default();
        let metrics = ApiMetrics::default();
        let told: Vec<_> = changes(api, config, &metrics).take(4).collect().await;
        assert_eq!(told, [applied("a"), Change::Listed, applied("b"), deleted("a")]);
        assert_eq!(metrics.update_errors.get(), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn a_kind_that_is_not_served_holds_nobody_up() {
        let missing = |code: u16| json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": code});
        let list = json!({"apiVersion": "v1", "kind": "ConfigMapList",
                          "metadata": {"resourceVersion": "1"}, "items": [object("a")]});
        let script = [
            ("limit=500", 404, missing(404)),
            ("limit=500", 403, missing(403)),
            ("limit=500", 200, list),
        ];
        let api = Api::<ConfigMap>::all(scripted(script));
        let metrics = ApiMetrics::default();
        let mut changes = changes_if_served(api, watcher::Config::default(), &metrics);
        let start = Instant::now();
        assert_eq!(changes.next().await, Some(Change::Listed));
        assert!(start.elapsed() < Duration::from_secs(1));
        assert_eq!(changes.next().await, Some(applied("a")));
        let waited = start.elapsed();
        assert!(waited >= NOT_SERVED_INTERVAL * 2, "{waited:?}");
        assert_eq!(metrics.update_errors.get(), 0);
    }

    /// Answers so, in this order, to requests with these words in their query.
    fn scripted<const N: usize>(script: [(&'static str, u16, Value); N]) -> Client {
        let mut script = VecDeque::from(script);
        let service = tower::service_fn(move |request: Request<Body>| {
            let (words, code, answer) = script.pop_front().unwrap();
            let uri = request.uri().to_string();
            assert!(uri.contains(words), "{uri} instead of {words}");
            let answer = Body::from(answer.to_string().into_bytes());
            let answer = Response::builder().status(code).body(answer).unwrap();
            std::future::ready(Ok::<_, Infallible>(answer))
        });
        Client::new(service, "default")
    }

    #[tokio::test(start_paused = true)]
    async fn an_api_server_that_stays_away_is_asked_ever_less_often() {
        let mut backoff = Fast::default();
        let mut waited = Duration::ZERO;
        for _ in 0..20 {
            // As the watcher does before each list.
            backoff.reset();
            let wait = backoff.next().unwrap();
            waited += wait;
            tokio::time::advance(wait).await;
        }
        assert!(waited > Duration::from_secs(13), "{waited:?}");
        tokio::time::advance(QUIET * 2).await;
        assert!(backoff.next().unwrap() <= Duration::from_millis(75));
    }
}
