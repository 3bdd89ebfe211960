//! What the pipeline adds to a packet of an established flow, beside a program that does nothing and one that looks one
//! tuple up.
//!
//! Each program runs a million times on one packet (`BPF_PROG_TEST_RUN`), round after round, all of them in every round,
//! so that a slow moment of the machine falls on all alike. The packet stays as it is, though every rewrite is made in
//! full: the backend has the frontend's address.

use anyhow::Context as _;
use comfy_table::{CellAlignment, Table, presets::NOTHING};
use lb_tests::Bpffs;

use crate::{
    frames::{Flow, Kind},
    programs::{self, Programs},
    tables,
};

#[derive(Debug, clap::Args)]
pub(crate) struct Packet {
    /// Rounds; the lowest and the median are shown
    #[arg(long, default_value_t = 9, value_parser = clap::value_parser!(u16).range(1..=1000))]
    rounds: u16,
    /// Runs of each program in a round
    #[arg(long, default_value_t = 1_000_000, value_parser = clap::value_parser!(u32).range(1..=10_000_000))]
    repeat: u32,
    /// Numbers of flows to spread single runs over; 0 for none
    #[arg(long, value_delimiter = ',', default_value = "1,1000,16000,64000")]
    flows: Vec<u32>,
    /// One JSON document instead of tables
    #[arg(long)]
    json: bool,
}

/// A program on a packet, and its times.
struct Case {
    hook: &'static str,
    what: &'static str,
    program: &'static str,
    frame: Vec<u8>,
    times: Vec<u32>,
}

impl Case {
    const fn new(hook: &'static str, what: &'static str, program: &'static str, frame: Vec<u8>) -> Self {
        Self { hook, what, program, frame, times: Vec::new() }
    }

    fn is(&self, hook: &str, what: &str) -> bool {
        self.hook == hook && self.what == what
    }
}

const FLOOR: &str = "nothing (floor)";
const LOOKUP: &str = "one hash lookup";

/// Measures and prints.
pub(crate) fn packet(options: &Packet) -> anyhow::Result<()> {
    programs::pin_to_one_cpu()?;
    let bpffs = Bpffs::new()?;
    let mut programs = Programs::open(bpffs.path())?;
    tables::fill(&mut programs.datapath)?;

    let mut cases = cases(&mut programs)?;
    for round in 0..=options.rounds {
        for case in &mut cases {
            let time = programs.time(case.program, &case.frame, options.repeat)?;
            // The first round only warms.
            if round > 0 {
                case.times.push(time);
            }
        }
    }
    let mut spread = Vec::new();
    for flows in options.flows.iter().copied().filter(|flows| *flows > 0) {
        spread.push((flows, spread_over(&mut programs, flows)?));
    }
    if options.json {
        print_json(&cases, &spread)
    } else {
        print(options, &cases, &spread);
        Ok(())
    }
}

/// Every program with its packet; the flows are in conntrack afterwards.
fn cases(programs: &mut Programs) -> anyhow::Result<Vec<Case>> {
    let mut cases = Vec::new();
    for (hook, floor, lookup, ingress) in
        [("xdp", "floor_xdp", "lookup_xdp", "lb_xdp"), ("tc", "floor_tc", "lookup_tc", "lb_ingress")]
    {
        let port = if hook == "xdp" { 1000 } else { 2000 };
        let flow = Flow::new(Kind::TCP4, port);
        programs.know(&flow.packet())?;
        cases.push(Case::new(hook, FLOOR, floor, flow.packet()));
        cases.push(Case::new(hook, LOOKUP, lookup, flow.packet()));
        for (what, kind) in
            [("TCP, IPv4", Kind::TCP4), ("UDP, IPv4", Kind::UDP4), ("TCP, IPv6", Kind::TCP6), ("UDP, IPv6", Kind::UDP6)]
        {
            let flow = Flow::new(kind, port);
            programs.establish(ingress, &flow)?;
            cases.push(Case::new(hook, what, ingress, flow.packet()));
            if hook == "tc" {
                programs.answer(&flow)?;
                let what = match kind {
                    Kind::TCP4 => "TCP, IPv4, answer at egress",
                    Kind::UDP4 => "UDP, IPv4, answer at egress",
                    Kind::TCP6 => "TCP, IPv6, answer at egress",
                    _ => "UDP, IPv6, answer at egress",
                };
                cases.push(Case::new(hook, what, "lb_egress", flow.answer()));
            }
        }
        cases.push(Case::new(hook, "TCP, IPv4, no Service", ingress, Flow::foreign(port).packet()));
    }
    let flow = Flow::new(Kind::TCP4, 3000);
    programs.establish("lb_host", &flow)?;
    cases.push(Case::new("tc", "TCP, IPv4, of this host by ballast0", "lb_host", flow.packet()));
    Ok(cases)
}

