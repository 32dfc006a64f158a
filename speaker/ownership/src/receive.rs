//! Datagrams: whether they count, and what they change.

use std::time::{Duration, Instant};

use crate::life::Vacancy;
use crate::message::{self, Beat, Body, Flags, Notice, Row};
use crate::peer::News;
use crate::{Action, NodeName, Ownership};

/// How often greetings of a peer are answered.
const GREETING_PACE: Duration = Duration::from_millis(10);

/// How often outdated claims of a peer are answered.
const CORRECTION_PACE: Duration = Duration::from_millis(5);

impl Ownership {
    pub(crate) fn receive(&mut self, from: &str, payload: &[u8], now: Instant) {
        let Some(peer) = self.peers.get(from) else {
            self.counters.strangers += 1;
            return;
        };
        let (name, known) = (peer.name.clone(), peer.incarnation());
        let Ok((header, body)) = message::decode(payload) else {
            self.counters.malformed += 1;
            return;
        };
        if header.incarnation < known {
            self.counters.stale += 1;
            return;
        }
        if header.receiver != self.settings.incarnation {
            self.counters.stale += u64::from(header.receiver != 0);
            return self.greet(&name, header.incarnation, now);
        }
        let news = self.peers.hear(&name, header.incarnation, header.sequence, now);
        let fresh = news != News::Overtaken;
        if fresh {
            self.start.hear(now);
            self.isolation.hear_peer(news);
        }
        match body {
            Body::Beat(beat) if fresh => self.take_beat(&name, beat, now),
            Body::Beat(_) => {}
            _ => self.take_news(&name, body, now),
        }
        self.welcome(&name, news, now);
    }

    /// A datagram that is not meant for this life: its sender does not know it yet.
    fn greet(&mut self, name: &NodeName, incarnation: u64, now: Instant) {
        if let Some(paces) = self.peers.paces(name)
            && paces.greet_from.is_none_or(|from| from <= now)
        {
            paces.greet_from = Some(now + GREETING_PACE);
            self.outbox.beats.insert(name.clone(), incarnation);
        }
    }

    /// What follows from hearing a peer for the first time, or again.
    pub(crate) fn welcome(&mut self, name: &NodeName, news: News, now: Instant) {
        match news {
            // Its life before may have claimed and announced what nobody here heard of.
            News::Born | News::Returned => self.farewells.greet(now),
            News::Revived => {
                self.counters.false_verdicts += 1;
                self.farewells.greet(now);
            }
            News::Again => return self.farewells.greet(now),
            News::Lives | News::Overtaken => return,
        }
        self.outbox.digests.insert(name.clone());
        self.follow(name, now);
        self.announce_life(name, news);
    }

    fn take_beat(&mut self, name: &NodeName, beat: Beat, now: Instant) {
        let (hash, age) = (beat.hash, beat.age);
        let change = self.peers.take_beat(name, beat, now);
        if change.prospects {
            self.estate.replan();
        }
        if change.stations {
            self.settle_all_of(name, now);
        }
        if change.resumption || change.version {
            self.reconsider_losses(name);
        }
        if change.version {
            self.reconsider_deposing();
        }
        self.birth.hear(age, now);
        self.compare(name, hash, now);
    }

    /// A peer has said whether it takes up again what it held, or gave it up for a newer view.
    fn reconsider_losses(&mut self, name: &NodeName) {
        let claims = self.table.claims_of(name);
        let vacant = claims.map(|claims| self.estate.vacant_among(claims)).unwrap_or_default();
        for address in vacant {
            let of_peer = self.table.best(address).is_some_and(|best| best.owner == *name);
            let entry = self.addresses.get(&address).filter(|_| of_peer);
            let Some(vacancy) = entry.and_then(|entry| entry.vacancy) else { continue };
            let (cause, ready) = self.judge_loss(address, vacancy.since);
            if let Some(entry) = self.addresses.get_mut(&address) {
                entry.vacancy = Some(Vacancy { cause, ready, ..vacancy });
                self.estate.end_wait(address);
                self.estate.replan();
            }
        }
    }

    fn take_news(&mut self, name: &NodeName, body: Body, now: Instant) {
        match body {
            Body::Beat(_) => {}
            Body::Claims(rows) => {
                for Row { address, claim } in rows {
                    self.take_row(name, address, claim, now);
                }
            }
            Body::Digest(theirs) => self.answer_digest(name, &theirs),
            Body::Yield(rows) => {
                let held = rows.into_iter().filter(|row| self.holds(row.address));
                let addresses: Vec<_> = held.map(|row| row.address).collect();
                self.outbox.repeat.extend(addresses);
            }
            Body::Handover(occasion, rows) => self.take_over(name, occasion, rows, now),
            Body::Refusal(rows) => self.be_refused(name, rows, now),
            Body::Dead(notices) => self.hear_of_death(name, notices, now),
            Body::Alive(notices) => self.hear_of_life(notices, now),
            Body::Wire(sightings) => self.take_proof(name, sightings),
            Body::GiveBack(addresses) => self.give_back(name, addresses, now),
        }
    }

