use bgp::{ResetReason, StateKind};

use super::*;
use crate::{
    io::status::sessions::tests::{establish, lose, view},
    status::{AddressStatus, BgpStatus, Layer2Status, Step},
    view::Few,
};

const ME: &str = "n1";

fn key() -> ServiceKey {
    ServiceKey::new("shop", "web")
}

fn told(step: Step, reason: Option<&'static str>) -> Arc<ServiceStatus> {
    let address = "192.0.2.1".parse().unwrap();
    let told = AddressStatus { address, step, seen_by: None, reason, foreign: None };
    let layer2 = Layer2Status { addresses: [told].into(), ..Layer2Status::default() };
    Arc::new(ServiceStatus { layer2: Some(layer2), bgp: None })
}

fn want(books: &mut Books, status: Arc<ServiceStatus>, now: Instant) {
    books.want(&key(), status, Witnesses::Some, now);
}

fn time(second: i64) -> Timestamp {
    Timestamp::from_second(second).unwrap()
}

fn next(books: &mut Books, now: Instant) -> Option<Job> {
    books.next(ME, now, time(1))
}

/// The jobs that are due, each done at once.
fn settle(books: &mut Books, now: Instant) -> Vec<&'static str> {
    let mut done = Vec::new();
    while let Some(job) = next(books, now) {
        done.push(match job.what {
            What::Create(..) => "create",
            What::Adopt(..) => "adopt",
            What::Update(..) => "update",
            What::Delete => "delete",
        });
        books.done(&job, true, now);
    }
    done
}

fn status() -> Status {
    Status::layer2(ME, &key(), told(Step::Seen, None).layer2.as_ref().unwrap())
}

