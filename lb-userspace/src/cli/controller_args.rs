//! What the command line says about `controller`.

use std::{path::PathBuf, time::Duration};

use anyhow::Context as _;
use clap::Args;

use super::{
    args::{missing, object},
    server_args::{ApiServer, Pages},
};
use crate::{
    controller::{self, LeaseOptions, PoolSource, Terms},
    model::ObjectName,
};

/// Port of `/health` and `/ready`.
const HEALTH_PORT: u16 = 8081;
/// Port of `/metrics`.
const METRICS_PORT: u16 = 9154;

#[derive(Debug, Args)]
pub(super) struct Controller {
    #[command(flatten)]
    api: ApiServer,
    /// BallastConfiguration with the addressPools; it is read again when it changes
    #[arg(long, value_name = "FILE", conflicts_with = "config_map")]
    config: Option<PathBuf>,
    #[arg(
        long,
        value_name = "NAMESPACE/NAME",
        value_parser = object,
        help = "ConfigMap that holds one, under config.yaml or its only key"
    )]
    config_map: Option<(String, String)>,
    /// Whether several replicas agree by a Lease on one that writes
    #[arg(long, value_name = "BOOL", default_value_t = true, action = clap::ArgAction::Set)]
    leader_elect: bool,
    #[arg(long, value_name = "NAME", default_value = "ballast-controller", help = "Name of the Lease")]
    leader_elect_resource_name: String,
    #[arg(long, value_name = "NAME", default_value = "kube-system", help = "Namespace of the Lease")]
    leader_elect_resource_namespace: String,
    /// How long the others wait for a leader they do not hear of
    #[arg(long, value_name = "DURATION", default_value = "15s", value_parser = duration)]
    leader_elect_lease_duration: Duration,
    /// How long a leader that cannot renew its Lease leads on
    #[arg(long, value_name = "DURATION", default_value = "10s", value_parser = duration)]
    leader_elect_renew_deadline: Duration,
    /// Between two tries to have or renew the Lease
    #[arg(long, value_name = "DURATION", default_value = "2s", value_parser = duration)]
    leader_elect_retry_period: Duration,
    #[command(flatten)]
    pages: Pages<HEALTH_PORT, METRICS_PORT>,
}

/// Nobody waits longer for a leader, and every time that is so far away can be told.
const LONGEST: Duration = Duration::from_hours(24);

/// As Go writes them, in whole units: `15s`, `500ms`, `1m`.
fn duration(text: &str) -> Result<Duration, String> {
    let at = text.find(|letter: char| !letter.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(at);
    let number: u64 = number.parse().map_err(|_| "write a duration such as 15s".to_owned())?;
    let found = match unit {
        "ms" => Duration::from_millis(number),
        "s" => Duration::from_secs(number),
        "m" => Duration::from_secs(number.saturating_mul(60)),
        _ => return Err("write a duration such as 15s, with ms, s or m".to_owned()),
    };
    if found > LONGEST { Err(format!("{text} is too long: write at most 1440m, a day")) } else { Ok(found) }
}

impl Controller {
    pub(super) fn options(self, state_dir: &std::path::Path) -> anyhow::Result<controller::Options> {
        let pools = match (self.config, self.config_map) {
            (Some(path), _) => PoolSource::File(path),
            (None, Some((namespace, name))) => PoolSource::ConfigMap(ObjectName { namespace, name }),
            (None, None) => missing("the address pools are missing: give --config FILE or --config-map NAMESPACE/NAME"),
        };
        let access = self.api.access(state_dir)?;
        let terms = Terms {
            lease: self.leader_elect_lease_duration,
            renew: self.leader_elect_renew_deadline,
            retry: self.leader_elect_retry_period,
        };
        if let Some(cause) = terms.wrong() {
            missing(&format!("leader election: {cause}"));
        }
        let lease = if self.leader_elect {
            let (namespace, name) = (self.leader_elect_resource_namespace, self.leader_elect_resource_name);
            Some(LeaseOptions { name: ObjectName { namespace, name }, identity: identity()?, terms })
        } else {
            None
        };
        let [health, metrics] = self.pages.addresses();
        Ok(controller::Options { access, pools, lease, health, metrics })
    }
}

/// As client-go's: the host's name, which is a pod's, and what no other process has.
fn identity() -> anyhow::Result<String> {
    let mut bytes = [0; 8];
    let got = rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty()).context("no random bytes")?;
    anyhow::ensure!(got == bytes.len(), "no random bytes");
    let host = rustix::system::uname().nodename().to_string_lossy().into_owned();
    Ok(format!("{host}_{:016x}", u64::from_ne_bytes(bytes)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_written_as_for_kubernetes() {
        assert_eq!(duration("15s"), Ok(Duration::from_secs(15)));
        assert_eq!(duration("500ms"), Ok(Duration::from_millis(500)));
        assert_eq!(duration("2m"), Ok(Duration::from_mins(2)));
        assert_eq!(duration("1440m"), Ok(LONGEST));
        for bad in ["1441m", "86400001ms", "18446744073709551615s", "18446744073709551615m", "18446744073709551616ms"] {
            assert!(duration(bad).is_err(), "{bad}");
        }
        for bad in ["", "s", "15", "15h", "-1s", "1.5s"] {
            assert!(duration(bad).is_err(), "{bad}");
        }
        assert_ne!(identity().expect("one"), identity().expect("another"));
    }
}
