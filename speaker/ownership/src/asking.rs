//! Asking the segment before an address is taken, and what its stations say.
//!
//! The answer of a cluster node is a veto: heartbeats are ill, the data path is well. That of any
//! other host is a conflict.

use std::net::IpAddr;
use std::time::{Duration, Instant};

use crate::claim::rank;
use crate::life::Phase;
use crate::timers::Due;
use crate::{Action, Asking, Cause, ConflictProbe, Heard, Mac, Ownership, Stranger};

/// When an address is asked for again for which another node answered, at the least: with thousands
/// of them the segment is asked for one each millisecond.
const VETO: Duration = Duration::from_millis(200);
const VETO_PACE: Duration = Duration::from_millis(1);

/// When an address is asked for again for which another node was asking: by then it has taken it, or
/// has found that it is not to.
const RIVAL: Duration = Duration::from_millis(30);

/// How often a foreign station may keep this cluster from an address that it held.
const FOREIGN_VETOES: u8 = 3;

/// When an address is asked for again that a foreign host has.
const CONFLICT: Duration = Duration::from_secs(10);

/// How long after it was heard last a foreign station is forgotten.
const CALM: Duration = Duration::from_secs(60);

/// How often an address is defended (RFC 5227 section 1.1, DEFEND_INTERVAL).
const DEFENCE: Duration = Duration::from_secs(10);

/// Who spoke, and where that was heard.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Station<'a> {
    pub(crate) mac: Mac,
    pub(crate) interface: &'a str,
}

impl Ownership {
    /// Claims again at once what an earlier life of this node held, if it is still free.
    pub(crate) fn resume(&mut self, now: Instant) {
        if !self.start.is_resuming() || self.view.is_none() || self.is_muted() || self.draining {
            return;
        }
        let all: Vec<_> = self.table.claimed_by(&self.settings.me).collect();
        for address in all {
            let Some(entry) = self.addresses.get(&address) else { continue };
            let idle = matches!(entry.phase, Phase::Idle);
            let due = entry.vacancy.is_some_and(|vacancy| {
                vacancy.cause == Cause::Resumed && vacancy.not_before.is_none()
            });
            if idle && due && self.may_hold(entry) {
                self.probe(address, now);
            }
        }
    }

    /// It is this node's turn.
    pub(crate) fn take_turn(&mut self, address: IpAddr, now: Instant) {
        let vacant = self
            .addresses
            .get(&address)
            .is_some_and(|entry| matches!(entry.phase, Phase::Idle) && entry.vacancy.is_some());
        if vacant && self.can_take() {
            self.probe(address, now);
        }
    }

    /// Asks the segment before an address is claimed, except where that is not wanted.
    fn probe(&mut self, address: IpAddr, now: Instant) {
        let Some(entry) = self.addresses.get_mut(&address) else { return };
        let Some(vacancy) = entry.vacancy else { return };
        let how = match (vacancy.cause, self.settings.conflict_probe) {
            (Cause::First, ConflictProbe::Off) => return self.claim(address, Cause::First, now),
            (Cause::First, ConflictProbe::Rfc) => Asking::Thorough,
            (_, ConflictProbe::Fast | ConflictProbe::Rfc | ConflictProbe::Off) => Asking::Fast,
        };
        entry.phase = Phase::Probing;
        if self.proofs.abandon(address) {
            self.outbox.asks.push(Action::StopAsking(address));
        }
        self.outbox.asks.push(Action::Ask { address, how });
        self.outbox.touched.insert(address);
    }

    /// Asks no more, if it did.
    pub(crate) fn stop_probing(&mut self, address: IpAddr) {
        if let Some(entry) = self.addresses.get_mut(&address)
            && matches!(entry.phase, Phase::Probing)
        {
            entry.phase = Phase::Idle;
            self.outbox.asks.push(Action::StopAsking(address));
            self.outbox.touched.insert(address);
        }
    }

    /// What was asked before a pause, or before this node was cut off, tells nothing.
    pub(crate) fn cancel_probes(&mut self) {
        let vacant: Vec<_> = self.estate.vacant().collect();
        for address in vacant {
            self.stop_probing(address);
        }
        self.estate.replan();
    }

    /// Nobody answered.
    pub(crate) fn hear_nothing(&mut self, address: IpAddr, now: Instant) {
        if self.isolation.hear_silence(address) {
            return;
        }
        let Some(entry) = self.addresses.get(&address) else { return };
        match (&entry.phase, entry.vacancy) {
            (Phase::Probing, Some(vacancy)) => self.claim(address, vacancy.cause, now),
            (Phase::Probing | Phase::Idle | Phase::Owner | Phase::Offering(_), _) => {
                self.note_proof(address, None, now);
            }
        }
    }

