//! Tables that differ are made alike again: claims were lost, or nodes could not hear each other.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use crate::message::{self, BUCKETS, Flags, Notice};
use crate::{NodeName, Ownership};

/// In so many beats in a row a table must differ: claims may just be on their way.
const PATIENCE: u32 = 2;

/// For so many beats after a peer has come it is told at once.
const COMING: u32 = 10;

/// Where nothing changes, comparing is of no use: one side forgot what the other still knows.
const LONGEST_PAUSE: Duration = Duration::from_secs(60);

#[derive(Debug, Default)]
pub(crate) struct Repair {
    differing: BTreeMap<NodeName, Difference>,
    /// Verdicts to be told, again, against loss.
    dead: BTreeMap<Instant, Vec<Notice>>,
}

#[derive(Debug)]
struct Difference {
    beats: u32,
    /// The own hash and the peer's when they were compared last.
    hashes: (u64, u64),
    pause: Duration,
    from: Instant,
}

impl Repair {
    /// Tells all of a verdict, at once and twice more.
    pub(crate) fn tell_dead(&mut self, notice: &Notice, interval: Duration, now: Instant) {
        for times in 0..3 {
            self.dead.entry(now + interval * times).or_default().push(notice.clone());
        }
    }

    pub(crate) fn next(&self) -> Option<Instant> {
        self.dead.keys().next().copied()
    }
}

impl Ownership {
    pub(crate) fn repeat_notices(&mut self, now: Instant) {
        while let Some(entry) = self.repair.dead.first_entry()
            && *entry.key() <= now
        {
            let notices = entry.remove();
            self.outbox.to_all.extend(message::dead(&notices));
        }
    }

    /// Takes in the hash of a peer's table.
    pub(crate) fn compare(&mut self, name: &NodeName, theirs: u64, now: Instant) {
        let hashes = (self.table.hash(), theirs);
        if hashes.0 == hashes.1 {
            self.repair.differing.remove(name);
            return;
        }
        let interval = self.settings.profile.interval;
        let coming = self.peers.life(name).is_some_and(|life| life.since + interval * COMING > now);
        let difference = self.repair.differing.entry(name.clone()).or_insert(Difference {
            beats: 0,
            hashes: (0, 0),
            pause: interval,
            from: now,
        });
        difference.beats += 1;
        if difference.hashes != hashes {
            difference.from = difference.from.min(now + interval);
        }
        if (difference.beats < PATIENCE && !coming) || difference.from > now {
            return;
        }
        let same = std::mem::replace(&mut difference.hashes, hashes) == hashes;
        difference.pause =
            if same && !coming { (difference.pause * 2).min(LONGEST_PAUSE) } else { interval };
        // A beat may come a little early; while a peer is coming every one counts.
        difference.from = now + if coming { interval / 2 } else { difference.pause };
        self.outbox.digests.insert(name.clone());
    }

    /// Sends a peer the rows of the parts in which the tables differ. One that has just come gets
    /// them from their owners, lest everybody send it everything.
    pub(crate) fn answer_digest(&mut self, name: &NodeName, theirs: &[u64; BUCKETS]) {
        let ours = self.table.buckets();
        let coming = self.peers.life(name).is_some_and(|life| life.flags().has(Flags::LISTENING));
        let rows = self.table.rows().filter(|(bucket, address, _)| {
            let others =
                || self.table.holder(*address).is_some_and(|holder| *holder != self.settings.me);
            ours[*bucket] != theirs[*bucket] && !(coming && others())
        });
        let bodies = message::claims(rows.map(|(_, address, claim)| (address, claim)));
        self.outbox.to_one.extend(bodies.into_iter().map(|body| (name.clone(), body)));
    }
}
