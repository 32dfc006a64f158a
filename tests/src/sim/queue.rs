//! What is on its way: messages in the order of their time, those of one time as they were put.

use std::{collections::BTreeMap, time::Instant};

#[derive(Debug)]
pub struct Queue<M> {
    messages: BTreeMap<(Instant, u64), M>,
    put: u64,
}

impl<M> Default for Queue<M> {
    fn default() -> Self {
        Self { messages: BTreeMap::new(), put: 0 }
    }
}

impl<M> Queue<M> {
    pub fn put(&mut self, at: Instant, message: M) {
        self.put += 1;
        self.messages.insert((at, self.put), message);
    }

    /// The next message and its time.
    pub fn first(&self) -> Option<(Instant, &M)> {
        self.messages.first_key_value().map(|((at, _), message)| (*at, message))
    }

    /// The next message, if its time has come at `now`.
    pub fn pop_due(&mut self, now: Instant) -> Option<M> {
        let entry = self.messages.first_entry()?;
        (entry.key().0 <= now).then(|| entry.remove())
    }
}
