//! Heartbeats between speakers: one UDP socket, and the seal around what is sent on it.
//!
//! What the datagrams say is `layer2::Ownership`'s matter. [`Seal`] is pure: it makes sure that a
//! datagram is from the node that it names, whole and new. RFC 8439 (ChaCha20-Poly1305), RFC 5869
//! (HKDF), RFC 4303 section 3.4.3 (the replay window).
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

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::io;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;

use layer2::NodeName;
use ring::aead::{Aad, CHACHA20_POLY1305, LessSafeKey, Nonce, UnboundKey};
use ring::hkdf::{HKDF_SHA256, Prk, Salt};
use socket2::{Domain, Protocol, Socket, Type};

use super::packet;
use super::tcp::CLASS_SELECTOR_6;

/// The other speakers' node addresses.
pub type Peers = BTreeMap<NodeName, BTreeSet<IpAddr>>;

/// Octets that nobody may read in a log.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(Vec<u8>);

impl Secret {
    pub fn new(octets: Vec<u8>) -> Self {
        Self(octets)
    }

    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(..)")
    }
}

/// The secrets that the speakers share. To change one without a gap: give the new one to all
/// speakers as `previous`, then swap the two, then take the old one away.
#[derive(Debug, Clone)]
pub struct Keys {
    /// What this speaker seals with.
    pub current: Secret,
    /// What it accepts as well.
    pub previous: Option<Secret>,
}

impl Keys {
    /// Reads the mounted Secret at `path`: the file `secretkey` and, if there is one,
    /// `secretkey-previous`. `path` may also be the file itself. `None` if it is not there.
    ///
    /// # Errors
    /// When a file is empty or cannot be read; the message names it.
    pub fn read(path: &Path) -> io::Result<Option<Self>> {
        let file = if path.is_dir() { &path.join("secretkey") } else { path };
        let Some(current) = read_secret(file)? else { return Ok(None) };
        let previous = read_secret(&file.with_file_name("secretkey-previous"))?;
        Ok(Some(Self { current, previous }))
    }
}

fn read_secret(path: &Path) -> io::Result<Option<Secret>> {
    let failed = |kind, text: String| io::Error::new(kind, format!("{}: {text}", path.display()));
    match std::fs::read(path) {
        Ok(octets) if octets.is_empty() => {
            Err(failed(io::ErrorKind::InvalidData, "the secret is empty".to_owned()))
        }
        Ok(octets) => Ok(Some(Secret(octets))),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(failed(error.kind(), error.to_string())),
    }
}

/// Which life of a speaker a datagram is from; a later life is greater. `random` keeps the keys of
/// two lives apart even when a clock that was set back gave them the same incarnation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Boot {
    pub incarnation: u64,
    pub random: u64,
}

/// What arrived on the socket.
#[derive(Debug)]
pub enum Received<'a> {
    Nothing,
    Refused { source: SocketAddr, reason: Refusal },
    Datagram { from: &'a str, payload: &'a [u8] },
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

/// The heartbeat socket; never blocks.
#[derive(Debug)]
pub struct Heartbeat {
    socket: UdpSocket,
    address: SocketAddr,
    seal: Seal,
}

impl Heartbeat {
    /// # Errors
    /// When this node does not have the address or the port is taken; the message names them.
    pub fn bind(address: SocketAddr, seal: Seal) -> io::Result<Self> {
        let failed = |error: io::Error| {
            io::Error::new(error.kind(), format!("binding heartbeats to UDP {address}: {error}"))
        };
        let kind = Type::DGRAM.nonblocking().cloexec();
        let socket = Socket::new_raw(Domain::for_address(address), kind, Some(Protocol::UDP))
            .map_err(failed)?;
        // A congested uplink drops other traffic first.
        match address {
            SocketAddr::V4(_) => socket.set_tos_v4(CLASS_SELECTOR_6).map_err(failed)?,
            SocketAddr::V6(_) => socket.set_tclass_v6(CLASS_SELECTOR_6).map_err(failed)?,
        }
        socket.bind(&address.into()).map_err(failed)?;
        let socket = UdpSocket::from(socket);
        let address = socket.local_addr().map_err(failed)?;
        Ok(Self { socket, address, seal })
    }

