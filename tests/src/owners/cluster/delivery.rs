//! What arrives at a node, and when its core is woken.

use std::{net::IpAddr, sync::Arc, time::Duration};

use ownership::Event;
use rand::RngExt as _;

use super::{Cluster, INBOX, Message, Node, Question, SPINS, Speaker, Stored, name};
use crate::owners::fault::Inbox;

impl Cluster {
    pub(super) fn deliver(&mut self, message: Message) {
        let Some(message) = self.kept_by_frozen(message) else { return };
        match message {
            Message::Wake { node, life, number } => {
                let Some(speaker) = self.living(node, life) else { return };
                if speaker.wake.is_some_and(|(_, expected)| expected == number) {
                    speaker.wake = None;
                    self.wake(node);
                    self.settle(node);
                }
            }
            Message::Datagram { to, from, payload } => {
                let from = Arc::clone(&self.nodes[from].name);
                self.feed(to, Event::Datagram { from: &from, payload: &payload });
            }
            Message::Api { node, life } => {
                if self.living(node, life).is_some() {
                    self.look_at_api(node, life);
                }
            }
            Message::Question { node, life, address, number } => {
                if let Some(question) = self.asked(node, life, address, number)
                    && !question.is_answered()
                {
                    let how = question.how;
                    self.question(node, address, how);
                }
            }
            Message::Heard { node, address, mac, form } => {
                let Some(speaker) = &mut self.nodes[node].speaker else { return };
                let asked = speaker.asking.get_mut(&address).is_some_and(|question| {
                    let new = !question.heard.contains(&(mac, form));
                    question.heard.push((mac, form));
                    new
                });
                if asked || speaker.answers.contains(&address) {
                    self.feed(node, Event::Heard { address, interface: "eth0", mac, form });
                }
            }
            Message::Silence { node, life, address, number } => {
                let asked = self.asked(node, life, address, number);
                if let Some(answered) = asked.map(|question| question.is_answered()) {
                    self.stop_asking(node, address);
                    if !answered {
                        self.feed(node, Event::Silence(address));
                    }
                }
            }
            Message::Announce { node, life, address, number, index } => {
                self.announce(node, life, address, number, index);
            }
            Message::Save { node, life } => {
                if let Some(speaker) = self.living(node, life) {
                    speaker.saving = false;
                    self.save(node);
                }
            }
            Message::Thaw { node, life } => {
                if self.living(node, life).is_some() {
                    self.thaw(node);
                }
            }
        }
    }

    /// The message, unless it waits in, or is lost to, a process that stands still.
    fn kept_by_frozen(&mut self, message: Message) -> Option<Message> {
        let node = match &message {
            Message::Datagram { to, .. } => *to,
            Message::Wake { node, .. }
            | Message::Api { node, .. }
            | Message::Question { node, .. }
            | Message::Heard { node, .. }
            | Message::Silence { node, .. }
            | Message::Announce { node, .. }
            | Message::Save { node, .. } => *node,
            Message::Thaw { .. } => return Some(message),
        };
        let speaker = self.nodes[node].speaker.as_mut();
        let Some(frozen) = speaker.and_then(|speaker| speaker.frozen.as_mut()) else {
            return Some(message);
        };
        let keeps = match &message {
            // Of the process itself: late, but not lost.
            Message::Silence { .. } | Message::Api { .. } | Message::Save { .. } => true,
            Message::Datagram { .. } | Message::Heard { .. } => {
                frozen.inbox == Inbox::Kept && frozen.kept.len() < INBOX
            }
            Message::Question { .. } | Message::Announce { .. } | Message::Wake { .. } => false,
            Message::Thaw { .. } => unreachable!("passed above"),
        };
        if keeps {
            frozen.kept.push(message);
        }
        None
    }

    pub(super) fn living(&mut self, node: usize, life: u64) -> Option<&mut Speaker> {
        let this = &mut self.nodes[node];
        this.speaker.as_mut().filter(|_| this.life == life)
    }

