//! The demo as its user runs it, and the user's second document applied over the first.

use std::{fs, net::SocketAddr, os::unix::fs::PermissionsExt as _, path::Path, process::Command, time::Duration};

use lb_tests::{Agent, Echo, Process, Setup, World, binary, client::Call, needs_root, traces, wait_until};
use rustix::process::Signal;

fn demo() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_ballast-demo"));
    command.env("NO_COLOR", "1");
    command
}

/// Runs it to its end: exit code, standard output, standard error.
fn outcome(command: &mut Command) -> (Option<i32>, String, String) {
    let output = command.output().expect("the demo");
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (output.status.code(), text(&output.stdout), text(&output.stderr))
}

/// Rows of a Service in the table, which are below its name: path, address, result, backends and sources.
fn rows<'a>(table: &'a str, service: &str) -> Vec<Vec<&'a str>> {
    let cells = |line: &'a str| line.split("  ").map(str::trim).filter(|cell| !cell.is_empty()).collect::<Vec<_>>();
    let below = table.lines().skip_while(|line| *line != service).skip(1);
    let mut rows: Vec<Vec<&str>> = Vec::new();
    for line in below.take_while(|line| line.starts_with("  ")) {
        // What does not fit into its column goes on in the next line.
        if line.starts_with("    ") {
            rows.last_mut().expect("a row").extend(cells(line));
        } else {
            rows.push(cells(line));
        }
    }
    rows
}

#[test]
fn every_row_of_the_demo_passes() {
    needs_root!();
    let (code, table, errors) = outcome(demo().arg("--once"));
    assert_eq!(code, Some(0), "{table}\n{errors}");
    let readme = include_str!("../../README.md");
    let (_, sample) = readme.split_once("$ cargo xtask run --once\n").expect("the sample");
    for line in sample.lines().take_while(|line| *line != "```").filter(|line| *line != "...") {
        // The last one ends with the time it took.
        let shown = line.split_once(" failed, ").map_or(line, |(counts, _)| counts);
        assert!(table.lines().any(|real| real == line || real.starts_with(shown)), "README: {line:?}\n{table}");
    }
    assert!(table.contains(" access paths, 0 failed"), "{table}");
    for (service, row) in [
        // 2.4.2: the node that was asked; 2.4.3: the client.
        (
            "service-python",
            &["outside to nodePort of node2", "192.168.2.2:30080/TCP", "ok", "python-1,python-2", "192.168.2.2"][..],
        ),
        (
            "service-python-lb",
            &["outside to LoadBalancer address", "203.0.113.10:3000/TCP", "ok", "python-1,python-2", "192.168.1.2"],
        ),
        (
            "my-service-local-dual",
            &["outside to nodePort of node1", "[fd00:192:168:1::2]:30083/UDP", "ok", "my-app-1", "fd00:192:168:100::2"],
        ),
        ("my-service-local-dual", &["outside to nodePort of node2", "192.168.2.2:30083/TCP", "ok, silent"]),
        ("nobody-dual", &["outside to nodePort of node1", "192.168.1.2:30084/UDP", "ok, refused"]),
    ] {
        assert!(rows(&table, service).iter().any(|found| found == row), "{service}: {row:?} is missing in\n{table}");
    }
    let (paths, _) = table.split_once("\nHow clients find a Service").expect("the sheet");
    assert!(paths.lines().all(|line| line.len() <= 120), "{paths}");
    assert!(!errors.contains('\u{1b}'), "plain lines where nobody watches: {errors:?}");
}

/// The sheet of commands: its titles, and below each the first line of every row.
fn ways(table: &str) -> Vec<(&str, Vec<&str>)> {
    let (_, sheet) = table.split_once("\nHow clients find a Service").expect("the sheet");
    let mut ways: Vec<(&str, Vec<&str>)> = Vec::new();
    for line in sheet.lines().take_while(|line| !line.is_empty()) {
        match ways.last_mut() {
            Some((_, rows)) if line.starts_with("  ") => {
                // What a command says is further to the right.
                if !line.starts_with("    ") {
                    rows.push(line.trim_start());
                }
            }
            _ => ways.push((line, Vec::new())),
        }
    }
    ways
}

