//! Gratuitous frames: when which is sent, and what they are.
//!
//! What neighbors are told unasked of an IPv6 address, switches are told of its solicited-node group
//! beside it (see `mld`), and go on being told: what they learn they forget.

use std::cmp::Reverse;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use pnet::util::MacAddr;

use super::{AnnouncerSettings, advertisement};
use crate::interface::{Interface, InterfaceIndex};
use crate::pace::{self, Agenda, Bucket, Rate};
use crate::{arp, mld, ndp};

/// When gratuitous frames are sent, counted from the moment an address has come. The first reaches
/// the neighbors, the others are for those that lost it or were looking elsewhere just then.
const SERIES: [Duration; 7] = [
    Duration::ZERO,
    Duration::from_millis(10),
    Duration::from_millis(50),
    Duration::from_millis(200),
    Duration::from_secs(1),
    Duration::from_secs(2),
    Duration::from_secs(5),
];

/// Switches and routers hand ARP to a policed processor: more than they take is lost.
const GRATUITOUS: Rate = Rate { interval: Duration::from_millis(1), burst: 200 };

const SHORTEST_REFRESH: Duration = Duration::from_secs(1);

/// Between two reports of the same group, at least and at most. A switch forgets a listener after
/// 260 s (RFC 3810 section 9.4, RFC 2710 section 7.4): two reports in a row may be lost.
const REPORT_AFTER: [Duration; 2] = [Duration::from_secs(45), Duration::from_secs(75)];

/// The next frame of a series.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Announcement {
    pub(super) address: IpAddr,
    pub(super) interface: InterfaceIndex,
    pub(super) form: Form,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Form {
    /// A gratuitous request, or an unsolicited advertisement.
    First,
    /// A gratuitous reply, for the neighbors that learn from replies only; of an IPv6 address the
    /// report for the switches that know no other, or have a querier that does not.
    Second,
    /// The report for all other switches.
    Third,
}

/// For whom a frame is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Audience {
    Neighbors,
    Switches,
}

impl Announcement {
    pub(super) fn audience(self) -> Audience {
        match (self.address, self.form) {
            (IpAddr::V4(_), Form::First | Form::Second | Form::Third)
            | (IpAddr::V6(_), Form::First) => Audience::Neighbors,
            (IpAddr::V6(_), Form::Second | Form::Third) => Audience::Switches,
        }
    }
}

#[derive(Debug)]
pub(super) struct Series {
    agenda: Agenda<Announcement, Rank>,
    bucket: Bucket,
    settings: AnnouncerSettings,
}

/// The order in which frames are sent that have to wait: of every address the first before any is
/// repeated, and of every address the first form before the second of any; then those that most
/// neighbors have asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Rank {
    round: Round,
    form: Form,
    requests: Reverse<u64>,
    /// Of the series that goes on after this frame; `None`: there is none.
    begun: Option<Instant>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Round {
    /// The first frame of a new station.
    First,
    Repeated,
    Refresh,
}

impl Series {
    pub(super) fn new(settings: AnnouncerSettings) -> Self {
        Self { agenda: Agenda::new(), bucket: Bucket::default(), settings }
    }

    /// Begins a series, in place of one that is going on: the neighbors know another station, or
    /// none. `requests` says how much the address is asked for.
    pub(super) fn begin(
        &mut self,
        address: IpAddr,
        interface: InterfaceIndex,
        requests: u64,
        now: Instant,
    ) {
        for &form in forms(address) {
            let rank =
                Rank { round: Round::First, form, requests: Reverse(requests), begun: Some(now) };
            self.agenda.put(Announcement { address, interface, form }, now, rank);
        }
    }

    /// One frame of each form now: the neighbors were told, but may have been told otherwise since.
    /// A series that is going on goes on.
    pub(super) fn repeat(
        &mut self,
        address: IpAddr,
        interface: InterfaceIndex,
        requests: u64,
        now: Instant,
    ) {
        for &form in forms(address) {
            let key = Announcement { address, interface, form };
            let going_on = self.agenda.rank(key).copied();
            let rank = match going_on {
                Some(rank) if rank.round != Round::Refresh => rank,
                Some(_) | None => {
                    Rank { round: Round::Repeated, form, requests: Reverse(requests), begun: None }
                }
            };
            self.agenda.put(key, now, rank);
        }
    }

    pub(super) fn end(&mut self, address: IpAddr, interface: InterfaceIndex) {
        for &form in forms(address) {
            self.agenda.remove(Announcement { address, interface, form });
        }
    }

    /// The next frame that is due and may be sent. The one after it is put down at once.
    pub(super) fn pop(&mut self, now: Instant) -> Option<Announcement> {
        let (due, rank) = self.agenda.pop(&mut self.bucket, GRATUITOUS, now)?;
        // What the pace has overtaken is left out, it would only hold up others.
        let repeated = rank
            .begun
            .and_then(|begun| SERIES.iter().map(|&after| begun + after).find(|&at| at > now));
        let next = match repeated {
            Some(at) => Some((at, Round::Repeated)),
            None => self.refresh_after(due, rank.round).map(|after| (now + after, Round::Refresh)),
        };
        if let Some((at, round)) = next {
            self.agenda.put(due, at, Rank { round, ..rank });
        }
        Some(due)
    }

    /// How long after a frame of this round, the last of its series, it is sent again.
    fn refresh_after(&self, due: Announcement, round: Round) -> Option<Duration> {
        let part = |of| pace::part(of, self.settings.seed, due.address, 0);
        match due.audience() {
            Audience::Switches => {
                let [least, most] = REPORT_AFTER;
                Some(least + part(most - least))
            }
            Audience::Neighbors => {
                let interval = self.settings.refresh?.max(SHORTEST_REFRESH);
                Some(match round {
                    Round::Refresh => interval,
                    // What has come together is not to be refreshed together.
                    Round::First | Round::Repeated => part(interval),
                })
            }
        }
    }

    pub(super) fn poll_timeout(&self) -> Option<Instant> {
        let due = self.agenda.next_at()?;
        Some(self.bucket.ready_at(GRATUITOUS).map_or(due, |ready| ready.max(due)))
    }
}

fn forms(address: IpAddr) -> &'static [Form] {
    match address {
        IpAddr::V4(_) => &[Form::First, Form::Second],
        IpAddr::V6(_) => &[Form::First, Form::Second, Form::Third],
    }
}

pub(super) fn gratuitous_frame(interface: &Interface, address: IpAddr, form: Form) -> Vec<u8> {
    let own = MacAddr::from(interface.mac);
    match address {
        IpAddr::V4(address) => match form {
            Form::First => arp::announcement_request(own, address),
            Form::Second | Form::Third => arp::announcement_reply(own, address),
        },
        IpAddr::V6(address) => {
            let group = ndp::solicited_node(address);
            let listener = mld::Listener { own, source: interface.link_local, group };
            match form {
                Form::First => advertisement(interface, address).to_all(),
                Form::Second => listener.report_v1(),
                Form::Third => listener.report_v2(),
            }
        }
    }
}
