//! Datagrams that a peer sealed, changed, cut, repeated and mixed with others on the way. Only whole
//! ones are opened, each at most once, and what is opened is what was sealed.
#![no_main]

use std::{
    collections::{BTreeMap, BTreeSet},
    hash::{BuildHasher as _, BuildHasherDefault, DefaultHasher},
    net::{IpAddr, Ipv4Addr},
    time::{Duration, Instant},
};

use libfuzzer_sys::fuzz_target;
use speaker::io::heartbeat::{
    Keys, Secret,
    seal::{Boot, Seal},
};

const PEER: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1));

fn seal(name: &str, incarnation: u64, keys: &Keys) -> Seal {
    let boot = Boot { incarnation, random: 7 };
    let mut seal = Seal::new(name.into(), boot, Some(keys));
    seal.set_peers(BTreeMap::from([("a".into(), BTreeSet::from([PEER]))]));
    seal
}

fuzz_target!(|data: &[u8]| {
    // Others in each execution: the fuzzer remembers datagrams of earlier ones, which are sealed well.
    let salt = BuildHasherDefault::<DefaultHasher>::default().hash_one(data);
    let secret = |text: &str| Secret::new(format!("{text} {salt:x}").into_bytes());
    let keys = Keys { current: secret("one"), previous: Some(secret("two")) };
    let swapped = Keys { current: secret("two"), previous: None };
    let mut now = Instant::now();
    let mut receiver = seal("b", 1, &keys);
    // Three lives of the peer, one of which has the other key.
    let mut senders = [seal("a", 5, &keys), seal("a", 9, &swapped), seal("a", 2, &keys)];
    let mut whole: BTreeMap<Vec<u8>, Vec<u8>> = BTreeMap::new();
    let mut opened: BTreeSet<Vec<u8>> = BTreeSet::new();

    // An octet says what happens, the next how long what follows is, then that.
    let mut data = data;
    while let [act, length, rest @ ..] = data {
        let (octets, rest) = rest.split_at(usize::from(*length).min(rest.len()));
        data = rest;
        now += Duration::from_millis(u64::from(*length) * 50);
        let sender = &mut senders[usize::from(act & 3).min(2)];
        let mut datagram = match act >> 2 & 3 {
            // As it is, sealed or not.
            0 => octets.to_vec(),
            1 => {
                let datagram = sender.seal(octets);
                whole.insert(datagram.clone(), octets.to_vec());
                datagram
            }
            // Changed: each pair of octets is a place and what goes there.
            2 => {
                let mut datagram = sender.seal(b"beat");
                whole.insert(datagram.clone(), b"beat".to_vec());
                for pair in octets.chunks_exact(2) {
                    let place = usize::from(pair[0]) % datagram.len();
                    datagram[place] = pair[1];
                }
                datagram
            }
            // An earlier one again, cut.
            _ => {
                let place = octets.first().map_or(0, |place| usize::from(*place));
                let Some(datagram) = whole.keys().nth(place % whole.len().max(1)) else { continue };
                let cut = octets.get(1).map_or(0, |cut| usize::from(*cut));
                datagram[..datagram.len().saturating_sub(cut)].to_vec()
            }
        };
        let sent = datagram.clone();
        if let Ok((from, payload)) = receiver.open(PEER, &mut datagram, now) {
            assert_eq!(from, "a");
            assert_eq!(whole.get(&sent).map(Vec::as_slice), Some(payload), "nobody sealed it");
            assert!(opened.insert(sent), "it counts once");
        }
    }
});
