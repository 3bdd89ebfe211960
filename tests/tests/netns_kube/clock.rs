//! R15: the clock is set while the agent runs, and while it is away.

use std::path::{Path, PathBuf};

use lb_tests::web::{get, value};

use super::*;

/// What the agent takes for the time of day, as libfaketime says it: its file is read at each look at the clock. Deadlines go
/// by another clock, which nobody can set.
struct Clock {
    library: PathBuf,
    offset: PathBuf,
}

impl Clock {
    fn new(directory: &Path) -> Self {
        // Debian has it in the folder of the machine's architecture.
        let folders = std::fs::read_dir("/usr/lib").expect("a directory").filter_map(Result::ok);
        let folders = folders.map(|folder| folder.path()).chain(["/usr/lib".into(), "/usr/lib64".into()]);
        let mut libraries = folders.map(|folder| folder.join("faketime/libfaketimeMT.so.1"));
        let library = libraries.find(|library| library.is_file()).expect("libfaketime");
        let clock = Self { library, offset: directory.join("clock") };
        clock.set(0);
        clock
    }

    fn set(&self, days: i32) {
        // Replaced, for a look at half a line would be one at another time.
        let new = self.offset.with_extension("new");
        std::fs::write(&new, format!("{days:+}d\n")).expect("written");
        std::fs::rename(new, &self.offset).expect("renamed");
    }

    fn lead(&self, agent: &mut Agent) {
        agent.set_variable("LD_PRELOAD", &self.library);
        agent.set_variable("FAKETIME_TIMESTAMP_FILE", &self.offset);
        agent.set_variable("FAKETIME_NO_CACHE", "1");
        agent.set_variable("FAKETIME_DONT_FAKE_MONOTONIC", "1");
    }
}

/// The status of `/healthz`, and the year that the agent shows there.
fn health(kube: &Kube) -> (u16, i32) {
    let (status, body) = get(kube.world.node(0).place(), "127.0.0.1:10256", "/healthz").expect("an answer");
    let body: Value = serde_json::from_str(&body).expect("JSON");
    let year = body["currentTime"].as_str().expect("a time")[..4].parse();
    (status, year.expect("a year"))
}

#[test]
fn r15_a_clock_that_is_set_changes_nothing_that_is_served() {
    needs_root!();
    let kube = Kube::new();
    kube.serve(&[2]);
    let mut agent = kube.agent(&Setup::tcx(true));
    agent.stop().expect("stopped");
    let clock = Clock::new(kube.world.directory());
    clock.lead(&mut agent);
    agent.launch().expect("launched");
    kube.wait_call(VIPS[0], &kube.pod(2));
    let (_, now) = health(&kube);
    let lists = |kube: &Kube| kube.api.requests().iter().filter(|request| request.starts_with("list ")).count();
    let (listed, lines) = (lists(&kube), agent.stderr().lines().count());
    let to = SocketAddr::new(VIPS[0].parse().expect("an address"), 80);
    let hold = Hold::start(kube.world.node(0).pod(0).place(), to).expect("a held connection");

    let jumps = [4000, -4000, 0, -8000, 400];
    let mut slowest = Duration::ZERO;
    for (index, days) in jumps.into_iter().enumerate() {
        clock.set(days);
        let years = days / 365;
        let (status, year) = health(&kube);
        assert_eq!(status, 200, "{days} days");
        assert!((year - now - years).abs() <= 1, "{year} is not {years} years from {now}");
        let begin = Instant::now();
        // The first is there still; both families' slices change.
        let pod = 3 - index % 2;
        kube.serve(&[pod]);
        kube.wait_call(VIPS[0], &kube.pod(pod));
        kube.wait_call(VIPS[1], &kube.pod(pod));
        slowest = slowest.max(begin.elapsed());
        let status = agent.status().expect("a status");
        assert!(status.problems.is_empty() && status.warnings.is_empty(), "{days} days: {status:?}");
        assert!(status.watches.iter().all(|watch| watch.synced), "{days} days: {:?}", status.watches);
    }
    assert_eq!(lists(&kube), listed, "nothing was listed again");
    // One line tells each change.
    let told = agent.stderr().lines().count() - lines;
    assert!(told <= 4 * jumps.len(), "{told} lines: {}", agent.stderr());
    let (_, page) = get(kube.world.node(0).place(), "127.0.0.1:10249", "/metrics").expect("an answer");
    for family in ["IPv4", "IPv6"] {
        let of = |what: &str| {
            value(&page, &format!("kubeproxy_network_programming_duration_seconds_{what}{{ip_family=\"{family}\"}}"))
        };
        let (sum, count) = (of("sum"), of("count"));
        // Set ahead twice, behind twice: what would be less than nothing is nothing.
        let days = sum / 86400.0;
        assert!(count >= 5.0 && (4399.0..4402.0).contains(&days), "{family}: {days} days in {count}");
    }
    let report = hold.stop().expect("a report");
    assert!(report.error.is_none() && report.rounds > 0, "{report:?}");

    // A snapshot from the future, after a reboot of a machine whose clock had run ahead.
    agent.stop().expect("stopped");
    agent.reboot().expect("as after a reboot");
    clock.set(-8000);
    kube.api.away(true);
    agent.launch().expect("launched");
    kube.wait_call(VIPS[0], &kube.pod(3));
    let age = agent.status().expect("a status").stale_seconds.expect("shown as stale");
    assert!(age < 60, "{age} s");
    kube.serve(&[2]);
    kube.api.away(false);
    kube.wait_call(VIPS[0], &kube.pod(2));
    scoreboard(
        "R15",
        &format!(
            "the clock is set {} times by up to 8,400 days: an open connection echoed {} times without an error, a change is \
             served after at most {} ms, nothing is listed again; a snapshot from the future serves",
            jumps.len(),
            report.rounds,
            slowest.as_millis()
        ),
    );
}