#[test]
fn every_way_to_a_service_is_shown_with_its_command() {
    needs_root!();
    let (code, table, errors) = outcome(demo().arg("--once"));
    assert_eq!(code, Some(0), "{table}\n{errors}");
    let ways = ways(&table);
    let pod = |command: &str| format!("ok my-app-1 $ {command}");
    let exec = pod("ballast exec default -f manifests --allocations allocations.json -- \\");
    let dig = ["dig +short +search A my-service-headless", "dig +short +search AAAA my-service-headless-dual"].map(pod);
    let curl = |to: &str| format!("ok client $ curl -sS -m 5 {to}");
    let away = |what: &str| vec![format!("the document of Pod default/my-app-2 {what}")];
    let expected = [
        (
            "; commands of pods run with this resolver file",
            vec![
                "RESULT FROM COMMAND AND ITS OUTPUT".to_owned(),
                pod("ballast resolv default -f manifests --allocations allocations.json"),
            ],
        ),
        ("virtual IP", vec!["ok my-app-1 $ curl -sS -m 5 10.96.".to_owned(), pod("curl -sS -m 5 [fd00:10:96::")]),
        (
            "name, in the same namespace",
            [
                "curl -sS -m 5 -4 my-service:80",
                "curl -sS -m 5 -6 my-service-dual:80",
                "getent ahostsv4 my-service",
                "getent ahostsv6 my-service-dual",
            ]
            .map(pod)
            .to_vec(),
        ),
        (
            "name.namespace, from another one",
            [
                "ballast resolv other -f manifests",
                "curl -sS -m 5 -4 my-service.default:80",
                "curl -sS -m 5 -6 my-service-dual.default:80",
            ]
            .map(|command| format!("ok other/visitor $ {command}"))
            .to_vec(),
        ),
        ("environment variables", vec![exec.clone(), exec]),
        (
            "headless Service: its A and AAAA records are its pods",
            [dig.to_vec(), away("is taken away"), dig.to_vec(), away("is back"), dig.to_vec()].concat(),
        ),
        ("nodePort of node1", vec![curl("192.168.1.2:30080"), curl("[fd00:192:168:1::2]:30081")]),
        ("nodePort of node2", vec![curl("192.168.2.2:30080"), curl("[fd00:192:168:2::2]:30081")]),
        ("EXTERNAL-IP", vec![curl("203.0.113.10:3000"), curl("[fd00:203:0:113::11]:3000")]),
        ("balancer in front of the nodes", vec!["not yet here the router".to_owned()]),
    ];
    let words = |text: &str| text.split_whitespace().collect::<Vec<_>>().join(" ");
    assert_eq!(ways.iter().map(|(title, _)| *title).collect::<Vec<_>>(), expected.each_ref().map(|(title, _)| *title));
    for ((title, rows), (_, expected)) in ways.iter().zip(&expected) {
        let same = rows.len() == expected.len()
            && rows.iter().zip(expected).all(|(row, expected)| words(row).starts_with(expected.as_str()));
        assert!(same, "{title}: {rows:#?} instead of {expected:#?}");
    }
    let (_, sheet) = table.split_once("How clients find").expect("the sheet");
    assert!(sheet.lines().all(|line| line.len() <= 100 && line.trim_end() == line), "{sheet}");
    assert!(!table.contains('\u{1b}'), "plain text where nobody watches");
    // What a row is for: without the Pod only one address is left, and then both are there again.
    let answers = |text: &str| text.lines().map(str::trim).filter(|line| line.starts_with("10.244.")).count();
    let (_, after) = sheet.split_once("is taken away\n").expect("the change");
    let (between, after) = after.split_once("is back\n").expect("the change");
    assert_eq!((answers(between), answers(after.split("nodePort").next().expect("rows"))), (1, 2), "{sheet}");
}

