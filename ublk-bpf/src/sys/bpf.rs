//! bpf(2) where aya has no call for it, or none that is cheap enough.

pub mod load;
pub mod map;

use std::ffi::CString;
use std::io;
use std::mem::size_of;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::atomic::AtomicU64;

use aya_obj::generated::{bpf_attr, bpf_cmd, bpf_prog_info, bpf_stats_type};

use super::mmap::{MapAccess, Mmap};

/// The kernel's information about a loaded program (`struct bpf_prog_info`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ProgramFacts {
    /// The program's id, as `bpftool prog show id` takes it.
    pub id: u32,
    /// Times that the program was not run because it already ran on that CPU. The kernel does not record for which
    /// disk.
    pub recursion_misses: u64,
    /// Times that it was run, counted only while the sysctl `kernel.bpf_stats_enabled` is 1.
    pub runs: u64,
    /// Nanoseconds spent in it, counted only as `runs` is.
    pub run_time_ns: u64,
    /// Instructions that the verifier processed.
    pub verified_instructions: u32,
}

#[expect(
    clippy::cast_possible_truncation,
    reason = "a structure of some hundred bytes"
)]
const PROG_INFO_LEN: u32 = size_of::<bpf_prog_info>() as u32;

/// Reads the kernel's information about a program (`BPF_OBJ_GET_INFO_BY_FD`).
pub fn program_facts(program: BorrowedFd<'_>) -> io::Result<ProgramFacts> {
    let info = program_info(program)?;
    Ok(ProgramFacts {
        id: info.id,
        recursion_misses: info.recursion_misses,
        runs: info.run_cnt,
        run_time_ns: info.run_time_ns,
        verified_instructions: info.verified_insns,
    })
}

fn program_info(program: BorrowedFd<'_>) -> io::Result<bpf_prog_info> {
    // SAFETY: `bpf_prog_info` is plain integers, for which zero is a value. Zero lengths and addresses in it
    // ask for none of the variable parts.
    let mut info = unsafe { std::mem::zeroed::<bpf_prog_info>() };
    let mut attr = zeroed_attr();
    // Writing a field of a union is safe; the kernel reads the same one for this command.
    attr.info.bpf_fd = program.as_raw_fd().cast_unsigned();
    attr.info.info_len = PROG_INFO_LEN;
    attr.info.info = (&raw mut info).expose_provenance() as u64;
    // SAFETY: `info` lives past the call and has `info_len` bytes, the most that the kernel writes.
    unsafe { bpf(bpf_cmd::BPF_OBJ_GET_INFO_BY_FD, &mut attr) }?;
    Ok(info)
}

/// Makes the kernel count runs and run time of all programs while the returned descriptor is open. This costs two clock
/// reads for each run.
pub fn count_run_time() -> io::Result<OwnedFd> {
    let mut attr = zeroed_attr();
    attr.enable_stats.type_ = bpf_stats_type::BPF_STATS_RUN_TIME as u32;
    // SAFETY: the command has no address in its part of `attr`.
    let fd = unsafe { bpf(bpf_cmd::BPF_ENABLE_STATS, &mut attr) }?;
    // SAFETY: BPF_ENABLE_STATS returned a new descriptor that nothing else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Opens the program, map or link that is pinned at `path`.
pub fn open_pinned(path: &Path) -> io::Result<OwnedFd> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    let mut attr = zeroed_attr();
    attr.__bindgen_anon_4.pathname = path.as_ptr().expose_provenance() as u64;
    // SAFETY: `path` is a C string that lives past the call, which only reads it.
    let fd = unsafe { bpf(bpf_cmd::BPF_OBJ_GET, &mut attr) }?;
    // SAFETY: BPF_OBJ_GET returned a new descriptor that nothing else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn zeroed_attr() -> bpf_attr {
    // SAFETY: `bpf_attr` is a union of plain integers. The kernel requires zeroes in parts that a command does not use.
    unsafe { std::mem::zeroed() }
}

/// # Safety
///
/// `attr` is filled for `command`: every address in it is valid for what the command does with it.
unsafe fn bpf(command: bpf_cmd, attr: &mut bpf_attr) -> io::Result<i32> {
    // SAFETY: `attr` has the size that is passed; the caller guarantees its content.
    let result = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            command as libc::c_long,
            &raw mut *attr,
            size_of::<bpf_attr>(),
        )
    };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(i32::try_from(result).unwrap_or(0))
}

/// The clock of `bpf_ktime_get_ns`, `CLOCK_MONOTONIC`, in nanoseconds.
pub fn ktime_ns() -> u64 {
    let mut time = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: `time` is a place for the result. The call cannot fail for this clock.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &raw mut time) };
    time.tv_sec.cast_unsigned() * 1_000_000_000 + time.tv_nsec.cast_unsigned()
}

/// A map's memory as words that BPF programs and other processes may write at any time.
#[derive(Debug)]
pub struct MapWords {
    memory: Mmap,
    words: usize,
}

impl MapWords {
    /// Maps the first `words` 64-bit words of a map created with `BPF_F_MMAPABLE`.
    ///
    /// # Errors
    /// If the map is shorter, rounded up to pages: the kernel refuses a longer mapping.
    pub fn map(map: BorrowedFd<'_>, words: usize) -> io::Result<Self> {
        let memory = Mmap::of(map, 0, words * size_of::<u64>(), MapAccess::ReadWrite)?;
        Ok(Self { memory, words })
    }

    /// The words.
    #[inline]
    pub fn as_slice(&self) -> &[AtomicU64] {
        let start = self.memory.as_ptr().cast::<AtomicU64>();
        // SAFETY: the mapping has `words` words, starts at a page and lives as long as `self`. Any bytes are an
        // `AtomicU64`, and all writers use aligned words.
        unsafe { std::slice::from_raw_parts(start.as_ptr(), self.words) }
    }

    /// Stores values from word `first` on, in one copy: that takes half the instructions of as many atomic stores.
    ///
    /// # Panics
    ///
    /// If they do not fit.
    #[inline]
    pub fn store(&self, first: usize, values: &[u64]) {
        let words = &self.as_slice()[first..first + values.len()];
        // SAFETY: both have as many words and are apart: one is in the mapping. `AtomicU64` may be written through a shared
        // reference. In this process only the caller's thread accesses these words at this time; other processes read
        // them by bpf(2), where the kernel copies them.
        unsafe {
            let words = words.as_ptr().cast_mut().cast::<u64>();
            words.copy_from_nonoverlapping(values.as_ptr(), values.len());
        }
    }
}
