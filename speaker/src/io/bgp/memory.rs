//! What was announced to the peers that keep our routes while the speaker is away: a file of JSON lines
//! below `--run-dir`, read by the next life of the speaker (RFC 4724 section 4.1).
//!
//! It says that the node was not started anew, so that its forwarding state stands, and lets sessions
//! begin before the API server has been read. Keys are never written; a peer that needs one waits
//! for the API server.
//!
//! ```text
//! {"berth-bgp":1,"node":"n1","boot":"2f1b…"}
//! {"attributes":{"communities":[4259840100]}}
//! {"peer":{"name":"tor","my_asn":65001,…,"routes":[["192.0.2.7/32",0]]}}
//! {"end":{"lines":3}}
//! ```

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    io::{self, Write as _},
    net::{IpAddr, Ipv4Addr},
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use bgp::Attributes;
use config::{NodeName, Peer, PeerAddress, PeerAsn, PeerName};
use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use tracing::{info, warn};

use crate::{io::clock::Moment, planner::SessionSpec};

/// The format; a file of another is ignored.
const VERSION: u32 = 1;

/// Sessions and what each has announced.
pub(super) type Announced = BTreeMap<PeerName, (SessionSpec, Routes)>;
/// The routes of one session.
pub(super) type Routes = BTreeMap<IpNet, Arc<Attributes>>;

/// Whether a session is remembered: the peer keeps its routes, and no key is needed to ask for them.
pub(super) fn is_remembered(spec: &SessionSpec) -> bool {
    spec.peer.graceful_restart && spec.peer.password.is_none()
}

/// The content of a file.
pub(super) fn encode(node: &str, boot: &str, announced: &Announced) -> Vec<u8> {
    let mut lines = Vec::new();
    let header = Header { version: VERSION, node: node.to_owned(), boot: boot.to_owned() };
    lines.push(serde_json::to_string(&header));
    let mut known: BTreeMap<&Attributes, usize> = BTreeMap::new();
    for (_, routes) in announced.values() {
        for attributes in routes.values() {
            let next = known.len();
            known.entry(attributes).or_insert_with(|| {
                lines.push(serde_json::to_string(&Line::Attributes(attributes.as_ref().into())));
                next
            });
        }
    }
    for (spec, routes) in announced.values() {
        let routes =
            routes.iter().map(|(prefix, attributes)| (*prefix, known[attributes.as_ref()]));
        lines.push(serde_json::to_string(&Line::Peer(Box::new(PeerLine::new(
            spec,
            routes.collect(),
        )))));
    }
    lines.push(serde_json::to_string(&Line::End { lines: lines.len() }));
    let mut octets = Vec::new();
    for line in lines {
        // Maps with names as keys and numbers: nothing in it can fail.
        octets.extend(line.unwrap_or_default().into_bytes());
        octets.push(b'\n');
    }
    octets
}

/// What a file says on `node` since it was started as `boot`; `None` if the file is to be ignored.
pub(super) fn decode(octets: &[u8], node: &str, boot: &str) -> Option<Announced> {
    let text = std::str::from_utf8(octets).ok()?.strip_suffix('\n')?;
    let mut lines = text.split('\n');
    let header: Header = serde_json::from_str(lines.next()?).ok()?;
    let same_start = !boot.is_empty() && header.boot == boot;
    if header.version != VERSION || header.node != node || !same_start {
        return None;
    }
    let mut known = Vec::new();
    let mut announced = Announced::new();
    for (count, line) in (1..).zip(lines) {
        match serde_json::from_str(line).ok()? {
            Line::Attributes(attributes) => known.push(Arc::new(attributes.into())),
            Line::Peer(peer) => {
                let routes = peer.routes.iter();
                let routes = routes
                    .map(|(prefix, index)| Some((*prefix, Arc::clone(known.get(*index)?))))
                    .collect::<Option<Routes>>()?;
                let spec = SessionSpec::from(*peer);
                announced.insert(spec.peer.name.clone(), (spec, routes));
            }
            Line::End { lines: before } => {
                let last = octets.iter().filter(|octet| **octet == b'\n').count() == count + 1;
                return (before == count && last).then_some(announced);
            }
        }
    }
    None
}

/// The file of a node's speaker.
#[derive(Debug, Clone)]
pub(super) struct Store {
    path: PathBuf,
    node: NodeName,
}

impl Store {
    pub fn new(directory: &Path, node: NodeName) -> Self {
        Self { path: directory.join(format!("bgp-{node}.jsonl")), node }
    }

