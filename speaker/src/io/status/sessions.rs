//! What is told of BGP sessions, as values: BGPSessionState, the part of ServiceBGPStatus that
//! depends on them, and which of their changes are Events. No I/O.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, Instant},
};

use bgp::{BfdGate, Family, HeldBack, MessageCounts, ResetReason, StateKind};
use config::{PeerAddress, PeerName};
use crds::{BGPMessageCounts, BGPMessages, BGPPrefixCounts, BGPSessionStateStatus};
use ipnet::IpNet;
use k8s_openapi::{
    apimachinery::pkg::apis::meta::v1::{Condition, Time},
    jiff::Timestamp,
};

use crate::io::bgp::board::SessionView;

/// Of one session there is one Event in so long.
const QUIET: Duration = Duration::from_secs(30);

const ESTABLISHED: &str = "Established";
const BFD_NOT_UP: &str = "BfdNotUp";
const ROUTES_HELD_BACK: &str = "RoutesHeldBack";
const CANNOT_CONNECT: &str = "CannotConnect";

/// One moment on both clocks.
#[derive(Debug, Clone, Copy)]
pub struct Moment {
    pub instant: Instant,
    pub time: Timestamp,
}

impl Moment {
    /// In whole seconds, as the API has times.
    fn date(self, instant: Instant) -> Timestamp {
        let ago = self.instant.saturating_duration_since(instant);
        let seconds = i64::try_from(ago.as_secs()).unwrap_or(i64::MAX);
        let then = self.time.as_second().saturating_sub(seconds);
        Timestamp::from_second(then).unwrap_or(Timestamp::UNIX_EPOCH)
    }
}

/// What is told of one session.
#[derive(Debug, Clone, PartialEq)]
pub struct SessionTold {
    pub status: BGPSessionStateStatus,
    pub takes: Takes,
    /// What `status.since` was made of, so that it stays the same while the state does.
    since: Instant,
}

/// Which routes a session takes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Takes {
    /// Whether it is Established, and since when it is or is not.
    pub established: bool,
    pub since: Timestamp,
    flaps: u64,
    families: BTreeSet<Family>,
    held_back: Option<(IpNet, HeldBack)>,
}

impl Takes {
    /// Whether the session has this prefix to send, or has sent it.
    pub fn prefix(&self, prefix: &IpNet) -> bool {
        let held = self.held_back.is_some_and(|(first, why)| match why {
            HeldBack::FamilyNotConfigured | HeldBack::FamilyNotNegotiated | HeldBack::NoNextHop => {
                Family::of(&first) == Family::of(prefix)
            }
            HeldBack::AttributesTooLong => first == *prefix,
        });
        self.families.contains(&Family::of(prefix)) && !held
    }

    fn of(view: &SessionView, before: Option<&Self>, now: Moment) -> Self {
        let established = view.state == StateKind::Established;
        let flaps = view.stats.flaps;
        let same = before.filter(|told| told.established == established && told.flaps == flaps);
        let since = view.stats.established_since.filter(|_| established).unwrap_or(view.since);
        let families = view.negotiated.as_ref().map(|negotiated| negotiated.families.clone());
        let open = established && view.gate != BfdGate::Waiting;
        Self {
            established,
            since: same.map_or_else(|| now.date(since), |told| told.since),
            flaps,
            families: families.filter(|_| open).unwrap_or_default(),
            held_back: view.held_back.map(|(_, first, why)| (first, why)),
        }
    }
}

