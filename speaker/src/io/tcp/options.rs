//! What can be set on a TCP socket that socket2 does not offer: keys and the least TTL.

use std::{
    io,
    net::SocketAddr,
    os::fd::{AsFd, BorrowedFd},
};

use config::{TcpAo, TcpAoAlgorithm};
use socket2::{SockAddr, SockAddrStorage, Socket};

use crate::io::packet::{narrow, set_option};

/// Signs a TCP socket's segments to and from `peer` with a key (RFC 2385); before it connects.
///
/// # Errors
/// `InvalidInput` when the key has not 1 to 80 octets; what the kernel says when it cannot do that.
pub fn set_tcp_md5(socket: &Socket, peer: SocketAddr, key: &[u8]) -> io::Result<()> {
    let octets = key_octets(key, "TCP MD5")?;
    let signature = TcpMd5Signature {
        address: SockAddr::from(peer).as_storage(),
        flags: 0,
        prefix_length: 0,
        key_length: narrow(key.len()),
        interface: 0,
        key: octets,
    };
    set_option(socket.as_fd(), libc::IPPROTO_TCP, libc::TCP_MD5SIG, &signature)
}

/// `struct tcp_md5sig` of linux/tcp.h.
#[repr(C)]
struct TcpMd5Signature {
    address: SockAddrStorage,
    flags: u8,
    prefix_length: u8,
    key_length: u16,
    interface: i32,
    key: [u8; libc::TCP_MD5SIG_MAXKEYLEN],
}

const _: () = assert!(size_of::<TcpMd5Signature>() == 216);

/// Has the kernel drop what arrives with a lower TTL or hop limit (RFC 5082), before anybody reads it.
///
/// # Errors
/// What the kernel says.
pub fn set_minimum_ttl(socket: BorrowedFd<'_>, peer: SocketAddr, ttl: u8) -> io::Result<()> {
    let (level, name) = match peer {
        SocketAddr::V4(_) => (libc::IPPROTO_IP, libc::IP_MINTTL),
        SocketAddr::V6(_) => (libc::IPPROTO_IPV6, libc::IPV6_MINHOPCOUNT),
    };
    set_option(socket, level, name, &libc::c_int::from(ttl))
}

/// Has TCP send and accept only segments with this Authentication Option (RFC 5925) on connections
/// with the peer. Set it before connecting or listening.
///
/// # Errors
/// `InvalidInput` when the key has not 1 to 80 octets; `ENOPROTOOPT` from a kernel without TCP-AO.
pub fn set_tcp_ao(socket: &Socket, peer: SocketAddr, option: TcpAo, key: &[u8]) -> io::Result<()> {
    let name: &[u8] = match option.algorithm {
        TcpAoAlgorithm::HmacSha1 => b"hmac(sha1)",
        TcpAoAlgorithm::AesCmac128 => b"cmac(aes128)",
    };
    let mut algorithm = [0; 64];
    algorithm[..name.len()].copy_from_slice(name);
    let value = TcpAoAdd {
        address: SockAddr::from(peer).as_storage(),
        algorithm,
        interface: 0,
        // set_current and set_rnext: the only key there is.
        flags: 0b11,
        reserved: 0,
        prefix_length: if peer.is_ipv4() { 32 } else { 128 },
        send_id: option.send_id,
        receive_id: option.receive_id,
        mac_length: 0,
        key_flags: 0,
        key_length: u8::try_from(key.len()).unwrap_or(u8::MAX),
        key: key_octets(key, "TCP-AO")?,
    };
    set_option(socket.as_fd(), libc::IPPROTO_TCP, TCP_AO_ADD_KEY, &value)
}

/// linux/tcp.h; `libc` has no name for it.
const TCP_AO_ADD_KEY: libc::c_int = 38;

/// `struct tcp_ao_add` of linux/tcp.h.
#[repr(C, align(8))]
struct TcpAoAdd {
    address: SockAddrStorage,
    algorithm: [u8; 64],
    interface: i32,
    flags: u32,
    reserved: u16,
    prefix_length: u8,
    send_id: u8,
    receive_id: u8,
    mac_length: u8,
    key_flags: u8,
    key_length: u8,
    key: [u8; libc::TCP_MD5SIG_MAXKEYLEN],
}

const _: () = assert!(size_of::<TcpAoAdd>() == 288);

fn key_octets(key: &[u8], what: &str) -> io::Result<[u8; libc::TCP_MD5SIG_MAXKEYLEN]> {
    let mut octets = [0; libc::TCP_MD5SIG_MAXKEYLEN];
    let (Some(room), false) = (octets.get_mut(..key.len()), key.is_empty()) else {
        let message = format!("the password has {} bytes; {what} allows 1 to 80", key.len());
        return Err(io::Error::new(io::ErrorKind::InvalidInput, message));
    };
    room.copy_from_slice(key);
    Ok(octets)
}

#[cfg(test)]
mod tests {
    use socket2::{Domain, Type};

    use super::*;

    #[test]
    fn a_password_that_tcp_md5_cannot_carry_is_refused_with_its_length() {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        let peer = "192.0.2.1:179".parse().unwrap();
        for length in [0, 81] {
            let error = set_tcp_md5(&socket, peer, &vec![b'x'; length]).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
            assert!(error.to_string().contains(&format!("{length} bytes")));
        }
    }

    #[test]
    fn a_kernel_without_tcp_ao_says_so() {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        let peer = "192.0.2.1:179".parse().unwrap();
        let algorithm = TcpAoAlgorithm::HmacSha1;
        let option = TcpAo { send_id: 1, receive_id: 2, algorithm };
        match set_tcp_ao(&socket, peer, option, b"key") {
            Ok(()) => {}
            Err(error) => assert_eq!(error.raw_os_error(), Some(libc::ENOPROTOOPT)),
        }
        let error = set_tcp_ao(&socket, peer, option, b"").unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
    }
}
