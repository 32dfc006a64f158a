//! The API server as far as owners are concerned: one history of changes, which every node sees up
//! to some point.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::Arc,
};

use ownership::{Candidates, Extent, NodeName, View};

/// One change of what is wanted; its resource version is its place in the history.
#[derive(Debug, Clone)]
pub enum Change {
    /// Who may own an address from now on.
    Address(IpAddr, Option<Arc<Candidates>>),
    /// Whether a node is drained, which only it is told.
    Draining(usize, bool),
}

/// What a node makes of what it reads: views of one version may contradict each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lie {
    /// It alone may own anything.
    OnlyMe,
    /// It may own nothing.
    NeverMe,
}

/// The history.
#[derive(Debug, Default)]
pub struct Api {
    log: Vec<Change>,
}

impl Api {
    pub fn put(&mut self, change: Change) {
        self.log.push(change);
    }

    /// How many changes there were.
    pub fn len(&self) -> usize {
        self.log.len()
    }

    pub fn is_empty(&self) -> bool {
        self.log.is_empty()
    }

    /// What is true now.
    pub fn addresses(&self) -> BTreeMap<IpAddr, Arc<Candidates>> {
        self.addresses_at(self.log.len())
    }

    /// What was true after so many changes.
    pub fn addresses_at(&self, upto: usize) -> BTreeMap<IpAddr, Arc<Candidates>> {
        let mut addresses = BTreeMap::new();
        for change in &self.log[..upto] {
            if let Change::Address(address, candidates) = change {
                match candidates {
                    Some(candidates) => addresses.insert(*address, Arc::clone(candidates)),
                    None => addresses.remove(address),
                };
            }
        }
        addresses
    }

    /// Every address that was ever spoken of.
    pub fn ever(&self) -> BTreeSet<IpAddr> {
        let addresses = self.log.iter().filter_map(|change| match change {
            Change::Address(address, _) => Some(*address),
            Change::Draining(..) => None,
        });
        addresses.collect()
    }

    pub fn draining(&self, node: usize) -> bool {
        self.draining_at(node, self.log.len())
    }

    fn draining_at(&self, node: usize, upto: usize) -> bool {
        let last = self.log[..upto].iter().rev().find_map(|change| match change {
            Change::Draining(of, draining) if *of == node => Some(*draining),
            Change::Draining(..) | Change::Address(..) => None,
        });
        last.unwrap_or(false)
    }

    /// What a speaker is told first.
    pub fn whole(&self, node: usize, peers: BTreeSet<NodeName>, upto: usize) -> View {
        let addresses = self.addresses_at(upto);
        View {
            version: version(upto),
            extent: Extent::Whole,
            addresses: addresses.into_iter().map(|(a, candidates)| (a, Some(candidates))).collect(),
            peers: Some(peers),
            draining: Some(self.draining_at(node, upto)),
        }
    }

    /// What it is told then.
    pub fn changes(&self, node: usize, after: usize, upto: usize) -> View {
        let mut view = View { version: version(upto), extent: Extent::Changes, ..View::default() };
        for change in &self.log[after..upto] {
            match change {
                Change::Address(address, candidates) => {
                    view.addresses.insert(*address, candidates.clone());
                }
                Change::Draining(of, draining) if *of == node => view.draining = Some(*draining),
                Change::Draining(..) => {}
            }
        }
        view
    }
}

impl Lie {
    /// Bends a view.
    pub fn bend(self, me: &NodeName, view: &mut View) {
        for candidates in view.addresses.values_mut().flatten() {
            let mut bent = Candidates::clone(candidates);
            match self {
                Self::OnlyMe => bent.nodes = BTreeSet::from([Arc::clone(me)]),
                Self::NeverMe => {
                    bent.nodes.remove(me);
                }
            }
            *candidates = Arc::new(bent);
        }
    }
}

fn version(upto: usize) -> u64 {
    1_000 + u64::try_from(upto).expect("a history fits")
}
