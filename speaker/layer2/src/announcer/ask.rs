//! Questions to the segment: who has an address?
//!
//! Before an address is taken it is probed, so that nobody learns a station for it from the question
//! (RFC 5227 section 1.1). Where the answer is only to be known, the question is an ordinary one
//! from an address of this node: routers do not answer probes reliably.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};
use std::time::{Duration, Instant};

use ownership::{Asking, Heard};
use pnet::util::MacAddr;

use super::{Action, Announcer, Heeding, Ignored};
use crate::interface::{Interface, InterfaceIndex};
use crate::ndp::Purpose;
use crate::pace::{self, Agenda, Bucket, Rate};
use crate::{arp, ndp};

/// All questions together: those for a thousand addresses, three each, are out within a second.
const PROBES: Rate = Rate { interval: Duration::from_micros(200), burst: 600 };

/// How many probes there are of each kind but the single question.
const PROBE_NUM: u8 = 3;

/// Between two fast probes.
const FAST_INTERVAL: Duration = Duration::from_millis(8);
/// From the last fast probe to the verdict.
const FAST_WAIT: Duration = Duration::from_millis(9);
/// From the single question to the verdict.
const ONCE_WAIT: Duration = Duration::from_millis(100);

/// RFC 5227 section 1.1: at most so long before the first probe.
const PROBE_WAIT: Duration = Duration::from_secs(1);
/// At least so long between two.
const PROBE_MIN: Duration = Duration::from_secs(1);
/// At most so long between two.
const PROBE_MAX: Duration = Duration::from_secs(2);
/// From the last to the verdict.
const ANNOUNCE_WAIT: Duration = Duration::from_secs(2);

/// What stations say of one address is told apart up to so many times.
const HEARD_KEPT: usize = 8;

#[derive(Debug)]
pub(super) struct Questions {
    seed: u64,
    asked: BTreeMap<IpAddr, Question>,
    agenda: Agenda<IpAddr, Rank>,
    /// When those end that have asked enough or were answered.
    ends: BTreeSet<(Instant, IpAddr)>,
    bucket: Bucket,
}

#[derive(Debug)]
struct Question {
    how: Asking,
    sent: u8,
    ends_at: Option<Instant>,
    heard: Vec<(MacAddr, Heard)>,
}

/// The order in which questions are asked that have to wait. What was begun first is ended first: so
/// the first of a thousand addresses is taken after as little time as a single one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Rank {
    weight: Weight,
    begun: Instant,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Weight {
    /// A gateway, whose silence tells that this node is cut off.
    Gateway,
    /// Somebody waits for the address.
    TakeOver,
    /// Somebody would like to know.
    Check,
}

impl Questions {
    pub(super) fn new(seed: u64) -> Self {
        Self {
            seed,
            asked: BTreeMap::new(),
            agenda: Agenda::new(),
            ends: BTreeSet::new(),
            bucket: Bucket::default(),
        }
    }

    pub(super) fn addresses(&self) -> impl Iterator<Item = IpAddr> {
        self.asked.keys().copied()
    }

    pub(super) fn stop(&mut self, address: IpAddr) -> Heeding {
        let Some(question) = self.asked.remove(&address) else { return Heeding::AsBefore };
        self.agenda.remove(address);
        if let Some(at) = question.ends_at {
            self.ends.remove(&(at, address));
        }
        Heeding::Changed
    }

    pub(super) fn poll_timeout(&self) -> Option<Instant> {
        let due = self.agenda.next_at();
        let due = due.map(|due| self.bucket.ready_at(PROBES).map_or(due, |ready| ready.max(due)));
        let end = self.ends.first().map(|(at, _)| *at);
        [due, end].into_iter().flatten().min()
    }

    fn ask(&mut self, address: IpAddr, how: Asking, weight: Weight, now: Instant) -> Heeding {
        let heeding = match self.stop(address) {
            Heeding::Changed => Heeding::AsBefore,
            Heeding::AsBefore => Heeding::Changed,
        };
        let question = Question { how, sent: 0, ends_at: None, heard: Vec::new() };
        let rank = Rank { weight, begun: now };
        self.asked.insert(address, question);
        let after = match how {
            Asking::Fast | Asking::Once => Duration::ZERO,
            Asking::Thorough => pace::part(PROBE_WAIT, self.seed, address, 0),
        };
        self.agenda.put(address, now + after, rank);
        heeding
    }

    /// The next address to ask for, and how. The time of the next probe, or of the verdict, counts
    /// from now.
    fn pop(&mut self, now: Instant) -> Option<(IpAddr, Asking)> {
        let (address, rank) = self.agenda.pop(&mut self.bucket, PROBES, now)?;
        let question = self.asked.get_mut(&address)?;
        question.sent += 1;
        if question.sent < number(question.how) {
            let after = match question.how {
                Asking::Fast | Asking::Once => FAST_INTERVAL,
                Asking::Thorough => {
                    let part = pace::part(PROBE_MAX - PROBE_MIN, self.seed, address, question.sent);
                    PROBE_MIN + part
                }
            };
            self.agenda.put(address, now + after, rank);
        } else {
            question.ends_at = Some(now + wait(question.how));
            self.ends.extend(question.ends_at.map(|at| (at, address)));
        }
        Some((address, question.how))
    }

    /// A question that has had its time, and whether nobody has the address.
    fn end(&mut self, now: Instant) -> Option<(IpAddr, Verdict)> {
        let &(_, address) = self.ends.first().filter(|(at, _)| *at <= now)?;
        self.ends.pop_first();
        let question = self.asked.remove(&address)?;
        Some((address, if question.is_answered() { Verdict::Held } else { Verdict::Silence }))
    }

