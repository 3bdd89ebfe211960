//! What a socket learns of its path.

use std::{
    io,
    net::{IpAddr, Ipv6Addr, SocketAddr, UdpSocket},
    time::Duration,
};

use lb_tests::client::PathReport;
use rustix::net::sockopt::{self, Ipv4PathMtuDiscovery, Ipv6PathMtuDiscovery};

use crate::{Target, call::error_name};

/// Datagrams at most: a path has few narrow hops, and the answer may have to learn of them as well.
const TRIES: u32 = 8;

impl Target {
    pub(crate) fn path(&self) -> PathReport {
        let mut report = PathReport::default();
        report.error = self.discover(&mut report).err().map(|error| error_name(&error));
        report
    }

    fn discover(&self, report: &mut PathReport) -> io::Result<()> {
        let ipv4 = self.to.is_ipv4();
        let any = if ipv4 { IpAddr::from([0, 0, 0, 0]) } else { Ipv6Addr::UNSPECIFIED.into() };
        let socket = UdpSocket::bind(SocketAddr::new(any, 0))?;
        if ipv4 {
            sockopt::set_ip_mtu_discover(&socket, Ipv4PathMtuDiscovery::DO)?;
        } else {
            sockopt::set_ipv6_mtu_discover(&socket, Ipv6PathMtuDiscovery::DO)?;
        }
        socket.connect(self.to)?;
        socket.set_read_timeout(Some(Duration::from_millis(400)))?;
        let mtu = || if ipv4 { sockopt::ip_mtu(&socket) } else { sockopt::ipv6_mtu(&socket) };
        let headers = if ipv4 { 28 } else { 48 };
        let mut buffer = vec![0; 1 << 16];
        // As to a link of Ethernet's MTU, whatever is known of the way behind it.
        let mut size = 1500 - headers;
        while report.sent + report.too_long < TRIES {
            let result = socket.send(&vec![b'x'; size]).and_then(|_| {
                report.sent += 1;
                socket.recv(&mut buffer)
            });
            report.mtu = mtu()?;
            match result {
                Ok(_) => {
                    report.answered = size;
                    return Ok(());
                }
                Err(error) if error.raw_os_error() == Some(libc::EMSGSIZE) => {
                    report.too_long += 1;
                    size = usize::try_from(report.mtu).map_err(io::Error::other)?.min(1500) - headers;
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(error),
            }
        }
        Err(io::ErrorKind::TimedOut.into())
    }
}
