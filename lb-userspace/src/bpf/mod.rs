//! The kernel side: load the programs, pin maps and links, attach. The only module that knows aya.
//!
//! ```text
//! <bpffs>/ballast/v2/maps/LB4_FRONTENDS ...
//! <bpffs>/ballast/v2/links/{ingress,egress,xdp,host}-<ifindex>  cgroup-<cgroup id>-{connect4,...}
//! ```
//! Links outlive the agent; a new agent puts its programs behind them, one atomic update each.

mod attach;
#[cfg(feature = "bpf-log")]
mod log;
mod maps;
mod pins;
pub mod probe;
mod signals;
mod spec;
mod sys;

use std::{
    collections::BTreeMap,
    fs, io,
    panic::resume_unwind,
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError},
    thread,
};

use aya::{
    Ebpf, EbpfLoader, VerifierLogLevel,
    programs::{Program, ProgramError, SchedClassifier},
};

use self::sys::Access;
pub use self::{
    attach::{AttachError, Attached, SOCKET_PROGRAMS},
    maps::{FlowFamily, MapSizes, Maps, PinError},
    pins::{Hooks, Pins},
    spec::SCHEMA,
};

/// The BPF object, as `cargo xtask build` made it.
static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/lb-ebpf.o"));

/// Magic number of a bpffs in `statfs(2)`.
const BPF_FS_MAGIC: u64 = 0xcafe_4a11;

/// `BPF_PROG_TYPE_SCHED_CLS`
const SCHED_CLS: u32 = 3;

/// Why the kernel side cannot be set up.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Built without the object.
    #[error("this program was built without its BPF object; build it with `cargo xtask build`")]
    NoObject,
    /// Not a bpffs.
    #[error("{0} is not a bpffs; mount one there (`mkdir -p {0}; mount -t bpf bpf {0}`) or name another with --bpffs")]
    NoBpffs(PathBuf),
    /// The file system refused.
    #[error("cannot {what} {path}: {cause}; the agent needs to be root on a mounted bpffs")]
    Io {
        /// What was tried.
        what: &'static str,
        /// With which path.
        path: PathBuf,
        /// Why it failed.
        cause: io::Error,
    },
    /// A pin of another layout.
    #[error(transparent)]
    Pin(#[from] PinError),
    /// The object could not be loaded.
    #[error("the kernel refused the maps: {0}; the agent needs root (CAP_BPF, CAP_NET_ADMIN) and kernel 6.6 or newer")]
    Maps(String),
    /// A program was refused.
    #[error("the kernel refused program {program}: {cause}; kernel 6.6 or newer is needed, please file a bug if it is")]
    Program {
        /// Its name.
        program: &'static str,
        /// Why.
        cause: String,
    },
}

/// The loaded programs and the open maps.
#[derive(Debug)]
pub struct Datapath {
    ebpf: Ebpf,
    pins: Pins,
    /// The maps.
    pub maps: Maps,
}

/// The programs for packets, in the order they are loaded: the largest first.
const PROGRAMS: [&str; 5] = ["lb_host", "lb_ingress", "lb_xdp", "lb_egress", "lb_clock"];

impl Datapath {
    /// Loads everything. Maps that are pinned already are used again if they are what this program needs; nothing is
    /// changed if one is not.
    pub fn open(bpffs: &Path, sizes: &MapSizes) -> Result<Self, OpenError> {
        if OBJECT.is_empty() {
            return Err(OpenError::NoObject);
        }
        let pins = Pins::new(bpffs);
        let failed = |what, path: &Path| {
            let path = path.to_owned();
            move |cause| OpenError::Io { what, path, cause }
        };
        check_bpffs(bpffs)?;
        let (maps, links) = (pins.maps(), pins.links());
        maps::check_directory(pins.base())?;
        maps::check_pins(&maps, sizes)?;
        for directory in [&maps, &links] {
            fs::create_dir_all(directory).map_err(failed("make", directory))?;
        }
        let mut loader = EbpfLoader::new();
        // The log is only made when a program is refused: it costs seconds otherwise.
        loader.verifier_log_level(VerifierLogLevel::STATS);
        for spec in &spec::MAPS {
            loader.map_max_entries(spec.name, sizes.of(spec));
            loader.map_pin_path(spec.name, maps.join(spec.name));
        }
        let mut ebpf = loader.load(OBJECT).map_err(|error| OpenError::Maps(chain(&error)))?;
        load_all(&mut ebpf)?;
        let maps = Maps::open(&maps, Access::ReadWrite)?;
        Ok(Self { ebpf, pins, maps })
    }

    /// The verifier's work for each program: processed instructions.
    pub fn verified_instructions(&self) -> Vec<(String, u32)> {
        let programs = self.ebpf.programs();
        programs
            .filter_map(|(name, program)| Some((name.to_owned(), program.info().ok()?.verified_instruction_count()?)))
            .collect()
    }

    /// The clock of conntrack's stamps: the low 32 bits of jiffies.
    pub fn clock(&mut self) -> io::Result<u32> {
        use aya::programs::{TestRun as _, TestRunOptions};
        let program: &mut SchedClassifier = program(&mut self.ebpf, "lb_clock").map_err(io::Error::other)?;
        let frame = [0; 14];
        let options = TestRunOptions { data_in: Some(&frame), ..TestRunOptions::default() };
        let run = program.test_run(options).map_err(|error| io::Error::other(chain(&error)))?;
        Ok(run.return_value)
    }