    /// What the file says; `None` if there is none of this start of the node.
    pub fn read(&self) -> Option<Announced> {
        let octets = fs::read(&self.path).ok()?;
        let announced = decode(&octets, &self.node, &Moment::now().boot);
        match &announced {
            Some(announced) => {
                let peers = announced.len();
                info!(file = %self.path.display(), peers, "going on with what was announced");
            }
            None => info!(file = %self.path.display(), "what was announced is not used"),
        }
        announced
    }

    /// Puts another file in the place of the one before; with nothing to remember it goes.
    pub fn write(&self, announced: &Announced) {
        let result = if announced.is_empty() {
            match fs::remove_file(&self.path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
                Ok(()) | Err(_) => Ok(()),
            }
        } else {
            self.replace(&encode(&self.node, &Moment::now().boot, announced))
        };
        if let Err(error) = result {
            warn!(file = %self.path.display(), %error, "what is announced cannot be remembered");
        }
    }

    fn replace(&self, octets: &[u8]) -> io::Result<()> {
        let new = self.path.with_extension("new");
        if let Some(directory) = self.path.parent() {
            fs::create_dir_all(directory)?;
        }
        let mut options = fs::OpenOptions::new();
        let mut file = options.write(true).create(true).truncate(true).mode(0o600).open(&new)?;
        file.write_all(octets)?;
        fs::rename(&new, &self.path)
    }
}

#[derive(Serialize, Deserialize)]
struct Header {
    #[serde(rename = "berth-bgp")]
    version: u32,
    node: String,
    boot: String,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Line {
    Attributes(AttributesLine),
    Peer(Box<PeerLine>),
    End { lines: usize },
}

#[derive(Serialize, Deserialize)]
struct AttributesLine {
    local_pref: Option<u32>,
    med: Option<u32>,
    as_path_prepend: u8,
    communities: BTreeSet<u32>,
    extended_communities: BTreeSet<u64>,
    large_communities: BTreeSet<(u32, u32, u32)>,
}

impl From<&Attributes> for AttributesLine {
    fn from(attributes: &Attributes) -> Self {
        let Attributes {
            local_pref,
            med,
            as_path_prepend,
            communities,
            extended_communities,
            large_communities,
        } = attributes.clone();
        Self {
            local_pref,
            med,
            as_path_prepend,
            communities,
            extended_communities,
            large_communities,
        }
    }
}

impl From<AttributesLine> for Attributes {
    fn from(line: AttributesLine) -> Self {
        let AttributesLine {
            local_pref,
            med,
            as_path_prepend,
            communities,
            extended_communities,
            large_communities,
        } = line;
        Self {
            local_pref,
            med,
            as_path_prepend,
            communities,
            extended_communities,
            large_communities,
        }
    }
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Asn {
    Number(u32),
    Internal,
    External,
}

#[derive(Serialize, Deserialize)]
struct PeerLine {
    name: String,
    router_id: Ipv4Addr,
    my_asn: u32,
    peer_asn: Asn,
    address: Option<IpAddr>,
    interface: Option<String>,
    port: u16,
    source_address: Option<IpAddr>,
    hold_time: Duration,
    keepalive_time: Duration,
    connect_time: Option<Duration>,
    ebgp_multi_hop: bool,
    vrf: Option<String>,
    local_asn: Option<u32>,
    dual_stack_address_family: bool,
    passive: bool,
    ttl_security_hops: Option<u8>,
    min_advertisement_interval: Duration,
    restart_time: Duration,
    routes: Vec<(IpNet, usize)>,
}

impl PeerLine {
    fn new(spec: &SessionSpec, routes: Vec<(IpNet, usize)>) -> Self {
        let peer = &spec.peer;
        let (address, interface) = match &peer.address {
            PeerAddress::Address(address) => (Some(*address), None),
            PeerAddress::Interface(name) => (None, Some(name.clone())),
        };
        Self {
            name: peer.name.to_string(),
            router_id: spec.router_id,
            my_asn: peer.my_asn,
            peer_asn: match peer.peer_asn {
                PeerAsn::Number(number) => Asn::Number(number),
                PeerAsn::Internal => Asn::Internal,
                PeerAsn::External => Asn::External,
            },
            address,
            interface,
            port: peer.port,
            source_address: peer.source_address,
            hold_time: peer.hold_time,
            keepalive_time: peer.keepalive_time,
            connect_time: peer.connect_time,
            ebgp_multi_hop: peer.ebgp_multi_hop,
            vrf: peer.vrf.clone(),
            local_asn: peer.local_asn,
            dual_stack_address_family: peer.dual_stack_address_family,
            passive: peer.passive,
            ttl_security_hops: peer.ttl_security_hops,
            min_advertisement_interval: peer.min_advertisement_interval,
            restart_time: peer.restart_time,
            routes,
        }
    }
}

impl From<PeerLine> for SessionSpec {
    fn from(line: PeerLine) -> Self {
        let address = match (line.address, line.interface) {
            (Some(address), _) => PeerAddress::Address(address),
            (None, interface) => PeerAddress::Interface(interface.unwrap_or_default()),
        };
        let peer = Peer {
            name: line.name.into(),
            my_asn: line.my_asn,
            peer_asn: match line.peer_asn {
                Asn::Number(number) => PeerAsn::Number(number),
                Asn::Internal => PeerAsn::Internal,
                Asn::External => PeerAsn::External,
            },
            address,
            port: line.port,
            source_address: line.source_address,
            hold_time: line.hold_time,
            keepalive_time: line.keepalive_time,
            connect_time: line.connect_time,
            router_id: Some(line.router_id),
            nodes: BTreeSet::new(),
            password: None,
            // BFD begins when the API server has been read.
            bfd_profile: None,
            ebgp_multi_hop: line.ebgp_multi_hop,
            graceful_restart: true,
            vrf: line.vrf,
            local_asn: line.local_asn,
            dual_stack_address_family: line.dual_stack_address_family,
            passive: line.passive,
            ttl_security_hops: line.ttl_security_hops,
            local_pref: None,
            med: None,
            as_path_prepend: 0,
            min_advertisement_interval: line.min_advertisement_interval,
            restart_time: line.restart_time,
            bfd_strict: true,
            tcp_ao: None,
        };
        Self { peer, router_id: line.router_id, bfd: None }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        fixture::{parse, resources},
        planner::sessions::{Change, change},
    };

