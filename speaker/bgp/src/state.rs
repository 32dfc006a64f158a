//! The states of a session, each with what exists only in it.

use std::{
    collections::BTreeSet,
    net::Ipv4Addr,
    time::{Duration, Instant},
};

use crate::{
    Family, Local, OpenError, SessionConfig, StateKind,
    capability::Capabilities,
    established::Established,
    message::{Open, Reader},
};

/// RFC 4271 section 8.2.2.
#[derive(Debug)]
pub(crate) enum State {
    /// Stopped, where there is no time to try again.
    Idle {
        retry_at: Option<Instant>,
    },
    Connect {
        give_up_at: Instant,
    },
    Active,
    OpenSent {
        link: Link,
        give_up_at: Instant,
    },
    OpenConfirm {
        link: Link,
        negotiated: Negotiated,
        timers: Timers,
    },
    Established(Box<Established>),
}

/// A connection.
#[derive(Debug)]
pub(crate) struct Link {
    pub(crate) reader: Reader,
    pub(crate) local: Local,
}

/// `None`: switched off by a hold time of 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Timers {
    pub(crate) hold_at: Option<Instant>,
    pub(crate) keepalive_at: Option<Instant>,
}

impl State {
    pub(crate) fn kind(&self) -> StateKind {
        match self {
            Self::Idle { .. } => StateKind::Idle,
            Self::Connect { .. } => StateKind::Connect,
            Self::Active => StateKind::Active,
            Self::OpenSent { .. } => StateKind::OpenSent,
            Self::OpenConfirm { .. } => StateKind::OpenConfirm,
            Self::Established(_) => StateKind::Established,
        }
    }

    /// The bytes of the connection, where there is one.
    pub(crate) fn reader(&mut self) -> Option<&mut Reader> {
        match self {
            Self::Idle { .. } | Self::Connect { .. } | Self::Active => None,
            Self::OpenSent { link, .. } | Self::OpenConfirm { link, .. } => Some(&mut link.reader),
            Self::Established(established) => Some(&mut established.link.reader),
        }
    }

    pub(crate) fn deadline(&self) -> Option<Instant> {
        match self {
            Self::Idle { retry_at } => *retry_at,
            Self::Active => None,
            Self::Connect { give_up_at } | Self::OpenSent { give_up_at, .. } => Some(*give_up_at),
            Self::OpenConfirm { timers, .. } => timers.deadline(),
            Self::Established(established) => established.deadline(),
        }
    }
}

impl Timers {
    pub(crate) fn deadline(self) -> Option<Instant> {
        self.hold_at.into_iter().chain(self.keepalive_at).min()
    }
}

/// What both sides agreed on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Negotiated {
    /// The peer's AS number.
    pub peer_asn: u32,
    /// The peer's BGP identifier.
    pub peer_router_id: Ipv4Addr,
    /// The smaller of the two proposals; zero: neither hold timer nor keepalives.
    pub hold_time: Duration,
    /// Between two KEEPALIVEs, before jitter.
    pub keepalive_time: Duration,
    /// The families that both sides have.
    pub families: BTreeSet<Family>,
    /// Both sides write AS numbers in four octets.
    pub four_octet_as: bool,
    /// The peer may ask for a family again.
    pub route_refresh: bool,
    /// Both sides know the markers of RFC 7313.
    pub enhanced_route_refresh: bool,
    /// IPv4 routes may have IPv6 next hops (RFC 8950).
    pub extended_next_hop: bool,
    /// Both sides know graceful restart (RFC 4724): the peer keeps our routes while we are away.
    pub graceful_restart: Option<NegotiatedRestart>,
}

/// Graceful restart as agreed on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NegotiatedRestart {
    /// How long the peer keeps our routes.
    pub restart_time: Duration,
    /// The restart time of the peer, which nothing depends on: we keep no routes.
    pub peer_restart_time: Duration,
    /// The peer has restarted.
    pub peer_restarted: bool,
    /// Both sides set N: a NOTIFICATION or an expired hold timer ends no route (RFC 8538).
    pub notification: bool,
}

/// RFC 4271 section 4.4.
pub(crate) const MIN_KEEPALIVE_TIME: Duration = Duration::from_secs(1);