impl SessionTold {
    /// `before` is what was told of the same session last.
    pub fn of(
        me: &str,
        peer: &PeerName,
        view: &SessionView,
        before: Option<&Self>,
        now: Moment,
    ) -> Self {
        let SessionView { spec, state, since, stats, negotiated, gate: _, bfd, .. } = view;
        let same = before.filter(|told| told.since == *since);
        let date = same.and_then(|told| told.status.since.clone());
        let agreed = negotiated.as_ref();
        let received = stats.received_prefixes.saturating_sub(stats.received_withdrawals);
        let status = BGPSessionStateStatus {
            node: Some(me.to_owned()),
            peer: Some(peer.to_string()),
            vrf: spec.peer.vrf.clone(),
            bgp_status: Some(state.to_string()),
            bfd_status: Some(
                bfd.as_ref().map_or_else(|| "N/A".to_owned(), |bfd| bfd.state.to_string()),
            ),
            since: Some(date.unwrap_or_else(|| Time(now.date(*since)))),
            last_reset: last_reset(view).map(ToString::to_string),
            local_asn: Some(spec.peer.local_asn.unwrap_or(spec.peer.my_asn)),
            peer_asn: agreed.map(|agreed| agreed.peer_asn),
            peer_address: Some(spec.peer.address.to_string()),
            router_id: Some(spec.router_id.to_string()),
            peer_router_id: agreed.map(|agreed| agreed.peer_router_id.to_string()),
            hold_time: agreed.map(|agreed| agreed.hold_time.into()),
            keepalive_time: agreed.map(|agreed| {
                // Without a hold time there are no KEEPALIVEs.
                let none = agreed.hold_time.is_zero();
                if none { Duration::ZERO } else { agreed.keepalive_time }.into()
            }),
            capabilities: agreed.map(|agreed| agreed.capabilities()).unwrap_or_default(),
            families: agreed.iter().flat_map(|a| &a.families).map(Family::to_string).collect(),
            prefixes: Some(BGPPrefixCounts {
                sent: i64::try_from(stats.advertised_prefixes).unwrap_or(i64::MAX),
                received: count(received),
            }),
            messages: Some(BGPMessages {
                sent: messages(stats.sent),
                received: messages(stats.received),
            }),
            flaps: Some(count(stats.flaps)),
            conditions: conditions(view, before, now),
        };
        let takes = Takes::of(view, before.map(|told| &told.takes), now);
        Self { status, takes, since: *since }
    }
}

/// Why the session was lost stays until an attempt at a new one ended for a better reason than that
/// the peer was not there.
fn last_reset(view: &SessionView) -> Option<&ResetReason> {
    let stats = &view.stats;
    match (&stats.last_loss, &stats.last_reset) {
        (Some(loss), Some(ResetReason::ConnectFailed | ResetReason::ConnectTimedOut) | None) => {
            Some(loss)
        }
        (_, reset) => reset.as_ref(),
    }
}

fn conditions(view: &SessionView, before: Option<&SessionTold>, now: Moment) -> Vec<Condition> {
    let true_now = [bfd_not_up(view), routes_held_back(view), cannot_connect(view)];
    let told = [Some(established(view))].into_iter().chain(true_now).flatten();
    let known = before.map(|told| &told.status.conditions[..]).unwrap_or_default();
    told.map(|(type_, status, reason, message)| {
        let same = known.iter().find(|known| known.type_ == type_ && known.status == status);
        Condition {
            type_: type_.to_owned(),
            status: status.to_owned(),
            reason: reason.to_owned(),
            message,
            last_transition_time: same.map_or_else(
                || Time(now.date(now.instant)),
                |known| known.last_transition_time.clone(),
            ),
            observed_generation: None,
        }
    })
    .collect()
}