    /// What a station said of an address that is asked for.
    fn hear(&mut self, address: IpAddr, mac: MacAddr, form: Heard, now: Instant) -> Novelty {
        let Some(question) = self.asked.get_mut(&address) else { return Novelty::Known };
        if question.heard.contains(&(mac, form)) || question.heard.len() >= HEARD_KEPT {
            return Novelty::Known;
        }
        question.heard.push((mac, form));
        // Who has it has been heard; what is left of the time is for others who have it, too.
        if form == Heard::Has && question.ends_at.is_none() {
            self.agenda.remove(address);
            question.ends_at = Some(now + wait(question.how));
            self.ends.extend(question.ends_at.map(|at| (at, address)));
        }
        Novelty::New
    }
}

impl Question {
    fn is_answered(&self) -> bool {
        self.heard.iter().any(|(_, form)| *form == Heard::Has)
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Verdict {
    Held,
    Silence,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Novelty {
    New,
    Known,
}

fn number(how: Asking) -> u8 {
    match how {
        Asking::Fast | Asking::Thorough => PROBE_NUM,
        Asking::Once => 1,
    }
}

/// From the last probe to the verdict.
fn wait(how: Asking) -> Duration {
    match how {
        Asking::Fast => FAST_WAIT,
        Asking::Thorough => ANNOUNCE_WAIT,
        Asking::Once => ONCE_WAIT,
    }
}

impl Announcer {
    pub(super) fn ask(&mut self, address: IpAddr, how: Asking, now: Instant) {
        let gateway =
            self.interfaces.values().any(|interface| interface.gateways.contains(&address));
        let weight = match how {
            Asking::Fast | Asking::Thorough => Weight::TakeOver,
            Asking::Once if gateway => Weight::Gateway,
            Asking::Once => Weight::Check,
        };
        let heeding = self.questions.ask(address, how, weight, now);
        self.heed(heeding);
    }

    /// Sends what is due and ends what has had its time. An address that can be asked for nowhere
    /// is met with silence like any other.
    pub(super) fn send_questions(&mut self, now: Instant, actions: &mut Vec<Action>) {
        while let Some((address, verdict)) = self.questions.end(now) {
            self.heed(Heeding::Changed);
            match verdict {
                Verdict::Silence => actions.push(Action::Silence(address)),
                Verdict::Held => {}
            }
        }
        while let Some((address, how)) = self.questions.pop(now) {
            let mut sent = 0;
            for interface in self.interfaces.values() {
                if self.is_asked_on(address, interface) {
                    let frame = self.question(interface, address, how);
                    actions.push(Action::SendFrame { interface: interface.index, frame });
                    sent += 1;
                }
            }
            self.counters.probes_sent += sent;
            for _ in 1..sent {
                self.questions.bucket.charge(PROBES, now);
            }
        }
    }

    /// What a station said of an address, if that is asked for on the interface: whether to report
    /// it.
    pub(super) fn hear_answer(
        &mut self,
        address: IpAddr,
        index: InterfaceIndex,
        mac: MacAddr,
        form: Heard,
        now: Instant,
    ) -> Option<Result<(), Ignored>> {
        self.questions.asked.get(&address)?;
        let interface = self.interfaces.get(&index)?;
        if !self.is_asked_on(address, interface) {
            return None;
        }
        Some(match self.questions.hear(address, mac, form, now) {
            Novelty::New => Ok(()),
            Novelty::Known => Err(Ignored::HeardTooOften),
        })
    }

    /// A candidate is asked for where it would be announced; for any other the node's own routes
    /// say where it is.
    fn is_asked_on(&self, address: IpAddr, interface: &Interface) -> bool {
        match self.addresses.get(&address) {
            Some(known) if known.on.is_some() => known.stations.contains_key(&interface.index),
            Some(_) | None => {
                interface.speaks()
                    && (interface.gateways.contains(&address) || interface.holds(address))
            }
        }
    }

    fn question(&self, interface: &Interface, address: IpAddr, how: Asking) -> Vec<u8> {
        let own = MacAddr::from(interface.mac);
        let candidate = self.addresses.get(&address).is_some_and(|known| known.on.is_some());
        let purpose = match how {
            Asking::Fast | Asking::Thorough if candidate => Purpose::Probe,
            Asking::Fast | Asking::Thorough | Asking::Once => Purpose::Resolution,
        };
        match address {
            IpAddr::V4(target) => {
                let source = match purpose {
                    Purpose::Probe => None,
                    Purpose::Resolution => self.source_for(interface, target),
                };
                arp::request(own, source.unwrap_or(Ipv4Addr::UNSPECIFIED), target)
            }
            IpAddr::V6(target) => {
                ndp::Question { own, source: interface.link_local, target, purpose }.encode()
            }
        }
    }

    /// An address of this node on an interface, if there is one in the target's subnet. Never one
    /// that may move: the question would draw it here.
    fn source_for(&self, interface: &Interface, target: Ipv4Addr) -> Option<Ipv4Addr> {
        let own = || {
            let networks = interface.networks.iter();
            networks.filter_map(|network| match network.addr() {
                IpAddr::V4(own) => {
                    (!self.addresses.contains_key(&own.into())).then_some((own, network))
                }
                IpAddr::V6(_) => None,
            })
        };
        let beside = own().find(|(_, network)| network.contains(&IpAddr::V4(target)));
        beside.or_else(|| own().next()).map(|(own, _)| own)
    }
}
