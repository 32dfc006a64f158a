use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;

const MS: Duration = Duration::from_millis(1);

fn settings(identity: &str) -> Settings {
    Settings::new(identity.to_owned())
}

/// A Lease of the API server, and who looks at it.
struct Bench {
    election: Election,
    start: Instant,
    now: Instant,
}

impl Bench {
    fn new() -> Self {
        let now = Instant::now();
        Self { election: Election::new(settings("me"), 1, now), start: now, now }
    }

    fn at(&mut self, millis: u64) -> Vec<Action> {
        self.now = self.start + MS * u32::try_from(millis).unwrap();
        self.election.handle_timeout(self.now)
    }

    fn tell(&mut self, event: Event) -> Vec<Action> {
        self.election.handle(event, self.now)
    }

    /// Reads at `millis` and finds `lease`.
    fn finds(&mut self, millis: u64, lease: Option<&Lease>) -> Vec<Action> {
        assert_eq!(self.at(millis), [Action::Read], "at {millis} ms");
        self.tell(Event::Found(lease.cloned()))
    }

    /// Leads since the time 0, with the version 1.
    fn leading() -> Self {
        let mut bench = Self::new();
        assert_eq!(bench.finds(0, None), [Action::Create(claim("me", 2, None, 0))]);
        assert_eq!(bench.tell(Event::Stored(lease(1, "me", 0))), [Action::Lead]);
        bench
    }

    fn may_write(&self, millis: u64) -> bool {
        self.election.may_write(self.start + MS * u32::try_from(millis).unwrap())
    }
}

fn lease(version: u64, holder: &str, transitions: i32) -> Lease {
    Lease {
        version: Version { uid: "uid".to_owned(), resource_version: version.to_string() },
        record: Record {
            holder: holder.to_owned(),
            duration_seconds: Some(2),
            acquired: Some("then".to_owned()),
            renewed: Some(format!("at {version}")),
            transitions,
        },
    }
}

fn claim(holder: &str, duration_seconds: i32, acquired: Option<&str>, transitions: i32) -> Claim {
    let acquired = acquired.map(str::to_owned);
    Claim { holder: holder.to_owned(), duration_seconds, acquired, transitions }
}

fn replace(version: u64, claim: Claim) -> Action {
    Action::Replace { version: lease(version, "", 0).version, claim }
}

#[test]
fn durations_that_leave_no_room_are_refused() {
    let of = |duration: u64, deadline: u64, retry: u64| Settings {
        lease_duration: MS * u32::try_from(duration).unwrap(),
        renew_deadline: MS * u32::try_from(deadline).unwrap(),
        retry_period: MS * u32::try_from(retry).unwrap(),
        ..settings("me")
    };
    assert_eq!(settings("me").check(), Ok(()));
    for (wrong, words) in [
        (of(2000, 1000, 0), "retry-period is zero"),
        (of(2000, 300, 300), "renew-deadline (300ms) must be longer than"),
        (of(1000, 1000, 300), "lease-duration (1s) must be longer than"),
        (of(601_000, 1000, 300), "longer than 600s"),
    ] {
        let error = wrong.check().unwrap_err().to_string();
        assert!(error.contains(words), "{error}");
    }
}

#[test]
fn the_first_one_leads_at_once_and_renews() {
    let mut bench = Bench::leading();
    assert!(bench.may_write(0));
    assert_eq!(bench.at(299), []);
    assert_eq!(bench.at(300), [replace(1, claim("me", 2, Some("then"), 0))]);
    // The deadline counts from the start of the renewal, not from its answer.
    bench.now += MS * 200;
    assert_eq!(bench.tell(Event::Stored(lease(2, "me", 0))), []);
    assert!(bench.may_write(1699));
    assert!(!bench.may_write(1700));
    assert_eq!(bench.at(600), [replace(2, claim("me", 2, Some("then"), 0))]);
}

