//! A TUN device: what the kernel sends into it a program reads, and what the program writes the kernel receives.

use std::{
    fs::File,
    io::{self, Read as _, Write as _},
    mem::zeroed,
    os::fd::{AsFd, AsRawFd, BorrowedFd},
};

/// A TUN device of the namespace it was opened in; it goes with this value.
///
/// It has no offloads: packets come out of it whole, as from a wire.
#[derive(Debug)]
pub(crate) struct Tun(File);

impl Tun {
    /// Makes a device of this name in the calling thread's namespace.
    pub(crate) fn open(name: &str) -> io::Result<Self> {
        let file = File::options().read(true).write(true).open("/dev/net/tun")?;
        // SAFETY: all-zero bytes are a valid ifreq.
        let mut request: libc::ifreq = unsafe { zeroed() };
        if name.len() >= request.ifr_name.len() {
            return Err(io::Error::other("the name is too long for a device"));
        }
        for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
            *to = from.cast_signed();
        }
        request.ifr_ifru.ifru_flags = i16::try_from(libc::IFF_TUN | libc::IFF_NO_PI).map_err(io::Error::other)?;
        // SAFETY: the request is what TUNSETIFF reads and writes, and lives on.
        let result = unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETIFF, &raw mut request) };
        if result < 0 { Err(io::Error::last_os_error()) } else { Ok(Self(file)) }
    }

    /// The next IP packet; waits for it.
    pub(crate) fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.0.read(buffer)
    }

    /// Lets the kernel receive an IP packet.
    pub(crate) fn write(&mut self, packet: &[u8]) -> io::Result<()> {
        self.0.write(packet).map(drop)
    }
}

impl AsFd for Tun {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}
