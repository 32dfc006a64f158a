//! What the process may do that others may not: open packet sockets, which takes CAP_NET_RAW, and
//! listen on a port below 1024, which takes CAP_NET_BIND_SERVICE and only some want.
//!
//! Root has them from the start if they are left to it. Whoever is not root gets them from the
//! program's file (`setcap cap_net_raw,cap_net_bind_service=p`) where the kernel heeds that, and takes
//! them up here: the file only permits them, because the kernel does not start a program at all that
//! has one in effect which the container lacks, and says no more than "operation not permitted".
//! Systemd's ambient capabilities are in effect already.

use std::io;

const HELP: &str = "this speaker lacks the capability CAP_NET_RAW, without which it cannot answer \
    for addresses. In Kubernetes its container needs securityContext.capabilities.add: [NET_RAW] \
    and, unless it runs as root, allowPrivilegeEscalation: true and a program whose file has the \
    capability (`getcap berth-speaker` says cap_net_raw=p): a copy of the image that lost the \
    extended attributes of its files has not, and then runAsUser: 0 with runAsNonRoot: false does \
    instead. Elsewhere: `setcap cap_net_raw=p berth-speaker`, or AmbientCapabilities=CAP_NET_RAW \
    of systemd";

/// `_LINUX_CAPABILITY_VERSION_3` of linux/capability.h.
const VERSION: u32 = 0x2008_0522;
/// `CAP_NET_RAW`, in the first of the two words of a set.
const NET_RAW: u32 = 1 << 13;
/// `CAP_NET_BIND_SERVICE`, there as well.
const NET_BIND_SERVICE: u32 = 1 << 10;

/// Takes up which of the two this process may have, and sees to it that nothing that is executed from
/// here on gets more than it has, and that no core dump shows the keys it will read. To be called while there is but one thread.
///
/// # Errors
/// `PermissionDenied`, with what to do, when the process may not have CAP_NET_RAW.
pub fn take_up() -> io::Result<()> {
    prctl(libc::PR_SET_NO_NEW_PRIVS, 1)?;
    let mut sets = capabilities()?;
    let [low, _] = &mut sets;
    if low.permitted & NET_RAW == 0 {
        return Err(io::Error::new(io::ErrorKind::PermissionDenied, HELP));
    }
    let wanted = low.effective | (low.permitted & (NET_RAW | NET_BIND_SERVICE));
    if low.effective != wanted {
        low.effective = wanted;
        set_capabilities(&sets)?;
    }
    // Last, as other capabilities make the kernel think anew of it.
    prctl(libc::PR_SET_DUMPABLE, 0)
}

/// `struct __user_cap_header_struct`; process 0 is the calling thread.
#[repr(C)]
struct Header {
    version: u32,
    process: i32,
}

const HEADER: Header = Header { version: VERSION, process: 0 };

/// `struct __user_cap_data_struct`.
#[derive(Debug, Clone, Copy, Default)]
#[repr(C)]
struct Sets {
    effective: u32,
    permitted: u32,
    inheritable: u32,
}

#[expect(unsafe_code, reason = "std has no capabilities")]
fn capabilities() -> io::Result<[Sets; 2]> {
    let mut sets = [Sets::default(); 2];
    // SAFETY: of this version the kernel reads one header and writes two sets; both outlive the call.
    let result =
        unsafe { libc::syscall(libc::SYS_capget, std::ptr::from_ref(&HEADER), sets.as_mut_ptr()) };
    check(result).map(|()| sets)
}

#[expect(unsafe_code, reason = "std has no capabilities")]
fn set_capabilities(sets: &[Sets; 2]) -> io::Result<()> {
    // SAFETY: of this version the kernel reads one header and two sets; both outlive the call.
    check(unsafe { libc::syscall(libc::SYS_capset, std::ptr::from_ref(&HEADER), sets.as_ptr()) })
}

/// For options that take one number.
#[expect(unsafe_code, reason = "std has no prctl")]
fn prctl(option: libc::c_int, value: libc::c_ulong) -> io::Result<()> {
    let unused: libc::c_ulong = 0;
    // SAFETY: the options that are asked for here take numbers only.
    check(unsafe { libc::prctl(option, value, unused, unused, unused) }.into())
}

fn check(result: libc::c_long) -> io::Result<()> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