#[test]
fn a_race_for_a_new_lease_has_one_winner() {
    let mut bench = Bench::new();
    assert_eq!(bench.finds(0, None), [Action::Create(claim("me", 2, None, 0))]);
    assert_eq!(bench.tell(Event::Refused), []);
    assert_eq!(bench.finds(400, Some(&lease(1, "other", 0))), []);
    assert!(!bench.may_write(400));
}

#[test]
fn a_dead_holder_is_followed_after_its_duration_and_not_before() {
    let mut bench = Bench::new();
    let dead = lease(7, "other", 4);
    assert_eq!(bench.finds(0, Some(&dead)), []);
    for millis in [400, 800, 1200, 1600, 1970] {
        assert_eq!(bench.finds(millis, Some(&dead)), [], "at {millis} ms");
    }
    assert_eq!(bench.election.poll_timeout(), Some(bench.start + MS * 2000), "not a tick later");
    let claim = claim("me", 2, None, 5);
    assert_eq!(bench.finds(2000, Some(&dead)), [replace(7, claim)]);
    assert_eq!(bench.tell(Event::Stored(lease(8, "me", 5))), [Action::Lead]);
}

#[test]
fn any_sign_of_life_begins_the_wait_anew() {
    let mut bench = Bench::new();
    assert_eq!(bench.finds(0, Some(&lease(1, "other", 0))), []);
    assert_eq!(bench.finds(1900, Some(&lease(2, "other", 0))), []);
    // A version alone is none: somebody annotates the Lease for ever.
    let mut annotated = lease(2, "other", 0);
    annotated.version.resource_version = "3".to_owned();
    assert_eq!(bench.finds(3800, Some(&annotated)), []);
    assert_eq!(bench.finds(3900, Some(&annotated)), [replace(3, claim("me", 2, None, 1))]);
}

#[test]
fn the_duration_is_the_holders_own_and_a_malformed_one_is_ours() {
    for (seconds, wait) in [
        (Some(5), 5000),
        (None, 2000),
        (Some(0), 2000),
        (Some(-1), 2000),
        (Some(i32::MAX), 600_000),
    ] {
        let mut bench = Bench::new();
        let mut dead = lease(1, "other", 0);
        dead.record = Record { duration_seconds: seconds, renewed: None, ..dead.record };
        assert_eq!(bench.finds(0, Some(&dead)), []);
        assert_eq!(bench.finds(wait - 1, Some(&dead)), [], "{seconds:?}");
        assert_eq!(bench.finds(wait, Some(&dead)).len(), 1, "{seconds:?}");
    }
    // Nothing in it at all: nobody holds it.
    let mut bench = Bench::new();
    let empty = Lease { version: lease(1, "", 0).version, record: Record::default() };
    assert_eq!(bench.finds(0, Some(&empty)), [replace(1, claim("me", 2, None, 1))]);
}

#[test]
fn what_was_given_back_is_taken_at_once() {
    let mut bench = Bench::new();
    assert_eq!(bench.finds(0, Some(&lease(1, "other", 0))), []);
    assert_eq!(bench.finds(400, Some(&lease(2, "", 0))), [replace(2, claim("me", 2, None, 1))]);
}

#[test]
fn a_leader_that_cannot_renew_stops_in_time_and_comes_back() {
    let mut bench = Bench::leading();
    let renewal = replace(1, claim("me", 2, Some("then"), 0));
    assert_eq!(bench.at(300), std::slice::from_ref(&renewal));
    for _ in 0..2 {
        bench.now += MS * 466;
        assert_eq!(bench.tell(Event::Failed), std::slice::from_ref(&renewal));
    }
    assert!(bench.may_write(1399));
    assert!(!bench.may_write(1400));
    // Told by whatever comes first.
    let mut bench = Bench::leading();
    assert_eq!(bench.at(300), [renewal]);
    assert_eq!(bench.at(1400), [Action::StandBy]);
    assert_eq!(bench.tell(Event::Failed), [Action::Read]);
    // The renewal was stored all the same: it is ours still.
    let found = bench.tell(Event::Found(Some(lease(2, "me", 0))));
    assert_eq!(found, [replace(2, claim("me", 2, Some("then"), 0))]);
    assert_eq!(bench.tell(Event::Stored(lease(3, "me", 0))), [Action::Lead]);
}

