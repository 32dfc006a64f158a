//! What goes wrong with nodes, and right again: their lives, pauses and links, and what they are told.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::Arc,
    time::Duration,
};

use ownership::{Event, Mac, Ownership, Settings};
use rand::RngExt as _;

use super::{Cluster, ETH0, Frozen, Message, Node, Recorded, Speaker, Stored, incarnation, name};
use crate::owners::{
    api::{Change, Lie},
    broken::{self, Broken},
    fault::{Disk, Fault, Inbox, Path},
    segment::{GATEWAY, Station},
};

impl Cluster {
    /// Makes something go wrong, or right again.
    pub fn fault(&mut self, fault: Fault) {
        self.tell(format_args!("-- {fault:?}"));
        match fault {
            Fault::Crash(node) => self.end(node),
            Fault::Boot(node, disk) => self.boot(node, disk),
            Fault::Leave(node) => {
                if let Some(speaker) = &mut self.nodes[node].speaker
                    && !speaker.leaving
                {
                    speaker.leaving = true;
                    self.feed(node, Event::Leave);
                }
            }
            Fault::Drain(node, draining) => self.change(Change::Draining(node, draining)),
            Fault::Freeze(node, time, inbox) => self.freeze(node, time, inbox),
            Fault::LinkDown(node) => {
                if self.segment.links_down.insert(node) {
                    self.links_changed(node);
                }
            }
            Fault::LinkUp(node) => {
                if self.segment.links_down.remove(&node) {
                    self.links_changed(node);
                }
            }
            Fault::Split(nodes, path) => self.segment.split(nodes, path == Path::Everything),
            Fault::Cut(from, to, path) => self.segment.cut(from, to, path == Path::Everything),
            Fault::Heal => self.heal(),
            Fault::Loss(percent) => self.loss = percent,
            Fault::FrameLoss(percent) => self.frame_loss = percent,
            Fault::Delay(delay) => self.delay = delay,
            Fault::Stale(node, time) => self.nodes[node].stale_until = self.now + time,
            Fault::Lie(node, lie) => self.lie(node, lie),
            Fault::Gateway(answers) => self.segment.gateway_answers = answers,
            Fault::Foreign(address, there) => self.foreign(address, there),
            Fault::Wanted(address, candidates) => {
                self.change(Change::Address(address, candidates));
            }
            Fault::Forge(node, epoch) => {
                let Node { name, disk, .. } = &mut self.nodes[node];
                for claim in disk.memory.claims.values_mut() {
                    claim.epoch = epoch;
                    claim.owner = Arc::clone(name);
                }
            }
            Fault::Replay => self.replay(),
        }
    }

    /// Hosts that were cut off while the station they believe in stopped answering heard nobody
    /// announce it, and nobody can know: their own tables find that it does not answer any more.
    fn heal(&mut self) {
        let hosts_were_cut = self.segment.cuts_hosts();
        self.segment.heal();
        if !hosts_were_cut {
            return;
        }
        for (address, concerned) in &self.concerned {
            let macs = concerned.answering.iter().map(|node| Station::Node(*node).mac());
            let macs: Vec<Mac> = macs.collect();
            let Some(first) = macs.first() else { continue };
            for table in &mut self.segment.tables {
                table.entry(*address).and_modify(|mac| {
                    if !macs.contains(mac) {
                        *mac = *first;
                    }
                });
            }
        }
    }

    /// What the node knows is read once more, bent.
    fn lie(&mut self, node: usize, lie: Option<Lie>) {
        self.nodes[node].lie = lie;
        let known = self.nodes[node].speaker.as_ref().and_then(|speaker| speaker.known);
        if let Some(known) = known {
            self.show_whole(node, known);
        }
    }

    fn boot(&mut self, node: usize, disk: Disk) {
        if self.nodes[node].speaker.is_some() {
            return;
        }
        let now = self.local(node);
        let this = &mut self.nodes[node];
        if this.life == 0 || self.options.broken != Some(Broken::IncarnationReset) {
            this.life += 1;
        }
        let stored = match disk {
            Disk::Kept => this.disk.clone(),
            Disk::Lost => Stored::default(),
            Disk::Old => this.old_disk.clone(),
        };
        this.disk = stored.clone();
        let settings = Settings {
            me: Arc::clone(&this.name),
            incarnation: incarnation(node, this.life),
            profile: self.options.profile,
            conflict_probe: self.options.conflict_probe,
            rebalance: self.options.rebalance,
            memory: stored.memory,
        };
        this.speaker = Some(Speaker {
            core: Ownership::new(settings, now),
            answers: BTreeSet::new(),
            states: BTreeMap::new(),
            epochs: BTreeMap::new(),
            view: BTreeMap::new(),
            known: None,
            draining: false,
            leaving: false,
            frozen: None,
            asking: BTreeMap::new(),
            series: BTreeMap::new(),
            wake: None,
            saving: false,
            left: false,
        });
        let life = this.life;
        self.show_stations(node);
        self.feed(node, Event::Gateways(BTreeSet::from([GATEWAY])));
        if let Some(known) = stored.known {
            self.show_whole(node, known);
        }
        let delay = self.between(50_000, 300_000);
        self.queue.put(self.now + delay, Message::Api { node, life });
    }

