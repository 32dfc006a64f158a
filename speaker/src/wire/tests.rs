use std::{net::Ipv4Addr, time::Duration};

use super::*;

const VIP: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 0, 0, 9));
const ETH0: InterfaceIndex = InterfaceIndex(2);
const STRANGER: [u8; 6] = [2, 0, 0, 0, 9, 9];

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

fn wanted(interfaces: &[&str]) -> Wanted {
    let mut candidates =
        Candidates { nodes: ["n1", "n2"].map(NodeName::from).into(), ..Candidates::default() };
    if !interfaces.is_empty() {
        let names = interfaces.iter().map(|name| (*name).to_owned()).collect();
        candidates.interfaces.insert("n1".into(), names);
    }
    Wanted {
        addresses: [(VIP, Some(Arc::new(candidates)))].into(),
        peers: Some([("n2".into(), [IpAddr::from([10, 0, 0, 2])].into())].into()),
        ..Wanted::default()
    }
}

/// An ARP reply of `STRANGER` that it has the address.
fn foreign_answer() -> Vec<u8> {
    let mut frame = vec![2, 0, 0, 0, 1, 1];
    frame.extend(STRANGER);
    frame.extend([8, 6, 0, 1, 8, 0, 6, 4, 0, 2]);
    frame.extend(STRANGER);
    frame.extend([10, 0, 0, 9]);
    frame.extend([2, 0, 0, 0, 1, 1, 0, 0, 0, 0]);
    frame
}

/// A wire without a peer in earshot.
struct Lonely {
    wire: Wire,
    now: Instant,
    states: BTreeMap<IpAddr, AddressState>,
}

impl Lonely {
    fn new(remembered: Option<Wanted>) -> Self {
        let now = Instant::now();
        let settings = ownership::Settings::new("n1".into(), 1);
        let (wire, actions) = Wire::new(settings, AnnouncerSettings::default(), remembered, now);
        let mut this = Self { wire, now, states: BTreeMap::new() };
        this.note(&actions);
        this
    }

    /// One that has taken the address by now.
    fn owner() -> Self {
        let mut lonely = Self::new(None);
        lonely.handle(Event::Interfaces(vec![interface(true)]));
        lonely.handle(Event::Wanted(wanted(&[])));
        lonely.pass(Duration::from_secs(4));
        assert!(lonely.answers());
        lonely
    }

    fn note(&mut self, actions: &[Action]) {
        for action in actions {
            if let Action::Addresses(states) = action {
                for (address, state) in states {
                    match state {
                        Some(state) => self.states.insert(*address, state.clone()),
                        None => self.states.remove(address),
                    };
                }
            }
        }
    }

    fn handle(&mut self, event: Event<'_>) -> Vec<Action> {
        let actions = self.wire.handle(event, self.now);
        self.note(&actions);
        actions
    }

    fn pass(&mut self, time: Duration) -> Vec<Action> {
        let end = self.now + time;
        let mut all = Vec::new();
        while let Some(due) = self.wire.poll_timeout().filter(|due| *due <= end) {
            self.now = self.now.max(due);
            let actions = self.wire.handle_timeout(self.now);
            self.note(&actions);
            all.extend(actions);
        }
        self.now = end;
        all
    }

    fn answers(&self) -> bool {
        self.states.get(&VIP).is_some_and(|state| state.stage.answers())
    }
}

#[test]
fn a_frame_follows_the_state_it_rests_on() {
    let mut lonely = Lonely::new(None);
    lonely.handle(Event::Interfaces(vec![interface(true)]));
    lonely.handle(Event::Wanted(wanted(&[])));
    let actions = lonely.pass(Duration::from_secs(4));
    assert!(lonely.answers());
    let state = actions.iter().position(|action| {
        matches!(action, Action::Addresses(states)
            if states.get(&VIP).is_some_and(|s| s.as_ref().is_some_and(|s| s.stage.answers())))
    });
    // A gratuitous request: its sender is the address. The questions before it name no sender.
    let told = |frame: &[u8]| frame[28..32] == [10, 0, 0, 9];
    let frame = actions
        .iter()
        .position(|action| matches!(action, Action::SendFrame { frame, .. } if told(frame)));
    assert!(state.unwrap() < frame.unwrap());
    assert!(actions.iter().any(|action| matches!(action, Action::SendDatagram { to, address, .. }
        if &**to == "n2" && *address == IpAddr::from([10, 0, 0, 2]))));
}

