//! Changes of the network, as they happen.

use std::{io, time::Duration};

use futures_util::{Stream, StreamExt as _};
use netlink_packet_route::RouteNetlinkMessage;
use rtnetlink::{
    Handle, MulticastGroup, new_multicast_connection,
    packet_core::{NetlinkMessage, NetlinkPayload},
    sys::SocketAddr,
};
use tokio::{
    sync::mpsc,
    time::{Instant, sleep, timeout_at},
};

/// Something changed: list again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Changed;

/// How long a change waits for others of its burst.
#[derive(Clone, Copy, Debug)]
struct Patience {
    /// Links and addresses: a new interface must be attached soon, what it carries until then passes untranslated.
    prompt: Duration,
    /// Routes and rules: a routing daemon changes them by the thousand.
    relaxed: Duration,
}

const PATIENCE: Patience = Patience { prompt: Duration::from_millis(5), relaxed: Duration::from_millis(50) };
/// Pause before the next try when the subscription cannot be made again.
const RETRY: Duration = Duration::from_secs(1);

/// Subscribes to changes of links, addresses, routes and rules; to be called inside the runtime.
///
/// What is reported is only that something changed since the last report: the state is to be listed, so that a lost
/// event (the kernel's buffer was full) is a change like any other. The reader of the socket never waits for the
/// receiver. A socket that breaks is opened again and reported as a change; the task ends when the receiver is dropped.
pub fn watch() -> io::Result<mpsc::Receiver<Changed>> {
    let mut subscription = Subscription::open()?;
    let (sender, receiver) = mpsc::channel(1);
    tokio::spawn(async move {
        loop {
            let alive = tokio::select! {
                () = sender.closed() => return,
                alive = burst(&mut subscription.messages, PATIENCE) => alive,
            };
            if !alive {
                subscription = match Subscription::open() {
                    Ok(subscription) => subscription,
                    Err(error) => {
                        tracing::warn!("cannot watch the network, its changes are found by listing only: {error}");
                        sleep(RETRY).await;
                        continue;
                    }
                };
            }
            // A full channel holds a change already, which covers this one.
            if let Err(mpsc::error::TrySendError::Closed(_)) = sender.try_send(Changed) {
                return;
            }
        }
    });
    Ok(receiver)
}

type Message = NetlinkMessage<RouteNetlinkMessage>;

struct Subscription {
    messages: std::pin::Pin<Box<dyn Stream<Item = (Message, SocketAddr)> + Send>>,
    /// The connection ends with its last handle.
    _handle: Handle,
}

impl Subscription {
    fn open() -> io::Result<Self> {
        let (connection, handle, messages) = new_multicast_connection(&[
            MulticastGroup::Link,
            MulticastGroup::Ipv4Ifaddr,
            MulticastGroup::Ipv6Ifaddr,
            MulticastGroup::Ipv4Route,
            MulticastGroup::Ipv6Route,
            // What leads elsewhere without a change of a route.
            MulticastGroup::Ipv4Rule,
            MulticastGroup::Ipv6Rule,
        ])?;
        tokio::spawn(connection);
        Ok(Self { messages: Box::pin(messages), _handle: handle })
    }
}

/// Waits for a change and takes those that come with it; false when the stream has ended.
async fn burst(messages: &mut (impl Stream<Item = (Message, SocketAddr)> + Unpin), patience: Patience) -> bool {
    let Some((first, _)) = messages.next().await else { return false };
    let mut until = Instant::now() + patience.with(&first);
    // The condition holds also when a storm never lets the timeout come.
    while Instant::now() < until {
        match timeout_at(until, messages.next()).await {
            Err(_) => break,
            Ok(None) => return false,
            Ok(Some((message, _))) => until = until.min(Instant::now() + patience.with(&message)),
        }
    }
    true
}

impl Patience {
    fn with(self, message: &Message) -> Duration {
        match &message.payload {
            NetlinkPayload::InnerMessage(
                RouteNetlinkMessage::NewRoute(_)
                | RouteNetlinkMessage::DelRoute(_)
                | RouteNetlinkMessage::NewRule(_)
                | RouteNetlinkMessage::DelRule(_),
            ) => self.relaxed,
            // Links, addresses, and that something was lost.
            _ => self.prompt,
        }
    }
}

#[cfg(test)]
mod tests {
    use futures_util::stream;
    use netlink_packet_route::{link::LinkMessage, route::RouteMessage};

    use super::*;

    fn event(message: RouteNetlinkMessage) -> (Message, SocketAddr) {
        (message.into(), SocketAddr::new(0, 0))
    }

    fn link() -> (Message, SocketAddr) {
        event(RouteNetlinkMessage::NewLink(LinkMessage::default()))
    }

    fn route() -> (Message, SocketAddr) {
        event(RouteNetlinkMessage::DelRoute(RouteMessage::default()))
    }

    const HOUR: Duration = Duration::from_hours(1);
    const SHORT: Duration = Duration::from_millis(100);

    /// Whether the stream lived after a burst of `events` followed by silence; `None` when no report came within `limit`.
    fn report_within(
        limit: Duration,
        events: impl Stream<Item = (Message, SocketAddr)> + Unpin,
        patience: Patience,
    ) -> Option<bool> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().expect("a runtime");
        let mut events = events.chain(stream::pending());
        runtime.block_on(async { tokio::time::timeout(limit, burst(&mut events, patience)).await.ok() })
    }

    #[test]
    fn links_wait_for_no_route() {
        let patience = Patience { prompt: Duration::from_millis(1), relaxed: HOUR };
        assert_eq!(report_within(SHORT, stream::iter([route(), route()]), patience), None);
        assert_eq!(report_within(HOUR, stream::iter([route(), link(), route()]), patience), Some(true));
        let patience = Patience { prompt: HOUR, relaxed: Duration::from_millis(1) };
        assert_eq!(report_within(SHORT, stream::iter([link()]), patience), None);
        assert_eq!(report_within(HOUR, stream::iter([route()]), patience), Some(true));
    }

    #[test]
    fn a_lost_event_is_as_urgent_as_a_link() {
        let overrun = Message::new(rtnetlink::packet_core::NetlinkHeader::default(), NetlinkPayload::Overrun(vec![]));
        assert_eq!(PATIENCE.with(&overrun), PATIENCE.with(&link().0));
        assert!(PATIENCE.with(&overrun) < PATIENCE.with(&route().0));
    }

    #[test]
    fn a_storm_does_not_hold_the_report_back() {
        assert_eq!(report_within(HOUR, stream::repeat_with(link), PATIENCE), Some(true));
        assert_eq!(report_within(HOUR, stream::repeat_with(route), PATIENCE), Some(true));
    }

    #[test]
    fn the_end_of_the_stream_is_told() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().expect("a runtime");
        runtime.block_on(async {
            assert!(!burst(&mut stream::empty(), PATIENCE).await);
            assert!(!burst(&mut stream::iter([link()]), PATIENCE).await);
        });
    }
}