#[test]
fn a_command_that_fails_makes_the_exit_code() {
    needs_root!();
    let folder = tempfile::tempdir().expect("a folder");
    let programs = tempfile::tempdir().expect("a folder");
    let curl = programs.path().join("curl");
    fs::write(&curl, "#!/bin/sh\necho python-1\nexit 7\n").expect("written");
    fs::set_permissions(&curl, fs::Permissions::from_mode(0o755)).expect("a program");
    let path = std::env::var_os("PATH").unwrap_or_default();
    let path = std::env::join_paths([programs.path().to_owned()].into_iter().chain(std::env::split_paths(&path)));
    let (code, table, errors) = outcome(small_demo(folder.path()).arg("--once").env("PATH", path.expect("a PATH")));
    assert_eq!(code, Some(1), "{table}\n{errors}");
    let ways = ways(&table);
    let rows = |title: &str| ways.iter().find(|(known, _)| *known == title).map(|(_, rows)| rows.clone());
    assert!(rows("virtual IP").is_some_and(|rows| rows[0].starts_with("FAILED")), "{table}");
    assert!(table.contains("it ended with exit status: 7"), "{table}");
    assert!(rows("EXTERNAL-IP").is_some_and(|rows| rows.iter().all(|row| row.starts_with("not tried"))), "{table}");
}

#[test]
fn every_row_passes_on_other_networks() {
    needs_root!();
    // 2.4.2: the backend on another node sees the address that the node's route to it has.
    for (network, near, far) in [("bridge", "10.244.1.1", "192.168.1.2"), ("vxlan", "192.168.1.2", "10.244.1.0")] {
        let (code, table, errors) = outcome(demo().args(["--once", "--network", network]));
        assert_eq!(code, Some(0), "{table}\n{errors}");
        assert!(table.contains(" access paths, 0 failed"), "{table}");
        assert!(ways(&table).iter().all(|(_, rows)| rows.iter().all(|row| !row.starts_with("not tried"))), "{table}");
        let rows = rows(&table, "service-python");
        let row = rows.iter().find(|row| row.get(1) == Some(&"192.168.1.2:30080/TCP")).expect("the nodePort of node1");
        let sources: Vec<&str> = row[4..].iter().flat_map(|line| line.split(',')).collect();
        assert!(sources.contains(&near) && sources.contains(&far), "{network}: {row:?}");
    }
    let (code, _, errors) = outcome(demo().args(["--once", "--network", "token-ring"]));
    assert!(code == Some(2) && errors.contains("routed, bridge, vxlan"), "{errors}");
}

#[test]
fn documents_straight_out_of_a_cluster_are_played() {
    needs_root!();
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/documents/kubectl.yaml");
    let (code, table, errors) = outcome(demo().arg("--once").arg("-f").arg(file));
    assert_eq!(code, Some(0), "{table}\n{errors}");
    assert!(table.contains(" 0 failed"), "{table}");
    let cart = rows(&table, "shop/cart");
    let both = ["shop/cart-5d8f-aaaaa,", "shop/cart-5d8f-bbbbb"];
    for (path, source) in [
        ("pod on kind-worker to ClusterIP", "10.42.1.7"),
        ("pod on kind-worker2 to ClusterIP", "10.42.2.9"),
        ("kind-worker itself to ClusterIP", "192.168.1.2"),
        ("outside to nodePort of kind-worker2", "192.168.2.2"),
        ("outside to LoadBalancer address", "192.168.1.2"),
    ] {
        let row = cart.iter().find(|row| row[0] == path).unwrap_or_else(|| panic!("{path} is missing in\n{table}"));
        assert_eq!(row[2..], ["ok", both[0], source, both[1]], "{table}");
    }
    assert!(rows(&table, "shop/legacy").iter().all(|row| row[2] == "ok, refused"), "{table}");
    let exporter = rows(&table, "shop/exporter");
    assert!(exporter.len() == 1 && exporter[0][0].starts_with("not tried: port 9100/TCP"), "{table}");
    for (pod, why) in [
        ("shop/cart-5d8f-ccccc", "spec.nodeName is not set"),
        ("shop/exporter-x", "hostNetwork"),
        ("shop/migrate-1", "it has ended"),
    ] {
        let said = errors.lines().find(|line| line.contains(pod)).unwrap_or_else(|| panic!("{pod}: {errors}"));
        assert!(said.contains("not placed") && said.contains(why), "{said}");
    }
}