    /// Shows the log lines of the programs in the background, in a build that has them. Call it inside a runtime.
    #[cfg(feature = "bpf-log")]
    pub fn follow_log(&mut self) {
        log::follow(&mut self.ebpf);
    }

    /// A loaded program, for test runs.
    pub fn program(&mut self, name: &str) -> Option<&mut Program> {
        self.ebpf.program_mut(name)
    }
}

/// [`Datapath::clock`] for whoever has no datapath: a program of two instructions tells it.
pub fn clock() -> io::Result<u32> {
    use std::os::fd::AsFd as _;
    // call bpf_jiffies64; exit
    let instructions = [[0x85, 0, 0, 0, 118, 0, 0, 0], [0x95, 0, 0, 0, 0, 0, 0, 0]];
    let small = sys::Small { kind: SCHED_CLS, attach_type: 0, flags: 0, instructions: &instructions };
    sys::run(sys::load_small(&small)?.as_fd())
}

/// Whether a bpffs is mounted there.
pub fn check_bpffs(bpffs: &Path) -> Result<(), OpenError> {
    match rustix::fs::statfs(bpffs) {
        Ok(found) if found.f_type.cast_unsigned() == BPF_FS_MAGIC => Ok(()),
        Ok(_) | Err(rustix::io::Errno::NOENT | rustix::io::Errno::NOTDIR) => Err(OpenError::NoBpffs(bpffs.to_owned())),
        Err(error) => Err(OpenError::Io { what: "look at", path: bpffs.to_owned(), cause: error.into() }),
    }
}

/// Mounts a bpffs where there is none, with its folder.
pub fn mount_bpffs(bpffs: &Path) -> Result<(), OpenError> {
    use rustix::mount::{MountFlags, mount};
    match check_bpffs(bpffs) {
        Err(OpenError::NoBpffs(_)) => {}
        result => return result,
    }
    let failed = |what| move |cause| OpenError::Io { what, path: bpffs.to_owned(), cause };
    fs::create_dir_all(bpffs).map_err(failed("make"))?;
    // As systemd mounts it.
    let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    mount("bpf", bpffs, "bpf", flags, c"mode=700").map_err(|error| failed("mount a bpffs at")(error.into()))?;
    tracing::info!("mounted a bpffs at {}", bpffs.display());
    check_bpffs(bpffs)
}

/// The maps an agent left pinned, to be read only; `None` if there are none.
pub fn read_pinned(bpffs: &Path) -> Result<Option<Maps>, OpenError> {
    check_bpffs(bpffs)?;
    let directory = Pins::new(bpffs).maps();
    match fs::read_dir(&directory) {
        Ok(_) => Ok(Some(Maps::open(&directory, Access::ReadOnly)?)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(cause) => Err(OpenError::Io { what: "read", path: directory, cause }),
    }
}

/// Programs that are verified at a time: the verifier works on one CPU, and takes tens of megabytes for a large one.
const AT_ONCE: usize = 2;

fn load_all(ebpf: &mut Ebpf) -> Result<(), OpenError> {
    let mut programs: BTreeMap<String, &mut Program> =
        ebpf.programs_mut().map(|(name, program)| (name.to_owned(), program)).collect();
    let names = PROGRAMS.into_iter().chain(SOCKET_PROGRAMS);
    let queue: Vec<_> = names.map(|name| (name, programs.remove(name))).collect();
    let queue = Mutex::new(queue.into_iter());
    let work = || {
        loop {
            let next = queue.lock().unwrap_or_else(PoisonError::into_inner).next();
            let Some((name, program)) = next else { return Ok(()) };
            let loaded = program.map_or_else(|| Err("it is not in the object".to_owned()), load);
            loaded.map_err(|cause| OpenError::Program { program: name, cause })?;
        }
    };
    let _blocked = signals::Blocked::here();
    thread::scope(|scope| {
        let mut others = Vec::new();
        for _ in 1..AT_ONCE {
            // Where there is no room for a thread, this one does it all.
            others.extend(thread::Builder::new().name("verifier".to_owned()).spawn_scoped(scope, work));
        }
        let own = work();
        others.into_iter().map(|other| other.join().unwrap_or_else(|panic| resume_unwind(panic))).fold(own, Result::and)
    })
}

fn load(program: &mut Program) -> Result<(), String> {
    let loaded = match program {
        Program::SchedClassifier(program) => program.load(),
        Program::Xdp(program) => program.load(),
        Program::CgroupSockAddr(program) => program.load(),
        _ => return Err("it is of a kind that is not known".to_owned()),
    };
    loaded.map_err(|error| chain(&error))
}

/// A program of the object by name; the error says what is wrong with it.
fn program<'a, P: 'a>(ebpf: &'a mut Ebpf, name: &str) -> Result<&'a mut P, String>
where
    &'a mut P: TryFrom<&'a mut Program, Error = ProgramError>,
{
    let program = ebpf.program_mut(name).ok_or_else(|| "it is not in the object".to_owned())?;
    program.try_into().map_err(|error: ProgramError| chain(&error))
}

/// An error with its causes, on one line.
pub(crate) fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        let cause_text = cause.to_string();
        if !text.ends_with(&cause_text) {
            text.push_str(": ");
            text.push_str(&cause_text);
        }
        next = cause.source();
    }
    text
}
