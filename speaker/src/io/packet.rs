//! Packet sockets (packet(7)) and the few system calls around them that socket2 does not offer.
//!
//! All `unsafe` of the speaker is in this file and in [`super::allocator`]. Nothing here decides
//! anything: frames go in and out as they are, and the kernel throws away what a filter does not let
//! through, before it wakes anybody.

use std::collections::BTreeSet;
use std::fmt::{self, Debug};
use std::fs::File;
use std::io::{self, Read, Write};
use std::net::Ipv6Addr;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::time::Duration;

use layer2::InterfaceIndex;
use socket2::{Domain, Protocol, SockAddr, SockAddrStorage, SockFilter, Socket, Type};

use super::filter::Instruction;

/// The sockets of one interface: one for ARP, one for neighbor discovery, and those that hold its
/// multicast groups. Dropping it closes them and leaves the groups.
///
/// Two packet sockets, each bound to its EtherType, because one that is bound to all of them makes
/// the kernel clone every outgoing packet of the interface and take in what belongs to a VLAN or a
/// macvlan above it.
#[derive(Debug)]
pub struct Tap {
    interface: InterfaceIndex,
    arp: PacketSocket,
    ndp: PacketSocket,
    groups: BTreeSet<Ipv6Addr>,
    /// More than one only when a socket's memory for groups is used up (net.core.optmem_max).
    members: Vec<Socket>,
}

impl Tap {
    /// With a filter for each socket.
    ///
    /// # Errors
    /// When the process lacks CAP_NET_RAW or there is no such interface (any more).
    pub fn open(
        interface: InterfaceIndex,
        arp: &[Instruction],
        ndp: &[Instruction],
    ) -> io::Result<Self> {
        Ok(Self {
            interface,
            arp: PacketSocket::open(interface, libc::ETH_P_ARP, arp)?,
            ndp: PacketSocket::open(interface, libc::ETH_P_IPV6, ndp)?,
            groups: BTreeSet::new(),
            members: Vec::new(),
        })
    }

    pub fn arp(&self) -> &PacketSocket {
        &self.arp
    }

    pub fn ndp(&self) -> &PacketSocket {
        &self.ndp
    }

    /// The multicast groups joined.
    pub fn groups(&self) -> &BTreeSet<Ipv6Addr> {
        &self.groups
    }

    /// Sends a whole Ethernet frame.
    ///
    /// # Errors
    /// When the interface is down (ENETDOWN) or its queue is full (ENOBUFS, EAGAIN).
    pub fn send(&self, frame: &[u8]) -> io::Result<()> {
        // The socket tells the queueing discipline which protocol a frame has.
        let arp = frame.get(12..14) == Some(&[0x08, 0x06]);
        let socket = if arp { &self.arp } else { &self.ndp };
        socket.0.send(frame).map(drop)
    }

    /// Joins a multicast group: by MLD, so that switches that snoop pass it on, and in the filter of
    /// the network card. Joining twice is joining once.
    ///
    /// # Errors
    /// When the kernel refuses, as it does on an interface with IPv6 switched off.
    pub fn join(&mut self, group: Ipv6Addr) -> io::Result<()> {
        if self.groups.contains(&group) {
            return Ok(());
        }
        self.join_by_mld(group)?;
        self.ndp.filter_multicast(self.interface, group, libc::PACKET_ADD_MEMBERSHIP)?;
        self.groups.insert(group);
        Ok(())
    }

    /// Leaves a group; nothing happens if it was not joined.
    ///
    /// # Errors
    /// When the kernel refuses, for instance because the interface has gone.
    pub fn leave(&mut self, group: Ipv6Addr) -> io::Result<()> {
        if !self.groups.remove(&group) {
            return Ok(());
        }
        self.ndp.filter_multicast(self.interface, group, libc::PACKET_DROP_MEMBERSHIP)?;
        let mut result = Ok(());
        for member in &self.members {
            result = member.leave_multicast_v6(&group, self.interface.0);
            if result.is_ok() {
                break;
            }
        }
        result
    }

