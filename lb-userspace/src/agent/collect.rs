//! Flows that ended in silence are removed, and what they counted is kept.

use std::{collections::BTreeMap, io};

use super::Agent;
use crate::{
    bpf::{FlowFamily, Maps},
    gc::Clock,
};

impl Agent {
    /// A round of garbage collection.
    pub(super) async fn collect(&mut self) {
        let now = match self.datapath.clock() {
            Ok(now) => now,
            Err(error) => {
                tracing::warn!("cannot read the kernel's clock: {error}; flows are not collected now");
                return;
            }
        };
        let clock = Clock { now, ticks_per_second: self.clock_ticks };
        if self.takeover.ends(clock) {
            self.program().await;
        }
        let maps = &self.datapath.maps;
        let rounds = (self.collectors.0.round(maps, clock), self.collectors.1.round(maps, clock));
        match rounds {
            (Ok(v4), Ok(v6)) => {
                let removed = v4.removed + v6.removed;
                for (service, (packets, bytes)) in v4.ended.iter().chain(&v6.ended) {
                    self.add_traffic(*service, *packets, *bytes);
                }
                if removed > 0 {
                    tracing::debug!("{removed} conntrack entries collected");
                }
            }
            (Err(error), _) | (_, Err(error)) => tracing::warn!("cannot collect flows: {error}; tried again soon"),
        }
        match self.collect_clients(clock) {
            Ok(0) => {}
            Ok(forgotten) => tracing::debug!("{forgotten} clients forgotten"),
            Err(error) => tracing::warn!("cannot collect clients: {error}; tried again soon"),
        }
    }

    /// Forgets clients whose timeout is over. The kernel side would not count them anyway, until its clock has come round.
    fn collect_clients(&self, clock: Clock) -> io::Result<u64> {
        let maps = &self.datapath.maps;
        let seconds = maps.words("LB_SVC_AFFINITY")?;
        Ok(forget::<[u8; 4]>(maps, &seconds, clock)? + forget::<[u8; 16]>(maps, &seconds, clock)?)
    }

    fn add_traffic(&self, service: u32, packets: u64, bytes: u64) {
        let maps = &self.datapath.maps;
        for (index, more) in [(service * 2, packets), (service * 2 + 1, bytes)] {
            let written = maps
                .word("LB_SVC_TRAFFIC", index)
                .and_then(|word| maps.set_word("LB_SVC_TRAFFIC", index, word.wrapping_add(more)));
            if let Err(error) = written {
                tracing::warn!("cannot keep the traffic of service {service}: {error}");
            }
        }
    }
}

fn forget<A: FlowFamily>(maps: &Maps, seconds: &BTreeMap<u32, u64>, clock: Clock) -> io::Result<u64> {
    maps.forget::<A>(|client| {
        let seconds = seconds.get(&client.service.get()).and_then(|seconds| u32::try_from(*seconds).ok());
        !client.is_live(clock.now, seconds.unwrap_or(0).saturating_mul(clock.ticks_per_second))
    })
}
