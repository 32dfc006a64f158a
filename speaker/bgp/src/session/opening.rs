//! The way up: what our OPEN says, and what follows from the peer's.
//!
//! Read RFC 4271 section 4.2, RFC 5492 sections 3 and 5 and RFC 4724 sections 3 and 4.1.

use std::time::Instant;

use super::Session;
use crate::{
    Action, Family, Local, MessageType, Negotiated, Notification, Start,
    attribute::{AsNumbers, two_octets},
    capability::{Capabilities, RestartCapability},
    established::Established,
    message::{self, Open, Reader},
    received::Sender,
    state::{Link, State, proposed_hold_time},
};

/// How much an OPEN offers. RFC 5492 section 3: a peer that declines may take a plainer one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Offer {
    All,
    Essential,
    Nothing,
}

impl Session {
    pub(super) fn open(&mut self, local: Local, now: Instant, out: &mut Vec<Action>) -> State {
        let open = Open {
            my_as: two_octets(self.config.local_asn),
            hold_time: proposed_hold_time(&self.config),
            identifier: self.config.router_id,
            capabilities: self.capabilities(),
        };
        self.send(MessageType::Open, open.encode(), out);
        State::OpenSent {
            link: Link { reader: Reader::default(), local },
            give_up_at: now + self.config.open_time,
        }
    }

    fn capabilities(&self) -> Capabilities {
        let essential = Capabilities {
            multiprotocol: Some(self.config.families.clone()),
            four_octet_as: Some(self.config.local_asn),
            ..Capabilities::default()
        };
        match self.offer {
            Offer::All => Capabilities {
                route_refresh: true,
                enhanced_route_refresh: true,
                extended_next_hop: self.config.extended_next_hop,
                graceful_restart: self.restart_capability(),
                ..essential
            },
            Offer::Essential => essential,
            Offer::Nothing => Capabilities::default(),
        }
    }

    /// R until the first session of this speaker is Established. F says that packets were forwarded
    /// while the session was away, which from then on they always are: kube-proxy does not care.
    fn restart_capability(&self) -> Option<RestartCapability> {
        let restart = self.config.graceful_restart?;
        let was_up = self.stats.established > 0;
        let forwarding = restart.start == Start::Forwarding;
        let families = self.config.families.iter();
        Some(RestartCapability {
            restarted: forwarding && !was_up,
            notification: restart.notification,
            restart_time: restart.restart_time,
            families: families.map(|family| (*family, forwarding || was_up)).collect(),
        })
    }

    pub(super) fn confirm(
        &mut self,
        mut link: Link,
        open: &Open,
        now: Instant,
        out: &mut Vec<Action>,
    ) -> State {
        let negotiated = match Negotiated::from_open(&self.config, &self.capabilities(), open) {
            Ok(negotiated) => negotiated,
            Err(error) => return self.violated(error.into(), now, out),
        };
        let as_numbers =
            if negotiated.four_octet_as { AsNumbers::FourOctets } else { AsNumbers::TwoOctets };
        link.reader.set_sender(Sender { kind: self.config.kind(), as_numbers });
        self.connect_failures = 0;
        self.send(MessageType::Keepalive, message::keepalive(), out);
        let mut timers = self.timers(&negotiated, now);
        // Without a hold time a peer could stay here for ever.
        timers.hold_at.get_or_insert(now + self.config.open_time);
        State::OpenConfirm { link, negotiated, timers }
    }

    pub(super) fn establish(&mut self, link: Link, negotiated: Negotiated, now: Instant) -> State {
        self.stats.established += 1;
        self.stats.received_prefixes = 0;
        self.stats.received_withdrawals = 0;
        self.rib.connected(&self.config, &negotiated, &link.local);
        let timers = self.timers(&negotiated, now);
        let gate = self.bfd_gate_at_start();
        let mut established = Box::new(Established::new(link, negotiated, timers, gate, now));
        established.pace.advance(now, &self.rib);
        State::Established(established)
    }

    /// RFC 5492 sections 3 and 5. IPv4 alone is left for a peer that knows no optional parameter.
    pub(super) fn plainer_offer(&self, notification: &Notification) -> Offer {
        let no_parameters = notification.declines_parameters();
        match self.offer {
            Offer::All if no_parameters || notification.declines_capabilities() => Offer::Essential,
            Offer::Essential
                if no_parameters && self.config.families.contains(&Family::Ipv4Unicast) =>
            {
                Offer::Nothing
            }
            offer => offer,
        }
    }
}
