//! A router that sends anything, in pieces of any length, to a session that is new or Established,
//! while its routes change, BFD comes and goes and the connection takes more or less. Whatever comes, what the session sends is framed as RFC 4271 section 4.1 says, and nothing is
//! sent where there is no connection.
#![no_main]

use std::{
    collections::BTreeSet,
    net::{Ipv4Addr, Ipv6Addr},
    sync::Arc,
    time::{Duration, Instant},
};

use bgp::{
    Action, Attributes, BfdRule, BfdState, Changes, Event, GracefulRestart, Local, PeerAsn,
    Session, SessionConfig, Start, StateKind,
};
use libfuzzer_sys::fuzz_target;

const V4: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 2);
const V6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 2);
/// RFC 4271 section 4: the longest message.
const LONGEST: usize = 4096;

fuzz_target!(|data: &[u8]| {
    let Some((first, mut data)) = data.split_first() else { return };
    let mut peer = Peer::new();
    if first & 1 == 1 {
        peer.receive(&open());
        peer.receive(&message(4, &[]));
        assert_eq!(peer.session.state(), StateKind::Established);
    }
    // An octet is the length of the piece after it; 0 lets time pass, 255 is something of ours.
    while let [length, rest @ ..] = data {
        let (piece, rest) = rest.split_at(usize::from(*length).min(rest.len()));
        match length {
            0 => peer.wait(),
            255 => peer.meddle(piece.first().copied().unwrap_or_default()),
            _ => peer.receive(piece),
        }
        data = rest;
    }
});

struct Peer {
    session: Session,
    connected: bool,
    now: Instant,
}

impl Peer {
    fn new() -> Self {
        let restart = GracefulRestart {
            restart_time: Duration::from_secs(15),
            notification: true,
            start: Start::Forwarding,
        };
        let config = SessionConfig {
            extended_next_hop: true,
            graceful_restart: Some(restart),
            bfd: Some(BfdRule { strict: true }),
            ..SessionConfig::new(64512, PeerAsn::Number(65001), V4)
        };
        let mut peer =
            Self { session: Session::new(config, 7), connected: false, now: Instant::now() };
        peer.handle(Event::Routes(routes(true)));
        peer.handle(Event::Start);
        peer
    }

    fn receive(&mut self, piece: &[u8]) {
        // What arrives on a closed connection is the shell's to drop.
        if self.connected {
            self.handle(Event::Received(piece));
        } else {
            self.wait();
        }
    }

    fn meddle(&mut self, what: u8) {
        match what % 8 {
            0 => self.handle(Event::Routes(routes(true))),
            1 => self.handle(Event::Routes(routes(false))),
            2 => self.handle(Event::Complete),
            3 => self.handle(Event::Bfd(BfdState::Up)),
            4 => self.handle(Event::Bfd(BfdState::Down)),
            5 if self.connected => self.handle(Event::Written),
            6 => self.transmit(usize::from(what)),
            _ => self.transmit(LONGEST),
        }
    }

    fn transmit(&mut self, room: usize) {
        let due = self.session.has_updates();
        let bytes = self.session.transmit(self.now, room);
        assert!(bytes.len() <= room && (self.connected || bytes.is_empty()));
        assert!(!due || room < LONGEST || !bytes.is_empty());
        check_framing(&bytes);
    }

    fn wait(&mut self) {
        let due = self.session.poll_timeout().unwrap_or(self.now + Duration::from_secs(1));
        self.now = self.now.max(due);
        let actions = self.session.handle_timeout(self.now);
        self.perform(actions);
    }

    fn handle(&mut self, event: Event<'_>) {
        let actions = self.session.handle(event, self.now);
        self.perform(actions);
    }

    fn perform(&mut self, actions: Vec<Action>) {
        let mut connecting = false;
        for action in actions {
            match action {
                Action::Connect => connecting = true,
                Action::Send(bytes) => {
                    assert!(self.connected, "sent without a connection");
                    check_framing(&bytes);
                }
                Action::Close => self.connected = false,
                Action::Reject(_) => panic!("nobody dials it"),
                Action::StateChanged(_) => {}
            }
        }
        if connecting {
            self.connected = true;
            self.handle(Event::Connected(Local { v4: Some(V4), v6: Some(V6), link_local: None }));
        }
    }
}

fn check_framing(mut bytes: &[u8]) {
    while !bytes.is_empty() {
        assert_eq!(bytes[..16], [0xff; 16], "marker");
        let length = usize::from(u16::from_be_bytes([bytes[16], bytes[17]]));
        assert!((19..=LONGEST).contains(&length), "length {length}");
        bytes = &bytes[length..];
    }
}

fn routes(announced: bool) -> Changes {
    let attributes = Arc::new(Attributes {
        med: Some(10),
        communities: BTreeSet::from([0xfc00_0064]),
        large_communities: BTreeSet::from([(64512, 1, 2)]),
        ..Attributes::default()
    });
    let prefixes = ["203.0.113.1/32", "203.0.113.2/32", "2001:db8:113::1/128"];
    let change = || announced.then(|| Arc::clone(&attributes));
    prefixes.map(|prefix| (prefix.parse().expect("a prefix"), change())).into()
}

/// An OPEN with both families and four-octet AS numbers.
fn open() -> Vec<u8> {
    let capabilities = [1, 4, 0, 1, 0, 1, 1, 4, 0, 2, 0, 1, 2, 0, 65, 4, 0, 0, 0xfd, 0xe9];
    let fixed = [4, 0xfd, 0xe9, 0, 90, 192, 0, 2, 1, 22, 2, 20];
    message(1, &[&fixed[..], &capabilities].concat())
}

fn message(kind: u8, body: &[u8]) -> Vec<u8> {
    let length = u16::try_from(19 + body.len()).expect("short");
    [&[0xff; 16][..], &length.to_be_bytes(), &[kind], body].concat()
}
