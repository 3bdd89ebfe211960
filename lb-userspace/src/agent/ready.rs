//! When a service manager is told that the agent is ready, and what it is told of the state.

use std::time::Duration;

use tokio::time::{Instant, sleep_until};

use super::Agent;
use crate::service_manager::{Notice, ServiceManager};

/// What starts after this agent may be what it waits for: of a first node the kubelet starts the API server.
const PATIENCE: Duration = Duration::from_secs(3);

/// What the node serves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Served {
    Nothing,
    Tables,
    Snapshot,
    All,
}

impl Served {
    const fn words(self) -> &'static str {
        match self {
            Self::Nothing => "nothing to serve yet: the cluster's objects have not all been listed",
            Self::Tables => "forwarding as an earlier agent left it, until the cluster's objects are listed",
            Self::Snapshot => "serving a snapshot, until the cluster's objects are listed",
            Self::All => "serving",
        }
    }
}

/// What has been told.
#[derive(Debug)]
pub(super) struct Readiness {
    at_latest: Instant,
    told: Option<Served>,
}

impl Readiness {
    pub(super) fn new() -> Self {
        Self { at_latest: Instant::now() + PATIENCE, told: None }
    }

    /// Waits until it is to be told whatever there is.
    pub(super) async fn overdue(&self) {
        match self.told {
            None => sleep_until(self.at_latest).await,
            Some(_) => std::future::pending().await,
        }
    }
}

impl Agent {
    /// Ready is who forwards, and who has had time to find that there is nothing to forward yet.
    pub(super) fn tell_ready(&mut self, manager: &ServiceManager) {
        let served = self.served();
        let Readiness { at_latest, told } = &self.readiness;
        let too_early = served == Served::Nothing && Instant::now() < *at_latest;
        if *told == Some(served) || too_early {
            return;
        }
        if told.is_none() {
            manager.tell(Notice::Ready);
        }
        manager.tell(Notice::Status(served.words()));
        match served {
            Served::Nothing | Served::Tables => tracing::info!("ready: {}", served.words()),
            Served::Snapshot | Served::All => {
                tracing::info!("ready: {} Services, {} frontends", self.model.services.len(), self.frontends());
            }
        }
        self.readiness.told = Some(served);
    }

    const fn served(&self) -> Served {
        match (self.input.is_ready(), self.input.is_snapshot(), self.attached) {
            (true, false, _) => Served::All,
            (true, true, _) => Served::Snapshot,
            (false, _, true) => Served::Tables,
            (false, _, false) => Served::Nothing,
        }
    }
}