/// Type, status, reason and message.
type Said = (&'static str, &'static str, &'static str, String);

fn established(view: &SessionView) -> Said {
    let reset = || last_reset(view).map(ToString::to_string).unwrap_or_default();
    match (view.state, view.stats.established) {
        (StateKind::Established, _) => (ESTABLISHED, "True", ESTABLISHED, String::new()),
        (_, 0) => (ESTABLISHED, "False", "NotYet", reset()),
        (_, _) => (ESTABLISHED, "False", "Lost", reset()),
    }
}

fn bfd_not_up(view: &SessionView) -> Option<Said> {
    let problem = view.bfd.as_ref().and_then(|bfd| bfd.problem.as_ref());
    let because = problem.map(|problem| format!(": {problem}")).unwrap_or_default();
    let (reason, message) = match (view.gate, problem) {
        (BfdGate::Waiting, _) => (
            "Waiting",
            format!(
                "nothing is announced until BFD is Up, for 10 s after the session came up at \
                 most{because}"
            ),
        ),
        (BfdGate::Overdue, _) => (
            "Overdue",
            format!(
                "BFD is not Up 10 s after the session came up, so the routes are announced \
                 without it{because}; configure BFD on the peer for this node, or remove \
                 spec.bfdProfile from the BGPPeer"
            ),
        ),
        (BfdGate::Open, Some(problem)) => ("CannotSend", format!("there is no BFD: {problem}")),
        (BfdGate::Open, None) => return None,
    };
    Some((BFD_NOT_UP, "True", reason, message))
}

fn routes_held_back(view: &SessionView) -> Option<Said> {
    let (count, first, why) = view.held_back?;
    let reason = match why {
        HeldBack::FamilyNotConfigured => "FamilyNotConfigured",
        HeldBack::FamilyNotNegotiated => "FamilyNotNegotiated",
        HeldBack::NoNextHop => "NoNextHop",
        HeldBack::AttributesTooLong => "AttributesTooLong",
    };
    let message = match count {
        1 => format!("{first} is not announced to this peer: {why}"),
        _ => format!("{count} prefixes are not announced to this peer; of {first}: {why}"),
    };
    Some((ROUTES_HELD_BACK, "True", reason, message))
}

fn cannot_connect(view: &SessionView) -> Option<Said> {
    let is_before_open = match view.state {
        StateKind::Idle | StateKind::Connect | StateKind::Active => true,
        StateKind::OpenSent | StateKind::OpenConfirm | StateKind::Established => false,
    };
    let reset = view.stats.last_reset.as_ref().filter(|_| is_before_open);
    let (reason, words) = match (reset, &view.problem) {
        (Some(ResetReason::ConnectTimedOut), _) => ("NoAnswer", "nobody answers"),
        (_, Some(problem)) if is_before_open => ("ConnectFailed", &**problem),
        (Some(ResetReason::ConnectFailed), _) => ("ConnectFailed", "it cannot be reached"),
        (_, _) => return None,
    };
    let peer = &view.spec.peer;
    let place = match &peer.address {
        PeerAddress::Address(address) => format!("the peer at {address}"),
        PeerAddress::Interface(interface) => format!("the peer on interface {interface}"),
    };
    let message = format!("{place}, port {}: {words}", peer.port);
    Some((CANNOT_CONNECT, "True", reason, message))
}

fn messages(counts: MessageCounts) -> BGPMessageCounts {
    let MessageCounts { open, update, notification, keepalive, route_refresh } = counts;
    BGPMessageCounts {
        open: count(open),
        update: count(update),
        notification: count(notification),
        keepalive: count(keepalive),
        route_refresh: count(route_refresh),
    }
}

fn count(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

/// An Event about a BGPPeer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SessionNote {
    pub peer: PeerName,
    pub kind: SessionNoteKind,
    pub text: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SessionNoteKind {
    Up,
    Down,
}

/// Remembers what was told by Events.
#[derive(Debug, Default)]
pub struct SessionNotes(BTreeMap<PeerName, Noted>);

#[derive(Debug, Default)]
struct Noted {
    /// What the last Event said, and how often the session had been lost then.
    established: bool,
    flaps: u64,
    quiet_until: Option<Instant>,
    /// There is something to tell then.
    waits: bool,
}

impl SessionNotes {
    /// When [`Self::take`] has more to tell.
    pub fn poll_timeout(&self) -> Option<Instant> {
        self.0.values().filter(|noted| noted.waits).filter_map(|noted| noted.quiet_until).min()
    }

    /// What is to be told of these sessions, which are all.
    pub fn take(
        &mut self,
        me: &str,
        views: &BTreeMap<PeerName, SessionView>,
        now: Instant,
    ) -> Vec<SessionNote> {
        self.0.retain(|peer, _| views.contains_key(peer));
        let mut notes = Vec::new();
        for (peer, view) in views {
            let noted = self.0.entry(peer.clone()).or_default();
            let established = view.state == StateKind::Established;
            let flaps = view.stats.flaps;
            let news = (established, flaps) != (noted.established, noted.flaps);
            noted.waits = news && noted.quiet_until.is_some_and(|until| now < until);
            if !news || noted.waits {
                continue;
            }
            let lost = flaps.saturating_sub(noted.flaps);
            let loss = view.stats.last_loss.as_ref().map(ToString::to_string);
            let because = loss.map(|loss| format!(": {loss}")).unwrap_or_default();
            let times = if lost > 1 { format!(" {lost} times") } else { String::new() };
            let session = format!("BGP session of node {me:?} with {}", view.spec.peer.address);
            let (kind, text) = match (established, noted.established && lost > 0) {
                (true, false) => (SessionNoteKind::Up, format!("{session} is Established")),
                (true, true) => (
                    SessionNoteKind::Down,
                    format!("{session} was lost{times} and is Established again{because}"),
                ),
                (false, _) => {
                    (SessionNoteKind::Down, format!("{session} was lost{times}{because}"))
                }
            };
            // Those that say the same are dropped for a while; this is none of them.
            let text = match view.stats.established {
                0 | 1 => text,
                nth => format!("{text} (session {nth} of this speaker)"),
            };
            *noted = Noted { established, flaps, quiet_until: Some(now + QUIET), waits: false };
            notes.push(SessionNote { peer: peer.clone(), kind, text });
        }
        notes
    }
}

#[cfg(test)]
pub(super) mod tests;
