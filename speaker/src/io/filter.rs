//! Which frames the kernel hands over: programs of classic BPF (linux/filter.h), made here and run
//! there. Pure.
//!
//! The open ones let all of ARP and of neighbor solicitation and advertisement through. The exact
//! ones let through what is about given addresses, so that a flood about others wakes nobody. Not
//! every set of addresses fits in one; then the open one stays. Offsets count from the Ethernet
//! header: a VLAN tag has been taken off before a packet socket sees the frame, and a load beyond
//! the end of a short frame drops it.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// One instruction: code, jump if true, jump if false, operand.
pub type Instruction = (u16, u8, u8, u32);

/// The most that the kernel takes (BPF_MAXINSNS).
pub const MAX_INSTRUCTIONS: usize = 4096;

/// All of ARP that is for this node.
pub const OPEN_ARP: [Instruction; 4] = [
    (LOAD_WORD, 0, 0, PACKET_TYPE),
    (IF_GREATER, 1, 0, LAST_FOR_US),
    (RETURN, 0, 0, ALL),
    (RETURN, 0, 0, NOTHING),
];

/// Neighbor solicitations and advertisements that no router forwarded (RFC 4861 section 7.1): next
/// header 58, hop limit 255, type 135 or 136.
pub const OPEN_NDP: [Instruction; 11] = [
    (LOAD_WORD, 0, 0, PACKET_TYPE),
    (IF_GREATER, 8, 0, LAST_FOR_US),
    (LOAD_BYTE, 0, 0, NEXT_HEADER),
    (IF_EQUAL, 0, 6, 58),
    (LOAD_BYTE, 0, 0, HOP_LIMIT),
    (IF_EQUAL, 0, 4, 255),
    (LOAD_BYTE, 0, 0, ICMP_TYPE),
    (IF_EQUAL, 1, 0, 135),
    (IF_EQUAL, 0, 1, 136),
    (RETURN, 0, 0, ALL),
    (RETURN, 0, 0, NOTHING),
];

const LOAD_WORD: u16 = 0x20;
const LOAD_BYTE: u16 = 0x30;
const JUMP: u16 = 0x05;
const IF_EQUAL: u16 = 0x15;
const IF_GREATER: u16 = 0x25;
const IF_AT_LEAST: u16 = 0x35;
const RETURN: u16 = 0x06;

/// Where the kernel's own word on the packet is read (SKF_AD_OFF + SKF_AD_PKTTYPE).
const PACKET_TYPE: u32 = 0xffff_f000 + 4;
/// PACKET_HOST, PACKET_BROADCAST and PACKET_MULTICAST come before PACKET_OTHERHOST, which is what a
/// frame for another station or of a VLAN without a device here has, and PACKET_OUTGOING.
const LAST_FOR_US: u32 = libc::PACKET_MULTICAST as u32;

const ARP_SENDER: u32 = 14 + 14;
const ARP_TARGET: u32 = 14 + 24;
const NEXT_HEADER: u32 = 14 + 6;
const HOP_LIMIT: u32 = 14 + 7;
const ICMP_TYPE: u32 = 14 + 40;
/// The same in a solicitation and in an advertisement.
const NDP_TARGET: u32 = 14 + 40 + 8;

/// As much of a frame as is handed over.
const ALL: u32 = 0xffff;
const NOTHING: u32 = 0;

/// As many addresses, or runs of consecutive ones, are compared one after the other at the end of
/// the binary search. More makes programs shorter and longer to run; jumps of 255 must span them.
const LEAF: usize = 16;

/// The programs for ARP and for neighbor discovery that are about `addresses` alone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Exact {
    /// `None`: they do not fit in one program.
    pub arp: Option<Vec<Instruction>>,
    /// Likewise.
    pub ndp: Option<Vec<Instruction>>,
}