/// A demo on a folder with little in it, so that it is soon up.
fn small_demo(folder: &Path) -> Command {
    let demo_folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("demo");
    for name in ["nodes.yaml", "pods.yaml", "service-python.yaml"] {
        fs::copy(demo_folder.join(name), folder.join(name)).expect("copied");
    }
    let mut command = demo();
    command.arg("-f").arg(folder);
    command
}

fn wait_for(process: &mut Process, what: &str) {
    wait_until(what, Duration::from_mins(1), || {
        let said = process.stdout() + &process.stderr();
        let running = process.is_running();
        if said.contains(what) { Ok(()) } else { Err(format!("running: {running}, it said {said}")) }
    })
    .expect(what);
}

#[test]
fn a_signal_ends_it_at_any_time_and_nothing_stays() {
    needs_root!();
    let folder = tempfile::tempdir().expect("a folder");
    let rows: [(&str, &[&str], Signal, i32); 6] = [
        ("building", &[], Signal::INT, 130),
        ("starting an agent", &[], Signal::INT, 130),
        ("trying the access paths", &[], Signal::INT, 130),
        ("stays up until Ctrl-C", &[], Signal::INT, 0),
        ("stays up until Ctrl-C", &[], Signal::TERM, 0),
        ("sleeping", &["--", "sh", "-c", "echo sleeping; sleep 1000"], Signal::INT, 130),
    ];
    for (when, arguments, signal, code) in rows {
        let mut command = small_demo(folder.path());
        command.args(arguments);
        let mut process = Process::spawn("the demo", command).expect("the demo");
        let id = format!("btw-{}-", process.id());
        wait_for(&mut process, when);
        process.signal(signal).expect("a signal");
        let status = process.wait(Duration::from_secs(30)).expect("its end");
        assert_eq!(status.code(), Some(code), "{when}: {}", process.stderr());
        assert_eq!(traces(&id), Vec::<String>::new(), "{when}");
    }
}

#[test]
fn what_is_seen_as_left_behind_is_there_while_it_runs() {
    needs_root!();
    let folder = tempfile::tempdir().expect("a folder");
    let mut process = Process::spawn("the demo", small_demo(folder.path())).expect("the demo");
    wait_for(&mut process, "stays up until Ctrl-C");
    let traces = traces(&format!("btw-{}-", process.id()));
    for part in ["/run/netns/", "/bpf", "/proc/", "cgroup", &std::env::temp_dir().display().to_string()] {
        assert!(traces.iter().any(|trace| trace.contains(part)), "{part}: {traces:?}");
    }
    process.signal(Signal::INT).expect("a signal");
    assert!(process.wait(Duration::from_secs(30)).expect("its end").success());
}

#[test]
fn a_pod_that_comes_while_it_runs_gets_a_namespace_and_connections() {
    needs_root!();
    let folder = tempfile::tempdir().expect("a folder");
    let mut process = Process::spawn("the demo", small_demo(folder.path())).expect("the demo");
    wait_for(&mut process, "the agents follow, new Pods get a namespace.");
    let manual = process.stdout();
    let word = |line: &str, index: usize| line.split_whitespace().nth(index).expect("a word").to_owned();
    let documents = word(manual.lines().find(|line| line.starts_with("Edit the documents")).expect("a line"), 4);
    let client = word(manual.lines().find(|line| line.ends_with("# the client outside")).expect("a line"), 3);
    let pods = fs::read_to_string(folder.path().join("pods.yaml")).expect("documents");
    let python = pods.split("---\n").find(|document| document.contains("name: python-1")).expect("a document");
    let late = python.replace("python-1", "late").replace("10.244.1.12", "10.244.1.77").replace("1::12", "1::77");
    fs::write(Path::new(documents.trim_end_matches(':')).join("late.yaml"), late).expect("written");
    wait_for(&mut process, "# pod late");
    let peer = binary("ballast-peer").expect("the peer");
    wait_until("a connection to the new pod", Duration::from_secs(10), || {
        let mut connect = Command::new("ip");
        connect.args(["netns", "exec", &client]).arg(&peer).args(["connect", "--to", "192.168.1.2:30080"]);
        let output = connect.args(["--count", "10"]).output().map_err(|error| error.to_string())?;
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        if said.contains("\"late\"") { Ok(()) } else { Err(said + &String::from_utf8_lossy(&output.stderr)) }
    })
    .expect("connected");
    process.signal(Signal::INT).expect("a signal");
    assert!(process.wait(Duration::from_secs(30)).expect("its end").success());
}

