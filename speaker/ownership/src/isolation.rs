//! Whether this node is cut off from the segment, which looks as if all others had died.
//!
//! It takes evidence: many peers lost at once, and a gateway silent that answered before. With two
//! nodes and no gateway a dead peer and an own cut look alike, and then availability wins.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::{Duration, Instant};

use crate::peer::News;
use crate::{Action, Asking, Ownership};

/// How often gateways are asked while all is well.
const LEISURE: Duration = Duration::from_secs(30);

/// How often they are asked while something is amiss.
const HASTE: Duration = Duration::from_millis(200);

/// After this time a node that is cut off stops answering, and one that has peers left goes on
/// with them.
const FENCE: Duration = Duration::from_secs(2);

#[derive(Debug, Default)]
pub(crate) struct Isolation {
    gateways: BTreeMap<IpAddr, Gateway>,
    /// Since when this node is cut off.
    since: Option<Instant>,
    fence: Fence,
    asked_at: Option<Instant>,
    wake: Option<Instant>,
    /// The last known answer or peer since the cut.
    sign: bool,
}

#[derive(Debug, Default)]
struct Gateway {
    /// It answered once, so that its silence tells something.
    known: bool,
    asked: bool,
    silent: bool,
}

/// Whether what is owned is answered for.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum Fence {
    #[default]
    Down,
    Up,
    /// Somebody was heard again; what is still this node's is known then.
    DownAt(Instant),
}

impl Isolation {
    pub(crate) fn set_gateways(&mut self, gateways: BTreeSet<IpAddr>) {
        self.gateways.retain(|address, _| gateways.contains(address));
        let before = self.gateways.len();
        for address in gateways {
            self.gateways.entry(address).or_default();
        }
        if self.gateways.len() > before {
            self.asked_at = None;
        }
    }

    pub(crate) fn is_isolated(&self) -> bool {
        self.since.is_some()
    }

    pub(crate) fn is_fenced(&self) -> bool {
        self.fence != Fence::Down
    }

    pub(crate) fn next(&self) -> Option<Instant> {
        self.wake
    }

    /// Whether the address is a gateway's, whose answer is noted.
    pub(crate) fn hear_answer(&mut self, address: IpAddr) -> bool {
        let Some(gateway) = self.gateways.get_mut(&address) else { return false };
        *gateway = Gateway { known: true, asked: false, silent: false };
        self.sign = true;
        true
    }

    /// Whether the address is a gateway's, whose silence is noted.
    pub(crate) fn hear_silence(&mut self, address: IpAddr) -> bool {
        let Some(gateway) = self.gateways.get_mut(&address) else { return false };
        gateway.asked = false;
        gateway.silent = true;
        true
    }

    /// Takes in that a peer was heard: one that was lost shows that the cut has ended, and any
    /// does when all were lost.
    pub(crate) fn hear_peer(&mut self, news: News) {
        match news {
            News::Born | News::Returned | News::Revived => self.sign = true,
            News::Again | News::Lives => self.sign |= self.is_fenced(),
            News::Overtaken => {}
        }
    }

    /// All gateways that ever answered are silent, and there is one.
    fn has_evidence(&self) -> bool {
        let mut known = self.gateways.values().filter(|gateway| gateway.known).peekable();
        known.peek().is_some() && known.all(|gateway| gateway.silent)
    }
}

impl Ownership {
    pub(crate) fn advance_isolation(&mut self, now: Instant) {
        self.end_isolation(now);
        self.begin_isolation(now);
        self.isolation.wake = self.next_doubt(now);
        self.ask_gateways(now);
    }

    fn begin_isolation(&mut self, now: Instant) {
        if self.isolation.is_isolated() || !self.isolation.has_evidence() {
            return;
        }
        let profile = self.settings.profile;
        let window = profile.interval * profile.misses * 2;
        let (lost, living) =
            now.checked_sub(window).map_or((0, 0), |then| self.peers.lost_since(then));
        if lost > 0 && lost >= living {
            self.isolation.since = Some(now);
            self.isolation.sign = false;
            self.cancel_probes();
        }
    }

    fn end_isolation(&mut self, now: Instant) {
        let interval = self.settings.profile.interval;
        let sign = std::mem::take(&mut self.isolation.sign);
        match self.isolation.fence {
            Fence::Up if sign => self.isolation.fence = Fence::DownAt(now + interval * 2),
            Fence::DownAt(at) if at <= now => {
                self.isolation.fence = Fence::Down;
                self.touch_mine();
            }
            Fence::Down | Fence::Up | Fence::DownAt(_) => {}
        }
        let Some(since) = self.isolation.since else { return };
        if sign {
            self.isolation.since = None;
            self.estate.replan();
        } else if since + FENCE <= now && self.isolation.fence == Fence::Down {
            self.decide_fence();
        }
    }

    /// Those that are left together go on; one that is left alone stops.
    fn decide_fence(&mut self) {
        if self.peers.living().next().is_some() {
            self.isolation.since = None;
            self.estate.replan();
        } else {
            self.isolation.fence = Fence::Up;
            self.touch_mine();
        }
    }

    /// When to look again.
    fn next_doubt(&self, now: Instant) -> Option<Instant> {
        let fence = match self.isolation.fence {
            Fence::DownAt(at) => Some(at),
            Fence::Down => self.isolation.since.map(|since| since + FENCE),
            Fence::Up => None,
        };
        if self.isolation.gateways.is_empty() || self.peers.is_empty() || self.is_muted() {
            return fence;
        }
        let pace = if self.is_amiss(now) { HASTE } else { LEISURE };
        let ask = self.isolation.asked_at.map_or(now, |at| at + pace);
        [fence, Some(ask), self.peers.next_late(now)].into_iter().flatten().min()
    }

    fn is_amiss(&self, now: Instant) -> bool {
        self.isolation.is_isolated() || self.isolation.is_fenced() || self.peers.is_anyone_late(now)
    }

    fn ask_gateways(&mut self, now: Instant) {
        let pace = if self.is_amiss(now) { HASTE } else { LEISURE };
        let due = self.isolation.asked_at.is_none_or(|at| at + pace <= now);
        if !due || self.peers.is_empty() || self.is_muted() {
            return;
        }
        for (address, gateway) in &mut self.isolation.gateways {
            if !gateway.asked {
                gateway.asked = true;
                self.outbox.asks.push(Action::Ask { address: *address, how: Asking::Once });
            }
        }
        self.isolation.asked_at = Some(now);
        self.isolation.wake = self.next_doubt(now);
    }
}