#[test]
fn an_address_that_a_stranger_has_is_not_announced() {
    let mut lonely = Lonely::new(None);
    lonely.handle(Event::Interfaces(vec![interface(true)]));
    lonely.handle(Event::Wanted(wanted(&[])));
    let end = lonely.now + Duration::from_secs(4);
    while lonely.now < end {
        lonely.pass(Duration::from_millis(5));
        lonely.handle(Event::Frame { interface: ETH0, frame: &foreign_answer() });
    }
    assert!(!lonely.answers());
    let stranger = ownership::Stranger { mac: STRANGER, interface: "eth0".into() };
    assert_eq!(lonely.states[&VIP].conflict, Some(stranger));
}

#[test]
fn a_node_without_the_named_interface_takes_nothing() {
    let mut lonely = Lonely::new(None);
    lonely.handle(Event::Interfaces(vec![interface(true)]));
    lonely.handle(Event::Wanted(wanted(&["eth1"])));
    lonely.pass(Duration::from_secs(4));
    assert!(!lonely.answers());
    lonely.handle(Event::Wanted(Wanted { extent: Extent::Changes, ..wanted(&["eth0"]) }));
    lonely.pass(Duration::from_secs(3));
    assert!(lonely.answers());
}

#[test]
fn after_a_time_without_a_link_it_waits_before_it_takes() {
    let mut lonely = Lonely::owner();
    lonely.handle(Event::Interfaces(vec![interface(false)]));
    assert!(!lonely.answers(), "at once");
    lonely.pass(Duration::from_secs(1));
    lonely.handle(Event::Interfaces(vec![interface(true)]));
    lonely.pass(Duration::from_millis(1_900));
    assert!(!lonely.answers(), "its peers may only seem to be dead");
    lonely.pass(Duration::from_secs(2));
    assert!(lonely.answers(), "they are");
}

#[test]
fn leaving_ends_with_nothing_owned() {
    let mut lonely = Lonely::owner();
    let mut actions = lonely.handle(Event::Leave);
    actions.extend(lonely.pass(Duration::from_secs(2)));
    assert!(actions.iter().any(|action| matches!(action, Action::Report(r) if r.left)));
    assert!(!lonely.answers());
}

#[test]
fn what_is_remembered_is_answered_for_without_a_planner() {
    let mut before = Lonely::owner();
    let memory = before.wire.memory().unwrap();
    assert_eq!(memory.wanted, wanted(&[]));
    assert_eq!(before.wire.memory(), None, "nothing has changed since");
    let mut after = Lonely::new(Some(memory.wanted));
    after.handle(Event::Interfaces(vec![interface(true)]));
    after.pass(Duration::from_secs(4));
    assert!(after.answers());
}

#[test]
fn two_changes_that_wait_are_one() {
    let candidates = |node: &str| {
        Some(Arc::new(Candidates { nodes: [node.into()].into(), ..Candidates::default() }))
    };
    let (a, b, c) = (VIP, IpAddr::from([10, 0, 0, 10]), IpAddr::from([10, 0, 0, 11]));
    let changes = |version, addresses: &[(IpAddr, Option<Arc<Candidates>>)]| Wanted {
        version,
        extent: Extent::Changes,
        addresses: addresses.iter().cloned().collect(),
        ..Wanted::default()
    };
    let mut whole = Wanted {
        version: 3,
        addresses: [(a, candidates("n1")), (b, candidates("n1"))].into(),
        draining: Some(true),
        ..Wanted::default()
    };
    whole.merge(changes(4, &[(a, None), (c, candidates("n2"))]));
    let expected = Wanted {
        version: 4,
        addresses: [(b, candidates("n1")), (c, candidates("n2"))].into(),
        draining: Some(true),
        ..Wanted::default()
    };
    assert_eq!(whole, expected, "of a whole, what nobody wants is not named");
    let mut change = changes(5, &[(a, candidates("n1"))]);
    change.merge(changes(6, &[(a, None)]));
    assert_eq!(change, changes(6, &[(a, None)]), "of a change, it is");
    change.merge(expected.clone());
    assert_eq!(change, expected);
}
