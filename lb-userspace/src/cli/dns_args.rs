//! What the command line says about DNS: `dns` and `run --dns`.

use std::{net::SocketAddr, path::PathBuf, time::Duration};

use clap::{Args, Command};
use ipnet::IpNet;

use super::{
    args::zone,
    server_args::{ApiServer, Pages},
};
use crate::{
    agent::DnsOptions,
    dns::{self, Clients, DEFAULT_RATE, DEFAULT_TTL, SourceOptions, zone::Pods},
    file_source,
    k8s::source::Access,
    resolv,
};

/// Port of `/health` and `/ready`.
const HEALTH_PORT: u16 = 8080;
/// Port of name servers.
const DNS_PORT: u16 = 53;
/// Port of `/metrics`.
const METRICS_PORT: u16 = 9153;
/// Who is at home.
const LOOPBACK: [&str; 2] = ["127.0.0.0/8", "::1/128"];

#[derive(Debug, Args)]
pub(super) struct Dns {
    /// File, folder or - for standard input: the documents `run` reads. Without it the objects are a cluster's
    #[arg(short, long = "filename", value_name = "PATH", conflicts_with_all = ["kubeconfig", "master"])]
    file: Option<PathBuf>,
    #[command(flatten)]
    api: ApiServer,
    /// Where to listen, UDP and TCP; may be repeated
    #[arg(long, value_name = "ADDR:PORT", default_value = "127.0.0.1:53", value_parser = listen)]
    listen: Vec<SocketAddr>,
    /// The cluster's domain
    #[arg(long, visible_alias = "cluster-domain", value_name = "NAME", default_value = resolv::ZONE, value_parser = zone)]
    zone: String,
    #[arg(
        long,
        value_name = "CIDR",
        value_delimiter = ',',
        help = "Ranges of cluster IPs [default with -f: 10.96.0.0/16,fd00:10:96::/112]"
    )]
    service_cidr: Vec<IpNet>,
    #[command(flatten)]
    rules: DnsRules,
    /// Where `run` keeps the addresses it allocated [default: one file for each PATH under /var/lib/ballast/allocations]
    #[arg(long, value_name = "FILE", requires = "file")]
    allocations: Option<PathBuf>,
    #[command(flatten)]
    pages: Pages<HEALTH_PORT, METRICS_PORT>,
    /// How long answers go on after SIGTERM, in seconds; meanwhile /ready says no
    #[arg(long, value_name = "SECONDS", default_value_t = 0)]
    lameduck: u16,
}

/// Heading of what is about DNS.
const NAMES: &str = "Names";

/// What `dns` and `run --dns` have in common.
#[derive(Debug, Args)]
#[command(next_help_heading = NAMES)]
pub(super) struct DnsRules {
    /// How long clients may keep an answer, in seconds
    #[arg(id = "dns-ttl", long = "ttl", visible_alias = "dns-ttl", value_name = "SECONDS", default_value_t = DEFAULT_TTL, value_parser = clap::value_parser!(u32).range(0..=3600))]
    ttl: u32,
    /// Names of pods, such as 10-244-1-5.default.pod.cluster.local: of any address, or only of those that pods have
    #[arg(long, value_enum, value_name = "MODE", default_value = "disabled")]
    pods: Pods,
    /// Ranges of pods: nobody else knows names of their addresses, and their questions have no rate limit
    #[arg(long, value_name = "CIDR", value_delimiter = ',')]
    cluster_cidr: Vec<IpNet>,
    /// Server that is asked for other names, or a resolv.conf that names some; may be repeated [default: none, other names
    /// are refused]
    #[arg(long, value_name = "ADDR:PORT", value_parser = servers)]
    upstream: Vec<Servers>,
    /// Clients that may ask for other names
    #[arg(long, value_name = "CIDR", value_delimiter = ',', default_values = LOOPBACK, requires = "upstream")]
    allow_recursion: Vec<IpNet>,
    /// UDP answers a second to one client: an IPv4 address or an IPv6 /64; 0 for no limit
    #[arg(long, value_name = "N", default_value_t = DEFAULT_RATE)]
    rate_limit: u32,
    /// Clients without a rate limit, beside --cluster-cidr
    #[arg(long, value_name = "CIDR", value_delimiter = ',', default_values = LOOPBACK)]
    rate_limit_exempt: Vec<IpNet>,
}

