//! What the programs are told beside the tables.

use lb_common::{
    half_open::slots,
    settings::{Setting, snat_ports},
};

use super::Agent;

impl Agent {
    pub(super) fn settings(&self) -> Vec<(Setting, u64)> {
        let (first, last) = self.options.config.snat_ports.clone().into_inner();
        let mut settings = vec![
            (Setting::NetnsCookie, self.netns_cookie),
            (Setting::SnatPorts, snat_ports(first, last)),
            (Setting::HashSeed, self.hash_seed),
            (Setting::TicksPerSecond, u64::from(self.clock_ticks)),
            (Setting::HalfOpenSlots, u64::from(slots(self.options.config.maps.conntrack))),
            (Setting::Takeover, self.takeover.word),
            (Setting::Timeouts, self.options.config.timeouts.0),
        ];
        settings.extend(self.network.uplink_words());
        settings.extend(self.network.host_source_words());
        if let Some(host) = self.network.host_device() {
            let [a, b, c, d, e, f] = host.mac;
            settings.push((Setting::HostDevice, u64::from(host.ifindex)));
            settings.push((Setting::HostMac, u64::from_le_bytes([a, b, c, d, e, f, 0, 0])));
        }
        settings
    }
}
