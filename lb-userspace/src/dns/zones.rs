//! The zone of the moment, which many ask and one changes.

use std::{
    sync::{PoisonError, RwLock},
    time::{SystemTime, UNIX_EPOCH},
};

use super::{
    metrics::Sizes,
    zone::{Zone, later},
};
use crate::model::{Model, Touched};

/// The zone of the moment; none before the first one is known.
#[derive(Debug, Default)]
pub struct Zones {
    zone: RwLock<Option<Zone>>,
}

impl Zones {
    /// From here on, questions are answered from this zone. Its serial is greater than that of an earlier process.
    pub fn set(&self, mut zone: Zone) {
        let mut place = self.zone.write().unwrap_or_else(PoisonError::into_inner);
        let next = place.as_ref().map(|old| old.serial().wrapping_add(1));
        zone.set_serial(next.map_or_else(now, |next| later(next, now())));
        *place = Some(zone);
    }

    /// The zone, if there is one, becomes that of another state, where no more than `touched` is another; whether
    /// there is one. Questions wait no longer than what
    /// changed takes: that is found before. One at a time follows.
    pub fn follow(&self, model: &Model, touched: &Touched) -> bool {
        let Some(differences) = self.with(|zone| zone.differences(model, touched)) else { return false };
        if !differences.is_empty()
            && let Some(zone) = self.zone.write().unwrap_or_else(PoisonError::into_inner).as_mut()
        {
            zone.apply(model, differences, now());
        }
        true
    }

    /// Whether there is one.
    pub fn is_set(&self) -> bool {
        self.with(|_| ()).is_some()
    }

    /// What it is, for metrics.
    pub fn sizes(&self) -> Sizes {
        let of = |zone: &Zone| {
            let (services, endpoints) = zone.sizes();
            Sizes { services, endpoints, serial: zone.serial() }
        };
        self.with(of).unwrap_or_default()
    }

    pub(super) fn with<T>(&self, body: impl FnOnce(&Zone) -> T) -> Option<T> {
        self.zone.read().unwrap_or_else(PoisonError::into_inner).as_ref().map(body)
    }
}

/// Seconds since 1970, which begin anew in 2106 as serials do.
pub(super) fn now() -> u32 {
    let seconds = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    u32::try_from(seconds & u64::from(u32::MAX)).unwrap_or_default()
}
