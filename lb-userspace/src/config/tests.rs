//! Every class of field, and what people read.

use super::*;

fn kube_proxy(fields: &str) -> Result<Loaded, ConfigError> {
    parse("c.yaml", &format!("apiVersion: kubeproxy.config.k8s.io/v1alpha1\nkind: KubeProxyConfiguration\n{fields}"))
}

fn own(fields: &str) -> Result<Loaded, ConfigError> {
    parse("c.yaml", &format!("apiVersion: ballast.dev/v1alpha1\nkind: BallastConfiguration\n{fields}"))
}

fn error(result: Result<Loaded, ConfigError>) -> String {
    result.expect_err("refused").to_string()
}

fn causes(notes: &[Problem]) -> Vec<&str> {
    notes.iter().map(|note| &*note.cause).collect()
}

/// What kubeadm 1.33 puts into its `ConfigMap`.
const KUBEADM: &str = "bindAddress: 0.0.0.0
bindAddressHardFail: false
clientConnection:
  acceptContentTypes: \"\"
  burst: 0
  contentType: \"\"
  kubeconfig: /var/lib/kube-proxy/kubeconfig.conf
  qps: 0
clusterCIDR: \"\"
configSyncPeriod: 0s
conntrack: {maxPerCore: null, min: null, tcpBeLiberal: false, tcpCloseWaitTimeout: null, tcpEstablishedTimeout: null}
detectLocal: {bridgeInterface: \"\", interfaceNamePrefix: \"\"}
detectLocalMode: \"\"
enableProfiling: false
healthzBindAddress: \"\"
hostnameOverride: \"\"
iptables: {localhostNodePorts: null, masqueradeAll: false, masqueradeBit: null, minSyncPeriod: 0s, syncPeriod: 0s}
ipvs: {excludeCIDRs: null, minSyncPeriod: 0s, scheduler: \"\", strictARP: false, syncPeriod: 0s, tcpTimeout: 0s}
logging: {flushFrequency: 0, options: {json: {infoBufferSize: \"0\"}}, verbosity: 0}
metricsBindAddress: \"\"
mode: \"\"
nftables: {masqueradeAll: false, masqueradeBit: null, minSyncPeriod: 0s, syncPeriod: 0s}
nodePortAddresses: null
oomScoreAdj: null
portRange: \"\"
showHiddenMetricsForVersion: \"\"
winkernel: {enableDSR: false, forwardHealthCheckVip: false, networkName: \"\", rootHnsEndpointName: \"\", sourceVip: \"\"}
";

#[test]
fn the_file_of_kubeadm_passes_with_hardly_a_word() {
    let loaded = kube_proxy(KUBEADM).expect("accepted");
    assert_eq!(loaded.config.client_connection.kubeconfig, "/var/lib/kube-proxy/kubeconfig.conf");
    let told = "logging.options has no effect here: lines go to standard error, whole";
    assert_eq!(causes(&loaded.notes), [told]);
}

#[test]
fn each_field_without_an_effect_tells_why() {
    let text = "mode: userspace\nconfigSyncPeriod: 15m\nconntrack: {maxPerCore: 1, tcpBeLiberal: true}\n\
                iptables: {syncPeriod: 30s, masqueradeBit: 14}\nipvs: {scheduler: lc, strictARP: true}\n\
                portRange: 1-2\nenableProfiling: true\n";
    let loaded = kube_proxy(text).expect("accepted");
    let mut causes = causes(&loaded.notes);
    causes.sort_unstable();
    let expected = [
        "configSyncPeriod has no effect here: objects are watched",
        "conntrack.maxPerCore has no effect here: it sizes the kernel's conntrack",
        "conntrack.tcpBeLiberal has no effect here: it is about the kernel's conntrack",
        "enableProfiling has no effect here: there is no profiling server",
        "iptables.masqueradeBit has no effect here: packets are masqueraded without a mark",
        "iptables.syncPeriod has no effect here: changes are programmed as they come",
        "ipvs.scheduler has no effect here: there is no IPVS",
        "ipvs.strictARP has no effect here: there is no IPVS",
        "mode has no effect here: there is one datapath",
        "portRange has no effect here: nodePorts are what the Services say",
    ];
    assert_eq!(causes.len(), expected.len(), "{causes:?}");
    for (cause, expected) in causes.iter().zip(expected) {
        assert!(cause.starts_with(expected), "{cause} should begin as {expected}");
    }
}

#[test]
fn the_nodes_own_address_and_what_it_binds_are_honoured() {
    let of = |text: &str| kube_proxy(text).expect("accepted").config;
    for unspecified in ["", "bindAddress: null\n", "bindAddress: ''\n", "bindAddress: 0.0.0.0\n", "bindAddress: '::'\n"]
    {
        let config = of(unspecified);
        assert_eq!((config.bind_address, config.bind_hard_fail), (None, false), "{unspecified}");
    }
    assert_eq!(of("bindAddress: 2001:db8::1\n").bind_address, Some("2001:db8::1".parse().expect("an address")));
    assert!(of("bindAddressHardFail: true\n").bind_hard_fail);
    let told = error(kube_proxy("bindAddress: 192.0.2.0/24\n"));
    assert!(told.contains("c.yaml:3: bindAddress: \"192.0.2.0/24\" is no address; write an address"), "{told}");
}

#[test]
fn the_oom_score_is_a_number_that_linux_takes() {
    let of = |text: &str| kube_proxy(&format!("oomScoreAdj: {text}\n"));
    for (text, score) in [("null", None), ("0", Some(0)), ("-1000", Some(-1000)), ("1000", Some(1000))] {
        assert_eq!(of(text).expect("accepted").config.oom_score_adj, score);
    }
    for wrong in ["1001", "-1001", "0.5", "high", "99999999999999999999"] {
        let told = error(of(wrong));
        assert!(told.contains("oomScoreAdj") && told.ends_with("use a whole number from -1000 to 1000"), "{told}");
    }
}

#[test]
fn node_ports_on_loopback_addresses_can_be_switched_off() {
    let of = |text: &str| kube_proxy(text).expect("accepted");
    for (text, on) in [("", true), ("{localhostNodePorts: null}", true), ("{localhostNodePorts: true}", true)] {
        assert_eq!(of(&format!("iptables: {text}\n")).config.localhost_node_ports, on, "{text}");
    }
    let off = "iptables: {localhostNodePorts: false}\n";
    let loaded = of(off);
    assert!(!loaded.config.localhost_node_ports && loaded.notes.is_empty(), "{loaded:?}");
    for (asked, told) in [("[primary]", 0), ("[192.0.2.0/24]", 0), ("[localhost]", 1), ("[127.0.0.0/8]", 1)] {
        let loaded = of(&format!("{off}nodePortAddresses: {asked}\n"));
        assert_eq!(loaded.notes.len(), told, "{asked}: {loaded:?}");
    }
}

#[test]
fn fields_in_both_documents_are_honoured() {
    let text = "apiVersion: kubeproxy.config.k8s.io/v1alpha1\nkind: KubeProxyConfiguration\nhostnameOverride: n1\n\
                nodePortAddresses: [192.0.2.0/24, '2001:db8::1']\ndetectLocalMode: NodeCIDR\n---\n\
                apiVersion: ballast.dev/v1alpha1\nkind: BallastConfiguration\nxdp: 'off'\nsocketHooks: false\n\
                snatPorts: 40000-40009\ntakeoverSeconds: 0\nmaps: {conntrack: 1024}\ninterfaces: [{match: 'eth*', role: uplink, xdp: 'on'}]\n";
    let config = parse("c.yaml", text).expect("accepted").config;
    assert_eq!(config.hostname_override.as_deref(), Some("n1"));
    let ranges = ["192.0.2.0/24", "2001:db8::1/128"].map(|net| net.parse().expect("a range"));
    assert_eq!(config.node_port_addresses, NodePortAddresses::Ranges(ranges.into()));
    assert_eq!((config.xdp, config.socket_hooks), (XdpMode::Off, false));
    assert_eq!((config.snat_ports, config.takeover_seconds), (40_000..=40_009, 0));
    assert_eq!((config.maps.conntrack, config.maps.backends), (1024, MapSizes::default().backends));
    assert_eq!(config.interfaces.len(), 1);
}

#[test]
fn rule_2_3_8_the_detector_is_the_one_that_is_asked_for() {
    let ranges = |texts: &[&str]| texts.iter().map(|net| net.parse().expect("a range")).collect();
    for (text, expected) in [
        ("", DetectLocal::NodeCidr),
        ("detectLocalMode: ''\nclusterCIDR: ''\n", DetectLocal::NodeCidr),
        ("detectLocalMode: NodeCIDR\nclusterCIDR: 10.0.0.0/8\n", DetectLocal::NodeCidr),
        // kube-proxy's default, where kubeadm wrote the range.
        ("clusterCIDR: 10.244.0.0/16\n", DetectLocal::ClusterCidr(ranges(&["10.244.0.0/16"]))),
        (
            "detectLocalMode: ClusterCIDR\nclusterCIDR: '10.244.0.0/16, fd00:10:244::/56'\n",
            DetectLocal::ClusterCidr(ranges(&["10.244.0.0/16", "fd00:10:244::/56"])),
        ),
        (
            "detectLocalMode: BridgeInterface\ndetectLocal: {bridgeInterface: cni0}\n",
            DetectLocal::BridgeInterface("cni0".to_owned()),
        ),
        (
            "detectLocalMode: InterfaceNamePrefix\ndetectLocal: {interfaceNamePrefix: cali}\n",
            DetectLocal::InterfaceNamePrefix("cali".to_owned()),
        ),
    ] {
        let loaded = kube_proxy(text).expect("accepted");
        assert_eq!(loaded.config.detect_local, expected, "{text}");
        assert_eq!(loaded.notes, [], "{text}");
    }
    let loaded = kube_proxy("detectLocalMode: ClusterCIDR\n").expect("accepted");
    assert_eq!(loaded.config.detect_local, DetectLocal::ClusterCidr(vec![]));
    assert_eq!(causes(&loaded.notes), ["detectLocalMode detects no pod without clusterCIDR"]);
}

#[test]
fn conntrack_timeouts_are_durations_as_go_writes_them() {
    let of = |text: &str| kube_proxy(&format!("conntrack: {{{text}}}\n")).map(|loaded| loaded.config.timeouts);
    for (text, expected) in [
        ("tcpEstablishedTimeout: 0s, udpTimeout: null", Timeouts::DEFAULT),
        ("tcpEstablishedTimeout: 24h0m0s, tcpCloseWaitTimeout: 1h0m0s", Timeouts::new(86_400, 3_600, 0, 0)),
        ("udpTimeout: 30s, udpStreamTimeout: 2m30s", Timeouts::new(0, 0, 30, 150)),
        ("tcpEstablishedTimeout: 1.5h", Timeouts::new(5_400, 0, 0, 0)),
    ] {
        assert_eq!(of(text), Ok(expected), "{text}");
    }
    for (text, expected) in [
        ("udpTimeout: 2h", "conntrack.udpTimeout: 2h is too long; use 4095s or less"),
        ("tcpCloseWaitTimeout: 10000h", "is too long; use 1048575s or less"),
        ("tcpCloseWaitTimeout: -1s", "\"-1s\" is no duration; write hours"),
        ("tcpCloseWaitTimeout: soon", "\"soon\" is no duration"),
        ("tcpCloseWaitTimeout: 60", "conntrack.tcpCloseWaitTimeout: not a text"),
    ] {
        let told = of(text).expect_err("refused").to_string();
        assert!(told.contains(expected), "{told}");
    }
}

#[test]
fn rule_2_4_1_masquerade_all_is_a_word_of_either_section() {
    for (text, expected) in [
        ("", false),
        ("iptables: {masqueradeAll: false}\nnftables: {masqueradeAll: null}\n", false),
        ("iptables: {masqueradeAll: true}\n", true),
        ("nftables: {masqueradeAll: true}\n", true),
    ] {
        assert_eq!(kube_proxy(text).expect("accepted").config.masquerade_all, expected, "{text}");
    }
}

#[test]
fn no_document_means_the_defaults() {
    assert_eq!(parse("c.yaml", "").expect("accepted"), Loaded::default());
}

#[test]
fn errors_name_place_cause_and_fix() {
    for (result, expected) in [
        (
            kube_proxy("hostNameOverride: x\n"),
            "c.yaml:3: hostNameOverride: no field of KubeProxyConfiguration; did you mean hostnameOverride?",
        ),
        (kube_proxy("conntrack: {maxperCore: 1}\n"), "did you mean maxPerCore?"),
        (kube_proxy("winkernel: {sourceVip: 10.0.0.1}\n"), "winkernel: is for Windows"),
        (
            kube_proxy("detectLocalMode: Pods\n"),
            "c.yaml:3: detectLocalMode: \"Pods\" is no mode; use NodeCIDR, ClusterCIDR",
        ),
        (kube_proxy("detectLocalMode: BridgeInterface\n"), "detectLocal.bridgeInterface is missing; write detectLocal"),
        (kube_proxy("detectLocalMode: InterfaceNamePrefix\n"), "detectLocal.interfaceNamePrefix is missing"),
        (kube_proxy("clusterCIDR: 10.0.0.0/8,x\n"), "c.yaml:3: clusterCIDR: \"x\" is no range"),
        (kube_proxy("nodePortAddresses: [nonsense]\n"), "c.yaml:3: nodePortAddresses[0]: \"nonsense\" is no range"),
        (kube_proxy("nodePortAddresses: [80]\n"), "80 is no range"),
        (kube_proxy("nodePortAddresses: all\n"), "nodePortAddresses: not a list"),
        (kube_proxy("nodePortAddresses: [all, primary]\n"), "all stands beside others; write all alone"),
        (kube_proxy("nodePortAddresses: [all, 192.0.2.0/24]\n"), "all stands beside others"),
        (kube_proxy("nodePortAddresses: [primary, 192.0.2.0/24]\n"), "primary or localhost stands beside ranges"),
        (own("xpd: auto\n"), "did you mean xdp?"),
        (own("xdp: maybe\n"), "c.yaml:3: xdp: unknown variant `maybe`"),
        (own("maps: {backends: 3}\n"), "maps.backends: 3 is out of range; use 16 to"),
        (own("takeoverSeconds: 86401\n"), "takeoverSeconds: 86401 is out of range; use 0 (never) to 86400, a day"),
        (own("snatPorts: 80-90\n"), "is no range of ports"),
        (own("interfaces: [{match: e, speed: 1}]\n"), "no field of interfaces; fields are match, role, xdp"),
        (
            own("interfaces:\n- match: e\n- mach: e\n"),
            "c.yaml:5: interfaces[1].mach: no field of interfaces; did you mean match?",
        ),
        (own("externalIPs: {enable: true}\n"), "did you mean enabled?"),
        (own("externalIPs: {enabled: true, allowedCIDRs: []}\n"), "externalIPs.allowedCIDRs: it allows nothing"),
        (own("externalIPs: {enabled: true, allowedCIDRs: [a]}\n"), "allowedCIDRs[0]: \"a\" is no range"),
        (own("maps: {backend: 16}\n"), "maps.backend: no field of maps; did you mean backends?"),
        (parse("c.yaml", "kind: Config\n"), "is no configuration; use kubeproxy.config.k8s.io/v1alpha1"),
        (parse("c.yaml", "a: [\n"), "c.yaml"),
    ] {
        let text = error(result);
        assert!(text.contains(expected), "{text:?} should contain {expected:?}");
    }
    let twice = "apiVersion: ballast.dev/v1alpha1\nkind: BallastConfiguration\n";
    assert!(error(parse("c.yaml", &format!("{twice}---\n{twice}"))).contains("a second BallastConfiguration"));
}

#[test]
fn servers_listen_where_they_are_told_or_nowhere() {
    let of = |text: &str| {
        let config = kube_proxy(text).expect("accepted").config;
        (config.healthz_bind, config.metrics_bind)
    };
    let at = |text: &str| Some(Bind::At(text.parse().expect("an address")));
    assert_eq!(of(""), (None, None));
    assert_eq!(of("healthzBindAddress: ''\nmetricsBindAddress: null\n"), (None, None));
    assert_eq!(
        of("healthzBindAddress: 10.0.0.1\nmetricsBindAddress: '::'\n"),
        (at("10.0.0.1:10256"), at("[::]:10249"))
    );
    assert_eq!(of("healthzBindAddress: '[::1]:1'\nmetricsBindAddress: 'off'\n"), (at("[::1]:1"), Some(Bind::Off)));
    for wrong in ["localhost:80", "10.0.0.1:99999", "80"] {
        let text = error(kube_proxy(&format!("healthzBindAddress: '{wrong}'\n")));
        assert!(text.contains("is no address; write ADDRESS:PORT"), "{text}");
    }
}

#[test]
fn external_ips_are_off_unless_configured() {
    let range = "198.51.100.0/24".parse().expect("a range");
    for (text, expected) in [
        ("", ExternalIps::Off),
        ("externalIPs: {enabled: false}\n", ExternalIps::Off),
        ("externalIPs: {enabled: false, allowedCIDRs: [198.51.100.0/24]}\n", ExternalIps::Off),
        ("externalIPs: {enabled: true}\n", ExternalIps::All),
        ("externalIPs: {enabled: true, allowedCIDRs: [198.51.100.0/24]}\n", ExternalIps::Within(vec![range])),
    ] {
        assert_eq!(own(text).expect("accepted").config.external_ips, expected, "{text}");
    }
}

#[test]
fn node_port_addresses_are_words_or_ranges() {
    for (list, expected) in [
        ("null", NodePortAddresses::All),
        ("[]", NodePortAddresses::All),
        ("[all]", NodePortAddresses::All),
        ("[primary]", NodePortAddresses::Primary),
        ("[localhost]", NodePortAddresses::Localhost),
        ("[localhost, primary]", NodePortAddresses::PrimaryAndLocalhost),
    ] {
        let config = kube_proxy(&format!("nodePortAddresses: {list}\n")).expect("accepted").config;
        assert_eq!(config.node_port_addresses, expected, "{list}");
    }
}

#[test]
fn logging_is_honoured() {
    use logs::{Format, Options};
    for (text, format, verbosity) in [
        ("", Format::Text, 0),
        ("logging: {format: text}\n", Format::Text, 0),
        ("logging: {format: json, verbosity: 4}\n", Format::Json, 4),
        ("logging: {format: \"\", verbosity: null}\n", Format::Text, 0),
    ] {
        let loaded = kube_proxy(text).expect("accepted");
        assert_eq!(loaded.config.logging, Options { format, verbosity }, "{text}");
        assert_eq!(loaded.notes, [], "{text}");
    }
    let told = error(kube_proxy("logging: {format: xml}\n"));
    assert!(told.contains("logging.format") && told.ends_with("use text or json"), "{told}");
    let told = error(kube_proxy("logging: {verbosity: many}\n"));
    assert!(told.contains("logging.verbosity"), "{told}");
}
