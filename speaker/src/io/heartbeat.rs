//! Heartbeats between speakers: one UDP socket, and the keys to what is sent on it.
//!
//! What the datagrams say is `ownership`'s matter; [`seal`] makes sure who says it.

pub mod seal;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::io;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::os::fd::{AsFd, BorrowedFd};
use std::path::{Path, PathBuf};

use ownership::NodeName;
use socket2::{Domain, Protocol, Socket, Type};

use self::seal::{Refusal, Seal};
use super::tcp::CLASS_SELECTOR_6;
use super::{clock, packet};

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
#[derive(Debug, Clone, PartialEq, Eq)]
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

/// The mounted Secret, looked at again and again: the kubelet replaces its files when it changes.
#[derive(Debug)]
pub struct KeyFiles {
    path: PathBuf,
    last: Option<Keys>,
    error: Option<String>,
}

impl KeyFiles {
    /// With what they hold now.
    ///
    /// # Errors
    /// Those of [`Keys::read`].
    pub fn open(path: PathBuf) -> io::Result<Self> {
        let last = Keys::read(&path)?;
        Ok(Self { path, last, error: None })
    }

    /// The keys found last.
    pub fn keys(&self) -> Option<&Keys> {
        self.last.as_ref()
    }

    /// Other keys than before, if there are. Those before stay when the files are gone.
    ///
    /// # Errors
    /// Those of [`Keys::read`], each once.
    pub fn changed(&mut self) -> io::Result<Option<Keys>> {
        let read = Keys::read(&self.path);
        let error = read.as_ref().err().map(ToString::to_string);
        let news = error != self.error;
        self.error = error;
        match read {
            Err(error) if news => Err(error),
            Err(_) | Ok(None) => Ok(None),
            Ok(keys) if keys == self.last => Ok(None),
            Ok(keys) => {
                self.last.clone_from(&keys);
                Ok(keys)
            }
        }
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

/// What arrived on the socket.
#[derive(Debug)]
pub enum Received<'a> {
    Nothing,
    Refused { source: SocketAddr, reason: Refusal },
    Datagram { from: &'a str, payload: &'a [u8] },
}

/// What was counted since the speaker started.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Counters {
    /// Datagrams sent.
    pub sent: u64,
    /// Datagrams that the kernel did not take, or for which there was no address.
    pub unsent: u64,
    /// Datagrams that were believed.
    pub received: u64,
    /// Datagrams that were not.
    pub refused: BTreeMap<Refusal, u64>,
}

/// The heartbeat socket; never blocks.
#[derive(Debug)]
pub struct Heartbeat {
    socket: UdpSocket,
    address: SocketAddr,
    seal: Seal,
    counters: Counters,
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
        Ok(Self { socket, address, seal, counters: Counters::default() })
    }

    /// Datagrams of all others are refused before anything is computed.
    pub fn set_peers(&mut self, peers: Peers) {
        self.seal.set_peers(peers);
    }

    pub fn has_peers(&self) -> bool {
        !self.seal.peers().is_empty()
    }

    /// What is sealed from now on, and opened.
    pub fn set_keys(&mut self, keys: &Keys) {
        self.seal.set_keys(keys);
    }

    pub fn counters(&self) -> &Counters {
        &self.counters
    }

    /// Sends to a node: to `address`, or if this socket has no such family to its first address of
    /// the right one.
    ///
    /// # Errors
    /// When there is no way there, or `AddrNotAvailable` if the node has no address of the family.
    pub fn send(&mut self, to: &str, address: IpAddr, payload: &[u8]) -> io::Result<()> {
        let result = self.try_send(to, address, payload);
        let counter =
            if result.is_ok() { &mut self.counters.sent } else { &mut self.counters.unsent };
        *counter += 1;
        result
    }

    fn try_send(&mut self, to: &str, address: IpAddr, payload: &[u8]) -> io::Result<()> {
        let fits = |candidate: &IpAddr| candidate.is_ipv4() == self.address.is_ipv4();
        let address = Some(address)
            .filter(fits)
            .or_else(|| self.seal.peers().get(to)?.iter().copied().find(fits))
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
                let from = source.ip().to_canonical();
                match self.seal.open(from, &mut buffer[..length], clock::now()) {
                    Ok((from, payload)) => {
                        self.counters.received += 1;
                        Ok(Received::Datagram { from, payload })
                    }
                    Err(reason) => {
                        *self.counters.refused.entry(reason).or_default() += 1;
                        Ok(Received::Refused { source, reason })
                    }
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

#[cfg(test)]
mod tests {
    use super::seal::Boot;
    use super::*;

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
    fn files_of_keys_are_read_when_they_change() {
        let directory = std::env::temp_dir().join(format!("berth-changed-{}", std::process::id()));
        std::fs::create_dir_all(&directory).unwrap();
        let write = |name: &str, text: &str| std::fs::write(directory.join(name), text).unwrap();
        let mut files = KeyFiles::open(directory.clone()).unwrap();
        assert_eq!((files.keys().cloned(), files.changed().unwrap()), (None, None));
        write("secretkey", "one");
        let one = Keys { current: Secret::new(b"one".to_vec()), previous: None };
        assert_eq!(files.changed().unwrap().as_ref(), Some(&one));
        assert_eq!((files.keys().cloned(), files.changed().unwrap()), (Some(one.clone()), None));
        write("secretkey-previous", "two");
        let both = Keys { previous: Some(Secret::new(b"two".to_vec())), ..one };
        assert_eq!(files.changed().unwrap(), Some(both.clone()));
        write("secretkey", "");
        files.changed().unwrap_err();
        assert_eq!(files.changed().unwrap(), None, "an error is told once");
        std::fs::remove_dir_all(&directory).unwrap();
        assert_eq!((files.changed().unwrap(), files.keys()), (None, Some(&both)));
    }

    #[test]
    fn a_socket_sends_in_its_own_family() {
        const A: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 1));
        let seal = || Seal::new("a".into(), Boot { incarnation: 1, random: 7 }, None);
        let local = |address: &str| Heartbeat::bind(address.parse().unwrap(), seal());
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
}