    fn join_by_mld(&mut self, group: Ipv6Addr) -> io::Result<()> {
        if let Some(member) = self.members.last() {
            match member.join_multicast_v6(&group, self.interface.0) {
                Err(error) if out_of_option_memory(&error) => {}
                result => return result,
            }
        }
        let member = Socket::new(Domain::IPV6, Type::DGRAM, Some(Protocol::UDP))?;
        member.join_multicast_v6(&group, self.interface.0)?;
        self.members.push(member);
        Ok(())
    }
}

fn out_of_option_memory(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::ENOBUFS | libc::ENOMEM))
}

/// A flood of 50,000 frames in a second for some 20 ms, at 768 octets that the kernel counts for a
/// small one.
const RECEIVE_BUFFER: usize = 1 << 20;

/// Room for the frames of one [`PacketSocket::receive`].
pub struct Frames(Box<[[u8; Self::LENGTH]; Self::COUNT]>);

impl Frames {
    /// Frames read at once.
    pub const COUNT: usize = 64;
    /// Where they are cut; the largest of neighbor discovery that makes sense fits.
    pub const LENGTH: usize = 2048;
}

impl Default for Frames {
    fn default() -> Self {
        Self(Box::new([[0; Self::LENGTH]; Self::COUNT]))
    }
}

impl Debug for Frames {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Frames(..)")
    }
}

/// A packet socket on one interface for one EtherType; never blocks.
#[derive(Debug)]
pub struct PacketSocket(Socket);

impl PacketSocket {
    fn open(interface: InterfaceIndex, ethertype: i32, filter: &[Instruction]) -> io::Result<Self> {
        // With protocol 0 it hears nothing, so no frame slips in before the filter is attached.
        let kind = Type::RAW.nonblocking().cloexec();
        let socket = Self(Socket::new_raw(Domain::PACKET, kind, Some(Protocol::from(0)))?);
        socket.filter(filter)?;
        // As much of it as net.core.rmem_max allows; the default holds some 250 small frames.
        socket.0.set_recv_buffer_size(RECEIVE_BUFFER)?;
        socket.0.bind(&link_layer_address(interface, ethertype)?)?;
        Ok(socket)
    }

    /// Puts a program in the place of the one before; frames that wait stay.
    ///
    /// # Errors
    /// When it is longer than the memory that the kernel grants a socket (net.core.optmem_max); the
    /// one before stays.
    pub fn filter(&self, program: &[Instruction]) -> io::Result<()> {
        let program: Vec<_> =
            program.iter().map(|&(code, yes, no, k)| SockFilter::new(code, yes, no, k)).collect();
        self.0.attach_filter(&program)
    }

