//! What cores want done.

use std::{collections::BTreeSet, net::IpAddr};

use ownership::{Action, AddressState, NodeName};
use rand::RngExt as _;

use super::{Cluster, Message, RECORDED, Recorded, index, name};
use crate::owners::broken::Broken;

impl Cluster {
    pub(super) fn perform(&mut self, node: usize, actions: Vec<Action>) {
        let (mut touched, mut begun) = (BTreeSet::new(), Vec::new());
        for action in actions {
            match action {
                Action::Send { to, payload } => self.send(node, &to, payload),
                Action::Own(addresses) => {
                    for address in addresses {
                        touched.insert(address);
                        begun.push(address);
                        self.own(node, address);
                    }
                }
                Action::Disown(addresses) => {
                    for address in addresses {
                        touched.insert(address);
                        self.disown(node, address);
                    }
                }
                Action::Repeat(addresses) => {
                    for address in addresses {
                        if self.options.broken != Some(Broken::RepeatIgnored) {
                            self.tell(format_args!("{} repeats {address}", name(node)));
                            self.begin_series(node, address);
                        }
                    }
                }
                Action::Ask { address, how } => self.ask(node, address, how),
                Action::StopAsking(address) => self.stop_asking(node, address),
                Action::State(address, state) => {
                    touched.insert(address);
                    self.state(node, address, state);
                }
                Action::PeerUp(peer) => {
                    self.tell(format_args!("{} hears {peer}", name(node)));
                }
                Action::PeerDown(peer) => {
                    self.tell(format_args!("{} takes {peer} for dead", name(node)));
                    self.checker.verdicts.push((self.now, node, index(&peer)));
                }
                Action::Left => {
                    if let Some(speaker) = &mut self.nodes[node].speaker {
                        speaker.left = true;
                    }
                }
            }
        }
        let this = &self.nodes[node];
        if let Some(speaker) = &this.speaker {
            for address in touched {
                self.checker.consistent(&this.name, speaker, address);
            }
        }
        for address in begun {
            self.checker.may_own(this, address);
        }
    }

    fn send(&mut self, from: usize, to: &NodeName, mut payload: Vec<u8>) {
        let to = index(to);
        self.checker.sent(from, &payload);
        if self.options.broken.is_some_and(|broken| !broken.lets_pass(&mut payload))
            || !self.segment.datagram_passes(from, to)
        {
            return;
        }
        if self.recorded.len() < RECORDED && self.rng.random_ratio(1, 32) {
            let (from_life, to_life) = (self.nodes[from].life, self.nodes[to].life);
            let payload = payload.clone();
            self.recorded.push(Recorded { from, from_life, to, to_life, payload });
        }
        if self.loss > 0 && self.rng.random_range(0..100) < self.loss {
            return;
        }
        if self.options.duplicates > 0 && self.rng.random_range(0..100) < self.options.duplicates {
            let at = self.now + self.latency();
            self.queue.put(at, Message::Datagram { to, from, payload: payload.clone() });
        }
        let at = self.now + self.latency();
        self.queue.put(at, Message::Datagram { to, from, payload });
    }

    fn own(&mut self, node: usize, address: IpAddr) {
        let Some(speaker) = &mut self.nodes[node].speaker else { return };
        if !speaker.answers.insert(address) {
            self.checker.broken(format!("{} owns {address} twice", name(node)));
            return;
        }
        self.tell(format_args!("{} owns {address}", name(node)));
        self.checker.taken(self.now, address, node);
        if self.segment.foreign.contains(&address) {
            self.checker.owned_beside_a_foreign_host(&name(node), address);
        }
        self.set_answering(node, address, self.is_well(node));
        self.begin_series(node, address);
    }

    fn disown(&mut self, node: usize, address: IpAddr) {
        let Some(speaker) = &mut self.nodes[node].speaker else { return };
        if !speaker.answers.remove(&address) {
            self.checker.broken(format!("{} gives up {address}, not its own", name(node)));
        }
        speaker.series.remove(&address);
        self.set_answering(node, address, false);
        let now = self.answering(address);
        self.tell(format_args!("{} stops {address}; left: {now:?}", name(node)));
    }

    fn state(&mut self, node: usize, address: IpAddr, state: Option<AddressState>) {
        let Some(speaker) = &mut self.nodes[node].speaker else { return };
        let Some(state) = state else {
            speaker.states.remove(&address);
            return;
        };
        let highest = speaker.epochs.entry(address).or_default();
        if state.epoch < *highest {
            let fell = format!("{}: {address} from {highest} to {}", name(node), state.epoch);
            self.checker.broken(format!("an epoch fell at {fell}"));
        } else {
            *highest = state.epoch;
        }
        if self.options.story {
            let owner = state.owner.as_deref().unwrap_or("nobody");
            let conflict = state.conflict.as_ref();
            let line = format!(
                "{}: {address} {:?}, {owner}'s at {}{}",
                name(node),
                state.stage,
                state.epoch,
                conflict
                    .map(|stranger| format!(", conflict with {:02x?}", stranger.mac))
                    .unwrap_or_default()
            );
            self.tell(format_args!("{line}"));
        }
        if let Some(speaker) = &mut self.nodes[node].speaker {
            speaker.states.insert(address, state);
        }
    }

    pub(super) fn set_answering(&mut self, node: usize, address: IpAddr, answers: bool) {
        let concerned = self.concerned.entry(address).or_default();
        let changed = if answers {
            concerned.answering.insert(node)
        } else {
            concerned.answering.remove(&node)
        };
        if changed {
            self.checker.answering(address, concerned.answering.len(), self.now);
        }
    }
}