impl Negotiated {
    /// Judges the peer's OPEN, in the order of RFC 4271 section 6.2.
    pub(crate) fn from_open(
        config: &SessionConfig,
        ours: &Capabilities,
        open: &Open,
    ) -> Result<Self, OpenError> {
        let peer_asn = open.asn();
        if peer_asn == 0 || !config.peer_asn.accepts(peer_asn, config.local_asn) {
            return Err(OpenError::BadPeerAs(peer_asn));
        }
        // 0 switches off what finds a dead peer, so it takes two to want it.
        let zero_unwanted = open.hold_time == 0 && proposed_hold_time(config) != 0;
        if matches!(open.hold_time, 1 | 2) || zero_unwanted {
            return Err(OpenError::UnacceptableHoldTime(open.hold_time));
        }
        let ours_too = peer_asn == config.local_asn && open.identifier == config.router_id;
        if open.identifier.is_unspecified() || ours_too {
            return Err(OpenError::BadIdentifier(open.identifier));
        }
        let ipv4_alone = BTreeSet::from([Family::Ipv4Unicast]);
        let theirs = open.capabilities.multiprotocol.as_ref().unwrap_or(&ipv4_alone);
        let offered = ours.multiprotocol.as_ref().unwrap_or(&ipv4_alone);
        let families: BTreeSet<Family> = offered.intersection(theirs).copied().collect();
        if families.is_empty() {
            return Err(OpenError::missing_families(offered));
        }
        let hold_time = Duration::from_secs(proposed_hold_time(config).min(open.hold_time).into());
        let restart =
            ours.graceful_restart.as_ref().zip(open.capabilities.graceful_restart.as_ref());
        Ok(Self {
            peer_asn,
            peer_router_id: open.identifier,
            hold_time,
            keepalive_time: keepalive_time(config, hold_time),
            families,
            four_octet_as: ours.four_octet_as.is_some()
                && open.capabilities.four_octet_as.is_some(),
            route_refresh: ours.route_refresh && open.capabilities.route_refresh,
            enhanced_route_refresh: ours.enhanced_route_refresh
                && open.capabilities.enhanced_route_refresh,
            extended_next_hop: ours.extended_next_hop && open.capabilities.extended_next_hop,
            graceful_restart: restart.map(|(ours, theirs)| NegotiatedRestart {
                restart_time: ours.restart_time,
                peer_restart_time: theirs.restart_time,
                peer_restarted: theirs.restarted,
                notification: ours.notification && theirs.notification,
            }),
        })
    }

    /// What was agreed on, in the words of an operator.
    pub fn capabilities(&self) -> Vec<String> {
        let families = self.families.iter().map(Family::to_string);
        let others = [
            (self.four_octet_as, "four-octet AS numbers"),
            (self.route_refresh, "route refresh"),
            (self.enhanced_route_refresh, "enhanced route refresh"),
            (self.extended_next_hop, "extended next hop"),
            (self.graceful_restart.is_some(), "graceful restart"),
            (
                self.graceful_restart.is_some_and(|restart| restart.notification),
                "graceful restart with NOTIFICATIONs",
            ),
        ];
        let others = others.into_iter().filter(|(agreed, _)| *agreed);
        families.chain(others.map(|(_, name)| name.to_owned())).collect()
    }

    /// Whether only a Hard Reset ends our routes at the peer.
    pub(crate) fn needs_hard_reset(&self) -> bool {
        self.graceful_restart.is_some_and(|restart| restart.notification)
    }
}

/// Between two KEEPALIVEs, before jitter.
pub(crate) fn keepalive_time(config: &SessionConfig, hold_time: Duration) -> Duration {
    let third = hold_time / 3;
    config.keepalive_time.unwrap_or(third).min(third).max(MIN_KEEPALIVE_TIME)
}

/// The hold time of our OPEN in seconds: 0 or at least 3.
pub(crate) fn proposed_hold_time(config: &SessionConfig) -> u16 {
    match u16::try_from(config.hold_time.as_secs()).unwrap_or(u16::MAX) {
        0 => 0,
        seconds => seconds.max(3),
    }
}
