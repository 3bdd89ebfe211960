//! The network namespace we are in.

use std::{io, os::fd::AsRawFd as _};

/// `SO_NETNS_COOKIE` (kernel 5.14).
const SO_NETNS_COOKIE: libc::c_int = 71;

/// The cookie of this process' network namespace, as the socket hooks see it.
pub fn netns_cookie() -> io::Result<u64> {
    let socket = std::net::UdpSocket::bind(("0.0.0.0", 0))?;
    let mut cookie = 0_u64;
    let mut length = libc::socklen_t::try_from(size_of::<u64>()).map_err(io::Error::other)?;
    // SAFETY: the pointers are to live variables of the sizes we say.
    let result = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            SO_NETNS_COOKIE,
            std::ptr::from_mut(&mut cookie).cast(),
            &raw mut length,
        )
    };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(cookie) }
}
