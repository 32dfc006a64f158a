//! The seal around a heartbeat datagram: it is from the node that it names, whole and new. Pure.
//!
//! RFC 8439 (ChaCha20-Poly1305), RFC 5869 (HKDF), RFC 4303 section 3.4.3 (the replay window).
//!
//! A datagram, integers in network order:
//!
//! | octets | |
//! |---|---|
//! | 4 | `bth` and the version, 1 |
//! | 1 | 0 plain, 1 sealed |
//! | 16 | the sender's boot: incarnation, random number |
//! | 8 | sequence number, from 1 in each boot |
//! | 1 + n | length of the sender's node name, and the name |
//! | the rest | the payload; sealed: encrypted, then a tag of 16 octets over all of the datagram |
//!
//! The key is one of the sender and its boot: HKDF-SHA256 of the shared secret. So the sequence number
//! alone is a nonce that is never used twice under a key, over any restart.

use std::cmp::Ordering;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::{Duration, Instant};

use ownership::NodeName;
use ring::aead::{Aad, CHACHA20_POLY1305, LessSafeKey, Nonce, UnboundKey};
use ring::hkdf::{HKDF_SHA256, Prk, Salt};

use super::{Keys, Peers};

/// For how long an earlier life of a peer is refused after the last word of a later one. Then the
/// later one is over, and the earlier is the next: its node's clock was set back, and its memory
/// lost. A life that was heard before is refused for good. What remains is recordings from before
/// this speaker started; those do not name its incarnation and are taken for mere greetings.
const QUIET: Duration = Duration::from_secs(10);
/// Ended lives that are told from new ones, of each peer. Older ones are refused by their order
/// while the peer lives.
const ENDED: usize = 16;

/// Which life of a speaker a datagram is from; a later life is greater. `random` keeps the keys of
/// two lives apart even when a clock that was set back gave them the same incarnation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Boot {
    pub incarnation: u64,
    pub random: u64,
}

/// Why a datagram was not taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, thiserror::Error)]
pub enum Refusal {
    #[error("it is not a heartbeat of this version")]
    Malformed,
    #[error("its source is no address of the node that it names, or that node is no speaker")]
    Stranger,
    #[error("it is not sealed, and this speaker has a secret key")]
    Plain,
    #[error("it is sealed, and this speaker has no secret key")]
    Sealed,
    #[error("it is sealed with another secret key, or was changed on the way")]
    WrongKey,
    #[error("it has been received before, or is from an earlier life of that speaker")]
    Replayed,
}

impl Refusal {
    /// The same in a word, for metrics.
    pub fn reason(self) -> &'static str {
        match self {
            Self::Malformed => "malformed",
            Self::Stranger => "stranger",
            Self::Plain => "plain",
            Self::Sealed => "sealed",
            Self::WrongKey => "wrong_key",
            Self::Replayed => "replayed",
        }
    }
}

/// Seals what this node sends and opens what its peers sent.
#[derive(Debug)]
pub struct Seal {
    me: NodeName,
    boot: Boot,
    sequence: u64,
    ring: Option<KeyRing>,
    peers: Peers,
    heard: BTreeMap<NodeName, Heard>,
}

#[derive(Debug)]
struct KeyRing {
    sealing: LessSafeKey,
    /// What the keys of others are made of: the current secret, then the previous one.
    opening: Vec<Prk>,
}

/// The last life heard of a peer.
#[derive(Debug)]
struct Heard {
    boot: Boot,
    at: Instant,
    /// `None` after a change of the secrets, until it is heard again.
    key: Option<LessSafeKey>,
    window: Window,
    /// The lives before that were heard, the latest of them.
    ended: BTreeSet<Boot>,
}

impl Seal {
    /// Without keys nothing is sealed and everything is believed that comes from a peer's address.
    /// A name longer than 255 octets, which Kubernetes does not allow, is cut.
    pub fn new(me: NodeName, boot: Boot, keys: Option<&Keys>) -> Self {
        let mut seal =
            Self { me, boot, sequence: 0, ring: None, peers: Peers::new(), heard: BTreeMap::new() };
        if let Some(keys) = keys {
            seal.set_keys(keys);
        }
        seal
    }

