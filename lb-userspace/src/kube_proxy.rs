//! What kube-proxy left in netfilter.

use std::{fs, io, process::Command};

/// kube-proxy's chains by the command that shows them; the error where it cannot be asked ([`io::ErrorKind::NotFound`]:
/// there is no such command).
pub fn chains() -> Vec<(&'static str, io::Result<Vec<String>>)> {
    let ways = [("nft", &["list", "chains"][..]), ("iptables-legacy-save", &[]), ("ip6tables-legacy-save", &[])];
    // Asking for them would load their modules.
    let ways = ways.into_iter().filter(|(program, _)| *program == "nft" || has_legacy_tables(program));
    ways.map(|(program, arguments)| (program, ask(program, arguments))).collect()
}

fn ask(program: &str, arguments: &[&str]) -> io::Result<Vec<String>> {
    let output = Command::new(program).args(arguments).output()?;
    if output.status.success() {
        return Ok(kube_chains(&String::from_utf8_lossy(&output.stdout)));
    }
    let text = String::from_utf8_lossy(&output.stderr);
    let line = text.lines().next().unwrap_or("no reason told");
    Err(io::Error::other(format!("{program}: {line}")))
}

fn has_legacy_tables(program: &str) -> bool {
    let names = if program.starts_with("ip6") { "/proc/net/ip6_tables_names" } else { "/proc/net/ip_tables_names" };
    fs::read_to_string(names).is_ok_and(|text| !text.trim().is_empty())
}

/// Chains of kube-proxy in the output of `nft list chains` or `iptables-save`: `KUBE-...` of its iptables and IPVS
/// modes, and everything in the table `kube-proxy` of its nftables mode. The kubelet has chains of its own.
fn kube_chains(text: &str) -> Vec<String> {
    const KUBELETS: [&str; 3] = ["KUBE-KUBELET-CANARY", "KUBE-FIREWALL", "KUBE-IPTABLES-HINT"];
    let mut found = Vec::new();
    let mut own_table = false;
    for line in text.lines() {
        let words: Vec<&str> = line.split_whitespace().collect();
        match words[..] {
            ["table", _, name, ..] => own_table = name == "kube-proxy",
            ["chain", name, ..] if own_table || name.starts_with("KUBE-") => found.push(name.to_owned()),
            [first, ..] => {
                let name = first.strip_prefix(':').filter(|name| name.starts_with("KUBE-"));
                found.extend(name.map(str::to_owned));
            }
            [] => {}
        }
    }
    found.retain(|name| !KUBELETS.contains(&&**name));
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chains_of_kube_proxy_are_told_from_the_kubelets_and_others() {
        let iptables = "*nat\n:PREROUTING ACCEPT [0:0]\n:KUBE-SERVICES - [0:0]\n:KUBE-KUBELET-CANARY - [0:0]\n-A PREROUTING -j KUBE-SERVICES\nCOMMIT\n";
        assert_eq!(kube_chains(iptables), ["KUBE-SERVICES"]);
        let nft = "table ip nat {\n\tchain KUBE-NODEPORTS {\n\t}\n\tchain DOCKER {\n\t}\n}\ntable ip6 kube-proxy {\n\tchain services {\n\t}\n}\ntable ip x {\n\tchain services {\n\t}\n}\n";
        assert_eq!(kube_chains(nft), ["KUBE-NODEPORTS", "services"]);
        assert!(kube_chains("").is_empty());
    }
}