    /// The frames that wait, as many as there is room for; none if none waits. Frames that this
    /// node sends are not among them.
    ///
    /// # Errors
    /// Once for each loss of the interface (ENETDOWN). After that the socket is silent, and hears
    /// again when the same interface comes up again.
    pub fn receive<'f>(
        &self,
        frames: &'f mut Frames,
    ) -> io::Result<impl ExactSizeIterator<Item = &'f [u8]> + use<'f>> {
        let mut lengths = [0; Frames::COUNT];
        let count = match receive_many(self.as_fd(), frames, &mut lengths) {
            Ok(count) => count,
            Err(error) if would_block(&error) => 0,
            Err(error) => return Err(error),
        };
        let frames = frames.0.iter().zip(lengths).take(count);
        Ok(frames.map(|(frame, length)| &frame[..length.min(Frames::LENGTH)]))
    }

    /// How many frames the kernel threw away since this was last asked, because they came faster
    /// than they were read.
    ///
    /// # Errors
    /// What the kernel says of the socket.
    #[expect(unsafe_code, reason = "socket2 lacks this option")]
    pub fn take_drops(&self) -> io::Result<u64> {
        let mut statistics = libc::tpacket_stats { tp_packets: 0, tp_drops: 0 };
        let mut length: libc::socklen_t = narrow(size_of::<libc::tpacket_stats>());
        let fd: RawFd = self.as_fd().as_raw_fd();
        // SAFETY: pointer and length describe `statistics`, which outlives the call and for which
        // any octets are valid.
        check(unsafe {
            let value = std::ptr::from_mut(&mut statistics).cast();
            let option = libc::PACKET_STATISTICS;
            libc::getsockopt(fd, libc::SOL_PACKET, option, value, &raw mut length)
        })?;
        Ok(statistics.tp_drops.into())
    }

    /// Takes the pending error, without which poll(2) would report it for ever.
    pub fn take_error(&self) -> Option<io::Error> {
        self.0.take_error().unwrap_or_else(Some)
    }

    fn filter_multicast(
        &self,
        interface: InterfaceIndex,
        group: Ipv6Addr,
        operation: i32,
    ) -> io::Result<()> {
        // RFC 2464 section 7: 33:33 and the last four octets of the group.
        let [.., a, b, c, d] = group.octets();
        let membership = libc::packet_mreq {
            mr_ifindex: kernel_index(interface)?,
            mr_type: narrow(libc::PACKET_MR_MULTICAST),
            mr_alen: 6,
            mr_address: [0x33, 0x33, a, b, c, d, 0, 0],
        };
        set_option(self.as_fd(), libc::SOL_PACKET, operation, &membership)
    }
}

impl AsFd for PacketSocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// An error that only says "not now" on a socket that does not block.
pub fn would_block(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted)
}

/// How many messages were read into `frames`, and how long each is.
#[expect(unsafe_code, reason = "neither std nor socket2 has recvmmsg")]
fn receive_many(
    fd: BorrowedFd<'_>,
    frames: &mut Frames,
    lengths: &mut [usize; Frames::COUNT],
) -> io::Result<usize> {
    let mut parts: [libc::iovec; Frames::COUNT] = frames
        .0
        .each_mut()
        .map(|frame| libc::iovec { iov_base: frame.as_mut_ptr().cast(), iov_len: Frames::LENGTH });
    let mut messages = parts.each_mut().map(|part| {
        // SAFETY: plain data for which all zeroes is valid: no name, no control data, no part.
        let mut message: libc::mmsghdr = unsafe { std::mem::zeroed() };
        message.msg_hdr.msg_iov = part;
        message.msg_hdr.msg_iovlen = 1;
        message
    });
    // SAFETY: pointer and count describe `messages`. Each has one part, whose pointer and length
    // describe a frame; all three outlive the call and are borrowed for writing. A null timeout is
    // allowed; the socket does not block.
    let count = unsafe {
        let count = narrow(Frames::COUNT);
        libc::recvmmsg(fd.as_raw_fd(), messages.as_mut_ptr(), count, 0, std::ptr::null_mut())
    };
    check(count)?;
    for (length, message) in lengths.iter_mut().zip(&messages) {
        *length = narrow(message.msg_len);
    }
    Ok(narrow(count))
}

#[expect(unsafe_code, reason = "socket2 has no constructor for the address of a packet socket")]
fn link_layer_address(interface: InterfaceIndex, ethertype: i32) -> io::Result<SockAddr> {
    let mut storage = SockAddrStorage::zeroed();
    // SAFETY: `sockaddr_ll` is plain data for which all zeroes is valid, and it is smaller than the
    // storage, which has the alignment of every socket address.
    let address = unsafe { storage.view_as::<libc::sockaddr_ll>() };
    address.sll_family = narrow(libc::AF_PACKET);
    address.sll_protocol = narrow::<u16, _>(ethertype).to_be();
    address.sll_ifindex = kernel_index(interface)?;
    let length = narrow(size_of::<libc::sockaddr_ll>());
    // SAFETY: the storage holds a `sockaddr_ll` with its family set, of exactly this length.
    Ok(unsafe { SockAddr::new(storage, length) })
}

