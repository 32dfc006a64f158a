//! The Ethernet segment: who reaches whom, who else is on it, and what hosts believe.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr},
    time::Duration,
};

use ownership::{Asking, Mac};

/// Everything with a MAC address: nodes first, then the others.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Station {
    Node(usize),
    /// A client with a neighbor table.
    Host(usize),
    Gateway,
    /// A machine that uses addresses that are not its own.
    Foreign,
}

/// The gateway's address.
pub const GATEWAY: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 0, 0, 1));

/// When the frames of an announcement are sent, after its begin.
pub const SERIES: [Duration; 7] = [
    Duration::from_millis(0),
    Duration::from_millis(10),
    Duration::from_millis(50),
    Duration::from_millis(200),
    Duration::from_secs(1),
    Duration::from_secs(2),
    Duration::from_secs(5),
];

/// What is on the segment besides the nodes, and what is wrong with it.
#[derive(Debug)]
pub struct Segment {
    /// What each client believes.
    pub tables: Vec<BTreeMap<IpAddr, Mac>>,
    /// Whether the gateway answers.
    pub gateway_answers: bool,
    /// Addresses that a foreign host answers for.
    pub foreign: BTreeSet<IpAddr>,
    /// Nodes whose interface is gone.
    pub links_down: BTreeSet<usize>,
    /// Nodes in the part that the hosts are not in, while the segment is split.
    split: BTreeSet<usize>,
    /// Whether the split goes through the data path too.
    split_frames: bool,
    /// Directed pairs between which no datagram passes.
    datagram_cuts: BTreeSet<(usize, usize)>,
    /// Directed pairs between which no frame passes.
    frame_cuts: BTreeSet<(usize, usize)>,
}

impl Segment {
    pub fn new(hosts: usize, gateway_answers: bool) -> Self {
        Self {
            tables: vec![BTreeMap::new(); hosts],
            gateway_answers,
            foreign: BTreeSet::new(),
            links_down: BTreeSet::new(),
            split: BTreeSet::new(),
            split_frames: false,
            datagram_cuts: BTreeSet::new(),
            frame_cuts: BTreeSet::new(),
        }
    }

    /// Cuts these nodes off from all others: their datagrams, or frames too.
    pub fn split(&mut self, nodes: BTreeSet<usize>, frames: bool) {
        self.split = nodes;
        self.split_frames = frames;
    }

    /// Cuts one direction between two nodes.
    pub fn cut(&mut self, from: usize, to: usize, frames: bool) {
        self.datagram_cuts.insert((from, to));
        if frames {
            self.frame_cuts.insert((from, to));
        }
    }

    /// Whole again, but for interfaces that are gone.
    pub fn heal(&mut self) {
        self.split.clear();
        self.datagram_cuts.clear();
        self.frame_cuts.clear();
    }

    /// Whether some nodes' frames do not reach the hosts.
    pub fn cuts_hosts(&self) -> bool {
        self.split_frames && !self.split.is_empty()
    }

    /// Whether no cut is on; interfaces may be gone.
    pub fn is_whole(&self) -> bool {
        self.split.is_empty() && self.datagram_cuts.is_empty()
    }

    pub fn datagram_passes(&self, from: usize, to: usize) -> bool {
        self.links_up(from, to)
            && self.split.contains(&from) == self.split.contains(&to)
            && !self.datagram_cuts.contains(&(from, to))
    }

    pub fn frame_passes(&self, from: Station, to: Station) -> bool {
        let far = |station| match station {
            Station::Node(node) => self.split.contains(&node),
            Station::Host(_) | Station::Gateway | Station::Foreign => false,
        };
        let down = |station| match station {
            Station::Node(node) => self.links_down.contains(&node),
            Station::Host(_) | Station::Gateway | Station::Foreign => false,
        };
        let cut = match (from, to) {
            (Station::Node(from), Station::Node(to)) => self.frame_cuts.contains(&(from, to)),
            _ => false,
        };
        !down(from) && !down(to) && !cut && (!self.split_frames || far(from) == far(to))
    }

    fn links_up(&self, from: usize, to: usize) -> bool {
        self.links_down.is_empty()
            || !self.links_down.contains(&from) && !self.links_down.contains(&to)
    }
}

impl Station {
    pub fn mac(self) -> Mac {
        let (kind, index) = match self {
            Self::Node(index) => (1, index),
            Self::Host(index) => (2, index),
            Self::Gateway => (3, 0),
            Self::Foreign => (4, 0),
        };
        let [high, low] = u16::try_from(index).expect("few stations").to_be_bytes();
        [2, 0, 0, kind, high, low]
    }
}

/// When an asker's questions are sent, and when it stops waiting.
pub fn questions(how: Asking) -> (&'static [u64], u64) {
    match how {
        Asking::Fast => (&[0, 8, 16], 25),
        Asking::Thorough => (&[500, 2_000, 3_500], 5_500),
        Asking::Once => (&[0], 100),
    }
}