    /// A station spoke of an address.
    pub(crate) fn hear(
        &mut self,
        address: IpAddr,
        station: Station<'_>,
        form: Heard,
        now: Instant,
    ) {
        if form == Heard::Has && self.isolation.hear_answer(address) {
            return;
        }
        let Some(entry) = self.addresses.get(&address) else { return };
        match entry.phase {
            Phase::Probing => self.hear_while_probing(address, station, form, now),
            Phase::Owner | Phase::Offering(_) if form == Heard::Has => {
                self.hear_while_owning(address, station, now);
            }
            Phase::Owner | Phase::Offering(_) => {}
            Phase::Idle if form == Heard::Has => self.note_proof(address, Some(station.mac), now),
            Phase::Idle => {}
        }
    }

    fn hear_while_probing(
        &mut self,
        address: IpAddr,
        station: Station<'_>,
        form: Heard,
        now: Instant,
    ) {
        let first = self.table.best(address).is_none();
        let vacancies = u32::try_from(self.estate.vacancies()).unwrap_or(u32::MAX);
        let again = VETO.max(VETO_PACE.saturating_mul(vacancies));
        match (self.peers.node_of(station.mac).cloned(), form) {
            (Some(node), Heard::Has) => {
                self.outbox.rows.entry(node).or_default().insert(address);
                self.veto(address, again, now);
            }
            (Some(node), Heard::Probes) => {
                if rank(&node, address) < rank(&self.settings.me, address) {
                    self.veto(address, RIVAL, now);
                }
            }
            (None, Heard::Has | Heard::Probes) if first => {
                self.veto(address, CONFLICT, now);
                self.set_conflict(address, station);
            }
            (None, Heard::Has) => self.bear_foreign(address, station, now),
            (None, Heard::Probes) => {}
        }
    }

    fn set_conflict(&mut self, address: IpAddr, station: Station<'_>) {
        if let Some(entry) = self.addresses.get_mut(&address) {
            let Station { mac, interface } = station;
            // Where two interfaces are on one segment it is heard on both.
            if entry.conflict.as_ref().is_none_or(|stranger| stranger.mac != mac) {
                entry.conflict = Some(Stranger { mac, interface: interface.into() });
            }
            self.outbox.touched.insert(address);
        }
    }

    /// A foreign station has an address that this cluster held: it may be a mistake of theirs, or
    /// an answer that is out of date; but not for ever.
    fn bear_foreign(&mut self, address: IpAddr, station: Station<'_>, now: Instant) {
        let Some(entry) = self.addresses.get_mut(&address) else { return };
        entry.foreign_vetoes = entry.foreign_vetoes.saturating_add(1);
        if entry.foreign_vetoes <= FOREIGN_VETOES {
            return self.veto(address, VETO, now);
        }
        let cause = entry.vacancy.map_or(Cause::Death, |vacancy| vacancy.cause);
        self.outbox.asks.push(Action::StopAsking(address));
        self.claim(address, cause, now);
        self.hear_while_owning(address, station, now);
    }

    fn veto(&mut self, address: IpAddr, pause: Duration, now: Instant) {
        self.counters.vetoes += 1;
        self.stop_probing(address);
        if let Some(vacancy) =
            self.addresses.get_mut(&address).and_then(|entry| entry.vacancy.as_mut())
        {
            vacancy.not_before = Some(now + pause);
            self.timers.arm(address, Due::Turn, now + pause);
        }
    }

    fn hear_while_owning(&mut self, address: IpAddr, station: Station<'_>, now: Instant) {
        if let Some(node) = self.peers.node_of(station.mac).cloned() {
            return self.correct(&node, address, now);
        }
        self.set_conflict(address, station);
        self.timers.arm(address, Due::Calm, now + CALM);
        if let Some(entry) = self.addresses.get_mut(&address)
            && entry.defend_from.is_none_or(|from| from <= now)
        {
            entry.defend_from = Some(now + DEFENCE);
            self.outbox.repeat.insert(address);
        }
    }

    /// The foreign station has not been heard for long.
    pub(crate) fn calm(&mut self, address: IpAddr) {
        if let Some(entry) = self.addresses.get_mut(&address) {
            entry.conflict = None;
            self.outbox.touched.insert(address);
        }
    }
}
