//! bpf(2) to load and attach programs: type information, the program itself, and its attachment.
//!
//! aya can do this too, but it parses the type information of the whole kernel for each object and each attachment,
//! which costs most of a server's start. These calls take a type's number instead.

use std::ffi::{CStr, CString};
use std::io;
use std::os::fd::{AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

use aya_obj::Function;
use aya_obj::generated::{bpf_attach_type, bpf_attr, bpf_btf_info, bpf_cmd, bpf_prog_type};

use super::{bpf, zeroed_attr};

/// Bytes for the verifier's log of a refusal. Only the pages that it fills are used.
const LOG_BYTES: usize = 16 << 20;
/// `BPF_LOG_LEVEL1 | BPF_LOG_STATS` of `include/linux/bpf_verifier.h`.
const LOG_LEVEL: u32 = 1 | 4;

/// The attachment that a program is loaded for.
#[derive(Clone, Copy, Debug)]
pub enum Hook<'a> {
    /// A tracepoint: the number of the kernel's type `btf_trace_NAME`.
    Tracepoint(u32),
    /// The end of a kernel function, by the number of its type.
    End(u32),
    /// A function of another program, which it replaces: the number in that program's type information.
    Replace(BorrowedFd<'a>, u32),
}

impl Hook<'_> {
    fn program_type(self) -> bpf_prog_type {
        match self {
            Self::Tracepoint(_) | Self::End(_) => bpf_prog_type::BPF_PROG_TYPE_TRACING,
            Self::Replace(..) => bpf_prog_type::BPF_PROG_TYPE_EXT,
        }
    }

    /// A program that replaces a function has none: zero.
    fn attach_type(self) -> u32 {
        match self {
            Self::Tracepoint(_) => bpf_attach_type::BPF_TRACE_RAW_TP as u32,
            Self::End(_) => bpf_attach_type::BPF_TRACE_FEXIT as u32,
            Self::Replace(..) => 0,
        }
    }
}

/// A refusal with the verifier's log, which is empty if the verifier did not run.
#[derive(Debug)]
pub struct Refused {
    /// The kernel's answer.
    pub error: io::Error,
    /// The log.
    pub log: String,
}

/// Loads a program (`BPF_PROG_LOAD`) whose calls and maps are relocated.
pub fn load_program(
    name: &str,
    license: &CStr,
    function: &Function,
    types: BorrowedFd<'_>,
    hook: Hook<'_>,
) -> Result<OwnedFd, Refused> {
    let lines = function.line_info.line_info_bytes();
    let functions = function.func_info.func_info_bytes();
    let mut attr = zeroed_attr();
    // SAFETY: every part of the zeroed union is plain integers; the kernel reads this one for the command.
    let load = unsafe { &mut attr.__bindgen_anon_3 };
    load.prog_type = hook.program_type() as u32;
    load.expected_attach_type = hook.attach_type();
    match hook {
        Hook::Tracepoint(id) | Hook::End(id) => load.attach_btf_id = id,
        Hook::Replace(program, id) => {
            load.__bindgen_anon_1.attach_prog_fd = program.as_raw_fd().cast_unsigned();
            load.attach_btf_id = id;
        }
    }
    // The last byte stays zero.
    let room = load.prog_name.len() - 1;
    for (byte, of_name) in load.prog_name[..room].iter_mut().zip(name.bytes()) {
        *byte = of_name.cast_signed();
    }
    load.insns = function.instructions.as_ptr().expose_provenance() as u64;
    load.insn_cnt = count(function.instructions.len());
    load.license = license.as_ptr().expose_provenance() as u64;
    load.prog_btf_fd = types.as_raw_fd().cast_unsigned();
    load.func_info = functions.as_ptr().expose_provenance() as u64;
    load.func_info_cnt = count(function.func_info.len());
    load.func_info_rec_size = count(function.func_info_rec_size);
    load.line_info = lines.as_ptr().expose_provenance() as u64;
    load.line_info_cnt = count(function.line_info.len());
    load.line_info_rec_size = count(function.line_info_rec_size);
    // SAFETY: all addresses are of values that live past the call, with the counts of their elements.
    let refused = match unsafe { new_fd(bpf_cmd::BPF_PROG_LOAD, &mut attr) } {
        Ok(program) => return Ok(program),
        Err(error) => error,
    };
    let mut log = vec![0_u8; LOG_BYTES];
    // SAFETY: as above.
    let load = unsafe { &mut attr.__bindgen_anon_3 };
    load.log_level = LOG_LEVEL;
    load.log_buf = log.as_mut_ptr().expose_provenance() as u64;
    load.log_size = count(log.len());
    // SAFETY: as above; the log has `log_size` bytes.
    match unsafe { new_fd(bpf_cmd::BPF_PROG_LOAD, &mut attr) } {
        // A first refusal for want of memory, say.
        Ok(program) => Ok(program),
        Err(_) => Err(Refused {
            error: refused,
            log: text(&log),
        }),
    }
}

/// The text before the first zero byte.
fn text(log: &[u8]) -> String {
    let end = log.iter().position(|&byte| byte == 0).unwrap_or(log.len());
    String::from_utf8_lossy(&log[..end]).into_owned()
}