/// For numbers of the kernel's interface, which libc gives wider types than they need.
pub(super) fn narrow<T: TryFrom<V, Error: Debug>, V>(value: V) -> T {
    T::try_from(value).expect("the kernel's own numbers fit")
}

fn kernel_index(interface: InterfaceIndex) -> io::Result<i32> {
    i32::try_from(interface.0).map_err(|_| io::Error::from_raw_os_error(libc::ENODEV))
}

/// Wakes a thread out of [`wait`] (eventfd(2)).
#[derive(Debug)]
pub struct Wake(File);

impl Wake {
    /// # Errors
    /// When the process has no file descriptor left.
    #[expect(unsafe_code, reason = "std has no eventfd")]
    pub fn new() -> io::Result<Self> {
        // SAFETY: takes two integers and returns a new file descriptor or -1.
        let fd = unsafe { libc::eventfd(0, libc::EFD_CLOEXEC | libc::EFD_NONBLOCK) };
        check(fd)?;
        // SAFETY: `fd` is open, new, and owned by nobody else.
        Ok(Self(File::from(unsafe { OwnedFd::from_raw_fd(fd) })))
    }

    pub fn wake(&self) {
        // It fails only when as many wakes are pending as fit in 64 bits, and then one is pending.
        let _ = (&self.0).write(&1_u64.to_ne_bytes());
    }

    /// Takes all pending wakes.
    pub fn clear(&self) {
        let _ = (&self.0).read(&mut [0; 8]);
    }
}

impl AsFd for Wake {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// What [`wait`] is to watch and what it found.
#[derive(Debug)]
#[repr(transparent)]
pub struct Watched(libc::pollfd);

impl Watched {
    /// Watches for something to read. Errors are always watched for.
    pub fn new(fd: BorrowedFd<'_>) -> Self {
        Self(libc::pollfd { fd: fd.as_raw_fd(), events: libc::POLLIN, revents: 0 })
    }

    pub fn readable(&self) -> bool {
        self.0.revents & libc::POLLIN != 0
    }

    pub fn failed(&self) -> bool {
        self.0.revents & (libc::POLLERR | libc::POLLHUP | libc::POLLNVAL) != 0
    }
}

/// Waits until one of `watched` has something to say, for `timeout` at most (`None`: for ever); to
/// the nanosecond, as poll(2) would round a heartbeat's deadline up to a millisecond. A signal ends
/// the wait early.
///
/// # Errors
/// When the kernel has no memory.
#[expect(unsafe_code, reason = "std has no poll")]
pub fn wait(watched: &mut [Watched], timeout: Option<Duration>) -> io::Result<()> {
    let timeout = timeout.map(|timeout| libc::timespec {
        tv_sec: timeout.as_secs().try_into().unwrap_or(libc::time_t::MAX),
        tv_nsec: narrow(timeout.subsec_nanos()),
    });
    let timeout = timeout.as_ref().map_or(std::ptr::null(), std::ptr::from_ref);
    let count = watched.len() as libc::nfds_t;
    // SAFETY: `Watched` is a transparent `pollfd`, so pointer and count describe an array of them
    // that this function has for itself; the timeout is null or outlives the call; a null signal
    // mask is allowed.
    let result =
        unsafe { libc::ppoll(watched.as_mut_ptr().cast(), count, timeout, std::ptr::null()) };
    match check(result) {
        Err(error) if error.kind() == io::ErrorKind::Interrupted => {
            watched.iter_mut().for_each(|watched| watched.0.revents = 0);
            Ok(())
        }
        result => result,
    }
}

/// How the kernel schedules a thread that must not be late.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Priority {
    /// Before every ordinary thread, after all other real-time ones (sched(7), SCHED_RR, 1).
    RealTime,
    /// A larger share than ordinary threads (nice -10).
    Nice,
}