#[test]
fn a_leader_that_was_replaced_stops_as_soon_as_it_knows() {
    let mut bench = Bench::leading();
    bench.at(300);
    assert_eq!(bench.tell(Event::Refused), [Action::Read]);
    assert_eq!(bench.tell(Event::Found(Some(lease(5, "other", 1)))), [Action::StandBy]);
    assert!(!bench.may_write(301));
}

#[test]
fn a_leader_goes_on_when_its_lease_was_edited_or_deleted() {
    let mut bench = Bench::leading();
    bench.at(300);
    assert_eq!(bench.tell(Event::Refused), [Action::Read]);
    let found = bench.tell(Event::Found(Some(lease(9, "me", 0))));
    assert_eq!(found, [replace(9, claim("me", 2, Some("then"), 0))]);
    // Edited again: from now on in the usual rhythm.
    assert_eq!(bench.tell(Event::Refused), []);
    assert_eq!(bench.at(660), [Action::Read]);
    let found = bench.tell(Event::Found(None));
    assert_eq!(found, [Action::Create(claim("me", 2, Some("then"), 0))]);
    assert_eq!(bench.tell(Event::Stored(lease(10, "me", 0))), []);
    assert!(bench.may_write(2059));
}

#[test]
fn a_standby_does_not_take_a_lease_that_vanished_too_early() {
    let mut bench = Bench::new();
    assert_eq!(bench.finds(0, Some(&lease(1, "other", 3))), []);
    assert_eq!(bench.finds(500, None), []);
    assert_eq!(bench.finds(2000, None), [Action::Create(claim("me", 2, None, 4))]);
}

#[test]
fn after_an_outage_a_standby_lets_the_holder_go_first() {
    let mut bench = Bench::new();
    let holder = lease(1, "other", 0);
    assert_eq!(bench.finds(0, Some(&holder)), []);
    assert_eq!(bench.at(400), [Action::Read]);
    bench.now = bench.start + MS * 9000;
    // It hung for long, and the next answer comes at once.
    assert_eq!(bench.tell(Event::Failed), [Action::Read]);
    assert_eq!(bench.tell(Event::Found(Some(holder.clone()))), []);
    assert_eq!(bench.finds(9400, Some(&holder)), [replace(1, claim("me", 2, None, 1))]);
}

#[test]
fn an_answer_after_the_deadline_makes_no_leader() {
    let mut bench = Bench::new();
    bench.finds(0, None);
    bench.now += MS * 1400;
    assert_eq!(bench.tell(Event::Stored(lease(1, "me", 0))), [Action::Read]);
    assert!(!bench.may_write(1400));
}

#[test]
fn the_lease_is_given_back_once_and_behind_a_renewal() {
    let mut bench = Bench::leading();
    let back = claim("", 1, Some("then"), 0);
    assert_eq!(bench.at(300).len(), 1);
    assert_eq!(bench.tell(Event::Release), [Action::StandBy]);
    assert!(!bench.may_write(300));
    assert_eq!(bench.tell(Event::Stored(lease(2, "me", 0))), [replace(2, back.clone())]);
    assert_eq!(bench.tell(Event::Stored(lease(3, "", 0))), [Action::Released]);
    assert_eq!(bench.at(60_000), []);
    assert_eq!(bench.election.poll_timeout(), None);
    for failure in [Event::Failed, Event::Refused] {
        let mut bench = Bench::leading();
        assert_eq!(bench.tell(Event::Release), [Action::StandBy, replace(1, back.clone())]);
        assert_eq!(bench.tell(failure), [Action::Released]);
    }
    let mut standby = Bench::new();
    assert_eq!(standby.tell(Event::Release), [Action::Released]);
}

