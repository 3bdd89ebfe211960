//! The few `bpf(2)` commands that aya does not offer on raw bytes, `membarrier(2)` and `unshare(2)`.

use std::{
    ffi::CString,
    io,
    os::{
        fd::{AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd},
        unix::ffi::OsStrExt as _,
    },
    path::Path,
};

use super::signals::Blocked;

const BPF_MAP_LOOKUP_ELEM: libc::c_long = 1;
const BPF_MAP_UPDATE_ELEM: libc::c_long = 2;
const BPF_MAP_DELETE_ELEM: libc::c_long = 3;
const BPF_PROG_LOAD: libc::c_long = 5;
const BPF_OBJ_GET: libc::c_long = 7;
const BPF_PROG_TEST_RUN: libc::c_long = 10;
const BPF_MAP_LOOKUP_BATCH: libc::c_long = 24;
const BPF_LINK_CREATE: libc::c_long = 28;
const BPF_LINK_UPDATE: libc::c_long = 29;
const BPF_LINK_DETACH: libc::c_long = 34;

/// A descriptor through which the kernel refuses writes.
const BPF_F_RDONLY: u32 = 1 << 3;

/// `MEMBARRIER_CMD_GLOBAL`: returns after an RCU grace period of all CPUs.
const MEMBARRIER_CMD_GLOBAL: libc::c_long = 1;

/// `union bpf_attr`, as far as these commands use it.
#[repr(C)]
#[derive(Clone, Copy)]
union Attr {
    element: Element,
    batch: Batch,
    object: Object,
    link: LinkUpdate,
    new_link: LinkCreate,
    program: ProgramLoad,
    run: TestRun,
    /// The kernel wants the rest of the union to be zero.
    zero: [u64; 16],
}

#[repr(C)]
#[derive(Clone, Copy)]
struct Element {
    fd: u32,
    key: u64,
    value: u64,
    flags: u64,
}

#[repr(C)]
#[derive(Clone, Copy)]
struct Batch {
    from: u64,
    to: u64,
    keys: u64,
    values: u64,
    count: u32,
    fd: u32,
    element_flags: u64,
    flags: u64,
}

#[repr(C)]
#[derive(Clone, Copy)]
struct Object {
    path: u64,
    fd: u32,
    flags: u32,
}

#[repr(C)]
#[derive(Clone, Copy)]
struct LinkUpdate {
    link: u32,
    program: u32,
    flags: u32,
    old_program: u32,
}

#[repr(C)]
#[derive(Clone, Copy)]
struct LinkCreate {
    program: u32,
    target: u32,
    attach_type: u32,
    flags: u32,
}

#[repr(C)]
#[derive(Clone, Copy)]
struct ProgramLoad {
    kind: u32,
    instruction_count: u32,
    instructions: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log: u64,
    kernel_version: u32,
    flags: u32,
    name: [u8; 16],
    ifindex: u32,
    attach_type: u32,
}

#[repr(C)]
#[derive(Clone, Copy)]
struct TestRun {
    program: u32,
    result: u32,
    size_in: u32,
    size_out: u32,
    data_in: u64,
    data_out: u64,
}

