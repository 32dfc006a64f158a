//! The rules that hold after every step, what is counted, and what holds at rest.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    time::{Duration, Instant},
};

use ownership::Stage;

use super::{
    broken::kind,
    cluster::{Cluster, ETH0, Node, Speaker, name},
    segment::Station,
};

/// What was seen of an address.
#[derive(Debug, Clone, Copy)]
struct Service {
    answering: usize,
    since: Instant,
    owner: Option<usize>,
    moves: u32,
    /// The longest time without an answer, once there was one.
    gap: Duration,
    /// The longest time with two or more that answer.
    several: Duration,
    served: bool,
}

/// The checker, which sees every step.
#[derive(Debug)]
pub struct Checker {
    services: BTreeMap<IpAddr, Service>,
    /// Every time that a node began to answer.
    pub taken: Vec<(Instant, IpAddr, usize)>,
    /// Every time that a node took another for dead.
    pub verdicts: Vec<(Instant, usize, usize)>,
    /// Datagrams that each node has sent.
    pub datagrams: Vec<u64>,
    /// Datagrams by their kind.
    pub kinds: BTreeMap<u8, u64>,
    /// Their octets.
    pub octets: u64,
    start: Instant,
    broken: Option<String>,
}

impl Checker {
    pub fn new(start: Instant, nodes: usize) -> Self {
        Self {
            services: BTreeMap::new(),
            taken: Vec::new(),
            verdicts: Vec::new(),
            datagrams: vec![0; nodes],
            kinds: BTreeMap::new(),
            octets: 0,
            start,
            broken: None,
        }
    }

    /// Measures anew from now on.
    pub fn reset(&mut self, now: Instant) {
        for service in self.services.values_mut() {
            *service = Service {
                since: now,
                moves: 0,
                gap: Duration::ZERO,
                several: Duration::ZERO,
                ..*service
            };
        }
        self.taken.clear();
        self.verdicts.clear();
        self.datagrams.fill(0);
        self.kinds.clear();
        self.octets = 0;
        self.start = now;
    }

    /// # Errors
    /// The first rule that was broken.
    pub fn verdict(&mut self) -> Result<(), String> {
        self.broken.take().map_or(Ok(()), Err)
    }

    pub fn broken(&mut self, how: String) {
        self.broken.get_or_insert(how);
    }

    /// How often an address went to another node.
    pub fn moves(&self) -> u32 {
        self.services.values().map(|service| service.moves).sum()
    }

    /// The longest time that an address, once answered for, was not.
    pub fn gap(&self, now: Instant) -> Duration {
        let gaps = self.services.values().map(|service| {
            let open = service.served && service.answering == 0;
            service.gap.max(if open { now - service.since } else { Duration::ZERO })
        });
        gaps.max().unwrap_or_default()
    }

    /// The longest time that an address was answered for by several.
    pub fn several(&self, now: Instant) -> Duration {
        let times = self.services.values().map(|service| {
            let open = service.answering > 1;
            service.several.max(if open { now - service.since } else { Duration::ZERO })
        });
        times.max().unwrap_or_default()
    }

    /// Datagrams that were sent since the last reset.
    pub fn datagrams(&self) -> u64 {
        self.datagrams.iter().sum()
    }

    /// The same, a node and second.
    pub fn rate(&self, now: Instant) -> f64 {
        let seconds = (now - self.start).as_secs_f64();
        let sent = u32::try_from(self.datagrams()).map_or(f64::INFINITY, f64::from);
        let nodes = u32::try_from(self.datagrams.len()).map_or(f64::INFINITY, f64::from);
        sent / nodes / seconds
    }

    pub(super) fn sent(&mut self, from: usize, payload: &[u8]) {
        self.datagrams[from] += 1;
        self.octets += u64::try_from(payload.len()).expect("a datagram's length fits");
        *self.kinds.entry(kind(payload)).or_default() += 1;
        if payload.len() > 1200 {
            self.broken(format!("{} sends {} octets", name(from), payload.len()));
        }
    }

    pub(super) fn taken(&mut self, now: Instant, address: IpAddr, node: usize) {
        self.taken.push((now, address, node));
        let service = self.service(address, now);
        if service.owner.is_some_and(|owner| owner != node) {
            service.moves += 1;
        }
        service.owner = Some(node);
    }

    /// So many answer for an address from now on.
    pub(super) fn answering(&mut self, address: IpAddr, answering: usize, now: Instant) {
        let service = self.service(address, now);
        let time = now - service.since;
        match service.answering {
            0 if service.served => service.gap = service.gap.max(time),
            0 | 1 => {}
            _ => service.several = service.several.max(time),
        }
        // From two to three is no new beginning.
        if service.answering.min(2) != answering.min(2) {
            service.since = now;
        }
        service.answering = answering;
        service.served |= answering > 0;
    }

    /// An address that nobody is to answer for any more leaves no gap.
    pub fn forget(&mut self, address: IpAddr) {
        if let Some(service) = self.services.get_mut(&address) {
            service.served = false;
        }
    }

    /// A node takes only what it may by what it knows. What it hands over it may have taken up
    /// again after a pause of its own.
    pub(super) fn may_own(&mut self, node: &Node, address: IpAddr) {
        let Some(speaker) = &node.speaker else { return };
        let hands_over =
            speaker.states.get(&address).is_some_and(|state| state.stage == Stage::HandingOver);
        let may = speaker.view.get(&address).is_some_and(|candidates| {
            let interfaces = candidates.interfaces.get(&node.name);
            candidates.nodes.contains(&node.name)
                && interfaces.is_none_or(|interfaces| interfaces.iter().any(|name| name == ETH0))
        });
        if !may && !hands_over {
            self.broken(format!("{} takes {address}, for which it is no candidate", node.name));
        }
    }