/// Candidates around one Lease, on a clock that is nobody's own: requests take their time, get
/// lost, or are stored without an answer; now and then the API server stands still, or one of them
/// is cut off from it.
struct World {
    now: Instant,
    end: Instant,
    lease: Option<Lease>,
    version: u64,
    candidates: Vec<Candidate>,
    /// Requests and answers on their way, in the order of their arrival.
    mail: BTreeMap<(Instant, u64), Mail>,
    sent: u64,
    random: Random,
    frozen_until: Instant,
    /// Nothing gets from or to this one before then.
    cut_off: (usize, Instant),
}

struct Candidate {
    /// `None`: dead.
    election: Option<Election>,
    /// Which request is waited for; the shell's timeout.
    waits: Option<(u64, Instant)>,
    leads: bool,
}

enum Mail {
    Request { from: usize, number: u64, action: Action },
    Answer { to: usize, number: u64, event: Event },
}

impl World {
    fn new(seed: u64, candidates: usize) -> Self {
        let now = Instant::now();
        let candidate = |index: usize| Candidate {
            election: Some(Election::new(settings(&format!("c{index}")), seed + index as u64, now)),
            waits: None,
            leads: false,
        };
        Self {
            now,
            end: now + Duration::from_secs(120),
            lease: None,
            version: 0,
            candidates: (0..candidates).map(candidate).collect(),
            mail: BTreeMap::new(),
            sent: 0,
            random: Random::new(seed),
            frozen_until: now,
            cut_off: (0, now),
        }
    }

    fn chance(&mut self, percent: u32) -> bool {
        self.up_to(100) < MS * percent
    }

    fn is_lost(&mut self, candidate: usize) -> bool {
        let (cut_off, until) = self.cut_off;
        self.chance(3) || candidate == cut_off && self.now < until
    }

    fn up_to(&mut self, millis: u32) -> Duration {
        self.random.jittered(MS * millis, 1.0) - MS * millis
    }

    fn post(&mut self, delay: Duration, mail: Mail) {
        self.sent += 1;
        self.mail.insert((self.now + delay, self.sent), mail);
    }

    fn perform(&mut self, from: usize, actions: Vec<Action>) {
        for action in actions {
            match action {
                Action::Read | Action::Create(_) | Action::Replace { .. } => {
                    self.sent += 1;
                    let number = self.sent;
                    let timeout = self.now + settings("").request_timeout();
                    self.candidates[from].waits = Some((number, timeout));
                    let delay = self.up_to(60);
                    if !self.is_lost(from) {
                        self.post(delay, Mail::Request { from, number, action });
                    }
                }
                Action::Lead => self.candidates[from].leads = true,
                Action::StandBy => self.candidates[from].leads = false,
                Action::Released => {}
            }
        }
    }

    fn store(&mut self, claim: &Claim) -> Event {
        self.version += 1;
        let uid = self.lease.as_ref().map(|lease| lease.version.uid.clone());
        let lease = Lease {
            version: Version {
                uid: uid.unwrap_or_else(|| format!("uid{}", self.version)),
                resource_version: self.version.to_string(),
            },
            record: Record {
                holder: claim.holder.clone(),
                duration_seconds: Some(claim.duration_seconds),
                acquired: Some(claim.acquired.clone().unwrap_or_default()),
                renewed: Some(self.version.to_string()),
                transitions: claim.transitions,
            },
        };
        self.lease = Some(lease.clone());
        Event::Stored(lease)
    }

    fn serve(&mut self, action: &Action) -> Event {
        match action {
            Action::Read => Event::Found(self.lease.clone()),
            Action::Create(claim) if self.lease.is_none() => self.store(claim),
            Action::Replace { version, claim }
                if self.lease.as_ref().is_some_and(|lease| lease.version == *version) =>
            {
                self.store(claim)
            }
            _ => Event::Refused,
        }
    }

