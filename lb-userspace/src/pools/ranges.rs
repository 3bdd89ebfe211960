//! What pools may be, and what they hold.

use std::collections::BTreeSet;

use super::tests::{Town, pools, service};

#[test]
fn wrong_pools_are_refused_with_their_place() {
    for (yaml, field, cause) in [
        ("[{addresses: [192.0.2.1]}]", "addressPools[0].name", "\"\" is no name"),
        ("[{name: a, addresses: []}]", "addressPools[0].addresses", "pool a has no addresses"),
        (
            "[{name: a, addresses: [192.0.2.1]}, {name: a, addresses: [192.0.2.2]}]",
            "addressPools[1].name",
            "addressPools[0] too",
        ),
        ("[{name: a, addresses: [192.0.2.1.1]}]", "addressPools[0].addresses[0]", "no range"),
        ("[{name: a, addresses: ['']}]", "addressPools[0].addresses[0]", "no range"),
        ("[{name: a, addresses: [192.0.2.9-192.0.2.1]}]", "addressPools[0].addresses[0]", "ends before it begins"),
        ("[{name: a, addresses: ['192.0.2.9-2001:db8::']}]", "addressPools[0].addresses[0]", "another"),
        ("[{name: a, addresses: [192.0.2.9/24]}]", "addressPools[0].addresses[0]", "neither a network nor one address"),
        ("[{name: a, addresses: [192.0.2.0/33]}]", "addressPools[0].addresses[0]", "no range"),
        ("[{name: a, addresses: [126.0.0.0-128.0.0.0]}]", "addressPools[0].addresses[0]", "loopback"),
        ("[{name: a, addresses: ['::/0']}]", "addressPools[0].addresses[0]", "unspecified"),
        ("[{name: a, addresses: ['fe80::/64']}]", "addressPools[0].addresses[0]", "link-local"),
        ("[{name: a, addresses: [255.255.255.255]}]", "addressPools[0].addresses[0]", "broadcast"),
        (
            "[{name: a, addresses: [192.0.2.1], serviceSelector: {matchExpressions: [{key: a, operator: In}]}}]",
            "addressPools[0].serviceSelector.matchExpressions[0].values",
            "need values",
        ),
    ] {
        let error = pools(yaml).expect_err(yaml);
        assert!(error.field == field && error.cause.contains(cause), "{yaml}: {error:?}");
    }
}

#[test]
fn overlapping_pools_are_named_both() {
    let error = pools(
        "[{name: a, addresses: [192.0.2.0/28, 198.51.100.1]}, {name: b, addresses: ['2001:db8::/64', 192.0.2.15-192.0.2.20]}]",
    );
    let error = error.expect_err("refused");
    assert_eq!(error.field, "addressPools[1].addresses[1]");
    assert_eq!(
        error.cause,
        "192.0.2.15-192.0.2.20 of pool b overlaps 192.0.2.0/28 of pool a (addressPools[0].addresses[0])"
    );
    // A range within another with some between, and a pool with itself.
    assert!(pools("[{name: a, addresses: [192.0.2.0/24]}, {name: b, addresses: [192.0.2.1]}, {name: c, addresses: [192.0.2.200]}]").is_err());
    let own = pools("[{name: a, addresses: [192.0.2.0/31, 192.0.2.1]}]").expect_err("refused");
    assert_eq!(own.cause, "192.0.2.1 and 192.0.2.0/31 of pool a overlap");
    assert!(pools("[{name: a, addresses: [192.0.2.0/31]}, {name: b, addresses: [192.0.2.2/31]}]").is_ok());
}

#[test]
fn the_ends_of_the_address_space_are_ends() {
    let wrong = "[{name: a, addresses: [239.255.255.255-240.0.0.0]}]";
    assert!(pools(wrong).is_err(), "multicast");
    let town = Town::of([("a", service()), ("b", service()), ("c", service())]);
    let told = town.told("[{name: a, addresses: [255.255.255.253-255.255.255.254]}]");
    assert_eq!(told, ["a 255.255.255.253@a", "b 255.255.255.254@a", "c ! AddressPoolsExhausted"]);
}

#[test]
fn a_pool_finds_its_addresses_and_no_others() {
    let pools = pools("[{name: a, addresses: [192.0.2.0/30, 192.0.2.8/30]}, {name: b, addresses: ['2001:db8::/64']}]")
        .expect("pools");
    let of = |ip: &str| pools.of(ip.parse().expect("an address")).map(|pool| &*pool.name);
    let found = [
        "192.0.1.255",
        "192.0.2.0",
        "192.0.2.3",
        "192.0.2.4",
        "192.0.2.11",
        "192.0.2.12",
        "2001:db8::ffff",
        "2001:db8:0:1::",
    ]
    .map(of);
    assert_eq!(found, [None, Some("a"), Some("a"), None, Some("a"), None, Some("b"), None]);
    let names: BTreeSet<_> = pools.iter().map(|pool| &*pool.name).collect();
    assert_eq!(names, ["a", "b"].into());
}