/// Medians of single runs in random order over many flows: floor and pipeline.
fn spread_over(programs: &mut Programs, flows: u32) -> anyhow::Result<(u32, u32)> {
    const RUNS: usize = 30_000;
    let flow = |number: u32| Flow::numbered(Kind::TCP4, number);
    for number in 0..flows {
        programs.establish("lb_xdp", &flow(number)).with_context(|| format!("flow {number} of {flows}"))?;
    }
    let mut times = (Vec::with_capacity(RUNS), Vec::with_capacity(RUNS));
    let mut random = 0x9e37_79b9_7f4a_7c15_u64;
    for _ in 0..RUNS {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        let number = u32::try_from(random % u64::from(flows)).context("a number of flows")?;
        let packet = flow(number).packet();
        times.0.push(programs.time("floor_xdp", &packet, 1)?);
        times.1.push(programs.time("lb_xdp", &packet, 1)?);
    }
    Ok((median(&mut times.0), median(&mut times.1)))
}

fn median(times: &mut [u32]) -> u32 {
    times.sort_unstable();
    times.get(times.len() / 2).copied().unwrap_or(0)
}

/// Lowest and median of a case, and both above the floor of its hook.
fn figures(case: &Case, cases: &[Case]) -> [i64; 4] {
    let of = |case: &Case| {
        let mut times = case.times.clone();
        let middle = median(&mut times);
        (i64::from(times.first().copied().unwrap_or(0)), i64::from(middle))
    };
    let (lowest, middle) = of(case);
    let floor = cases.iter().find(|other| other.is(case.hook, FLOOR)).map_or((0, 0), of);
    [lowest, middle, lowest - floor.0, middle - floor.1]
}

fn print(options: &Packet, cases: &[Case], spread: &[(u32, (u32, u32))]) {
    let mut table = Table::new();
    table.load_style(NOTHING).set_header(["HOOK", "PACKET", "LOWEST", "MEDIAN", "ABOVE FLOOR"]);
    for case in cases {
        let [lowest, middle, _, above] = figures(case, cases);
        table.add_row([
            case.hook.to_owned(),
            case.what.to_owned(),
            format!("{lowest} ns"),
            format!("{middle} ns"),
            format!("{above} ns"),
        ]);
    }
    align(&mut table, 2);
    println!("One established flow, {} rounds of {} runs on one CPU:", options.rounds, options.repeat);
    println!("{table}");
    if spread.is_empty() {
        return;
    }
    let mut table = Table::new();
    table.load_style(NOTHING).set_header(["FLOWS", "FLOOR", "PIPELINE", "ABOVE FLOOR"]);
    for (flows, (floor, pipeline)) in spread {
        table.add_row([
            flows.to_string(),
            format!("{floor} ns"),
            format!("{pipeline} ns"),
            format!("{} ns", i64::from(*pipeline) - i64::from(*floor)),
        ]);
    }
    align(&mut table, 0);
    println!(
        "\nxdp, TCP, IPv4: single runs over many flows in random order (medians; caches are cold after each syscall):"
    );
    println!("{table}");
}

fn align(table: &mut Table, first: usize) {
    for column in table.column_iter_mut().skip(first) {
        column.set_cell_alignment(CellAlignment::Right);
    }
}

fn print_json(cases: &[Case], spread: &[(u32, (u32, u32))]) -> anyhow::Result<()> {
    let cases: Vec<_> = cases
        .iter()
        .map(|case| {
            let [lowest, median, lowest_above, median_above] = figures(case, cases);
            serde_json::json!({
                "hook": case.hook, "packet": case.what, "lowestNs": lowest, "medianNs": median,
                "lowestAboveFloorNs": lowest_above, "medianAboveFloorNs": median_above,
            })
        })
        .collect();
    let flows: Vec<_> = spread
        .iter()
        .map(|(flows, (floor, pipeline))| serde_json::json!({"flows": flows, "floorNs": floor, "pipelineNs": pipeline}))
        .collect();
    println!("{}", serde_json::to_string_pretty(&serde_json::json!({"cases": cases, "spread": flows}))?);
    Ok(())
}