/// Loads an object's type information (`BPF_BTF_LOAD`).
pub fn load_types(types: &[u8]) -> io::Result<OwnedFd> {
    let mut attr = zeroed_attr();
    // SAFETY: as in `load_program`.
    let load = unsafe { &mut attr.__bindgen_anon_7 };
    load.btf = types.as_ptr().expose_provenance() as u64;
    load.btf_size = count(types.len());
    // SAFETY: `types` lives past the call and has `btf_size` bytes.
    unsafe { new_fd(bpf_cmd::BPF_BTF_LOAD, &mut attr) }
}

/// Attaches a program to the `hook` that it was loaded for (`BPF_LINK_CREATE`). The attachment ends with the last
/// reference to the link that is returned.
pub fn attach(program: BorrowedFd<'_>, hook: Hook<'_>) -> io::Result<OwnedFd> {
    let mut attr = zeroed_attr();
    attr.link_create.__bindgen_anon_1.prog_fd = program.as_raw_fd().cast_unsigned();
    attr.link_create.attach_type = hook.attach_type();
    if let Hook::Replace(of, function) = hook {
        attr.link_create.__bindgen_anon_2.target_fd = of.as_raw_fd().cast_unsigned();
        attr.link_create.__bindgen_anon_3.target_btf_id = function;
    }
    // SAFETY: there is no address in this command's part of `attr`.
    unsafe { new_fd(bpf_cmd::BPF_LINK_CREATE, &mut attr) }
}

/// Pins a program or link at `path`.
pub fn pin(object: BorrowedFd<'_>, path: &Path) -> io::Result<()> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    let mut attr = zeroed_attr();
    attr.__bindgen_anon_4.pathname = path.as_ptr().expose_provenance() as u64;
    attr.__bindgen_anon_4.bpf_fd = object.as_raw_fd().cast_unsigned();
    // SAFETY: `path` is a C string that lives past the call, which only reads it.
    unsafe { bpf(bpf_cmd::BPF_OBJ_PIN, &mut attr) }?;
    Ok(())
}

/// Sets the first value of a map of globals, an array of one element.
pub fn set_globals(map: BorrowedFd<'_>, value: &[u8]) -> io::Result<()> {
    let first = 0_u32;
    let mut attr = zeroed_attr();
    // SAFETY: as in `load_program`.
    let update = unsafe { &mut attr.__bindgen_anon_2 };
    update.map_fd = map.as_raw_fd().cast_unsigned();
    update.key = (&raw const first).expose_provenance() as u64;
    update.__bindgen_anon_1.value = value.as_ptr().expose_provenance() as u64;
    // SAFETY: both live past the call; the map was created with values of this length.
    unsafe { bpf(bpf_cmd::BPF_MAP_UPDATE_ELEM, &mut attr) }?;
    Ok(())
}

/// Makes a map read-only for user space, so that the verifier knows its values.
pub fn freeze(map: BorrowedFd<'_>) -> io::Result<()> {
    let mut attr = zeroed_attr();
    attr.__bindgen_anon_2.map_fd = map.as_raw_fd().cast_unsigned();
    // SAFETY: the command has no address in its part of `attr`.
    unsafe { bpf(bpf_cmd::BPF_MAP_FREEZE, &mut attr) }?;
    Ok(())
}

/// The type information of a loaded program, as it was loaded.
pub fn types_of(program: BorrowedFd<'_>) -> io::Result<Vec<u8>> {
    types_by_id(super::program_info(program)?.btf_id)
}

/// Type information by its number, as it was loaded.
pub fn types_by_id(id: u32) -> io::Result<Vec<u8>> {
    let mut attr = zeroed_attr();
    attr.__bindgen_anon_6.__bindgen_anon_1.btf_id = id;
    // SAFETY: the command has no address in its part of `attr`.
    let types = unsafe { new_fd(bpf_cmd::BPF_BTF_GET_FD_BY_ID, &mut attr) }?;
    let mut bytes = vec![0; types_info(&types, &mut [])? as usize];
    let length = types_info(&types, &mut bytes)? as usize;
    bytes.truncate(length);
    Ok(bytes)
}

/// Reads type information into `bytes`, as far as it fits, and returns its length.
fn types_info(types: &OwnedFd, bytes: &mut [u8]) -> io::Result<u32> {
    // SAFETY: plain integers, for which zero is a value.
    let mut info = unsafe { std::mem::zeroed::<bpf_btf_info>() };
    info.btf = bytes.as_mut_ptr().expose_provenance() as u64;
    info.btf_size = count(bytes.len());
    let mut attr = zeroed_attr();
    attr.info.bpf_fd = types.as_raw_fd().cast_unsigned();
    attr.info.info_len = count(size_of::<bpf_btf_info>());
    attr.info.info = (&raw mut info).expose_provenance() as u64;
    // SAFETY: `info` lives past the call and has `info_len` bytes, and `bytes` has `btf_size`.
    unsafe { bpf(bpf_cmd::BPF_OBJ_GET_INFO_BY_FD, &mut attr) }?;
    Ok(info.btf_size)
}

/// # Safety
///
/// As for [`bpf`]; the command returns a new descriptor.
unsafe fn new_fd(command: bpf_cmd, attr: &mut bpf_attr) -> io::Result<OwnedFd> {
    // SAFETY: the caller guarantees it.
    let fd = unsafe { bpf(command, attr) }?;
    // SAFETY: nothing else owns the command's new descriptor.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Lengths here are of objects in memory, far below 4 GiB.
fn count(length: usize) -> u32 {
    u32::try_from(length).unwrap_or(u32::MAX)
}
