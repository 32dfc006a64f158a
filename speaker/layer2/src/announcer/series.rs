//! Gratuitous frames: when which is sent, and what they are.

use std::cmp::Reverse;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use pnet::util::MacAddr;

use super::{AnnouncerSettings, advertisement};
use crate::arp;
use crate::interface::{Interface, InterfaceIndex};
use crate::pace::{self, Agenda, Bucket, Rate};

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
    /// A gratuitous reply, for the neighbors that learn from replies only.
    Second,
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
        if let Some(at) = repeated {
            self.agenda.put(due, at, Rank { round: Round::Repeated, ..rank });
        } else if let Some(refresh) = self.settings.refresh {
            let interval = refresh.max(SHORTEST_REFRESH);
            let after = match rank.round {
                Round::Refresh => interval,
                // What has come together is not to be refreshed together.
                Round::First | Round::Repeated => {
                    pace::part(interval, self.settings.seed, due.address, 0)
                }
            };
            self.agenda.put(due, now + after, Rank { round: Round::Refresh, ..rank });
        }
        Some(due)
    }

    pub(super) fn poll_timeout(&self) -> Option<Instant> {
        let due = self.agenda.next_at()?;
        Some(self.bucket.ready_at(GRATUITOUS).map_or(due, |ready| ready.max(due)))
    }
}

fn forms(address: IpAddr) -> &'static [Form] {
    match address {
        IpAddr::V4(_) => &[Form::First, Form::Second],
        IpAddr::V6(_) => &[Form::First],
    }
}

pub(super) fn gratuitous_frame(interface: &Interface, address: IpAddr, form: Form) -> Vec<u8> {
    let own = MacAddr::from(interface.mac);
    match (address, form) {
        (IpAddr::V4(address), Form::First) => arp::announcement_request(own, address),
        (IpAddr::V4(address), Form::Second) => arp::announcement_reply(own, address),
        (IpAddr::V6(address), Form::First | Form::Second) => {
            advertisement(interface, address).to_all()
        }
    }
}