    /// What is sealed from now on, and opened.
    pub fn set_keys(&mut self, keys: &Keys) {
        let secrets = std::iter::once(&keys.current).chain(&keys.previous);
        let salt = Salt::new(HKDF_SHA256, b"berth heartbeat v1");
        let opening: Vec<_> = secrets.map(|secret| salt.extract(secret.as_bytes())).collect();
        // The sequence goes on, so that a secret that comes back finds no nonce used.
        self.ring = Some(KeyRing { sealing: derive(&opening[0], &self.me, self.boot), opening });
        self.heard.values_mut().for_each(|heard| heard.key = None);
    }

    pub fn set_peers(&mut self, peers: Peers) {
        self.heard.retain(|name, _| peers.contains_key(name));
        self.peers = peers;
    }

    pub fn peers(&self) -> &Peers {
        &self.peers
    }

    /// The datagram that carries `payload`.
    pub fn seal(&mut self, payload: &[u8]) -> Vec<u8> {
        self.sequence += 1;
        let form = if self.ring.is_some() { Form::Sealed } else { Form::Plain };
        let mut datagram = Header::encode(form, self.boot, self.sequence, &self.me);
        let Some(ring) = &self.ring else {
            datagram.extend_from_slice(payload);
            return datagram;
        };
        let mut body = payload.to_vec();
        ring.sealing
            .seal_in_place_append_tag(nonce(self.sequence), Aad::from(&datagram), &mut body)
            .expect("a datagram is shorter than the 256 GiB that the cipher allows");
        datagram.append(&mut body);
        datagram
    }

    /// The sender and the payload of a datagram from `source`, which it decrypts in place.
    ///
    /// # Errors
    /// Why it must not be believed. Nothing is remembered of such a datagram.
    pub fn open<'a>(
        &mut self,
        source: IpAddr,
        datagram: &'a mut [u8],
        now: Instant,
    ) -> Result<(&'a str, &'a [u8]), Refusal> {
        let length = Header::length(datagram).ok_or(Refusal::Malformed)?;
        let (head, body) = datagram.split_at_mut_checked(length).ok_or(Refusal::Malformed)?;
        let head: &'a [u8] = head;
        let header = Header::decode(head).ok_or(Refusal::Malformed)?;
        let (name, addresses) = self.peers.get_key_value(header.name).ok_or(Refusal::Stranger)?;
        if !addresses.contains(&source) {
            return Err(Refusal::Stranger);
        }
        let ring = match (&self.ring, header.form) {
            (None, Form::Plain) => return Ok((header.name, body)),
            (None, Form::Sealed) => return Err(Refusal::Sealed),
            (Some(_), Form::Plain) => return Err(Refusal::Plain),
            (Some(ring), Form::Sealed) => ring,
        };
        let heard = self.heard.get_mut(name);
        if heard.as_ref().is_some_and(|heard| !heard.admits(&header, now)) {
            return Err(Refusal::Replayed);
        }
        let same = heard.as_ref().filter(|heard| heard.boot == header.boot);
        let known = same.and_then(|heard| heard.key.as_ref());
        let found = match known.and_then(|key| unseal(key, header.sequence, head, body)) {
            Some(payload) => Some((payload, None)),
            // Another secret than before, or another life.
            None => ring.opening.iter().find_map(|secret| {
                let key = derive(secret, header.name, header.boot);
                Some((unseal(&key, header.sequence, head, body)?, Some(key)))
            }),
        };
        let (payload, key) = found.ok_or(Refusal::WrongKey)?;
        match heard {
            Some(heard) => heard.note(&header, key, now),
            None => {
                let mut heard = Heard {
                    boot: header.boot,
                    at: now,
                    key: None,
                    window: Window::default(),
                    ended: BTreeSet::new(),
                };
                heard.note(&header, key, now);
                self.heard.insert(name.clone(), heard);
            }
        }
        let body = &mut body[..payload.len()];
        body.copy_from_slice(&payload);
        Ok((header.name, body))
    }
}