    /// A question, if it is still out.
    fn asked(
        &mut self,
        node: usize,
        life: u64,
        address: IpAddr,
        number: u64,
    ) -> Option<&mut Question> {
        let question = self.living(node, life)?.asking.get_mut(&address)?;
        (question.number == number).then_some(question)
    }

    pub(super) fn wake(&mut self, node: usize) {
        let now = self.local(node);
        let Some(speaker) = &mut self.nodes[node].speaker else { return };
        speaker.wake = None;
        if speaker.core.poll_timeout().is_some_and(|due| due <= now) {
            let actions = speaker.core.handle_timeout(now);
            self.perform(node, actions);
        }
        self.spins =
            if self.spins.0 == self.now { (self.now, self.spins.1 + 1) } else { (self.now, 0) };
        if self.spins.1 > SPINS {
            self.checker.broken(format!("{} spins", name(node)));
        }
    }

    pub(super) fn feed(&mut self, node: usize, event: Event<'_>) {
        let now = self.local(node);
        let Some(speaker) = &mut self.nodes[node].speaker else { return };
        let actions = speaker.core.handle(event, now);
        self.perform(node, actions);
        self.settle(node);
    }

    /// Sees to what a core wants besides its actions.
    pub(super) fn settle(&mut self, node: usize) {
        let Node { life, rate, lag, .. } = self.nodes[node];
        let Some(speaker) = &mut self.nodes[node].speaker else { return };
        if speaker.left {
            self.tell(format_args!("{} has left", name(node)));
            self.save(node);
            self.end(node);
            return;
        }
        if speaker.core.take_memory_changed() && !speaker.saving {
            speaker.saving = true;
            let delay = Duration::from_micros(self.rng.random_range(1_000..1_000_000));
            self.queue.put(self.now + delay, Message::Save { node, life });
        }
        if speaker.is_frozen() {
            return;
        }
        let due = speaker.core.poll_timeout().map(|due| {
            let local = due.saturating_duration_since(self.start);
            let real = if rate == 1_000_000 {
                local
            } else {
                // A nanosecond later rather than earlier than the core's clock says.
                local * 1_000_000 / rate + Duration::from_nanos(2)
            };
            (self.start + real + lag).max(self.now)
        });
        if let Some(due) = due
            && speaker.wake.is_none_or(|(at, _)| due < at)
        {
            self.numbers += 1;
            speaker.wake = Some((due, self.numbers));
            // Most are on time.
            let most = u64::try_from(self.options.lateness.as_micros()).unwrap_or(u64::MAX);
            let most = if self.rng.random_ratio(1, 50) { most } else { most / 10 };
            let late = Duration::from_micros(self.rng.random_range(0..=most));
            self.queue.put(due + late, Message::Wake { node, life, number: self.numbers });
        }
    }

    fn save(&mut self, node: usize) {
        let this = &mut self.nodes[node];
        if let Some(speaker) = &this.speaker {
            // Old is what the first change but one hundred or so has left.
            if this.old_disk.known.is_none() || self.rng.random_ratio(1, 8) {
                this.old_disk = this.disk.clone();
            }
            this.disk = Stored { memory: speaker.core.memory(), known: speaker.known };
        }
    }

    fn look_at_api(&mut self, node: usize, life: u64) {
        let stale_until = self.nodes[node].stale_until;
        if stale_until > self.now {
            self.queue.put(stale_until, Message::Api { node, life });
            return;
        }
        let upto = self.api.len();
        let known = self.nodes[node].speaker.as_ref().and_then(|speaker| speaker.known);
        match known {
            None => self.show_whole(node, upto),
            Some(known) if known < upto => {
                let view = self.api.changes(node, known, upto);
                self.show(node, view, upto);
            }
            Some(_) => {}
        }
        if let Some(speaker) = self.living(node, life)
            && !speaker.saving
        {
            speaker.saving = true;
            let delay = self.between(1_000, 1_000_000);
            self.queue.put(self.now + delay, Message::Save { node, life });
        }
    }
}