/// Gives the calling thread the best priority that this process may give.
///
/// # Errors
/// When it may give none: without CAP_SYS_NICE and the limits `RLIMIT_RTPRIO` and `RLIMIT_NICE`.
#[expect(unsafe_code, reason = "std has no scheduling")]
pub fn raise_priority() -> io::Result<Priority> {
    // The bare system call, since musl's wrapper always fails. The kernel reads the priority alone.
    let priority: libc::c_int = 1;
    let policy = libc::SCHED_RR | libc::SCHED_RESET_ON_FORK;
    // SAFETY: thread 0 is the caller; the pointer is to an integer that outlives the call, which is
    // all that the kernel's `struct sched_param` is.
    let result = unsafe {
        libc::syscall(libc::SYS_sched_setscheduler, 0, policy, std::ptr::from_ref(&priority))
    };
    if result == 0 {
        return Ok(Priority::RealTime);
    }
    // SAFETY: takes integers only; on Linux 0 is the calling thread.
    check(unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, -10) })?;
    Ok(Priority::Nice)
}

#[expect(unsafe_code, reason = "socket2 lacks these options")]
pub(super) fn set_option<T>(
    fd: BorrowedFd<'_>,
    level: i32,
    name: i32,
    value: &T,
) -> io::Result<()> {
    let fd: RawFd = fd.as_raw_fd();
    // SAFETY: pointer and length describe `value`, which outlives the call; the kernel only reads.
    check(unsafe {
        let value = std::ptr::from_ref(value).cast();
        libc::setsockopt(fd, level, name, value, narrow(size_of::<T>()))
    })
}

fn check(result: libc::c_int) -> io::Result<()> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use std::net::{IpAddr, Ipv4Addr};

    use super::*;
    use crate::io::filter::{Exact, OPEN_ARP, OPEN_NDP};

    #[test]
    fn the_kernel_takes_the_filters() {
        let socket = PacketSocket(Socket::new(Domain::IPV4, Type::DGRAM, None).unwrap());
        let scattered = (0..100).flat_map(|n| {
            let six = Ipv6Addr::from_bits((0x2001_0db8 << 96) + 7 * u128::from(n));
            [IpAddr::V4(Ipv4Addr::from_bits(0xc000_0200 + 7 * n)), IpAddr::V6(six)]
        });
        let exact = Exact::about(&scattered.collect());
        let (arp, ndp) = (exact.arp.unwrap(), exact.ndp.unwrap());
        for program in [&OPEN_ARP[..], &OPEN_NDP, &arp, &ndp] {
            socket.filter(program).unwrap();
        }
    }

    #[test]
    fn what_waits_is_read_at_once() {
        let (one, other) = Socket::pair(Domain::UNIX, Type::DGRAM.nonblocking(), None).unwrap();
        let socket = PacketSocket(other);
        let mut frames = Frames::default();
        assert_eq!(socket.receive(&mut frames).unwrap().count(), 0);
        for length in [1, Frames::LENGTH, Frames::LENGTH + 1, 60] {
            one.send(&vec![u8::try_from(length % 251).unwrap(); length]).unwrap();
        }
        let lengths = [1, Frames::LENGTH, Frames::LENGTH, 60];
        let read: Vec<_> = socket.receive(&mut frames).unwrap().collect();
        assert_eq!(read.iter().map(|frame| frame.len()).collect::<Vec<_>>(), lengths);
        assert!(read[3].iter().all(|octet| *octet == 60));
        assert_eq!(socket.receive(&mut frames).unwrap().count(), 0);
    }

    #[test]
    fn a_wake_ends_a_wait_once() {
        let wake = Wake::new().unwrap();
        let mut watched = [Watched::new(wake.as_fd())];
        wake.wake();
        wake.wake();
        wait(&mut watched, None).unwrap();
        assert!(watched[0].readable() && !watched[0].failed());
        wake.clear();
        wait(&mut watched, Some(Duration::ZERO)).unwrap();
        assert!(!watched[0].readable());
    }
}