    fn announced() -> Announced {
        let config = parse(resources(), &[]);
        let mut peer = config.peers["tor"].clone();
        peer.graceful_restart = true;
        let name = peer.name.clone();
        let spec = SessionSpec { peer, router_id: [10, 0, 0, 11].into(), bfd: None };
        let plain = Arc::new(Attributes::default());
        let marked =
            Attributes { communities: [100].into(), med: Some(7), ..Attributes::default() };
        let marked = Arc::new(marked);
        let routes =
            [("192.0.2.1/32", &plain), ("192.0.2.2/32", &marked), ("2001:db8::1/128", &marked)];
        let routes =
            routes.map(|(prefix, attributes)| (prefix.parse().unwrap(), Arc::clone(attributes)));
        [(name, (spec, routes.into()))].into()
    }

    #[test]
    fn what_is_written_is_read() {
        let before = announced();
        let octets = encode("n1", "boot", &before);
        let after = decode(&octets, "n1", "boot").unwrap();
        assert_eq!(after.len(), 1);
        let ((old, routes), (new, same)) = (&before["tor"], &after["tor"]);
        assert_eq!(routes, same);
        assert_eq!(change(old, new), Change::Nothing, "no session is reset by a restart");
    }

    #[test]
    fn a_file_that_is_not_ours_or_of_another_start_of_the_node_is_ignored() {
        let octets = encode("n1", "boot", &announced());
        assert!(decode(&octets, "n2", "boot").is_none());
        assert!(decode(&octets, "n1", "another").is_none());
        assert!(decode(&encode("n1", "", &announced()), "n1", "").is_none(), "no boot id");
        for length in 0..octets.len() {
            assert!(decode(&octets[..length], "n1", "boot").is_none(), "cut off at {length}");
        }
        let twice = [&octets[..], b"{\"end\":{\"lines\":4}}\n"].concat();
        assert!(decode(&twice, "n1", "boot").is_none());
    }

    #[test]
    fn no_key_is_ever_written() {
        let mut all = announced();
        let (spec, _) = all.get_mut("tor").unwrap();
        assert!(is_remembered(spec));
        spec.peer.password = Some(config::Password("hunter2".to_owned()));
        assert!(!is_remembered(spec));
        let text = String::from_utf8(encode("n1", "boot", &all)).unwrap();
        assert!(!text.contains("hunter2"));
    }
}