#[tokio::test(start_paused = true)]
async fn what_comes_together_is_one_write() {
    let mut books = Books::default();
    let now = Instant::now();
    want(&mut books, told(Step::Announced, None), now);
    assert_eq!(settle(&mut books, now + PROOF / 5), [""; 0], "it waits for what follows");
    let later = now + PROOF / 4;
    want(&mut books, told(Step::Seen, None), later);
    assert_eq!(settle(&mut books, now + PROOF / 2), ["create"]);
    want(&mut books, told(Step::Seen, None), later);
    assert_eq!(settle(&mut books, later + SETTLE), [""; 0], "nothing new");
    want(&mut books, Arc::default(), now);
    assert_eq!(settle(&mut books, now + SETTLE), ["delete"]);
    assert_eq!(books.poll_timeout(), None);
    assert!(books.written.is_empty() && books.wanted.is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_service_whose_address_nobody_can_see_is_written_soon() {
    for (witnesses, reason, wait) in [
        (Witnesses::None, None, FIRST),
        (Witnesses::Some, None, PROOF),
        (Witnesses::Some, Some("handingOver"), FIRST),
    ] {
        let mut books = Books::default();
        let now = Instant::now();
        books.want(&key(), told(Step::Announced, reason), witnesses, now);
        assert_eq!(settle(&mut books, now + wait - Duration::from_millis(1)), [""; 0]);
        assert_eq!(settle(&mut books, now + wait), ["create"], "{witnesses:?} {reason:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn what_was_seen_late_is_written_in_turn() {
    const SERVICES: u32 = 20;
    let mut books = Books::default();
    let start = Instant::now();
    let mut now = start;
    let want = |books: &mut Books, step, reason, now| {
        for n in 0..SERVICES {
            let service = ServiceKey::new("shop", format!("web-{n:02}").as_str());
            books.want(&service, told(step, reason), Witnesses::Some, now);
        }
    };
    want(&mut books, Step::Announced, None, now);
    now += PROOF;
    assert_eq!(settle(&mut books, now).len(), 20);
    want(&mut books, Step::Seen, None, now);
    let seen = now;
    let mut written = Vec::new();
    while let Some(due) = books.poll_timeout().filter(|due| *due < seen + LATE + DRIP * 10) {
        now = due;
        written.extend(settle(&mut books, now).iter().map(|_| now - seen));
    }
    let expected: Vec<_> = (0..9).map(|n| SETTLE + LATE + DRIP * n).collect();
    assert_eq!(written[..5], expected[..5]);

    // A better reason to write does not wait, and takes the rest along.
    want(&mut books, Step::Announced, Some("handingOver"), now);
    assert_eq!(settle(&mut books, now + SETTLE).len(), 20);
    want(&mut books, Step::Seen, None, now);
    assert_eq!(settle(&mut books, now + SETTLE).len(), 20);
    assert!(books.drips.is_empty());
    while let Some(due) = books.poll_timeout() {
        assert_eq!(settle(&mut books, due), [""; 0]);
    }
}

#[tokio::test(start_paused = true)]
async fn what_an_earlier_life_wrote_is_not_written_again() {
    let now = Instant::now();
    for (ours, wanted, expected) in [
        (true, Some((Step::Seen, None)), vec![]),
        (true, Some((Step::Announced, None)), vec![]),
        (true, Some((Step::Owned, Some("nodeIsolated"))), vec!["update"]),
        (false, Some((Step::Seen, None)), vec!["adopt"]),
        (true, None, vec!["delete"]),
    ] {
        let mut books = Books::default();
        books.found(Object::Layer2(key()), written_before(&status(), ours), now);
        assert_eq!(settle(&mut books, now + LEFT_OVER / 2), [""; 0], "it may be wanted yet");
        if let Some((step, reason)) = wanted {
            want(&mut books, told(step, reason), now);
        }
        assert_eq!(settle(&mut books, now + LEFT_OVER), expected, "{ours} {wanted:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_failure_is_tried_again_as_if_nothing_were_known() {
    let mut books = Books::default();
    let mut now = Instant::now();
    want(&mut books, told(Step::Owned, Some("nodeIsolated")), now);
    now += SETTLE;
    let job = next(&mut books, now).unwrap();
    want(&mut books, told(Step::Seen, None), now);
    assert!(next(&mut books, now + SETTLE).is_none(), "one write of an object at a time");
    books.done(&job, false, now);
    assert_eq!(settle(&mut books, now), [""; 0]);
    assert_eq!(settle(&mut books, now + RETRY), ["adopt"], "it may be there");
    assert_eq!(settle(&mut books, now + RETRY * 2), [""; 0]);
}

#[tokio::test(start_paused = true)]
async fn what_somebody_removed_is_made_anew() {
    let mut books = Books::default();
    let now = Instant::now();
    let peers = [("tor".into(), Few::default())].into_iter().collect();
    let bgp = BgpStatus { peers, ..BgpStatus::default() };
    let both = ServiceStatus { bgp: Some(bgp), ..(*told(Step::Seen, None)).clone() };
    want(&mut books, Arc::new(both), now);
    assert_eq!(settle(&mut books, now + PROOF), ["create", "create"]);
    books.compare(&BTreeSet::from([Object::Layer2(key())]), now + PROOF);
    assert_eq!(settle(&mut books, now + PROOF), ["create"]);
}

fn bgp(service: &str) -> (ServiceKey, Arc<ServiceStatus>) {
    let prefix = "192.0.2.1/32".parse().unwrap();
    let peers = [("tor".into(), [prefix].into_iter().collect())].into_iter().collect();
    let bgp = BgpStatus { peers, ..BgpStatus::default() };
    let status = ServiceStatus { layer2: None, bgp: Some(bgp) };
    (ServiceKey::new("shop", service), Arc::new(status))
}

/// Each session and write that is due, at once; with when it was.
fn run(books: &mut Books, start: Instant, until: Instant) -> Vec<(&'static str, Duration)> {
    let mut done = Vec::new();
    while let Some(due) = books.poll_timeout().filter(|due| *due <= until) {
        let time = time(i64::try_from((due - start).as_secs()).unwrap());
        while let Some(job) = books.next(ME, due, time) {
            let what = match (&job.object, &job.what) {
                (Object::Session(_), What::Create(..)) => "session created",
                (Object::Session(_), What::Update(..)) => "session",
                (Object::Session(_), What::Delete) => "session gone",
                (Object::Bgp(_), What::Create(..)) => "service created",
                (Object::Bgp(_), What::Update(..)) => "service",
                other => panic!("{other:?}"),
            };
            done.push((what, due - start));
            books.done(&job, true, due);
        }
    }
    done
}

#[tokio::test(start_paused = true)]
async fn sessions_are_written_with_what_matters_and_numbers_seldom() {
    let start = Instant::now();
    let at = |millis| start + Duration::from_millis(millis);
    let mut books = Books::default();
    let mut view = view(start.into_std());
    let look = |books: &mut Books, view: &SessionView, now: Instant| {
        let time = time(i64::try_from((now - start).as_secs()).unwrap());
        books.sessions(ME, &[("tor".into(), view.clone())].into(), now, time);
    };
    let millis = Duration::from_millis;
    look(&mut books, &view, at(0));
    establish(&mut view, at(500).into_std());
    look(&mut books, &view, at(500));
    assert_eq!(run(&mut books, start, at(3000)), [("session created", millis(1000))]);
    // Messages alone: a minute after the last write. Prefixes: five seconds.
    for second in 4..70 {
        view.stats.sent.keepalive += 1;
        look(&mut books, &view, at(second * 1000));
    }
    assert_eq!(run(&mut books, start, at(70_000)), [("session", millis(61_000))]);
    view.stats.advertised_prefixes += 1;
    look(&mut books, &view, at(70_000));
    view.stats.advertised_prefixes += 1;
    look(&mut books, &view, at(71_500));
    assert_eq!(run(&mut books, start, at(80_000)), [("session", millis(71_000))]);
    view.stats.advertised_prefixes += 1;
    look(&mut books, &view, at(80_000));
    // A reset goes out at once, and whatever else happens within the second with it.
    lose(&mut view, at(80_100).into_std(), ResetReason::BfdDown);
    look(&mut books, &view, at(80_100));
    // That it is tried again and again is no news.
    for round in 0..20_u64 {
        view.state = if round % 2 == 0 { StateKind::Connect } else { StateKind::Idle };
        view.since = at(82_000 + round * 1000).into_std();
        look(&mut books, &view, at(82_000 + round * 1000));
    }
    assert_eq!(run(&mut books, start, at(140_000)), [("session", millis(81_000))]);
    books.sessions(ME, &BTreeMap::new(), at(140_000), time(140));
    assert_eq!(run(&mut books, start, at(150_000)), [("session gone", millis(141_000))]);
    assert_eq!(books.poll_timeout(), None);
    assert!(books.written.is_empty() && !books.has_sessions());
}

#[tokio::test(start_paused = true)]
async fn a_session_that_flaps_is_no_flood_of_statuses() {
    const SERVICES: usize = 100;
    let start = Instant::now();
    let at = |seconds| start + Duration::from_secs(seconds);
    let mut books = Books::default();
    let mut view = view(start.into_std());
    establish(&mut view, start.into_std());
    let views = |view: &SessionView| [("tor".into(), view.clone())].into();
    books.sessions(ME, &views(&view), start, time(0));
    for n in 0..SERVICES {
        let (service, status) = bgp(&format!("web-{n:03}"));
        books.want(&service, status, Witnesses::None, start);
    }
    let count = |done: &[(&str, Duration)], what: &str| {
        done.iter().filter(|(known, _)| *known == what).count()
    };
    let begun = run(&mut books, start, at(9));
    assert_eq!(count(&begun, "service created"), SERVICES);
    // Ten seconds, lost and back in each.
    for second in 10..20 {
        lose(&mut view, at(second).into_std(), ResetReason::BfdDown);
        books.sessions(ME, &views(&view), at(second), time(0));
        establish(&mut view, at(second).into_std());
        let back = at(second) + Duration::from_millis(400);
        books.sessions(ME, &views(&view), back, time(0));
        let done = run(&mut books, start, at(second + 1));
        assert!(count(&done, "service") <= 6, "five a second: {done:?}");
        assert!(count(&done, "session") <= 1, "{done:?}");
    }
    // All are told in the end, each of the newest, and then there is rest.
    run(&mut books, start, at(60));
    assert_eq!(books.poll_timeout(), None);
    for n in 0..SERVICES {
        let (service, _) = bgp(&format!("web-{n:03}"));
        let object = Object::Bgp(service);
        let digest = books.written[&object].digest;
        assert_eq!(digest, Some(books.status(&object, ME).unwrap().digest()));
        let Some(Status::Bgp(status)) = books.status(&object, ME) else { panic!() };
        let told = &status.peer_states[0];
        assert_eq!(told.session.as_deref(), Some("Established"));
        assert_eq!(told.prefixes, ["192.0.2.1/32"]);
    }
}

#[tokio::test(start_paused = true)]
async fn a_peer_that_is_away_is_told_once() {
    let start = Instant::now();
    let at = |seconds| start + Duration::from_secs(seconds);
    let mut books = Books::default();
    let mut view = view(start.into_std());
    let (service, status) = bgp("web");
    books.want(&service, status, Witnesses::None, start);
    for second in 0..50 {
        view.state = if second % 2 == 0 { StateKind::Connect } else { StateKind::Idle };
        view.since = at(second).into_std();
        books.sessions(ME, &[("tor".into(), view.clone())].into(), at(second), time(0));
        run(&mut books, start, at(second));
    }
    let Some(Status::Bgp(status)) = books.status(&Object::Bgp(service), ME) else { panic!() };
    let told = &status.peer_states[0];
    assert_eq!((told.session.as_deref(), &*told.prefixes), (Some("Down"), &[][..]));
    let at_most = books.written.values().filter_map(|written| written.at).max();
    assert!(at_most.unwrap() <= at(3), "nothing was written after the beginning");
}

#[tokio::test(start_paused = true)]
async fn a_change_during_a_write_waits_its_second() {
    let start = Instant::now();
    let mut books = Books::default();
    want(&mut books, told(Step::Owned, Some("nodeIsolated")), start);
    let job = next(&mut books, start + SETTLE).unwrap();
    want(&mut books, told(Step::Seen, None), start + SETTLE);
    books.done(&job, true, start + SETTLE);
    assert_eq!(settle(&mut books, start + SETTLE), [""; 0]);
    assert_eq!(settle(&mut books, start + SETTLE * 2), ["update"]);
    assert_eq!(books.poll_timeout(), None);
}

#[tokio::test(start_paused = true)]
async fn the_condition_keeps_its_time_while_it_stays() {
    let mut books = Books::default();
    let mut now = Instant::now();
    let mut since = Vec::new();
    for (second, step, reason) in [
        (10, Step::Seen, None),
        (20, Step::Announced, Some("handingOver")),
        (30, Step::Conflict, Some("addressConflict")),
        (40, Step::Owned, Some("nodeIsolated")),
    ] {
        want(&mut books, told(step, reason), now);
        now += SETTLE;
        let job = books.next(ME, now, time(second)).unwrap();
        books.done(&job, true, now);
        let (What::Create(Status::Layer2(status), _) | What::Update(Status::Layer2(status), _)) =
            job.what
        else {
            panic!("an object of layer 2 is written")
        };
        let condition = &status.conditions[0];
        let at = condition.last_transition_time.0.as_second();
        since.push((condition.status.clone(), condition.reason.clone(), at));
        assert_eq!(status.node.is_some(), condition.status == "True");
    }
    let expected = [
        ("True", "Announced", 10),
        ("True", "handingOver", 10),
        ("False", "addressConflict", 30),
        ("False", "nodeIsolated", 30),
    ];
    let expected = expected.map(|(status, reason, at)| (status.into(), reason.into(), at));
    assert_eq!(since, expected);
}
