//! Bytes as a configuration file.

use lb_userspace::config::{self, Config, ConfigError};

const FILE: &str = "config.yaml";

/// Reads bytes as `BallastConfiguration` and `KubeProxyConfiguration`. An error names the file, a note the field.
pub fn config(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    let read = config::parse(FILE, text);
    assert_eq!(read, config::parse(FILE, text), "read twice");
    match read {
        Ok(loaded) => {
            let Config { snat_ports, interfaces, .. } = &loaded.config;
            assert!(!snat_ports.is_empty(), "{snat_ports:?}");
            assert!(interfaces.len() <= text.len());
            for problem in &loaded.notes {
                assert!(
                    !problem.object.is_empty() && !problem.cause.is_empty() && !problem.fix.is_empty(),
                    "{problem:?}"
                );
            }
        }
        Err(ConfigError::Wrong { place, cause, fix }) => {
            assert!(place.starts_with(FILE), "{place}");
            assert!(!cause.is_empty() && !fix.is_empty(), "{place}: {cause}; {fix}");
        }
        Err(error @ ConfigError::Unreadable { .. }) => panic!("text was given: {error}"),
    }
}
