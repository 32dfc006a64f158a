//! A claim to an address, and which of two is stronger.

use std::cmp::Ordering;
use std::net::IpAddr;

use sha2::{Digest, Sha256};

use crate::NodeName;

/// The incarnation of a claim that nobody stands by: its owner gave the address up, and the claim
/// is but the floor for the next one.
const NOBODY: u64 = 0;

/// Who claims an address. Ordered by how strong a claim is only together with the address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Claim {
    /// At least 1; never falls.
    pub epoch: u64,
    /// The claimant.
    pub owner: NodeName,
    /// The life of the claimant's speaker in which it was claimed or taken up again; 0 if the
    /// claimant gave the address up without a successor.
    pub incarnation: u64,
}

impl Claim {
    /// What a claimant says that gives an address up: stronger than its claim, and never in force.
    pub(crate) fn released(&self) -> Self {
        Self { epoch: self.epoch.saturating_add(1), owner: self.owner.clone(), incarnation: NOBODY }
    }

    pub(crate) fn is_released(&self) -> bool {
        self.incarnation == NOBODY
    }

    /// Greater if stronger: the higher epoch, then one that somebody stands by, then the smaller
    /// rank, then the later life.
    pub(crate) fn compare(&self, other: &Self, address: IpAddr) -> Ordering {
        self.epoch
            .cmp(&other.epoch)
            .then_with(|| other.is_released().cmp(&self.is_released()))
            .then_with(|| {
                if self.owner == other.owner {
                    Ordering::Equal
                } else {
                    rank(&other.owner, address).cmp(&rank(&self.owner, address))
                }
            })
            .then_with(|| self.incarnation.cmp(&other.incarnation))
    }

    /// A number that stands for this claim to this address in the hash of a table.
    pub(crate) fn hash(&self, address: IpAddr) -> u64 {
        [self.epoch, self.incarnation, hash_of_name(&self.owner)]
            .into_iter()
            .fold(hash_of_address(address), mix)
    }
}

/// The place of a node for an address when neither preference nor load decides, smaller first: the
/// SHA-256 of node, "#" and address, by which MetalLB elects.
pub fn rank(node: &str, address: IpAddr) -> [u8; 32] {
    Ranks::of(address).rank(node)
}

/// The ranks of nodes for one address. To write the address takes as long as to hash it.
pub(crate) struct Ranks {
    suffix: String,
}

impl Ranks {
    pub(crate) fn of(address: IpAddr) -> Self {
        Self { suffix: format!("#{address}") }
    }

    pub(crate) fn rank(&self, node: &str) -> [u8; 32] {
        Sha256::new().chain_update(node).chain_update(&self.suffix).finalize().into()
    }
}

pub(crate) fn hash_of_name(name: &str) -> u64 {
    let words = name
        .as_bytes()
        .chunks(8)
        .map(|chunk| chunk.iter().fold(0, |word: u64, octet| word << 8 | u64::from(*octet)));
    words.fold(mix(0, name.len() as u64), mix)
}

pub(crate) fn hash_of_address(address: IpAddr) -> u64 {
    match address {
        IpAddr::V4(address) => mix(4, u64::from(address.to_bits())),
        IpAddr::V6(address) => {
            let [high, low] = halves(address.to_bits());
            mix(mix(6, high), low)
        }
    }
}

fn halves(bits: u128) -> [u64; 2] {
    let octets = bits.to_be_bytes();
    let half = |from: usize| (from..from + 8).fold(0, |word, at| word << 8 | u64::from(octets[at]));
    [half(0), half(8)]
}

/// Goes on with a hash (the finalizer of SplitMix64): every bit of the state and of the word
/// changes about half of the result. Nobody who could choose collisions can write here.
pub(crate) fn mix(state: u64, word: u64) -> u64 {
    let mut z = (state ^ word.rotate_left(32)).wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9 ^ word << 1);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn any_claim() -> impl Strategy<Value = Claim> {
        (1..4_u64, 0..3_u8, 0..3_u64).prop_map(|(epoch, owner, incarnation)| Claim {
            epoch,
            owner: format!("node-{owner}").into(),
            incarnation,
        })
    }

    fn address() -> IpAddr {
        "192.0.2.10".parse().unwrap()
    }

    #[test]
    fn the_rank_is_metallbs() {
        let digest = rank("node-1", address());
        // printf 'node-1#192.0.2.10' | sha256sum
        assert_eq!(digest[..4], [0x60, 0x24, 0x62, 0x0c]);
    }

    #[test]
    fn the_epoch_decides_then_whether_anybody_stands_by_it_then_the_rank_then_the_life() {
        let claim =
            |epoch, owner: &str, incarnation| Claim { epoch, owner: owner.into(), incarnation };
        let (first, second) =
            if rank("a", address()) < rank("b", address()) { ("a", "b") } else { ("b", "a") };
        let order = [
            claim(2, second, 1),
            claim(2, first, 1),
            claim(2, first, 2),
            claim(3, first, 0),
            claim(3, second, 1),
        ];
        for (weak, strong) in order.iter().zip(&order[1..]) {
            assert_eq!(weak.compare(strong, address()), Ordering::Less, "{weak:?} {strong:?}");
        }
        assert_eq!(order[2].released(), order[3]);
    }

    proptest! {
        #[test]
        fn the_order_is_total(a in any_claim(), b in any_claim(), c in any_claim()) {
            let compare = |a: &Claim, b: &Claim| a.compare(b, address());
            prop_assert_eq!(compare(&a, &b), compare(&b, &a).reverse());
            prop_assert_eq!(compare(&a, &b) == Ordering::Equal, a == b);
            if compare(&a, &b).is_le() && compare(&b, &c).is_le() {
                prop_assert!(compare(&a, &c).is_le());
            }
        }

        #[test]
        fn different_claims_have_different_hashes(a in any_claim(), b in any_claim()) {
            prop_assert_eq!(a.hash(address()) == b.hash(address()), a == b);
            prop_assert_ne!(a.hash(address()), a.hash("192.0.2.11".parse().unwrap()));
        }
    }
}