    /// Datagrams of all others are refused before anything is computed.
    pub fn set_peers(&mut self, peers: Peers) {
        self.seal.set_peers(peers);
    }

    /// Sends to a node: to `address`, or if this socket has no such family to its first address of
    /// the right one.
    ///
    /// # Errors
    /// When there is no way there, or `AddrNotAvailable` if the node has no address of the family.
    pub fn send(&mut self, to: &str, address: IpAddr, payload: &[u8]) -> io::Result<()> {
        let fits = |candidate: &IpAddr| candidate.is_ipv4() == self.address.is_ipv4();
        let address = Some(address)
            .filter(fits)
            .or_else(|| self.seal.peers.get(to)?.iter().copied().find(fits))
            .ok_or_else(|| {
                let family = if self.address.is_ipv4() { "IPv4" } else { "IPv6" };
                let message = format!("node {to} has no {family} address");
                io::Error::new(io::ErrorKind::AddrNotAvailable, message)
            })?;
        let datagram = self.seal.seal(payload);
        self.socket.send_to(&datagram, (address, self.address.port())).map(drop)
    }

    /// The next datagram that waits.
    ///
    /// # Errors
    /// What the kernel says of the socket.
    pub fn receive<'b>(&mut self, buffer: &'b mut [u8]) -> io::Result<Received<'b>> {
        match self.socket.recv_from(buffer) {
            Ok((length, source)) => {
                match self.seal.open(source.ip().to_canonical(), &mut buffer[..length]) {
                    Ok((from, payload)) => Ok(Received::Datagram { from, payload }),
                    Err(reason) => Ok(Received::Refused { source, reason }),
                }
            }
            Err(error) if packet::would_block(&error) => Ok(Received::Nothing),
            Err(error) => Err(error),
        }
    }

    /// Takes the pending error, without which poll(2) would report it for ever.
    pub fn take_error(&self) -> Option<io::Error> {
        self.socket.take_error().unwrap_or_else(Some)
    }
}

impl AsFd for Heartbeat {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
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
    key: LessSafeKey,
    window: Window,
}

impl Seal {
    /// Without keys nothing is sealed and everything is believed that comes from a peer's address.
    /// A name longer than 255 octets, which Kubernetes does not allow, is cut.
    pub fn new(me: NodeName, boot: Boot, keys: Option<&Keys>) -> Self {
        let ring = keys.map(|keys| {
            let secrets = std::iter::once(&keys.current).chain(&keys.previous);
            let salt = Salt::new(HKDF_SHA256, b"berth heartbeat v1");
            let opening: Vec<_> = secrets.map(|secret| salt.extract(secret.as_bytes())).collect();
            KeyRing { sealing: derive(&opening[0], &me, boot), opening }
        });
        Self { me, boot, sequence: 0, ring, peers: Peers::new(), heard: BTreeMap::new() }
    }