    /// Tells a peer the better claim, not too often.
    pub(crate) fn correct(&mut self, name: &NodeName, address: std::net::IpAddr, now: Instant) {
        let Some(paces) = self.peers.paces(name) else { return };
        // Within one step all of them go in a few datagrams.
        if paces.correct_from.is_none_or(|from| from <= now) {
            paces.correct_from = Some(now + CORRECTION_PACE);
            self.outbox.rows.entry(name.clone()).or_default().insert(address);
        } else if let Some(rows) = self.outbox.rows.get_mut(name) {
            rows.insert(address);
        }
    }

    /// Peers that this node has not heard for too long.
    pub(crate) fn bury_the_silent(&mut self, now: Instant) {
        for name in self.peers.overdue(now) {
            self.accuse(&name, now);
        }
        self.repeat_notices(now);
    }

    fn accuse(&mut self, name: &NodeName, now: Instant) {
        let Some(notice) = self.peers.notice(name) else { return };
        if self.peers.in_ring() {
            self.repair.tell_dead(&notice, self.settings.profile.interval, now);
        }
        let me = self.settings.me.clone();
        if self.peers.accuse(&me, &notice, now) {
            self.bury(name, now);
        }
    }

    fn bury(&mut self, name: &NodeName, now: Instant) {
        self.birth.disturb();
        self.outbox.peers.push(Action::PeerDown(name.clone()));
        self.settle_all_of(name, now);
        self.drop_successor(name, now);
        self.peers.close_ranks(now);
        self.estate.replan();
    }

    /// A watcher's verdict.
    fn hear_of_death(&mut self, from: &NodeName, notices: Vec<Notice>, now: Instant) {
        for notice in notices {
            let name = notice.node.clone();
            if self.peers.life(&name).is_none() {
                continue;
            }
            let missed = self.peers.misses(&name);
            if self.peers.accuse(from, &notice, now) {
                self.bury(&name, now);
            } else if missed {
                self.accuse(&name, now);
            } else if self.peers.hears_after(&notice)
                && let Some(notice) = self.peers.notice(&name)
            {
                self.outbox.to_all.extend(message::alive(&[notice]));
            }
        }
    }

    /// What a watcher hears.
    fn hear_of_life(&mut self, notices: Vec<Notice>, now: Instant) {
        for notice in notices {
            let Some(name) = self.peers.get(&notice.node).map(|peer| peer.name.clone()) else {
                continue;
            };
            let news = self.peers.vouch(&notice, now);
            match news {
                News::Born | News::Returned | News::Revived => self.follow(&name, now),
                News::Again | News::Lives | News::Overtaken => {}
            }
        }
    }

    /// A life that was not known here is heard, by this node or by others.
    fn follow(&mut self, name: &NodeName, now: Instant) {
        if let Some(peer) = self.peers.get(name) {
            self.outbox.beats.insert(name.clone(), peer.incarnation());
        }
        self.tell_up(name);
        self.settle_all_of(name, now);
        self.peers.close_ranks(now);
        self.estate.replan();
    }

    /// Tells the others of a life that this node is the first to hear, and the newcomer of them.
    fn announce_life(&mut self, name: &NodeName, news: News) {
        if !self.peers.in_ring() || (news != News::Revived && !self.peers.watches(name)) {
            return;
        }
        let Some(notice) = self.peers.notice(name) else { return };
        self.outbox.to_all.extend(message::alive(&[notice]));
        let others = self.peers.living().filter(|(other, _)| *other != name);
        let list: Vec<_> = others.filter_map(|(other, _)| self.peers.notice(other)).collect();
        let bodies = message::alive(&list).into_iter().map(|body| (name.clone(), body));
        self.outbox.to_one.extend(bodies);
    }

    /// Whether a peer still owns more than is known here.
    pub(crate) fn owes(&self, name: &NodeName, life: &crate::peer::Life) -> bool {
        let said = life.beat.as_ref().map_or(0, |beat| beat.owned);
        usize::try_from(said).is_ok_and(|said| said > self.table.load(name))
    }

    /// Whether a peer takes part and may be given something.
    pub(crate) fn is_fit(&self, name: &NodeName) -> bool {
        let out =
            Flags::LISTENING | Flags::DRAINING | Flags::LEAVING | Flags::ISOLATED | Flags::MUTED;
        self.peers.life(name).is_some_and(|life| !life.flags().has(out))
    }
}