#[derive(Debug, Args)]
#[command(next_help_heading = NAMES)]
pub(super) struct RunDns {
    /// Answer DNS queries too, as `ballast dns` does; in a cluster it watches all Services, slices and Namespaces for that,
    /// which its role must allow
    #[arg(long)]
    dns: bool,
    /// Where to answer them, UDP and TCP; may be repeated [default: port 53 of 127.0.0.1 and of the Node's `InternalIP`
    /// addresses]
    #[arg(long, value_name = "ADDR:PORT", value_parser = listen)]
    dns_listen: Vec<SocketAddr>,
    /// The cluster's domain
    #[arg(long, value_name = "NAME", default_value = resolv::ZONE, value_parser = zone)]
    cluster_domain: String,
    #[command(flatten)]
    rules: DnsRules,
}

/// One port of UDP and TCP: 0 would be two, which nobody knows.
fn listen(text: &str) -> Result<SocketAddr, String> {
    let at = text.parse().ok().filter(|at: &SocketAddr| at.port() != 0);
    at.ok_or_else(|| format!("write ADDRESS:PORT, such as 127.0.0.1:{DNS_PORT} or [::]:{DNS_PORT}"))
}

/// Name servers.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Servers(Vec<SocketAddr>);

/// `ADDR:PORT`, `ADDR`, or the path of a resolv.conf, which is read once.
fn servers(text: &str) -> Result<Servers, String> {
    if !text.starts_with('/') {
        let at = text.parse().or_else(|_| text.parse().map(|address| SocketAddr::new(address, DNS_PORT)));
        return at.map(|at| Servers(vec![at])).map_err(|_| {
            format!("write ADDRESS:PORT, such as 192.0.2.53:{DNS_PORT}, or a path such as /etc/resolv.conf")
        });
    }
    let file = std::fs::read_to_string(text).map_err(|error| format!("{text}: {error}"))?;
    let named = file.lines().filter_map(|line| line.trim().strip_prefix("nameserver")?.trim().parse().ok());
    let all: Vec<_> = named.map(|address| SocketAddr::new(address, DNS_PORT)).collect();
    if all.is_empty() { Err(format!("{text}: it names no name server")) } else { Ok(Servers(all)) }
}

impl Dns {
    pub(super) fn options(self, state_dir: &std::path::Path) -> anyhow::Result<dns::Options> {
        let Self { file, api, service_cidr, allocations, rules, zone, pages, .. } = self;
        let mut services: Vec<IpNet> = service_cidr.iter().map(IpNet::trunc).collect();
        let source = if let Some(path) = file {
            let mut documents = file_source::Options { allocations, ..file_source::Options::new(path) };
            if services.is_empty() {
                services.clone_from(&documents.service_cidrs);
            } else {
                documents.service_cidrs.clone_from(&services);
            }
            SourceOptions::Documents(documents)
        } else {
            SourceOptions::Cluster(api.access(state_dir)?)
        };
        let (zone, clients) = rules.options(zone, services);
        let [health, metrics] = pages.addresses();
        Ok(dns::Options {
            source,
            listen: self.listen,
            zone,
            clients,
            health,
            metrics,
            lameduck: Duration::from_secs(self.lameduck.into()),
        })
    }
}

impl DnsRules {
    fn options(self, name: String, mut ranges: Vec<IpNet>) -> (dns::zone::Options, Clients) {
        let pods = self.cluster_cidr.iter().map(IpNet::trunc);
        ranges.extend(pods.clone());
        let servers: Vec<SocketAddr> = self.upstream.into_iter().flat_map(|Servers(all)| all).collect();
        let upstream = !servers.is_empty();
        let zone = dns::zone::Options { zone: name, ttl: self.ttl, pods: self.pods, ranges, upstream };
        let clients = Clients {
            upstream: servers,
            recursion: self.allow_recursion,
            rate: self.rate_limit,
            exempt: self.rate_limit_exempt.into_iter().chain(pods).collect(),
        };
        (zone, clients)
    }
}

