//! Changes of the network, as they happen.

use std::{io, time::Duration};

use futures_util::StreamExt as _;
use rtnetlink::{MulticastGroup, new_multicast_connection};
use tokio::sync::mpsc;

/// Something changed: list again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Changed;

/// Events of one burst are one change; a new interface still waits no longer than this.
const BURST: Duration = Duration::from_millis(5);

/// Subscribes to changes of links, addresses and routes. What is reported is only that something changed: the state is
/// listed, so that a lost event costs time and nothing else.
pub fn watch() -> io::Result<mpsc::Receiver<Changed>> {
    let (connection, handle, mut messages) = new_multicast_connection(&[
        MulticastGroup::Link,
        MulticastGroup::Ipv4Ifaddr,
        MulticastGroup::Ipv6Ifaddr,
        MulticastGroup::Ipv4Route,
        MulticastGroup::Ipv6Route,
    ])?;
    tokio::spawn(connection);
    let (sender, receiver) = mpsc::channel(1);
    tokio::spawn(async move {
        while messages.next().await.is_some() {
            tokio::time::sleep(BURST).await;
            // What came meanwhile belongs to the burst.
            while let Ok(Some(_)) = tokio::time::timeout(Duration::ZERO, messages.next()).await {}
            // A full channel holds a change already, which covers this one.
            if let Err(mpsc::error::TrySendError::Closed(_)) = sender.try_send(Changed) {
                return;
            }
        }
        // The connection ends with its last handle.
        drop(handle);
    });
    Ok(receiver)
}