impl Heard {
    /// Whether a datagram can be new.
    fn admits(&self, header: &Header<'_>, now: Instant) -> bool {
        match header.boot.cmp(&self.boot) {
            Ordering::Equal => self.window.admits(header.sequence),
            Ordering::Greater => !self.ended.contains(&header.boot),
            Ordering::Less => {
                !self.ended.contains(&header.boot)
                    && now.saturating_duration_since(self.at) >= QUIET
            }
        }
    }

    fn note(&mut self, header: &Header<'_>, key: Option<LessSafeKey>, now: Instant) {
        if header.boot != self.boot {
            self.ended.insert(self.boot);
            if self.ended.len() > ENDED {
                self.ended.pop_first();
            }
            self.boot = header.boot;
            self.window = Window::default();
        }
        if key.is_some() {
            self.key = key;
        }
        self.window.note(header.sequence);
        self.at = now;
    }
}

fn derive(secret: &Prk, name: &str, boot: Boot) -> LessSafeKey {
    let info = [
        &boot.incarnation.to_be_bytes()[..],
        &boot.random.to_be_bytes(),
        // Last, so that no name runs into what follows.
        name.as_bytes(),
    ];
    let key = secret.expand(&info, &CHACHA20_POLY1305).expect("32 octets are within HKDF's reach");
    LessSafeKey::new(UnboundKey::from(key))
}

/// The payload, if the key fits. On a copy: a key that does not fit spoils what it is tried on.
fn unseal(key: &LessSafeKey, sequence: u64, head: &[u8], body: &[u8]) -> Option<Vec<u8>> {
    let mut copy = body.to_vec();
    let length = key.open_in_place(nonce(sequence), Aad::from(head), &mut copy).ok()?.len();
    copy.truncate(length);
    Some(copy)
}

fn nonce(sequence: u64) -> Nonce {
    let mut octets = [0; 12];
    octets[4..].copy_from_slice(&sequence.to_be_bytes());
    Nonce::assume_unique_for_key(octets)
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Form {
    Plain,
    Sealed,
}

#[derive(Debug, PartialEq, Eq)]
struct Header<'a> {
    form: Form,
    boot: Boot,
    sequence: u64,
    name: &'a str,
}

const MAGIC: [u8; 4] = *b"bth\x01";
const BEFORE_NAME: usize = MAGIC.len() + 1 + 16 + 8 + 1;

impl<'a> Header<'a> {
    fn encode(form: Form, boot: Boot, sequence: u64, name: &str) -> Vec<u8> {
        let name = &name.as_bytes()[..name.len().min(u8::MAX.into())];
        let mut header = Vec::with_capacity(BEFORE_NAME + name.len());
        header.extend(MAGIC);
        header.push(match form {
            Form::Plain => 0,
            Form::Sealed => 1,
        });
        header.extend(boot.incarnation.to_be_bytes());
        header.extend(boot.random.to_be_bytes());
        header.extend(sequence.to_be_bytes());
        header.push(u8::try_from(name.len()).unwrap_or(u8::MAX));
        header.extend(name);
        header
    }

    /// How long the header of a datagram is.
    fn length(datagram: &[u8]) -> Option<usize> {
        let name = datagram.get(BEFORE_NAME - 1)?;
        Some(BEFORE_NAME + usize::from(*name))
    }

    /// `None` if it is not a whole header of this version.
    fn decode(header: &'a [u8]) -> Option<Self> {
        let (magic, rest) = header.split_first_chunk()?;
        if *magic != MAGIC {
            return None;
        }
        let (form, rest) = rest.split_first()?;
        let form = match form {
            0 => Form::Plain,
            1 => Form::Sealed,
            _ => return None,
        };
        let (incarnation, rest) = rest.split_first_chunk()?;
        let (random, rest) = rest.split_first_chunk()?;
        let (sequence, rest) = rest.split_first_chunk()?;
        let (_, name) = rest.split_first()?;
        Some(Self {
            form,
            boot: Boot {
                incarnation: u64::from_be_bytes(*incarnation),
                random: u64::from_be_bytes(*random),
            },
            sequence: u64::from_be_bytes(*sequence),
            name: std::str::from_utf8(name).ok()?,
        })
    }
}

