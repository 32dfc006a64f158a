//! Questions, answers and announcements on the segment.

use std::{net::IpAddr, time::Duration};

use ownership::{Asking, Heard};
use rand::RngExt as _;

use super::{Cluster, Message, Question, name};
use crate::owners::{
    broken::Broken,
    segment::{GATEWAY, SERIES, Station, questions},
};

impl Cluster {
    pub(super) fn ask(&mut self, node: usize, address: IpAddr, how: Asking) {
        self.numbers += 1;
        let (number, life) = (self.numbers, self.nodes[node].life);
        self.tell(format_args!("{} asks for {address}", name(node)));
        if let Some(speaker) = &mut self.nodes[node].speaker {
            speaker.asking.insert(address, Question { number, how, heard: Vec::new() });
        }
        self.concerned.entry(address).or_default().asking.insert(node);
        let (probes, wait) = questions(how);
        for probe in probes {
            let at = self.now + Duration::from_millis(*probe);
            self.queue.put(at, Message::Question { node, life, address, number });
        }
        let end = self.now + Duration::from_millis(wait);
        self.queue.put(end, Message::Silence { node, life, address, number });
    }

    pub(super) fn stop_asking(&mut self, node: usize, address: IpAddr) {
        if let Some(speaker) = &mut self.nodes[node].speaker {
            speaker.asking.remove(&address);
        }
        self.concerned.entry(address).or_default().asking.remove(&node);
    }

    /// One broadcast question: who has the address answers, who asks for it hears.
    pub(super) fn question(&mut self, asker: usize, address: IpAddr, how: Asking) {
        let me = Station::Node(asker);
        if address == GATEWAY {
            if self.segment.gateway_answers {
                self.reply(Station::Gateway, asker, address);
            }
            return;
        }
        if self.segment.foreign.contains(&address) && self.passes(me, Station::Foreign) {
            self.reply(Station::Foreign, asker, address);
        }
        let Some(concerned) = self.concerned.get(&address) else { return };
        let answering: Vec<usize> = concerned.answering.iter().copied().collect();
        let all: Vec<usize> = concerned.answering.union(&concerned.asking).copied().collect();
        for other in all {
            if other == asker || !self.passes(me, Station::Node(other)) {
                continue;
            }
            // A single question names an address of the asker's own, and is no probe.
            if how != Asking::Once {
                let at = self.now + self.between(50, 300);
                let mac = me.mac();
                let form = Heard::Probes;
                self.queue.put(at, Message::Heard { node: other, address, mac, form });
            }
            if answering.contains(&other) && self.options.broken != Some(Broken::NoVeto) {
                self.reply(Station::Node(other), asker, address);
            }
        }
    }

    fn reply(&mut self, from: Station, asker: usize, address: IpAddr) {
        if self.passes(from, Station::Node(asker)) {
            let at = self.now + self.between(100, 600);
            let mac = from.mac();
            let form = Heard::Has;
            self.queue.put(at, Message::Heard { node: asker, address, mac, form });
        }
    }

    pub(super) fn begin_series(&mut self, node: usize, address: IpAddr) {
        self.numbers += 1;
        let (number, life) = (self.numbers, self.nodes[node].life);
        if let Some(speaker) = &mut self.nodes[node].speaker {
            speaker.series.insert(address, number);
        }
        self.announce(node, life, address, number, 0);
    }

    pub(super) fn announce(
        &mut self,
        node: usize,
        life: u64,
        address: IpAddr,
        number: u64,
        index: usize,
    ) {
        let on = self.living(node, life).map(|speaker| speaker.series.get(&address));
        if on.flatten() != Some(&number) {
            return;
        }
        if self.is_well(node) {
            self.broadcast(Station::Node(node), address);
        }
        if let Some(next) = SERIES.get(index + 1) {
            let at = self.now + *next - SERIES[index];
            let message = Message::Announce { node, life, address, number, index: index + 1 };
            self.queue.put(at, message);
        }
    }

    /// A gratuitous frame: hosts believe it, nodes that are concerned hear it.
    pub(super) fn broadcast(&mut self, from: Station, address: IpAddr) {
        let mac = from.mac();
        for host in 0..self.segment.tables.len() {
            if self.passes(from, Station::Host(host)) {
                self.segment.tables[host].insert(address, mac);
            }
        }
        let Some(concerned) = self.concerned.get(&address) else { return };
        let all: Vec<usize> = concerned.answering.union(&concerned.asking).copied().collect();
        for other in all {
            if from != Station::Node(other) && self.passes(from, Station::Node(other)) {
                let at = self.now + self.between(50, 300);
                let form = Heard::Has;
                self.queue.put(at, Message::Heard { node: other, address, mac, form });
            }
        }
    }

    /// Whether a frame arrives, this time.
    fn passes(&mut self, from: Station, to: Station) -> bool {
        self.segment.frame_passes(from, to)
            && (self.frame_loss == 0 || self.rng.random_range(0..100) >= self.frame_loss)
    }
}