    fn tell(&mut self, to: usize, event: Option<Event>) {
        let now = self.now;
        let Some(election) = &mut self.candidates[to].election else { return };
        let actions = match event {
            Some(event) => election.handle(event, now),
            None => election.handle_timeout(now),
        };
        self.perform(to, actions);
    }

    /// Who may write now.
    fn writers(&self) -> Vec<usize> {
        let may_write = |candidate: &Candidate| {
            candidate.election.as_ref().is_some_and(|election| election.may_write(self.now))
        };
        (0..self.candidates.len()).filter(|index| may_write(&self.candidates[*index])).collect()
    }

    /// What happens next, at its time; false at the end.
    fn step(&mut self) -> bool {
        let timeouts = self.candidates.iter().filter_map(|candidate| {
            let election = candidate.election.as_ref()?;
            let waits = candidate.waits.map(|(_, timeout)| timeout);
            [election.poll_timeout(), waits].into_iter().flatten().min()
        });
        let mail = self.mail.first_key_value().map(|((at, _), _)| *at);
        let Some(next) = timeouts.chain(mail).min().filter(|next| *next < self.end) else {
            return false;
        };
        self.now = self.now.max(next);
        if mail.is_some_and(|at| at <= self.now) {
            match self.mail.pop_first().unwrap() {
                ((_, order), mail @ Mail::Request { .. }) if self.frozen_until > self.now => {
                    self.mail.insert((self.frozen_until, order), mail);
                }
                (_, Mail::Request { from, number, action }) => {
                    let event = self.serve(&action);
                    let delay = self.up_to(60);
                    if !self.is_lost(from) {
                        self.post(delay, Mail::Answer { to: from, number, event });
                    }
                }
                (_, Mail::Answer { to, number, event }) => {
                    let waits = &mut self.candidates[to].waits;
                    if waits.is_some_and(|(waits, _)| waits == number) {
                        *waits = None;
                        self.tell(to, Some(event));
                    }
                }
            }
        }
        for index in 0..self.candidates.len() {
            let waits = &mut self.candidates[index].waits;
            if waits.is_some_and(|(_, timeout)| timeout <= self.now) {
                *waits = None;
                self.tell(index, Some(Event::Failed));
            }
            self.tell(index, None);
        }
        true
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 40, failure_persistence: None,
                                        ..ProptestConfig::default() })]
    #[test]
    fn two_never_write_at_once_and_somebody_does(seed in any::<u64>()) {
        let mut world = World::new(seed >> 1, 3);
        let (mut steps, mut without) = (0_u32, world.now);
        while world.step() {
            steps += 1;
            prop_assert!(steps < 100_000, "no progress");
            let writers = world.writers();
            prop_assert!(writers.len() <= 1, "{writers:?} at {:?}", world.now);
            if !writers.is_empty() || world.frozen_until > world.now {
                without = world.now;
            }
            prop_assert!(world.now - without < Duration::from_secs(8), "nobody leads");
            for candidate in &world.candidates {
                let may_write = candidate.election.as_ref().is_some_and(
                    |election| election.may_write(world.now));
                prop_assert!(candidate.leads || !may_write, "it was not told");
            }
            if steps % 400 == 0 {
                world.frozen_until = world.now + world.up_to(6000);
            }
            if steps % 250 == 0
                && let Some(writer) = world.writers().first()
            {
                world.cut_off = (*writer, world.now + world.up_to(8000));
            }
            if steps % 701 == 0 {
                // Killed, and another one in its place.
                let victim = (steps / 701) as usize % 3;
                let random = seed.wrapping_add(u64::from(steps));
                let identity = format!("c{victim} of {steps}");
                let election = Election::new(settings(&identity), random, world.now);
                world.candidates[victim] =
                    Candidate { election: Some(election), waits: None, leads: false };
            }
        }
        prop_assert!(steps > 1000, "{steps} steps");
    }
}