/// Which of the last sequence numbers have been seen; older ones count as seen.
#[derive(Debug, Default)]
struct Window {
    highest: u64,
    /// Bit n: `highest - n`.
    seen: u128,
}

impl Window {
    fn admits(&self, sequence: u64) -> bool {
        match self.highest.checked_sub(sequence) {
            None => true,
            Some(age) => age < u128::BITS.into() && self.seen & (1 << age) == 0,
        }
    }

    fn note(&mut self, sequence: u64) {
        match self.highest.checked_sub(sequence) {
            None => {
                let ahead = u32::try_from(sequence - self.highest).unwrap_or(u32::MAX);
                self.seen = self.seen.checked_shl(ahead).unwrap_or(0) | 1;
                self.highest = sequence;
            }
            Some(age) if age < u128::BITS.into() => self.seen |= 1 << age,
            Some(_) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::OnceLock;

    use proptest::prelude::*;

    use super::super::Secret;
    use super::*;

    const A: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 1));
    const B: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 2));

    fn keys(current: &str, previous: Option<&str>) -> Keys {
        let secret = |text: &str| Secret::new(text.as_bytes().to_vec());
        Keys { current: secret(current), previous: previous.map(secret) }
    }

    fn seal(name: &str, incarnation: u64, keys: Option<&Keys>) -> Seal {
        let boot = Boot { incarnation, random: 7 };
        let mut seal = Seal::new(name.into(), boot, keys);
        seal.set_peers(BTreeMap::from([
            ("a".into(), BTreeSet::from([A])),
            ("b".into(), BTreeSet::from([B])),
        ]));
        seal
    }

    fn open(
        seal: &mut Seal,
        source: IpAddr,
        datagram: &[u8],
    ) -> Result<(String, Vec<u8>), Refusal> {
        open_after(seal, Duration::ZERO, source, datagram)
    }

    fn open_after(
        seal: &mut Seal,
        after: Duration,
        source: IpAddr,
        datagram: &[u8],
    ) -> Result<(String, Vec<u8>), Refusal> {
        static EPOCH: OnceLock<Instant> = OnceLock::new();
        let now = *EPOCH.get_or_init(Instant::now) + after;
        let mut datagram = datagram.to_vec();
        let (from, payload) = seal.open(source, &mut datagram, now)?;
        Ok((from.to_owned(), payload.to_vec()))
    }

    fn from_a(payload: &[u8]) -> Result<(String, Vec<u8>), Refusal> {
        Ok(("a".to_owned(), payload.to_vec()))
    }

    #[test]
    fn what_a_node_seals_its_peer_opens() {
        let keys = keys("secret", None);
        let (mut a, mut b) = (seal("a", 1, Some(&keys)), seal("b", 1, Some(&keys)));
        for payload in [&b"beat"[..], b"", &[0xff; 1200]] {
            let datagram = a.seal(payload);
            assert!(payload.is_empty() || !datagram.windows(payload.len()).any(|w| w == payload));
            assert_eq!(open(&mut b, A, &datagram), from_a(payload));
        }
    }

    #[test]
    fn every_changed_bit_is_noticed() {
        let keys = keys("secret", None);
        let datagram = seal("a", 1, Some(&keys)).seal(b"beat");
        for bit in 0..datagram.len() * 8 {
            let mut changed = datagram.clone();
            changed[bit / 8] ^= 1 << (bit % 8);
            let mut b = seal("b", 1, Some(&keys));
            open(&mut b, A, &changed).unwrap_err();
            // And it leaves no trace that would keep the true one out.
            assert_eq!(open(&mut b, A, &datagram), from_a(b"beat"), "bit {bit}");
        }
        for length in 0..datagram.len() {
            open(&mut seal("b", 1, Some(&keys)), A, &datagram[..length]).unwrap_err();
        }
    }

    #[test]
    fn a_datagram_counts_once_and_late_ones_count() {
        let keys = keys("secret", None);
        let (mut a, mut b) = (seal("a", 1, Some(&keys)), seal("b", 1, Some(&keys)));
        let datagrams: Vec<_> = (0..200).map(|_| a.seal(b"beat")).collect();
        assert_eq!(open(&mut b, A, &datagrams[150]), from_a(b"beat"));
        assert_eq!(open(&mut b, A, &datagrams[150]), Err(Refusal::Replayed));
        assert_eq!(open(&mut b, A, &datagrams[149]), from_a(b"beat"));
        assert_eq!(open(&mut b, A, &datagrams[149]), Err(Refusal::Replayed));
        assert_eq!(open(&mut b, A, &datagrams[150 - 127]), from_a(b"beat"));
        assert_eq!(open(&mut b, A, &datagrams[150 - 128]), Err(Refusal::Replayed));
        assert_eq!(open(&mut b, A, &datagrams[199]), from_a(b"beat"));
        assert_eq!(open(&mut b, A, &datagrams[150]), Err(Refusal::Replayed));
    }

    #[test]
    fn a_new_life_ends_the_one_before() {
        let keys = keys("secret", None);
        let mut b = seal("b", 1, Some(&keys));
        let (mut first, mut second) = (seal("a", 1, Some(&keys)), seal("a", 2, Some(&keys)));
        assert_eq!(open(&mut b, A, &first.seal(b"one")), from_a(b"one"));
        assert_eq!(open(&mut b, A, &second.seal(b"two")), from_a(b"two"));
        assert_eq!(open(&mut b, A, &first.seal(b"one")), Err(Refusal::Replayed));
        assert_eq!(open(&mut b, A, &second.seal(b"two")), from_a(b"two"));
    }

    #[test]
    fn an_earlier_life_is_heard_when_the_later_one_is_silent_and_never_again_after_its_end() {
        let keys = keys("secret", None);
        let mut b = seal("b", 1, Some(&keys));
        let [mut first, mut second, mut third] = [5, 9, 3].map(|n| seal("a", n, Some(&keys)));
        assert_eq!(open(&mut b, A, &first.seal(b"5")), from_a(b"5"));
        assert_eq!(open(&mut b, A, &second.seal(b"9")), from_a(b"9"));
        // The node's clock was set back and its memory lost.
        let early = QUIET - Duration::from_millis(1);
        assert_eq!(open_after(&mut b, early, A, &third.seal(b"3")), Err(Refusal::Replayed));
        assert_eq!(open_after(&mut b, QUIET, A, &first.seal(b"5")), Err(Refusal::Replayed));
        assert_eq!(open_after(&mut b, QUIET, A, &third.seal(b"3")), from_a(b"3"));
        // Recordings of the lives before do not end it.
        let later = QUIET * 5;
        for ended in [&mut first, &mut second] {
            assert_eq!(open_after(&mut b, later, A, &ended.seal(b"?")), Err(Refusal::Replayed));
        }
        assert_eq!(open_after(&mut b, later, A, &third.seal(b"3")), from_a(b"3"));
    }

    #[test]
    fn secrets_change_under_way() {
        let [old, both, new] = [keys("old", None), keys("new", Some("old")), keys("new", None)];
        let (mut a, mut b) = (seal("a", 1, Some(&old)), seal("b", 1, Some(&old)));
        let recorded = a.seal(b"old");
        assert_eq!(open(&mut b, A, &recorded), from_a(b"old"));
        b.set_keys(&both);
        assert_eq!(open(&mut b, A, &recorded), Err(Refusal::Replayed));
        assert_eq!(open(&mut b, A, &a.seal(b"old")), from_a(b"old"));
        let late = a.seal(b"late");
        a.set_keys(&new);
        assert_eq!(open(&mut b, A, &a.seal(b"new")), from_a(b"new"));
        assert_eq!(open(&mut b, A, &late), from_a(b"late"));
        let last = seal("a", 1, Some(&old)).seal(b"old");
        b.set_keys(&new);
        assert_eq!(open(&mut seal("b", 1, Some(&new)), A, &last), Err(Refusal::WrongKey));
        assert_eq!(open(&mut b, A, &a.seal(b"new")), from_a(b"new"));
        // The first secret of all ends the time without one.
        let mut plain = seal("b", 1, None);
        plain.set_keys(&new);
        assert_eq!(open(&mut plain, A, &a.seal(b"new")), from_a(b"new"));
        assert_eq!(open(&mut plain, A, &seal("a", 2, None).seal(b"new")), Err(Refusal::Plain));
    }

    #[test]
    fn only_nodes_that_are_peers_are_heard_and_only_from_their_addresses() {
        let keys = keys("secret", None);
        let (mut a, mut b) = (seal("a", 1, Some(&keys)), seal("b", 1, Some(&keys)));
        assert_eq!(open(&mut b, B, &a.seal(b"beat")), Err(Refusal::Stranger));
        let mut c = seal("c", 1, Some(&keys));
        assert_eq!(open(&mut b, A, &c.seal(b"beat")), Err(Refusal::Stranger));
        b.set_peers(Peers::new());
        assert_eq!(open(&mut b, A, &a.seal(b"beat")), Err(Refusal::Stranger));
    }

    #[test]
    fn both_sides_need_the_same_secret_or_none() {
        let one = keys("one", None);
        let two = keys("two", None);
        for (ours, theirs, expected) in [
            (None, None, from_a(b"beat")),
            (Some(&one), Some(&one), from_a(b"beat")),
            (Some(&one), Some(&two), Err(Refusal::WrongKey)),
            (Some(&one), None, Err(Refusal::Plain)),
            (None, Some(&one), Err(Refusal::Sealed)),
        ] {
            let datagram = seal("a", 1, theirs).seal(b"beat");
            assert_eq!(open(&mut seal("b", 1, ours), A, &datagram), expected);
        }
    }

    #[test]
    fn a_secret_is_changed_in_three_steps_without_a_gap() {
        let steps = [
            keys("old", None),
            keys("old", Some("new")),
            keys("new", Some("old")),
            keys("new", None),
        ];
        for pair in steps.windows(2) {
            for (ours, theirs) in [(&pair[0], &pair[1]), (&pair[1], &pair[0])] {
                let datagram = seal("a", 1, Some(theirs)).seal(b"beat");
                assert_eq!(open(&mut seal("b", 1, Some(ours)), A, &datagram), from_a(b"beat"));
            }
        }
    }

    #[test]
    fn a_key_belongs_to_one_sender_and_one_life() {
        let keys = keys("secret", None);
        let datagram = |name, incarnation, random| {
            let boot = Boot { incarnation, random };
            let mut seal = Seal::new(Into::into(name), boot, Some(&keys));
            seal.seal(b"beat").split_off(BEFORE_NAME + 1)
        };
        let bodies = BTreeSet::from([
            datagram("a", 1, 7),
            datagram("b", 1, 7),
            datagram("a", 2, 7),
            datagram("a", 1, 8),
        ]);
        assert_eq!(bodies.len(), 4);
    }

    proptest! {
        #[test]
        fn arbitrary_datagrams_are_refused(datagram: Vec<u8>) {
            let keys = keys("secret", None);
            prop_assert!(open(&mut seal("b", 1, Some(&keys)), A, &datagram).is_err());
        }

        #[test]
        fn the_window_is_the_set_of_what_was_seen(sequences in prop::collection::vec(1_u64..400, 0..300)) {
            let (mut window, mut seen) = (Window::default(), BTreeSet::new());
            for sequence in sequences {
                let oldest = seen.last().map_or(0, |highest: &u64| highest.saturating_sub(127));
                let new = sequence >= oldest && !seen.contains(&sequence);
                prop_assert_eq!(window.admits(sequence), new);
                if new {
                    window.note(sequence);
                    seen.insert(sequence);
                }
            }
        }
    }
}