    /// What was nobody's before is not announced beside a foreign host that could be heard.
    pub(super) fn owned_beside_a_foreign_host(&mut self, node: &str, address: IpAddr) {
        let served = self.services.get(&address).is_some_and(|service| service.served);
        if !served {
            self.broken(format!("{node} announces {address}, which a foreign host has"));
        }
    }

    /// What a speaker says of an address is what it does.
    pub(super) fn consistent(&mut self, me: &str, speaker: &Speaker, address: IpAddr) {
        let stage = speaker.states.get(&address).map(|state| state.stage);
        let answers = speaker.answers.contains(&address);
        if stage.is_some_and(Stage::answers) != answers {
            self.broken(format!("{me} says {stage:?} of {address}, and answers: {answers}"));
        }
    }

    fn service(&mut self, address: IpAddr, now: Instant) -> &mut Service {
        self.services.entry(address).or_insert(Service {
            answering: 0,
            since: now,
            owner: None,
            moves: 0,
            gap: Duration::ZERO,
            several: Duration::ZERO,
            served: false,
        })
    }
}

/// What holds once nothing has gone wrong for a while: exactly one live candidate answers, every
/// client believes it, every speaker says so, and no epoch has fallen.
///
/// # Errors
/// What does not hold.
pub fn at_rest(cluster: &Cluster) -> Result<(), String> {
    let wanted = cluster.api.addresses();
    let live: BTreeSet<usize> = (0..cluster.nodes.len())
        .filter(|node| {
            let speaker = cluster.nodes[*node].speaker.as_ref();
            cluster.is_well(*node) && speaker.is_some_and(|speaker| !speaker.leaving)
        })
        .collect();
    let drained: BTreeSet<usize> =
        live.iter().copied().filter(|node| cluster.api.draining(*node)).collect();
    for (address, candidates) in &wanted {
        let may = |node: &usize| {
            let interfaces = candidates.interfaces.get(&cluster.nodes[*node].name);
            candidates.nodes.contains(&cluster.nodes[*node].name)
                && interfaces.is_none_or(|interfaces| interfaces.iter().any(|name| name == ETH0))
        };
        let all: BTreeSet<usize> = live.iter().copied().filter(may).collect();
        let staying: BTreeSet<usize> = all.difference(&drained).copied().collect();
        let foreign = cluster.segment.foreign.contains(address);
        match cluster.answering(*address)[..] {
            [] if staying.is_empty() || foreign => {}
            [] => return Err(format!("nobody answers for {address}; live: {}", names(&staying))),
            [owner] if staying.contains(&owner) || staying.is_empty() && all.contains(&owner) => {
                if !foreign {
                    believed(cluster, *address, owner)?;
                    agreed(cluster, *address, owner, &live)?;
                }
            }
            // None of the candidates lives: better the old owner than nobody.
            [_] if all.is_empty() && !candidates.nodes.is_empty() => {}
            [other] if !all.contains(&other) => {
                return Err(format!("{address} is answered by {}, no candidate", name(other)));
            }
            [other] => {
                return Err(format!("{address} is still with {}, which drains", name(other)));
            }
            ref many => {
                let many = many.iter().copied().collect();
                return Err(format!("{address} is answered by {}", names(&many)));
            }
        }
    }
    for address in cluster.api.ever() {
        if !wanted.contains_key(&address)
            && let Some(owner) = cluster.answering(address).first()
        {
            return Err(format!("{} still answers for {address}", name(*owner)));
        }
    }
    Ok(())
}

fn believed(cluster: &Cluster, address: IpAddr, owner: usize) -> Result<(), String> {
    let mac = Station::Node(owner).mac();
    for (host, table) in cluster.segment.tables.iter().enumerate() {
        let believes = table.get(&address);
        if believes != Some(&mac) {
            let owner = name(owner);
            return Err(format!(
                "{address} is {owner}'s, but host {host} believes {believes:02x?}"
            ));
        }
    }
    Ok(())
}

fn agreed(
    cluster: &Cluster,
    address: IpAddr,
    owner: usize,
    live: &BTreeSet<usize>,
) -> Result<(), String> {
    let speakers = live
        .iter()
        .filter_map(|node| cluster.nodes[*node].speaker.as_ref().map(|speaker| (*node, speaker)));
    let highest = speakers.clone().filter_map(|(_, speaker)| speaker.epochs.get(&address)).max();
    let owner = name(owner);
    for (node, speaker) in speakers {
        let Some(state) = speaker.states.get(&address) else { continue };
        if state.owner.as_ref() != Some(&owner) || Some(&state.epoch) != highest {
            return Err(format!(
                "{address} is {owner}'s, but {} says {:?} at {} (highest: {highest:?})",
                name(node),
                state.owner,
                state.epoch
            ));
        }
    }
    Ok(())
}

/// How many addresses each node answers for.
pub fn loads(cluster: &Cluster) -> Vec<usize> {
    (0..cluster.nodes.len()).map(|node| cluster.answers(node).len()).collect()
}

fn names(nodes: &BTreeSet<usize>) -> String {
    let names: Vec<String> = nodes.iter().map(|node| name(*node).to_string()).collect();
    format!("[{}]", names.join(", "))
}
