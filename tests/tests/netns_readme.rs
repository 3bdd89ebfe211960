//! The code in README.md, as it stands there.

use anyhow::Context as _;
use lb_tests::needs_root;

#[rustfmt::skip]
fn sample() -> anyhow::Result<()> {
    // sample
    use lb_tests::{Agent, Echo, Setup, World, client::Call, kube::{PodSpec, Service}};

    // Removed when dropped, also after a panic.
    let world = World::builder().nodes(2).pods(2).rp_filter(1).build()?;
    world.apply_nodes()?;
    let pod = world.node(1).pod(0);
    world.apply_pod(pod, &PodSpec::labelled("app", "web"))?;
    world.apply_service(&Service::new("web", "app", "web").port(80, 9376, None))?;
    let _server = Echo::start(pod, &[9376], &[9376])?;
    // A real `ballast run` on each node.
    let agents = Agent::start_all(&world, &Setup::tcx(true))?;
    // One Pod with an address of each family.
    for vip in agents[0].cluster_ips("web", 2)? {
        let answer = Call::tcp((vip, 80)).run_one(world.client())?;
        // Who answered, and the source it saw: the node that the client's router sends Services to.
        assert_eq!(answer.reached()?, (pod.name(), world.node(0).ip_like(vip)));
    }
    // end
    Ok(())
}

#[test]
fn the_sample_works() {
    needs_root!();
    sample().expect("the sample");
}

#[test]
fn the_sample_is_the_readmes() {
    let here = between(include_str!("netns_readme.rs"), "    // sample\n", "    // end\n").expect("the sample");
    let here: String = here.lines().map(|line| format!("{}\n", line.strip_prefix("    ").unwrap_or(line))).collect();
    let there = between(include_str!("../README.md"), "```rust\n", "```\n").expect("the README's code");
    assert_eq!(here, there);
}

fn between<'a>(text: &'a str, begin: &str, end: &str) -> anyhow::Result<&'a str> {
    let (_, rest) = text.split_once(begin).with_context(|| format!("no {begin:?}"))?;
    Ok(rest.split_once(end).with_context(|| format!("no {end:?}"))?.0)
}