    fn show_stations(&mut self, node: usize) {
        let mut stations = BTreeMap::new();
        if !self.segment.links_down.contains(&node) {
            stations.insert(ETH0.to_owned(), Station::Node(node).mac());
        }
        self.feed(node, Event::Stations(stations));
    }

    pub(super) fn show_whole(&mut self, node: usize, known: usize) {
        let names = self.nodes.iter().map(|node| Arc::clone(&node.name));
        let me = Arc::clone(&self.nodes[node].name);
        let peers = names.filter(|name| *name != me).collect();
        let view = self.api.whole(node, peers, known);
        self.show(node, view, known);
    }

    pub(super) fn show(&mut self, node: usize, mut view: ownership::View, known: usize) {
        let this = &mut self.nodes[node];
        if let Some(lie) = this.lie {
            lie.bend(&this.name, &mut view);
        }
        let Some(speaker) = &mut this.speaker else { return };
        speaker.known = Some(known);
        speaker.draining = view.draining.unwrap_or(speaker.draining);
        if view.extent == ownership::Extent::Whole {
            speaker.view.clear();
        }
        for (address, candidates) in &view.addresses {
            match candidates {
                Some(candidates) => speaker.view.insert(*address, Arc::clone(candidates)),
                None => speaker.view.remove(address),
            };
        }
        if self.options.broken == Some(Broken::VersionsHidden) {
            view.version = 7;
        }
        self.tell(format_args!("{} knows version {}", name(node), view.version));
        self.feed(node, Event::View(view));
    }

    /// The process is gone.
    pub(super) fn end(&mut self, node: usize) {
        let Some(speaker) = self.nodes[node].speaker.take() else { return };
        for address in speaker.answers {
            self.set_answering(node, address, false);
        }
        for address in speaker.asking.into_keys() {
            self.concerned.entry(address).or_default().asking.remove(&node);
        }
    }

    fn freeze(&mut self, node: usize, time: Duration, inbox: Inbox) {
        let (since, until, life) = (self.now, self.now + time, self.nodes[node].life);
        let Some(speaker) = &mut self.nodes[node].speaker else { return };
        if speaker.frozen.is_some() {
            return;
        }
        speaker.frozen = Some(Frozen { since, until, inbox, kept: Vec::new() });
        for address in speaker.answers.clone() {
            self.set_answering(node, address, false);
        }
        self.queue.put(until, Message::Thaw { node, life });
    }

    pub(super) fn thaw(&mut self, node: usize) {
        let Some(speaker) = &mut self.nodes[node].speaker else { return };
        let Some(frozen) = speaker.frozen.take_if(|frozen| frozen.until <= self.now) else {
            return;
        };
        if self.options.broken == Some(Broken::PauseHidden) {
            self.nodes[node].lag += self.now - frozen.since;
        }
        self.tell(format_args!("-- {} goes on", name(node)));
        let timers_first = self.rng.random();
        if timers_first {
            self.wake(node);
        }
        for message in frozen.kept {
            self.deliver(message);
        }
        if !timers_first {
            self.wake(node);
        }
        self.settle(node);
        // It is one loop: frames are answered after what the pause has made due.
        for address in self.answers(node) {
            self.set_answering(node, address, self.is_well(node));
        }
    }

    fn links_changed(&mut self, node: usize) {
        for address in self.answers(node) {
            self.set_answering(node, address, self.is_well(node));
        }
        self.show_stations(node);
    }

    fn foreign(&mut self, address: IpAddr, there: bool) {
        if !there {
            self.segment.foreign.remove(&address);
        } else if self.segment.foreign.insert(address) {
            self.broadcast(Station::Foreign, address);
        }
    }

    fn replay(&mut self) {
        for recorded in std::mem::take(&mut self.recorded) {
            let Recorded { from, from_life, to, to_life, mut payload } = recorded;
            if self.options.broken == Some(Broken::ReceiverForged) {
                broken::readdress(&mut payload, incarnation(to, self.nodes[to].life));
            }
            // Within one life of both, the transport's window does not let it pass.
            if self.nodes[from].life != from_life || self.nodes[to].life != to_life {
                let at = self.now + self.between(300, 1_000_000);
                self.queue.put(at, Message::Datagram { to, from, payload });
            }
        }
    }
}
