//! The benchmark runs, its packets stay as they are, and its figures are figures. What they are is not asserted here.

use std::process::Command;

use lb_tests::needs_root;
use serde_json::Value;

#[test]
fn every_program_is_measured_beside_its_floor() {
    needs_root!();
    let output = Command::new(env!("CARGO_BIN_EXE_ballast-bench"))
        .args(["packet", "--rounds", "1", "--repeat", "1000", "--flows", "1,50", "--json"])
        .output()
        .expect("the benchmark starts");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let report: Value = serde_json::from_slice(&output.stdout).expect("one JSON document");
    let cases = report["cases"].as_array().expect("cases");
    for hook in ["xdp", "tc"] {
        let of_hook = || cases.iter().filter(|case| case["hook"] == hook);
        assert!(of_hook().count() >= 7, "{report:#}");
        assert_eq!(of_hook().next().expect("a case")["packet"], "nothing (floor)");
        assert!(of_hook().all(|case| case["lowestNs"].as_u64() > Some(0)), "{report:#}");
    }
    assert_eq!(report["spread"].as_array().map(Vec::len), Some(2));
}
