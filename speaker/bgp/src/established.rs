//! An Established session: its timers, and when it may send which UPDATEs.
//!
//! Changes go out at once where nothing was sent lately, or else together with all that comes until
//! [`COALESCING_WINDOW`] after the last UPDATEs. Announcements also wait for BFD and for the
//! configured interval between them; withdrawals wait for neither.

use std::time::{Duration, Instant};

use crate::{
    Negotiated,
    rib_out::{Allowed, RibOut, Updates},
    state::{Link, Timers},
};

/// Changes within this time of the last UPDATEs are sent together.
pub(crate) const COALESCING_WINDOW: Duration = Duration::from_millis(10);
/// How long a strict session waits for BFD before it announces without.
const LONGEST_BFD_WAIT: Duration = Duration::from_secs(10);
/// RFC 9687 section 3.2, unless twice the hold time is more.
const MIN_SEND_HOLD_TIME: Duration = Duration::from_secs(480);

#[derive(Debug)]
pub(crate) struct Established {
    pub(crate) link: Link,
    pub(crate) negotiated: Negotiated,
    pub(crate) timers: Timers,
    pub(crate) since: Instant,
    /// When the connection must have taken something; `None` with a hold time of 0.
    send_hold_at: Option<Instant>,
    pub(crate) pace: Pace,
}

/// What keeps routes from being announced on an Established session whose BFD rule is strict.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BfdGate {
    /// Nothing: BFD is Up, or no rule asks for it.
    Open,
    /// BFD is not Up yet; nothing is announced.
    Waiting,
    /// BFD did not come up within 10 s; the routes are announced without it.
    Overdue,
}

#[derive(Debug)]
pub(crate) struct Pace {
    flush: Flush,
    /// The last time that UPDATEs were sent.
    sent_at: Option<Instant>,
    /// Announcements went out that the next ones keep their distance to.
    announced: bool,
    /// Not before this time, where one is configured.
    announce_at: Option<Instant>,
    bfd: BfdGate,
    /// While `bfd` is waiting.
    bfd_until: Instant,
}

/// What is known of what waits to be sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Flush {
    /// Nothing may be sent.
    Idle,
    /// Something may, at this time.
    At(Instant),
    /// Something may, as soon as the connection has room.
    Open,
}

impl Established {
    pub(crate) fn new(
        link: Link,
        negotiated: Negotiated,
        timers: Timers,
        bfd: BfdGate,
        now: Instant,
    ) -> Self {
        let mut established = Self {
            link,
            negotiated,
            timers,
            since: now,
            send_hold_at: None,
            pace: Pace {
                flush: Flush::Idle,
                sent_at: None,
                announced: false,
                announce_at: None,
                bfd,
                bfd_until: now + LONGEST_BFD_WAIT,
            },
        };
        established.written(now);
        established
    }

    /// The peer said something that holds the session.
    pub(crate) fn heard(&mut self, now: Instant) {
        if let Some(hold_at) = &mut self.timers.hold_at {
            *hold_at = now + self.negotiated.hold_time;
        }
    }

    /// The connection took something.
    pub(crate) fn written(&mut self, now: Instant) {
        let hold_time = self.negotiated.hold_time;
        self.send_hold_at = (!hold_time.is_zero()).then(|| now + self.send_hold_time());
    }

    pub(crate) fn send_hold_time(&self) -> Duration {
        MIN_SEND_HOLD_TIME.max(2 * self.negotiated.hold_time)
    }

    pub(crate) fn is_send_hold_over(&self, now: Instant) -> bool {
        self.send_hold_at.is_some_and(|at| at <= now)
    }

    pub(crate) fn deadline(&self) -> Option<Instant> {
        let timers = self.timers.deadline().into_iter().chain(self.send_hold_at);
        timers.chain(self.pace.deadline()).min()
    }
}

impl Pace {
    pub(crate) fn bfd(&self) -> BfdGate {
        self.bfd
    }

    pub(crate) fn is_open(&self) -> bool {
        self.flush == Flush::Open
    }

    pub(crate) fn allowed(&self) -> Allowed {
        match self.bfd {
            BfdGate::Waiting => Allowed::Withdrawals,
            BfdGate::Open | BfdGate::Overdue if self.announce_at.is_some() => Allowed::Withdrawals,
            BfdGate::Open | BfdGate::Overdue => Allowed::All,
        }
    }

    /// BFD is Up, or the rule that asked for it is gone.
    pub(crate) fn lift_bfd(&mut self, now: Instant, rib: &RibOut) {
        self.bfd = BfdGate::Open;
        self.advance(now, rib);
    }

    /// There is no interval between announcements any more.
    pub(crate) fn lift_interval(&mut self, now: Instant, rib: &RibOut) {
        self.announced = false;
        self.announce_at = None;
        self.advance(now, rib);
    }

    /// Time went by, or there is something new to send.
    pub(crate) fn advance(&mut self, now: Instant, rib: &RibOut) {
        if self.announce_at.is_some_and(|at| at <= now) {
            self.announce_at = None;
        }
        if self.bfd == BfdGate::Waiting && self.bfd_until <= now {
            self.bfd = BfdGate::Overdue;
        }
        let has_work = rib.has_work(self.allowed());
        self.flush = match self.flush {
            _ if !has_work => Flush::Idle,
            Flush::Idle => match self.sent_at.map(|at| at + COALESCING_WINDOW) {
                Some(at) if at > now => Flush::At(at),
                Some(_) | None => Flush::Open,
            },
            Flush::At(at) if at > now => Flush::At(at),
            Flush::At(_) | Flush::Open => Flush::Open,
        };
    }

    /// UPDATEs were handed out; the next announcements keep their distance to those among them.
    pub(crate) fn sent(
        &mut self,
        updates: &Updates,
        interval: Option<Duration>,
        now: Instant,
        rib: &RibOut,
    ) {
        if !updates.bytes.is_empty() {
            self.sent_at = Some(now);
        }
        self.announced |= updates.announces;
        if self.announced && !rib.has_announcements() {
            self.announced = false;
            self.announce_at = interval.map(|interval| now + interval);
        }
        self.advance(now, rib);
    }

    fn deadline(&self) -> Option<Instant> {
        let flush = match self.flush {
            Flush::Idle | Flush::Open => None,
            Flush::At(at) => Some(at),
        };
        let bfd = (self.bfd == BfdGate::Waiting).then_some(self.bfd_until);
        flush.into_iter().chain(self.announce_at).chain(bfd).min()
    }
}
