//! A raw packet socket that tells how far a packet's checksum got.

use std::{
    io,
    mem::{size_of, zeroed},
    os::fd::{AsRawFd, FromRawFd, OwnedFd},
    time::Duration,
};

#[expect(clippy::cast_possible_truncation, reason = "3: libc gives the C macro's int, the kernel's field has 16 bits")]
const ETH_P_ALL: u16 = libc::ETH_P_ALL as u16;
#[expect(clippy::cast_possible_truncation, reason = "17: libc gives the C macro's int, the kernel's field has 16 bits")]
const AF_PACKET: u16 = libc::AF_PACKET as u16;

/// A received frame.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Frame {
    /// Bytes of it in the buffer.
    pub(crate) length: usize,
    /// The kernel passed it on with a checksum still to be completed, which no wire would have carried.
    pub(crate) partial: bool,
    /// Sent by this machine rather than received.
    pub(crate) outgoing: bool,
}

/// An `AF_PACKET` socket bound to one interface of the calling thread's namespace.
#[derive(Debug)]
pub(crate) struct PacketSocket {
    fd: OwnedFd,
}

impl PacketSocket {
    /// Opens it; [`receive`](Self::receive) waits for at most `timeout`.
    pub(crate) fn open(ifindex: u32, timeout: Duration) -> io::Result<Self> {
        let protocol = ETH_P_ALL.to_be();
        // SAFETY: takes integers only.
        let fd = unsafe { libc::socket(libc::AF_PACKET, libc::SOCK_RAW | libc::SOCK_CLOEXEC, i32::from(protocol)) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: just opened and owned by nobody else.
        let fd = unsafe { OwnedFd::from_raw_fd(fd) };
        // SAFETY: all-zero bytes are a valid sockaddr_ll.
        let mut address: libc::sockaddr_ll = unsafe { zeroed() };
        address.sll_family = AF_PACKET;
        address.sll_protocol = protocol;
        address.sll_ifindex = i32::try_from(ifindex).map_err(io::Error::other)?;
        // SAFETY: the pointer and the length are those of `address`, which outlives the call.
        check(unsafe { libc::bind(fd.as_raw_fd(), (&raw const address).cast(), length_of::<libc::sockaddr_ll>()) })?;
        let socket = Self { fd };
        socket.option(libc::SOL_PACKET, libc::PACKET_AUXDATA, &1_i32)?;
        socket.option(libc::SOL_SOCKET, libc::SO_RCVBUFFORCE, &(64 << 20_i32))?;
        let timeout = libc::timeval {
            tv_sec: timeout.as_secs().try_into().map_err(io::Error::other)?,
            tv_usec: timeout.subsec_micros().into(),
        };
        socket.option(libc::SOL_SOCKET, libc::SO_RCVTIMEO, &timeout)?;
        Ok(socket)
    }

    /// Sends a frame by the interface.
    pub(crate) fn send(&self, frame: &[u8]) -> io::Result<()> {
        let sent = rustix::net::send(&self.fd, frame, rustix::net::SendFlags::empty())?;
        if sent == frame.len() { Ok(()) } else { Err(io::ErrorKind::WriteZero.into()) }
    }

    /// The next frame, or nothing within the timeout.
    pub(crate) fn receive(&self, buffer: &mut [u8]) -> io::Result<Option<Frame>> {
        // Aligned as control messages want it; far more than one `tpacket_auxdata` needs.
        let mut control = [0_u64; 16];
        // SAFETY: all-zero bytes are a valid sockaddr_ll.
        let mut from: libc::sockaddr_ll = unsafe { zeroed() };
        let mut part = libc::iovec { iov_base: buffer.as_mut_ptr().cast(), iov_len: buffer.len() };
        // SAFETY: all-zero bytes are a valid msghdr.
        let mut message: libc::msghdr = unsafe { zeroed() };
        message.msg_name = (&raw mut from).cast();
        message.msg_namelen = length_of::<libc::sockaddr_ll>();
        message.msg_iov = &raw mut part;
        message.msg_iovlen = 1;
        message.msg_control = control.as_mut_ptr().cast();
        message.msg_controllen = size_of_val(&control);
        // SAFETY: every pointer in `message` is to a live object of the length beside it.
        let count = unsafe { libc::recvmsg(self.fd.as_raw_fd(), &raw mut message, 0) };
        let Ok(length) = usize::try_from(count) else {
            let error = io::Error::last_os_error();
            return match error.kind() {
                io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted => Ok(None),
                _ => Err(error),
            };
        };
        let partial = auxiliary_status(&message) & libc::TP_STATUS_CSUMNOTREADY != 0;
        Ok(Some(Frame { length, partial, outgoing: from.sll_pkttype == libc::PACKET_OUTGOING }))
    }

    /// Frames that came when the buffer was full, since it was last asked.
    pub(crate) fn lost(&self) -> io::Result<u64> {
        let mut statistics = libc::tpacket_stats { tp_packets: 0, tp_drops: 0 };
        let mut length = length_of::<libc::tpacket_stats>();
        // SAFETY: both pointers are to live objects, the second one tells the size of the first.
        check(unsafe {
            libc::getsockopt(
                self.fd.as_raw_fd(),
                libc::SOL_PACKET,
                libc::PACKET_STATISTICS,
                (&raw mut statistics).cast(),
                &raw mut length,
            )
        })?;
        Ok(statistics.tp_drops.into())
    }

    fn option<T>(&self, level: i32, name: i32, value: &T) -> io::Result<()> {
        // SAFETY: the pointer and the length are those of `value`; every T used here is plain integers.
        check(unsafe {
            libc::setsockopt(self.fd.as_raw_fd(), level, name, std::ptr::from_ref(value).cast(), length_of::<T>())
        })
    }
}

/// `tp_status` of the packet's auxiliary data; 0 without.
fn auxiliary_status(message: &libc::msghdr) -> u32 {
    // SAFETY: recvmsg filled `message`, whose control buffer is still alive.
    let mut header = unsafe { libc::CMSG_FIRSTHDR(std::ptr::from_ref(message)) };
    // SAFETY: null or a control message within the buffer, as the two macros promise.
    while let Some(control) = unsafe { header.as_ref() } {
        if control.cmsg_level == libc::SOL_PACKET && control.cmsg_type == libc::PACKET_AUXDATA {
            // SAFETY: the header is one of this buffer's.
            let data = unsafe { libc::CMSG_DATA(header) };
            // SAFETY: the kernel puts a whole tpacket_auxdata there; it may be unaligned.
            let auxiliary = unsafe { data.cast::<libc::tpacket_auxdata>().read_unaligned() };
            return auxiliary.tp_status;
        }
        // SAFETY: both belong to the same live buffer.
        header = unsafe { libc::CMSG_NXTHDR(std::ptr::from_ref(message), header) };
    }
    0
}

fn check(result: i32) -> io::Result<()> {
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

#[expect(clippy::cast_possible_truncation, reason = "the few dozen bytes of a C struct")]
const fn length_of<T>() -> libc::socklen_t {
    size_of::<T>() as libc::socklen_t
}
