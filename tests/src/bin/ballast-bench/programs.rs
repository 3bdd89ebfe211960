//! The datapath's programs and the yardsticks, run on packets.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail, ensure};
use aya::{
    Ebpf, EbpfLoader, TestRunResult,
    maps::HashMap,
    programs::{Program, ProgramError, SchedClassifier, TestRun, TestRunOptions, Xdp},
};
use lb_userspace::bpf::{Datapath, MapSizes};

use crate::frames::Flow;

/// Where `cargo xtask` leaves the object; `BALLAST_YARDSTICKS` names another.
const OBJECT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../target/bpf/bpfel-unknown-none/bpf/yardsticks");
/// Room for every flow of the longest run, several entries each.
const CONNTRACK: u32 = 1 << 19;

pub(crate) struct Programs {
    pub(crate) datapath: Datapath,
    yardsticks: Ebpf,
}

impl Programs {
    pub(crate) fn open(bpffs: &Path) -> anyhow::Result<Self> {
        let sizes = MapSizes { services: 64, frontends: 64, backends: 64, rings: 64, conntrack: CONNTRACK };
        let datapath = Datapath::open(bpffs, &sizes)?;
        let object = std::env::var_os("BALLAST_YARDSTICKS").map_or_else(|| PathBuf::from(OBJECT), PathBuf::from);
        let mut yardsticks = EbpfLoader::new().load_file(&object).with_context(|| {
            format!("cannot load the yardsticks from {}; `cargo xtask bench packet` builds them", object.display())
        })?;
        for (name, program) in yardsticks.programs_mut() {
            match program {
                Program::Xdp(program) => program.load(),
                Program::SchedClassifier(program) => program.load(),
                _ => bail!("{name} is no yardstick"),
            }
            .with_context(|| format!("cannot load {name}"))?;
        }
        Ok(Self { datapath, yardsticks })
    }

    /// Nanoseconds of one run, the average of `repeat`.
    pub(crate) fn time(&mut self, name: &str, frame: &[u8], repeat: u32) -> anyhow::Result<u32> {
        let (time, out) = self.run(name, frame, repeat)?;
        ensure!(out == frame, "{name} changed the packet: the runs after the first would measure another one");
        Ok(time)
    }

    /// The same, and the packet that comes out.
    fn run(&mut self, name: &str, frame: &[u8], repeat: u32) -> anyhow::Result<(u32, Vec<u8>)> {
        let mut out = vec![0; frame.len()];
        let options =
            TestRunOptions { data_in: Some(frame), data_out: Some(&mut out), repeat, ..TestRunOptions::default() };
        let program = match self.yardsticks.program_mut(name) {
            Some(program) => program,
            None => self.datapath.program(name).with_context(|| format!("there is no program {name}"))?,
        };
        let result = match program {
            Program::Xdp(program) => test_run::<Xdp>(program, options),
            Program::SchedClassifier(program) => test_run::<SchedClassifier>(program, options),
            _ => bail!("{name} takes no packets"),
        };
        Ok((result.with_context(|| format!("cannot run {name}"))?, out))
    }

    /// Makes the yardsticks know a packet's tuple.
    pub(crate) fn know(&mut self, frame: &[u8]) -> anyhow::Result<()> {
        let map = self.yardsticks.map_mut("FLOWS").context("the yardsticks have no map FLOWS")?;
        let mut flows: HashMap<_, [u8; 12], u64> = map.try_into().context("FLOWS is no hash")?;
        let tuple: [u8; 12] =
            frame.get(26..38).and_then(|tuple| tuple.try_into().ok()).context("a packet too short")?;
        flows.insert(tuple, 0, 0).context("cannot fill FLOWS")
    }

    /// Brings a flow into conntrack by its own first packets.
    pub(crate) fn establish(&mut self, ingress: &str, flow: &Flow) -> anyhow::Result<()> {
        self.time(ingress, &flow.opening(), 1)?;
        // The answer to a process of this host goes round by ingress.
        let answers = if ingress == "lb_host" { "lb_ingress" } else { "lb_egress" };
        self.run(answers, &flow.opening_answer(), 1)?;
        self.time(ingress, &flow.packet(), 1).map(drop)
    }

    /// An answer, for the counters of the other direction.
    pub(crate) fn answer(&mut self, flow: &Flow) -> anyhow::Result<()> {
        self.time("lb_egress", &flow.answer(), 1).map(drop)
    }
}

fn test_run<P>(program: &mut P, options: TestRunOptions<'_>) -> Result<u32, ProgramError>
where
    P: for<'a> TestRun<Opts<'a> = TestRunOptions<'a>, Result = TestRunResult>,
{
    let result = program.test_run(options)?;
    Ok(u32::try_from(result.duration.as_nanos()).unwrap_or(u32::MAX))
}

/// Two CPUs may run at two speeds.
pub(crate) fn pin_to_one_cpu() -> anyhow::Result<()> {
    let mut set = rustix::thread::CpuSet::new();
    set.set(0);
    rustix::thread::sched_setaffinity(None, &set).context("cannot stay on one CPU")
}