    pub fn set_peers(&mut self, peers: Peers) {
        self.heard.retain(|name, _| peers.contains_key(name));
        self.peers = peers;
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
    ) -> Result<(&'a str, &'a [u8]), Refusal> {
        let length = Header::length(datagram).ok_or(Refusal::Malformed)?;
        let (head, body) = datagram.split_at_mut_checked(length).ok_or(Refusal::Malformed)?;
        let head: &'a [u8] = head;
        let header = Header::decode(head).ok_or(Refusal::Malformed)?;
        let (name, addresses) = self.peers.get_key_value(header.name).ok_or(Refusal::Stranger)?;
        if !addresses.contains(&source) {
            return Err(Refusal::Stranger);
        }
        match (&self.ring, header.form) {
            (None, Form::Plain) => Ok((header.name, body)),
            (None, Form::Sealed) => Err(Refusal::Sealed),
            (Some(_), Form::Plain) => Err(Refusal::Plain),
            (Some(ring), Form::Sealed) => {
                let heard = self.heard.get_mut(name);
                match heard.map(|heard| (header.boot.cmp(&heard.boot), heard)) {
                    Some((std::cmp::Ordering::Less, _)) => Err(Refusal::Replayed),
                    Some((std::cmp::Ordering::Equal, heard)) => {
                        if !heard.window.admits(header.sequence) {
                            return Err(Refusal::Replayed);
                        }
                        let payload = unseal(&heard.key, header.sequence, head, body)?;
                        heard.window.note(header.sequence);
                        Ok((header.name, payload))
                    }
                    Some((std::cmp::Ordering::Greater, _)) | None => {
                        let key = ring
                            .opening
                            .iter()
                            .map(|secret| derive(secret, header.name, header.boot))
                            .find(|key| {
                                // A key that does not fit leaves nothing of what it is tried on.
                                unseal(key, header.sequence, head, &mut body.to_vec()).is_ok()
                            })
                            .ok_or(Refusal::WrongKey)?;
                        let payload = unseal(&key, header.sequence, head, body)?;
                        let mut window = Window::default();
                        window.note(header.sequence);
                        let heard = Heard { boot: header.boot, key, window };
                        self.heard.insert(name.clone(), heard);
                        Ok((header.name, payload))
                    }
                }
            }
        }
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

fn unseal<'a>(
    key: &LessSafeKey,
    sequence: u64,
    head: &[u8],
    body: &'a mut [u8],
) -> Result<&'a [u8], Refusal> {
    match key.open_in_place(nonce(sequence), Aad::from(head), body) {
        Ok(payload) => Ok(payload),
        Err(ring::error::Unspecified) => Err(Refusal::WrongKey),
    }
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
    use super::*;
    use proptest::prelude::*;

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
        let mut datagram = datagram.to_vec();
        seal.open(source, &mut datagram).map(|(from, payload)| (from.to_owned(), payload.to_vec()))
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

    #[test]
    fn a_secret_is_read_from_its_files_and_an_empty_one_is_named() {
        let directory = std::env::temp_dir().join(format!("berth-keys-{}", std::process::id()));
        std::fs::create_dir_all(&directory).unwrap();
        assert!(Keys::read(&directory).unwrap().is_none());
        std::fs::write(directory.join("secretkey"), "new").unwrap();
        std::fs::write(directory.join("secretkey-previous"), "old").unwrap();
        let keys = Keys::read(&directory).unwrap().unwrap();
        assert_eq!(keys.current.as_bytes(), b"new");
        assert_eq!(keys.previous.unwrap().as_bytes(), b"old");
        std::fs::write(directory.join("secretkey"), "").unwrap();
        let error = Keys::read(&directory).unwrap_err().to_string();
        std::fs::remove_dir_all(&directory).unwrap();
        assert!(error.contains("secretkey: the secret is empty"), "{error}");
    }

    #[test]
    fn a_socket_sends_in_its_own_family() {
        let local = |address: &str| Heartbeat::bind(address.parse().unwrap(), seal("a", 1, None));
        let mut six = local("[::1]:0").unwrap();
        let own = IpAddr::V6(std::net::Ipv6Addr::LOCALHOST);
        six.set_peers(BTreeMap::from([("a".into(), BTreeSet::from([A, own]))]));
        six.send("a", A, b"beat").unwrap();
        let mut watched = [packet::Watched::new(six.as_fd())];
        packet::wait(&mut watched, Some(std::time::Duration::from_secs(5))).unwrap();
        let mut buffer = [0; 100];
        let received = six.receive(&mut buffer).unwrap();
        assert!(matches!(received, Received::Datagram { from: "a", payload: b"beat" }));
        assert!(matches!(six.receive(&mut buffer).unwrap(), Received::Nothing));
        six.set_peers(BTreeMap::from([("a".into(), BTreeSet::from([A]))]));
        let error = six.send("a", A, b"beat").unwrap_err().to_string();
        assert!(error.contains("node a has no IPv6 address"), "{error}");
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
