use std::net::Ipv4Addr;

use super::*;

const VIP: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 0, 0, 9));
const ETH0: InterfaceIndex = InterfaceIndex(2);

fn interface(up: bool) -> Interface {
    Interface {
        index: ETH0,
        name: "eth0".into(),
        mac: [2, 0, 0, 0, 1, 1],
        up,
        networks: vec!["10.0.0.1/24".parse().unwrap()],
        link_local: None,
        gateways: Vec::new(),
        arp: true,
    }
}

fn wanted(interfaces: InterfaceMatch) -> Wanted {
    let nodes = ["n1", "n2"].map(NodeName::from).into();
    let candidates = Candidates { nodes, ..Candidates::default() };
    Wanted {
        addresses: [(VIP, WantedAddress { candidates, interfaces })].into(),
        peers: [("n2".into(), [IpAddr::from([10, 0, 0, 2])].into())].into(),
    }
}

/// A wire without a peer in earshot, and its actions until `time` has passed.
struct Lonely {
    wire: Wire,
    now: Instant,
}

impl Lonely {
    fn new() -> Self {
        let now = Instant::now();
        Self { wire: Wire::new("n1".into(), 1, now), now }
    }

    /// One that has taken the address by now.
    fn owner() -> Self {
        let mut lonely = Self::new();
        lonely.handle(Event::Interfaces(vec![interface(true)]));
        lonely.handle(Event::Wanted(wanted(InterfaceMatch::All)));
        lonely.pass(Duration::from_secs(4));
        assert!(lonely.owns());
        lonely
    }

    fn handle(&mut self, event: Event<'_>) -> Vec<Action> {
        self.wire.handle(event, self.now)
    }

    fn pass(&mut self, time: Duration) -> Vec<Action> {
        let end = self.now + time;
        let mut actions = Vec::new();
        while let Some(due) = self.wire.poll_timeout().filter(|due| *due <= end) {
            self.now = self.now.max(due);
            actions.extend(self.wire.handle_timeout(self.now));
        }
        self.now = end;
        actions
    }

    fn owns(&self) -> bool {
        self.wire.report.owned.contains(&VIP)
    }
}

#[test]
fn a_frame_follows_the_report_it_rests_on() {
    let mut lonely = Lonely::new();
    lonely.handle(Event::Interfaces(vec![interface(true)]));
    lonely.handle(Event::Wanted(wanted(InterfaceMatch::All)));
    let actions = lonely.pass(Duration::from_secs(4));
    assert!(lonely.owns());
    let report =
        actions.iter().position(|a| matches!(a, Action::Report(r) if r.owned.contains(&VIP)));
    let frame = actions.iter().position(|a| matches!(a, Action::SendFrame { .. }));
    assert!(report.unwrap() < frame.unwrap());
    assert!(actions.iter().any(|a| matches!(a, Action::SendDatagram { to, address, .. }
        if &**to == "n2" && *address == IpAddr::from([10, 0, 0, 2]))));
}

#[test]
fn a_node_without_the_named_interface_takes_nothing() {
    let mut lonely = Lonely::new();
    lonely.handle(Event::Interfaces(vec![interface(true)]));
    lonely.handle(Event::Wanted(wanted(InterfaceMatch::Only(["eth1".into()].into()))));
    lonely.pass(Duration::from_secs(4));
    assert!(!lonely.owns());
    lonely.handle(Event::Wanted(wanted(InterfaceMatch::Only(["eth0".into()].into()))));
    lonely.pass(Duration::from_secs(1));
    assert!(lonely.owns());
}

#[test]
fn after_a_time_without_a_link_it_waits_before_it_takes() {
    let mut lonely = Lonely::owner();
    lonely.handle(Event::Interfaces(vec![interface(false)]));
    lonely.pass(Duration::from_secs(1));
    assert!(!lonely.owns());
    lonely.handle(Event::Interfaces(vec![interface(true)]));
    lonely.pass(RETURN_WAIT - Duration::from_millis(1));
    assert!(!lonely.owns(), "its peers may only seem to be dead");
    lonely.pass(Duration::from_secs(1));
    assert!(lonely.owns(), "they are");
}

#[test]
fn leaving_ends_with_nothing_owned() {
    let mut lonely = Lonely::owner();
    let mut actions = lonely.handle(Event::Leave);
    actions.extend(lonely.pass(Duration::from_secs(1)));
    assert!(actions.iter().any(|a| matches!(a, Action::Report(report) if report.left)));
    assert!(!lonely.owns());
}