impl Exact {
    pub fn about(addresses: &BTreeSet<IpAddr>) -> Self {
        let fits = |program: Vec<_>| (program.len() <= MAX_INSTRUCTIONS).then_some(program);
        let (mut four, mut six) = (Vec::new(), Vec::new());
        for address in addresses {
            match address {
                IpAddr::V4(address) => four.push(*address),
                IpAddr::V6(address) => six.push(*address),
            }
        }
        Self { arp: fits(exact_arp(&four)), ndp: fits(exact_ndp(&six)) }
    }
}

/// For sorted addresses: a frame passes if its target is one of them, or its sender is, which is
/// how another station betrays that it has one.
fn exact_arp(addresses: &[Ipv4Addr]) -> Vec<Instruction> {
    let runs = runs(addresses.iter().map(|address| address.to_bits()));
    let mut program = vec![
        (LOAD_WORD, 0, 0, PACKET_TYPE),
        (IF_GREATER, 0, 1, LAST_FOR_US),
        (RETURN, 0, 0, NOTHING),
    ];
    for field in [ARP_TARGET, ARP_SENDER] {
        program.push((LOAD_WORD, 0, 0, field));
        search(&runs, &mut program);
    }
    program.push((RETURN, 0, 0, NOTHING));
    program
}

/// For sorted addresses. Those of one prefix of 96 bits, which most share, are searched together.
fn exact_ndp(addresses: &[Ipv6Addr]) -> Vec<Instruction> {
    let [head @ .., _, _] = &OPEN_NDP;
    let mut program = head.to_vec();
    // In the places of the two that end the open program: on with what passes there.
    program.extend([(JUMP, 0, 0, 1), (RETURN, 0, 0, NOTHING)]);
    for group in addresses.chunk_by(|a, b| a.octets()[..12] == b.octets()[..12]) {
        let words = |address: &Ipv6Addr| {
            let [a, b, c, d] = std::array::from_fn(|word| word32(*address, word));
            (a, b, c, d)
        };
        let (first, second, third, _) = words(&group[0]);
        let mut last = vec![(LOAD_WORD, 0, 0, NDP_TARGET + 12)];
        search(&runs(group.iter().map(|address| words(address).3)), &mut last);
        program.extend([
            (LOAD_WORD, 0, 0, NDP_TARGET),
            (IF_EQUAL, 0, 4, first),
            (LOAD_WORD, 0, 0, NDP_TARGET + 4),
            (IF_EQUAL, 0, 2, second),
            (LOAD_WORD, 0, 0, NDP_TARGET + 8),
            (IF_EQUAL, 1, 0, third),
            (JUMP, 0, 0, operand(last.len())),
        ]);
        program.append(&mut last);
    }
    program.push((RETURN, 0, 0, NOTHING));
    program
}

/// Consecutive numbers, first and last. Addresses of a pool are mostly consecutive.
type Run = (u32, u32);

/// The runs of ascending numbers.
fn runs(numbers: impl Iterator<Item = u32>) -> Vec<Run> {
    let mut runs: Vec<Run> = Vec::new();
    for number in numbers {
        match runs.last_mut() {
            Some((_, last)) if last.checked_add(1) == Some(number) => *last = number,
            _ => runs.push((number, number)),
        }
    }
    runs
}

/// Adds a search for the word loaded: it hands the frame over if one of `runs` has it, and else
/// leaves the accumulator as it is and goes on behind itself.
fn search(runs: &[Run], program: &mut Vec<Instruction>) {
    let mut backwards = Vec::new();
    search_backwards(runs, &mut backwards);
    program.extend(backwards.into_iter().rev());
}

/// The same from the end to the start, as jumps go forward: what they lead to is written already,
/// and the way to the end of the search is the length so far.
fn search_backwards(runs: &[Run], code: &mut Vec<Instruction>) {
    if runs.len() <= LEAF {
        return compare_backwards(runs, code);
    }
    let (lower, upper) = runs.split_at(runs.len() / 2);
    search_backwards(upper, code);
    let above = code.len();
    search_backwards(lower, code);
    let below = code.len() - above;
    match u8::try_from(below) {
        Ok(below) => code.push((IF_AT_LEAST, below, 0, upper[0].0)),
        Err(_) => {
            code.push((JUMP, 0, 0, operand(below)));
            code.push((IF_AT_LEAST, 0, 1, upper[0].0));
        }
    }
}