#[test]
fn a_terminal_sees_it_move() {
    needs_root!();
    let folder = tempfile::tempdir().expect("a folder");
    let command = small_demo(folder.path());
    let words = std::iter::once(command.get_program()).chain(command.get_args()).map(|word| word.to_string_lossy());
    let line = words.chain(["--once".into()]).collect::<Vec<_>>().join(" ");
    let mut terminal = Command::new("script");
    terminal.args(["--quiet", "--return", "--command", &line, "/dev/null"]);
    let (code, shown, errors) = outcome(&mut terminal);
    assert_eq!(code, Some(0), "{shown}{errors}");
    assert!(shown.contains("trying access path") && shown.contains('\u{1b}'), "{shown:?}");
}

#[test]
fn a_folder_of_ones_own_and_a_command_at_the_client() {
    needs_root!();
    let folder = tempfile::tempdir().expect("a folder");
    let demo_folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("demo");
    for name in ["nodes.yaml", "pods.yaml", "my-service.yaml"] {
        fs::copy(demo_folder.join(name), folder.path().join(name)).expect("copied");
    }
    let output =
        demo().arg("-f").arg(folder.path()).args(["--", "sh", "-c", "hostname -I; exit 7"]).output().expect("the demo");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert_eq!(output.status.code(), Some(7), "{text}\n{}", String::from_utf8_lossy(&output.stderr));
    assert!(text.contains("my-service") && !text.contains("service-python"), "{text}");
    assert!(text.contains("192.168.100.2"), "{text}");
}

#[test]
fn a_folder_that_is_not_there_is_an_error_with_its_name() {
    needs_root!();
    let output = demo().args(["--once", "-f", "/nonexistent"]).output().expect("the demo");
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{text}");
    assert!(text.contains("/nonexistent"), "{text}");
}

#[test]
fn the_second_document_of_the_user_changes_the_type_in_place() {
    needs_root!();
    let world = World::builder().nodes(2).pods(2).build().expect("a world");
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("demo");
    let read = |name: &str| fs::read_to_string(folder.join(name)).expect("a document");
    for name in ["nodes.yaml", "pods.yaml", "service-python.yaml"] {
        world.apply(name, &read(name)).expect("applied");
    }
    let _servers: Vec<Echo> =
        world.pods().map(|pod| Echo::start(pod.place(), &[443], &[]).expect("a server")).collect();
    let agents = Agent::start_all(&world, &Setup::tcx(true)).expect("agents");
    let before = agents[0].cluster_ips("service-python", 2).expect("a cluster IP");
    let node_port = SocketAddr::from(([192, 168, 1, 2], 30080));
    Call::tcp(node_port).run_one(world.client()).expect("a run").reached().expect("an answer");

    let changed = read("service-python.yaml").replace("type: NodePort", "type: LoadBalancer");
    let status = "status: {loadBalancer: {ingress: [{ip: 203.0.113.20}]}}\n";
    world.apply("service-python.yaml", &format!("{changed}{status}")).expect("applied");
    for agent in &agents {
        wait_until("the new type", Duration::from_secs(5), || {
            let rows = agent.services().map_err(|error| format!("{error:#}"))?;
            let row = rows.into_iter().find(|row| row.name == "service-python").ok_or("not listed")?;
            if row.service_type == "LoadBalancer" { Ok(()) } else { Err(row.service_type) }
        })
        .expect("the change");
    }
    assert_eq!(agents[0].cluster_ips("service-python", 2).expect("a cluster IP"), before, "the address stays");
    for to in [node_port, SocketAddr::from(([203, 0, 113, 20], 3000))] {
        Call::tcp(to).run_one(world.client()).expect("a run").reached().unwrap_or_else(|error| panic!("{to}: {error}"));
    }
}
