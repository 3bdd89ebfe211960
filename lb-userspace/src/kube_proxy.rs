//! What kube-proxy left in netfilter.

use std::{fs, io, process::Stdio, time::Duration};

use tokio::{process::Command, time::timeout};

/// For one command: a first start waits for it.
const PATIENCE: Duration = Duration::from_secs(5);

/// kube-proxy's chains by the command that shows them; the error where it cannot be asked ([`io::ErrorKind::NotFound`]:
/// there is no such command; [`io::ErrorKind::TimedOut`]: it did not answer within 5 s and was ended).
pub async fn chains() -> Vec<(&'static str, io::Result<Vec<String>>)> {
    let ways = [("nft", &["list", "chains"][..]), ("iptables-legacy-save", &[]), ("ip6tables-legacy-save", &[])];
    // Asking for them would load their modules.
    let ways = ways.into_iter().filter(|(program, _)| *program == "nft" || has_legacy_tables(program));
    let mut found = Vec::new();
    for (program, arguments) in ways {
        found.push((program, ask(program, arguments, PATIENCE).await));
    }
    found
}

async fn ask(program: &str, arguments: &[&str], patience: Duration) -> io::Result<Vec<String>> {
    let mut command = Command::new(program);
    command.args(arguments).stdin(Stdio::null()).kill_on_drop(true);
    let output = timeout(patience, command.output()).await.map_err(|_| {
        let text = format!("{program}: no answer within {} s, it was ended", patience.as_secs_f32());
        io::Error::new(io::ErrorKind::TimedOut, text)
    })??;
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
    use std::time::Instant;

    use super::*;

    #[test]
    fn chains_of_kube_proxy_are_told_from_the_kubelets_and_others() {
        let iptables = "*nat\n:PREROUTING ACCEPT [0:0]\n:KUBE-SERVICES - [0:0]\n:KUBE-KUBELET-CANARY - [0:0]\n-A PREROUTING -j KUBE-SERVICES\nCOMMIT\n";
        assert_eq!(kube_chains(iptables), ["KUBE-SERVICES"]);
        let nft = "table ip nat {\n\tchain KUBE-NODEPORTS {\n\t}\n\tchain DOCKER {\n\t}\n}\ntable ip6 kube-proxy {\n\tchain services {\n\t}\n}\ntable ip x {\n\tchain services {\n\t}\n}\n";
        assert_eq!(kube_chains(nft), ["KUBE-NODEPORTS", "services"]);
        assert!(kube_chains("").is_empty());
    }

    #[tokio::test]
    async fn a_command_that_hangs_fails_or_is_missing_is_told() {
        let begin = Instant::now();
        let hangs = ask("sh", &["-c", "echo :KUBE-SERVICES; exec sleep 60"], Duration::from_millis(300)).await;
        let error = hangs.expect_err("no answer");
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        assert_eq!(error.to_string(), "sh: no answer within 0.3 s, it was ended");
        assert!(begin.elapsed() < Duration::from_secs(30), "it was waited for");
        let fails = ask("sh", &["-c", "echo no table >&2; echo more >&2; exit 1"], PATIENCE).await;
        assert_eq!(fails.expect_err("a failure").to_string(), "sh: no table");
        let missing = ask("no-such-command", &[], PATIENCE).await;
        assert_eq!(missing.expect_err("nothing").kind(), io::ErrorKind::NotFound);
    }
}