fn compare_backwards(runs: &[Run], code: &mut Vec<Instruction>) {
    if runs.is_empty() {
        return;
    }
    let end = code.len();
    code.push((RETURN, 0, 0, ALL));
    code.push((JUMP, 0, 0, operand(end + 1)));
    // Over the other comparisons and the jump to the end. Two for each run at most.
    let mut found = 1;
    for &(first, last) in runs.iter().rev() {
        if first == last {
            code.push((IF_EQUAL, found, 0, first));
            found += 1;
        } else {
            code.push((IF_GREATER, 0, found, last));
            code.push((IF_AT_LEAST, 0, 1, first));
            found += 2;
        }
    }
}

fn word32(address: Ipv6Addr, word: usize) -> u32 {
    let shift = 32 * (3 - word);
    u32::try_from((address.to_bits() >> shift) & u128::from(u32::MAX)).expect("masked to 32 bits")
}

fn operand(length: usize) -> u32 {
    u32::try_from(length).expect("no set of addresses fills the memory with instructions")
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// What a program hands over of a frame that the kernel calls `kind`; 0 is nothing. It knows
    /// what the programs above use, and refuses what the kernel's checker refuses.
    fn run(program: &[Instruction], kind: u32, frame: &[u8]) -> u32 {
        assert!((1..=MAX_INSTRUCTIONS).contains(&program.len()));
        let (mut at, mut accumulator) = (0, 0);
        loop {
            let (code, yes, no, k) = program[at];
            at += 1;
            let mut branch = |taken| at += usize::from(if taken { yes } else { no });
            match code {
                LOAD_WORD if k == PACKET_TYPE => accumulator = kind,
                LOAD_WORD => match frame.get(k as usize..).and_then(<[u8]>::first_chunk) {
                    Some(word) => accumulator = u32::from_be_bytes(*word),
                    None => return 0,
                },
                LOAD_BYTE => match frame.get(k as usize) {
                    Some(&byte) => accumulator = byte.into(),
                    None => return 0,
                },
                IF_EQUAL => branch(accumulator == k),
                IF_GREATER => branch(accumulator > k),
                IF_AT_LEAST => branch(accumulator >= k),
                JUMP => at += k as usize,
                RETURN => return k,
                _ => panic!("no such instruction"),
            }
        }
    }

    fn passes(program: &[Instruction], frame: &[u8]) -> bool {
        run(program, libc::PACKET_BROADCAST.into(), frame) > 0
    }

    fn icmpv6(next_header: u8, hop_limit: u8, kind: u8) -> Vec<u8> {
        let mut frame = vec![0; 14 + 40 + 24];
        frame[20] = next_header;
        frame[21] = hop_limit;
        frame[54] = kind;
        frame
    }

    fn about(kind: u8, target: Ipv6Addr) -> Vec<u8> {
        let mut frame = icmpv6(58, 255, kind);
        frame[62..78].copy_from_slice(&target.octets());
        frame
    }

    fn arp(sender: Ipv4Addr, target: Ipv4Addr) -> Vec<u8> {
        let mut frame = vec![0; 42];
        frame[28..32].copy_from_slice(&sender.octets());
        frame[38..42].copy_from_slice(&target.octets());
        frame
    }

    fn exact(addresses: &[&str]) -> (Vec<Instruction>, Vec<Instruction>) {
        let addresses = addresses.iter().map(|address| address.parse().unwrap()).collect();
        let Exact { arp, ndp } = Exact::about(&addresses);
        (arp.unwrap(), ndp.unwrap())
    }

    #[test]
    fn the_open_neighbor_discovery_filter_passes_solicitations_and_advertisements_alone() {
        for (frame, expected) in [
            (icmpv6(58, 255, 135), true),
            (icmpv6(58, 255, 136), true),
            (icmpv6(58, 255, 134), false),
            (icmpv6(58, 255, 137), false),
            (icmpv6(58, 64, 135), false),
            (icmpv6(17, 255, 135), false),
            (icmpv6(58, 255, 135)[..40].to_vec(), false),
            (Vec::new(), false),
        ] {
            assert_eq!(passes(&OPEN_NDP, &frame), expected, "{frame:?}");
            let (_, ndp) = exact(&["::"]);
            assert_eq!(passes(&ndp, &frame), expected, "exact, {frame:?}");
        }
    }

    #[test]
    fn frames_of_others_and_our_own_stay_in_the_kernel() {
        let solicitation = icmpv6(58, 255, 135);
        let (arp, ndp) = exact(&["0.0.0.0", "::"]);
        for (kind, passes) in [
            (libc::PACKET_HOST, true),
            (libc::PACKET_BROADCAST, true),
            (libc::PACKET_MULTICAST, true),
            // Also what carries the tag of a VLAN that this node is not in.
            (libc::PACKET_OTHERHOST, false),
            (libc::PACKET_OUTGOING, false),
        ] {
            for program in [&OPEN_ARP[..], &arp] {
                assert_eq!(run(program, kind.into(), &[0; 42]) > 0, passes, "ARP, kind {kind}");
            }
            for program in [&OPEN_NDP[..], &ndp] {
                assert_eq!(run(program, kind.into(), &solicitation) > 0, passes, "kind {kind}");
            }
        }
    }

    #[test]
    fn an_exact_filter_looks_at_target_and_sender_of_arp_and_at_the_target_of_discovery() {
        let (four, six) = exact(&["192.0.2.7", "2001:db8::7", "2001:db8:1::7"]);
        let [ours, other] = ["192.0.2.7", "192.0.2.8"].map(|a| a.parse().unwrap());
        assert!(passes(&four, &arp(other, ours)));
        assert!(passes(&four, &arp(ours, other)));
        assert!(!passes(&four, &arp(other, other)));
        for (target, expected) in [
            ("2001:db8::7", true),
            ("2001:db8:1::7", true),
            ("2001:db8:2::7", false),
            ("2001:db8:0:1::7", false),
            ("2001:db8::1:0:7", false),
            ("2001:db8::8", false),
        ] {
            let target = target.parse().unwrap();
            for kind in [135, 136] {
                assert_eq!(passes(&six, &about(kind, target)), expected, "{target}");
            }
            assert!(!passes(&six, &about(134, target)));
        }
    }

    #[test]
    fn a_frame_that_is_cut_is_dropped() {
        let (four, six) = exact(&["0.0.0.0", "::"]);
        let target: Ipv6Addr = "2001:db8::7".parse().unwrap();
        let (_, one) = exact(&["2001:db8::7"]);
        for length in 0..42 {
            assert!(!passes(&four, &[0; 42][..length]), "ARP of {length}");
        }
        for length in 0..78 {
            assert!(!passes(&six, &icmpv6(58, 255, 135)[..length]), "discovery of {length}");
            assert!(!passes(&one, &about(135, target)[..length]), "discovery of {length}");
        }
    }

    #[test]
    fn nothing_passes_where_nothing_is_asked_for() {
        let (four, six) = exact(&[]);
        assert!(!passes(&four, &[0; 42]));
        assert!(!passes(&six, &icmpv6(58, 255, 135)));
    }

    #[test]
    fn a_thousand_scattered_addresses_fit_and_ten_thousand_of_one_pool() {
        let four = |bits| IpAddr::V4(Ipv4Addr::from_bits(bits));
        let scattered: BTreeSet<_> = (0..1000).map(|n| four(0x0a00_0000 + 7 * n)).collect();
        assert!(Exact::about(&scattered).arp.unwrap().len() < 3_000);
        let pool: BTreeSet<_> = (0..10_000).map(|n| four(0x0a00_0000 + n)).collect();
        assert!(Exact::about(&pool).arp.unwrap().len() < 20);
        let many = (0..3000).map(|n| four(0x0a00_0000 + 7 * n));
        assert_eq!(Exact::about(&many.collect()).arp, None);
        let six = |n: u128| IpAddr::V6(Ipv6Addr::from_bits((0x2001_0db8 << 96) + n));
        let scattered: BTreeSet<_> = (0..2000).map(|n| six(7 * n)).collect();
        assert!(Exact::about(&scattered).ndp.is_some());
        let networks: BTreeSet<_> = (0..1000).map(|n| six(n << 64)).collect();
        assert_eq!(Exact::about(&networks).ndp, None);
    }

    #[test]
    fn long_programs_find_every_address_and_no_other() {
        for count in [LEAF, LEAF + 1, 2 * LEAF, 255, 256, 300, 600, 1100] {
            let members: BTreeSet<u32> = (1..).map(|n| 3 * n).take(count).collect();
            let set = members.iter().map(|bits| IpAddr::V4(Ipv4Addr::from_bits(*bits)));
            let program = Exact::about(&set.collect()).arp.unwrap();
            for bits in 0..members.last().unwrap() + 5 {
                let frame = arp(Ipv4Addr::BROADCAST, Ipv4Addr::from_bits(bits));
                assert_eq!(passes(&program, &frame), members.contains(&bits), "{count}, {bits}");
            }
        }
    }

    /// Addresses close to each other, so that runs, gaps and neighbors of both ends occur.
    fn addresses() -> impl Strategy<Value = BTreeSet<IpAddr>> {
        let four = (0..3_u32, 0..1500_u32)
            .prop_map(|(block, n)| Ipv4Addr::from_bits((block << 31).wrapping_add(n)).into());
        let six = (0..3_u128, 0..2_u128, 0..300_u128).prop_map(|(block, network, n)| {
            Ipv6Addr::from_bits((block << 126) + (network << 33) + n).into()
        });
        let edges = prop::sample::select(vec![
            IpAddr::V4(Ipv4Addr::BROADCAST),
            IpAddr::V6(Ipv6Addr::from_bits(u128::MAX)),
        ]);
        prop::collection::btree_set(prop_oneof![6 => four, 3 => six, 1 => edges], 0..200)
    }

    proptest! {
        #[test]
        fn exactly_the_frames_about_the_addresses_pass(
            set in addresses(),
            senders in addresses(),
            targets in addresses(),
        ) {
            let Exact { arp: four, ndp: six } = Exact::about(&set);
            let (Some(four), Some(six)) = (four, six) else { return Ok(()) };
            // Strangers, and members with their neighbors.
            let near = set.iter().flat_map(|&address| match address {
                IpAddr::V4(a) => [a.to_bits().wrapping_sub(1), a.to_bits(), a.to_bits().wrapping_add(1)]
                    .map(|bits| IpAddr::V4(Ipv4Addr::from_bits(bits))),
                IpAddr::V6(a) => [a.to_bits().wrapping_sub(1), a.to_bits(), a.to_bits().wrapping_add(1)]
                    .map(|bits| IpAddr::V6(Ipv6Addr::from_bits(bits))),
            });
            let targets: Vec<_> = targets.iter().copied().chain(near).collect();
            let mut senders = senders.iter().filter_map(|address| match address {
                IpAddr::V4(address) => Some(*address),
                IpAddr::V6(_) => None,
            }).cycle();
            for target in targets {
                let has = |address: IpAddr| set.contains(&address);
                match target {
                    IpAddr::V4(target) => {
                        let sender = senders.next().unwrap_or(Ipv4Addr::UNSPECIFIED);
                        let expected = has(sender.into()) || has(target.into());
                        prop_assert_eq!(passes(&four, &arp(sender, target)), expected);
                        prop_assert_eq!(passes(&four, &arp(target, sender)), expected);
                    }
                    IpAddr::V6(target) => {
                        prop_assert_eq!(passes(&six, &about(135, target)), has(target.into()));
                    }
                }
            }
        }
    }
}