fn call(command: libc::c_long, attr: &mut Attr) -> io::Result<libc::c_long> {
    // SAFETY: `attr` is as large as we say; every pointer in it is to a live buffer of the size the command uses, which
    // each caller checks.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, std::ptr::from_mut(attr), size_of::<Attr>()) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

fn raw(fd: BorrowedFd<'_>) -> u32 {
    fd.as_raw_fd().cast_unsigned()
}

fn element(fd: BorrowedFd<'_>, key: &[u8], value: u64, flags: u64) -> Attr {
    let mut attr = Attr { zero: [0; 16] };
    attr.element = Element { fd: raw(fd), key: key.as_ptr() as u64, value, flags };
    attr
}

/// A map with the sizes of its keys and values: every buffer is checked against them.
#[derive(Debug)]
pub(super) struct RawMap {
    fd: OwnedFd,
    key_size: usize,
    value_size: usize,
    max_entries: u32,
}

impl RawMap {
    /// `key_size` and `value_size` must be the map's own, as `MapInfo` tells them.
    pub(super) fn new(fd: OwnedFd, key_size: u32, value_size: u32, max_entries: u32) -> Self {
        Self { fd, key_size: key_size as usize, value_size: value_size as usize, max_entries }
    }

    pub(super) const fn max_entries(&self) -> u32 {
        self.max_entries
    }

    /// Bytes of kernel memory, as `/proc` tells them.
    pub(super) fn memory(&self) -> Option<u64> {
        let text = std::fs::read_to_string(format!("/proc/self/fdinfo/{}", self.fd.as_raw_fd())).ok()?;
        text.lines().find_map(|line| line.strip_prefix("memlock:")?.trim().parse().ok())
    }

    fn check(&self, key: &[u8], value: Option<&[u8]>) -> io::Result<BorrowedFd<'_>> {
        use std::os::fd::AsFd as _;
        if key.len() != self.key_size || value.is_some_and(|value| value.len() != self.value_size) {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "a key or value of another size than the map's"));
        }
        Ok(self.fd.as_fd())
    }

    /// Sets an entry.
    pub(super) fn update(&self, key: &[u8], value: &[u8]) -> io::Result<()> {
        let fd = self.check(key, Some(value))?;
        call(BPF_MAP_UPDATE_ELEM, &mut element(fd, key, value.as_ptr() as u64, 0)).map(drop)
    }

    /// Sets every CPU's value of a per-CPU map.
    pub(super) fn update_copies(&self, key: &[u8], values: &[u8], copies: usize) -> io::Result<()> {
        let fd = self.check(key, None)?;
        if values.len() != self.value_size.next_multiple_of(8) * copies {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "not a value for each CPU"));
        }
        call(BPF_MAP_UPDATE_ELEM, &mut element(fd, key, values.as_ptr() as u64, 0)).map(drop)
    }

    /// Removes an entry; whether there was one.
    pub(super) fn delete(&self, key: &[u8]) -> io::Result<bool> {
        let fd = self.check(key, None)?;
        match call(BPF_MAP_DELETE_ELEM, &mut element(fd, key, 0, 0)) {
            Ok(_) => Ok(true),
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Reads an entry. `copies`: how many values the kernel returns (the possible CPUs of a per-CPU map, else 1).
    pub(super) fn lookup(&self, key: &[u8], copies: usize) -> io::Result<Option<Vec<u8>>> {
        let fd = self.check(key, None)?;
        let size = if copies == 1 { self.value_size } else { self.value_size.next_multiple_of(8) * copies };
        let mut value = vec![0_u8; size];
        match call(BPF_MAP_LOOKUP_ELEM, &mut element(fd, key, value.as_mut_ptr() as u64, 0)) {
            Ok(_) => Ok(Some(value)),
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Visits every entry, in batches. Entries that change meanwhile may be seen old, new, or not at all.
    pub(super) fn for_each(&self, mut visit: impl FnMut(&[u8], &[u8])) -> io::Result<()> {
        let mut batch = Batches::new(self, 4096.min(self.max_entries.max(1)), 1);
        loop {
            let last = batch.next_with_room()?;
            batch.visit(&mut visit);
            if last {
                return Ok(());
            }
        }
    }

    /// Visits about `most` entries from `from` on, the beginning if absent; where to go on, `None` at the end.
    pub(super) fn for_some(
        &self,
        from: Option<&[u8]>,
        most: u32,
        visit: impl FnMut(&[u8], &[u8]),
    ) -> io::Result<Option<Box<[u8]>>> {
        let mut batch = Batches::new(self, most.clamp(1, self.max_entries.max(1)), 1);
        if let Some(from) = from {
            if from.len() != batch.cursor.len() {
                return Err(io::Error::new(io::ErrorKind::InvalidInput, "a cursor of another map"));
            }
            batch.cursor.copy_from_slice(from);
            batch.started = true;
        }
        let last = batch.next_with_room()?;
        batch.visit(visit);
        Ok((!last).then(|| batch.cursor.into_boxed_slice()))
    }

    /// Visits the first entries of an array. `copies`: as for [`Self::lookup`].
    pub(super) fn for_first(&self, count: u32, copies: usize, visit: impl FnMut(&[u8], &[u8])) -> io::Result<()> {
        let mut batch = Batches::new(self, count.min(self.max_entries).max(1), copies);
        batch.next()?;
        batch.visit(visit);
        Ok(())
    }
}

/// A map's entries, some at a time.
struct Batches<'a> {
    map: &'a RawMap,
    /// Entries for which there is room.
    room: u32,
    /// Bytes the kernel writes for a value.
    value_size: usize,
    /// Where the next batch begins: a u32 for arrays and hashes, a key for tries.
    cursor: Vec<u8>,
    started: bool,
    keys: Vec<u8>,
    values: Vec<u8>,
    /// Entries of the last batch.
    count: usize,
}

impl<'a> Batches<'a> {
    fn new(map: &'a RawMap, room: u32, copies: usize) -> Self {
        let value_size = if copies == 1 { map.value_size } else { map.value_size.next_multiple_of(8) * copies };
        let cursor = vec![0; map.key_size.max(8)];
        let (keys, values) = (vec![0; map.key_size * room as usize], vec![0; value_size * room as usize]);
        Self { map, room, value_size, cursor, started: false, keys, values, count: 0 }
    }

    fn resize(&mut self, room: u32) {
        self.room = room;
        self.keys.resize(self.map.key_size * room as usize, 0);
        self.values.resize(self.value_size * room as usize, 0);
    }

    /// Reads the next batch, with more room if it needs that; whether it was the last.
    fn next_with_room(&mut self) -> io::Result<bool> {
        loop {
            match self.next() {
                // A bucket of a hash holds more than there is room for.
                Err(error) if error.raw_os_error() == Some(libc::ENOSPC) && self.room < self.map.max_entries => {
                    self.resize(self.room.saturating_mul(2).min(self.map.max_entries));
                }
                read => return read,
            }
        }
    }

    /// Reads the next batch; whether it was the last.
    fn next(&mut self) -> io::Result<bool> {
        let mut attr = Attr { zero: [0; 16] };
        attr.batch = Batch {
            from: if self.started { self.cursor.as_ptr() as u64 } else { 0 },
            to: self.cursor.as_mut_ptr() as u64,
            keys: self.keys.as_mut_ptr() as u64,
            values: self.values.as_mut_ptr() as u64,
            count: self.room,
            fd: self.map.fd.as_raw_fd().cast_unsigned(),
            element_flags: 0,
            flags: 0,
        };
        let result = call(BPF_MAP_LOOKUP_BATCH, &mut attr);
        let last = match result {
            Ok(_) => false,
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => true,
            Err(error) => return Err(error),
        };
        // SAFETY: the union holds plain numbers; this member was written above and by the kernel.
        self.count = unsafe { attr.batch.count } as usize;
        self.started = true;
        Ok(last)
    }

    fn visit(&self, mut visit: impl FnMut(&[u8], &[u8])) {
        let pairs = self.keys.chunks_exact(self.map.key_size).zip(self.values.chunks_exact(self.value_size));
        for (key, value) in pairs.take(self.count) {
            visit(key, value);
        }
    }
}

/// What may be done with an opened object. A link is always opened for writing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Access {
    ReadWrite,
    ReadOnly,
}

/// Opens a pinned object.
pub(super) fn open(path: &Path, access: Access) -> io::Result<OwnedFd> {
    let text = CString::new(path.as_os_str().as_bytes())?;
    let flags = match access {
        Access::ReadWrite => 0,
        Access::ReadOnly => BPF_F_RDONLY,
    };
    let mut attr = Attr { zero: [0; 16] };
    attr.object = Object { path: text.as_ptr() as u64, fd: 0, flags };
    owned(call(BPF_OBJ_GET, &mut attr)?)
}

/// The descriptor a command returned. Only for commands that make one.
fn owned(fd: libc::c_long) -> io::Result<OwnedFd> {
    let fd = i32::try_from(fd).map_err(io::Error::other)?;
    // SAFETY: the kernel has just made this descriptor for us.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// An instruction as the kernel reads it.
pub(super) type Instruction = [u8; 8];

/// A program of a few instructions, not an object's.
#[derive(Clone, Copy, Debug)]
pub(super) struct Small<'a> {
    /// `enum bpf_prog_type`.
    pub(super) kind: u32,
    /// `enum bpf_attach_type`, 0 where the kind has none.
    pub(super) attach_type: u32,
    /// `BPF_F_...` of the load.
    pub(super) flags: u32,
    pub(super) instructions: &'a [Instruction],
}

/// Loads a small program; it goes when its descriptor does.
pub(super) fn load_small(small: &Small<'_>) -> io::Result<OwnedFd> {
    let mut attr = Attr { zero: [0; 16] };
    attr.program = ProgramLoad {
        kind: small.kind,
        instruction_count: u32::try_from(small.instructions.len()).map_err(io::Error::other)?,
        instructions: small.instructions.as_ptr() as u64,
        license: c"Dual BSD/GPL".as_ptr() as u64,
        log_level: 0,
        log_size: 0,
        log: 0,
        kernel_version: 0,
        flags: small.flags,
        name: *b"lb_probe\0\0\0\0\0\0\0\0",
        ifindex: 0,
        attach_type: small.attach_type,
    };
    let _blocked = Blocked::here();
    owned(call(BPF_PROG_LOAD, &mut attr)?)
}

/// Runs a classifier on an empty frame; what it returned.
pub(super) fn run(program: BorrowedFd<'_>) -> io::Result<u32> {
    let frame = [0_u8; 14];
    let mut attr = Attr { zero: [0; 16] };
    let (program, data_in) = (raw(program), frame.as_ptr() as u64);
    attr.run = TestRun { program, result: 0, size_in: 14, size_out: 0, data_in, data_out: 0 };
    call(BPF_PROG_TEST_RUN, &mut attr)?;
    // SAFETY: the union holds plain numbers; this member was written above and by the kernel.
    Ok(unsafe { attr.run.result })
}

/// Attaches a program to a device (by its index) or a cgroup (by its descriptor), as long as the link is open.
pub(super) fn create_link(program: BorrowedFd<'_>, target: u32, attach_type: u32) -> io::Result<OwnedFd> {
    let mut attr = Attr { zero: [0; 16] };
    attr.new_link = LinkCreate { program: raw(program), target, attach_type, flags: 0 };
    owned(call(BPF_LINK_CREATE, &mut attr)?)
}

/// Puts another program behind a link, atomically.
pub(super) fn update_link(link: BorrowedFd<'_>, program: BorrowedFd<'_>) -> io::Result<()> {
    let mut attr = Attr { zero: [0; 16] };
    attr.link = LinkUpdate { link: raw(link), program: raw(program), flags: 0, old_program: 0 };
    call(BPF_LINK_UPDATE, &mut attr).map(drop)
}

/// Takes a link's program from where it is attached, whoever else holds the link.
pub(super) fn detach_link(link: BorrowedFd<'_>) -> io::Result<()> {
    let mut attr = Attr { zero: [0; 16] };
    attr.link = LinkUpdate { link: raw(link), program: 0, flags: 0, old_program: 0 };
    call(BPF_LINK_DETACH, &mut attr).map(drop)
}

/// Waits until every BPF program that runs now has ended.
pub(super) fn grace_period() -> io::Result<()> {
    // SAFETY: no pointers.
    let result = unsafe { libc::syscall(libc::SYS_membarrier, MEMBARRIER_CMD_GLOBAL, 0, 0) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Moves the calling thread into a network namespace of its own, which ends with it.
pub(super) fn leave_network() -> io::Result<()> {
    // SAFETY: no pointers; a network namespace is no memory or descriptor that others share.
    let result = unsafe { libc::unshare(libc::CLONE_NEWNET) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