impl RunDns {
    /// None if it is not asked for.
    pub(super) fn options(self, services: &[IpNet], cluster: Option<Access>) -> Option<DnsOptions> {
        let (zone, clients) = self.rules.options(self.cluster_domain, services.to_vec());
        self.dns.then_some(DnsOptions { listen: self.dns_listen, zone, clients, cluster })
    }

    /// What is said about DNS is nothing without it: every argument of `run` about names needs `--dns`.
    pub(super) fn need_dns(run: Command) -> Command {
        run.mut_args(|argument| {
            let is_of_names = argument.get_help_heading() == Some(NAMES) && argument.get_id() != "dns";
            if is_of_names { argument.requires("dns") } else { argument }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn where_to_listen_has_a_port() {
        assert_eq!(listen("[::]:53"), Ok("[::]:53".parse().expect("an address")));
        for text in ["127.0.0.1", "127.0.0.1:0", "localhost:53", "::1:53:", ""] {
            assert!(listen(text).is_err_and(|error| error.contains("127.0.0.1:53")), "{text}");
        }
    }

    #[test]
    fn servers_are_written_or_read() {
        let at = |text: &str| text.parse().expect("an address");
        assert_eq!(servers("192.0.2.53:5353"), Ok(Servers(vec![at("192.0.2.53:5353")])));
        assert_eq!(servers("2001:db8::1"), Ok(Servers(vec![at("[2001:db8::1]:53")])));
        assert!(servers("example.org").is_err_and(|error| error.contains("ADDRESS:PORT")));
        let file = tempfile::NamedTempFile::new().expect("a file");
        let path = file.path().to_str().expect("a path");
        std::fs::write(path, "# none\nsearch a.b\n").expect("written");
        assert!(servers(path).is_err_and(|error| error.contains("no name server")));
        std::fs::write(path, "search a\nnameserver 192.0.2.1\n  nameserver\t2001:db8::2\n").expect("written");
        assert_eq!(servers(path), Ok(Servers(vec![at("192.0.2.1:53"), at("[2001:db8::2]:53")])));
        assert!(servers("/nonexistent/resolv.conf").is_err());
    }

    #[derive(Debug, clap::Parser)]
    struct Line {
        #[command(flatten)]
        dns: Dns,
    }

    fn options(arguments: &[&str]) -> dns::Options {
        let line = <Line as clap::Parser>::try_parse_from([&["dns", "-f", "docs"], arguments].concat()).expect("valid");
        line.dns.options(std::path::Path::new("/nonexistent")).expect("options")
    }

    fn ranges(all: &[IpNet]) -> Vec<String> {
        all.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn ranges_of_pods_are_ours_and_have_no_limit() {
        let plain = options(&[]);
        assert_eq!(ranges(&plain.zone.ranges), ["10.96.0.0/16", "fd00:10:96::/112"]);
        assert_eq!(ranges(&plain.clients.exempt), LOOPBACK);
        assert_eq!(ranges(&plain.clients.recursion), LOOPBACK);
        assert!(!plain.zone.upstream && plain.clients.rate == DEFAULT_RATE && plain.zone.ttl == DEFAULT_TTL);
        let with =
            options(&["--cluster-cidr", "10.244.7.7/16", "--service-cidr", "10.7.0.9/24", "--upstream", "192.0.2.1"]);
        assert_eq!(ranges(&with.zone.ranges), ["10.7.0.0/24", "10.244.0.0/16"]);
        assert_eq!(ranges(&with.clients.exempt), [&LOOPBACK[..], &["10.244.0.0/16"]].concat());
        assert!(with.zone.upstream && with.clients.upstream == ["192.0.2.1:53".parse().expect("an address")]);
    }

    #[test]
    fn d15_the_ttl_is_at_most_an_hour() {
        let parsed = |ttl: &str| <Line as clap::Parser>::try_parse_from(["dns", "-f", "docs", "--ttl", ttl]).is_ok();
        assert!(parsed("0") && parsed("3600") && !parsed("3601") && !parsed("-1"));
    }
}
