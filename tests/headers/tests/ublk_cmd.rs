//! Compares `ublk_bpf::sys::uapi` with `linux/ublk_cmd.h`: every size, every offset and every constant.
//!
//! Rust's numbers are written out as C's static assertions, and the C compiler judges them with the header.
//! The header must be of Linux >= 7.3, the one that the module was written from. It is looked for in the folder that
//! `UBLK_BPF_UAPI` names; without that where `cargo xtask setup` puts it, then among the system's. Where there is none,
//! the tests fail.

use std::fmt::Write;
use std::mem::{offset_of, size_of};
use std::path::{Path, PathBuf};
use std::process::Command;

use ublk_bpf::sys::uapi;

/// The last constant that Linux 7.3 added: a header that has it is new enough.
const NEWEST: &str = "UBLK_F_IO_DESC_SIZE";

/// Appends assertions about a struct and all its fields; `and` one that C leaves unnamed.
macro_rules! layout {
    ($c:ident, $rust:ident as $name:literal { $($field:ident),* $(,)? } $(and $unnamed:ident)?) => {
        assert_number(&mut $c, concat!("sizeof(", $name, ")"), size_of::<uapi::$rust>() as u64);
        $(
            let expression = concat!("offsetof(", $name, ", ", stringify!($field), ")");
            assert_number(&mut $c, expression, offset_of!(uapi::$rust, $field) as u64);
        )*
        // Names every field, so that one that is added to the struct must be added here.
        let uapi::$rust { $($field: _),* $(, $unnamed: _)? } = uapi::$rust::default();
    };
}

/// Appends assertions about constants.
macro_rules! constants {
    ($c:ident, $($name:ident),* $(,)?) => {
        $( assert_number(&mut $c, stringify!($name), u64::from(uapi::$name)); )*
    };
}

#[test]
fn every_struct_and_constant_is_the_headers() {
    let include = include_folder().unwrap_or_else(|complaint| panic!("{complaint}"));
    let program = format!(
        "#include <stddef.h>\n#include <linux/ioctl.h>\n#include <linux/ublk_cmd.h>\n{}{}",
        structs(),
        numbers()
    );
    let complaints = compile(&include, &program);
    assert!(
        complaints.is_empty(),
        "not as in {}/linux/ublk_cmd.h:\n{complaints}",
        include.display()
    );
}

#[test]
fn every_constant_of_the_module_is_compared() {
    let module = concat!(
        include_str!("../../../ublk-bpf/src/sys/uapi/command.rs"),
        include_str!("../../../ublk-bpf/src/sys/uapi/device.rs"),
        include_str!("../../../ublk-bpf/src/sys/uapi/params.rs"),
        include_str!("../../../ublk-bpf/src/sys/uapi/request.rs"),
    );
    let compared = numbers();
    // These have no counterpart in the header.
    let ours = ["UBLK_MAX_UBLKS", "IO_DESC_BYTES", "PARAMS_BYTES"];
    let names = module
        .lines()
        .filter_map(|line| line.strip_prefix("pub const ")?.split(':').next());
    for name in names.filter(|name| !ours.contains(name)) {
        assert!(
            compared.contains(&format!("({name})")),
            "{name} of the module is not compared here"
        );
    }
}

#[test]
fn a_wrong_number_is_noticed() {
    let include = include_folder().unwrap_or_else(|complaint| panic!("{complaint}"));
    let mut program = String::from("#include <linux/ublk_cmd.h>\n");
    assert_number(&mut program, "sizeof(struct ublksrv_io_desc)", 25);
    assert!(compile(&include, &program).contains("sizeof(struct ublksrv_io_desc)"));
}

fn structs() -> String {
    let mut c = String::new();
    layout!(c, CtrlCmd as "struct ublksrv_ctrl_cmd" {
        dev_id, queue_id, len, addr, data, dev_path_len, pad, reserved,
    });
    layout!(c, RawDevInfo as "struct ublksrv_ctrl_dev_info" {
        nr_hw_queues, queue_depth, state, io_desc_size, max_io_buf_bytes, dev_id, ublksrv_pid, pad1, flags,
        ublksrv_flags, owner_uid, owner_gid, reserved1, reserved2,
    });
    layout!(c, IoDesc as "struct ublksrv_io_desc" { op_flags, nr_sectors, start_sector, addr });
    layout!(c, ElemHeader as "struct ublk_elem_header" { tag, buf_index, result });
    layout!(c, BatchIo as "struct ublk_batch_io" { q_id, flags, nr_elem, elem_bytes, reserved, reserved2 });
    layout!(c, ParamBasic as "struct ublk_param_basic" {
        attrs, logical_bs_shift, physical_bs_shift, io_opt_shift, io_min_shift, max_sectors, chunk_sectors,
        dev_sectors, virt_boundary_mask,
    });
    layout!(c, ParamDiscard as "struct ublk_param_discard" {
        discard_alignment, discard_granularity, max_discard_sectors, max_write_zeroes_sectors,
        max_discard_segments, reserved0,
    });
    layout!(c, ParamDevt as "struct ublk_param_devt" { char_major, char_minor, disk_major, disk_minor });
    layout!(c, ParamZoned as "struct ublk_param_zoned" {
        max_open_zones, max_active_zones, max_zone_append_sectors, reserved,
    });
    layout!(c, ParamDmaAlign as "struct ublk_param_dma_align" { alignment, pad });
    layout!(c, ParamSegment as "struct ublk_param_segment" {
        seg_boundary_mask, max_segment_size, max_segments, pad,
    });
    layout!(c, ParamIntegrity as "struct ublk_param_integrity" {
        flags, max_integrity_segments, interval_exp, metadata_size, pi_offset, csum_type, tag_size, pad,
    });
    layout!(c, RawParams as "struct ublk_params" {
        len, types, basic, discard, devt, zoned, dma, seg, integrity,
    } and padding);
    c
}

fn numbers() -> String {
    let mut c = String::new();
    constants!(
        c,
        UBLK_U_CMD_GET_QUEUE_AFFINITY,
        UBLK_U_CMD_GET_DEV_INFO,
        UBLK_U_CMD_ADD_DEV,
        UBLK_U_CMD_DEL_DEV,
        UBLK_U_CMD_START_DEV,
        UBLK_U_CMD_STOP_DEV,
        UBLK_U_CMD_SET_PARAMS,
        UBLK_U_CMD_GET_PARAMS,
        UBLK_U_CMD_START_USER_RECOVERY,
        UBLK_U_CMD_END_USER_RECOVERY,
        UBLK_U_CMD_GET_DEV_INFO2,
        UBLK_U_CMD_GET_FEATURES,
        UBLK_U_CMD_DEL_DEV_ASYNC,
        UBLK_U_CMD_UPDATE_SIZE,
        UBLK_U_CMD_QUIESCE_DEV,
        UBLK_U_CMD_TRY_STOP_DEV,
        UBLK_U_IO_PREP_IO_CMDS,
        UBLK_U_IO_COMMIT_IO_CMDS,
        UBLK_U_IO_FETCH_IO_CMDS,
    );
    constants!(
        c,
        UBLK_FEATURES_LEN,
        UBLK_F_SUPPORT_ZERO_COPY,
        UBLK_F_URING_CMD_COMP_IN_TASK,
        UBLK_F_NEED_GET_DATA,
        UBLK_F_USER_RECOVERY,
        UBLK_F_USER_RECOVERY_REISSUE,
        UBLK_F_UNPRIVILEGED_DEV,
        UBLK_F_CMD_IOCTL_ENCODE,
        UBLK_F_USER_COPY,
        UBLK_F_ZONED,
        UBLK_F_USER_RECOVERY_FAIL_IO,
        UBLK_F_UPDATE_SIZE,
        UBLK_F_AUTO_BUF_REG,
        UBLK_F_QUIESCE,
        UBLK_F_PER_IO_DAEMON,
        UBLK_F_BUF_REG_OFF_DAEMON,
        UBLK_F_BATCH_IO,
        UBLK_F_INTEGRITY,
        UBLK_F_SAFE_STOP_DEV,
        UBLK_F_NO_AUTO_PART_SCAN,
        UBLK_F_SHMEM_ZC,
        UBLK_F_IO_DESC_SIZE,
    );
    constants!(
        c,
        UBLK_S_DEV_DEAD,
        UBLK_S_DEV_LIVE,
        UBLK_S_DEV_QUIESCED,
        UBLK_S_DEV_FAIL_IO,
        UBLK_MAX_QUEUE_DEPTH,
        UBLK_MAX_NR_QUEUES,
        UBLKSRV_CMD_BUF_OFFSET,
        UBLKSRV_IO_BUF_OFFSET,
        UBLK_IO_BUF_BITS,
        UBLK_TAG_OFF,
        UBLK_TAG_BITS,
        UBLK_QID_OFF,
        UBLK_QID_BITS,
        UBLK_IO_OP_READ,
        UBLK_IO_OP_WRITE,
        UBLK_IO_OP_FLUSH,
        UBLK_IO_OP_DISCARD,
        UBLK_IO_OP_WRITE_SAME,
        UBLK_IO_OP_WRITE_ZEROES,
        UBLK_IO_F_FAILFAST_DEV,
        UBLK_IO_F_FAILFAST_TRANSPORT,
        UBLK_IO_F_FAILFAST_DRIVER,
        UBLK_IO_F_META,
        UBLK_IO_F_FUA,
        UBLK_IO_F_NOUNMAP,
        UBLK_IO_F_SWAP,
        UBLK_IO_F_NEED_REG_BUF,
        UBLK_IO_F_INTEGRITY,
        UBLK_IO_F_SHMEM_ZC,
        UBLK_BATCH_F_HAS_ZONE_LBA,
        UBLK_BATCH_F_HAS_BUF_ADDR,
        UBLK_BATCH_F_AUTO_BUF_REG_FALLBACK,
        UBLK_ATTR_READ_ONLY,
        UBLK_ATTR_ROTATIONAL,
        UBLK_ATTR_VOLATILE_CACHE,
        UBLK_ATTR_FUA,
        UBLK_PARAM_TYPE_BASIC,
        UBLK_PARAM_TYPE_DISCARD,
        UBLK_PARAM_TYPE_DEVT,
        UBLK_PARAM_TYPE_ZONED,
        UBLK_PARAM_TYPE_DMA_ALIGN,
        UBLK_PARAM_TYPE_SEGMENT,
        UBLK_PARAM_TYPE_INTEGRITY,
    );
    c
}

fn assert_number(c: &mut String, expression: &str, value: u64) {
    // Both sides in 64 bits, or a sign would be compared too.
    writeln!(
        c,
        "_Static_assert((unsigned long long)({expression}) == {value}ULL, \"{expression} is not {value}\");"
    )
    .expect("a String takes all");
}

/// What the C compiler has to say about a program; empty: nothing.
fn compile(include: &Path, program: &str) -> String {
    let folder = tempfile::tempdir().expect("a folder for one C file");
    let source = folder.path().join("check.c");
    std::fs::write(&source, program).expect("room for one C file");
    let output = Command::new("cc")
        .args(["-std=c11", "-fsyntax-only", "-I"])
        .arg(include)
        .arg(source)
        .output()
        .expect("`cc`, which links every Rust program, is there");
    let complaints = String::from_utf8_lossy(&output.stderr);
    let complaints = complaints.lines().filter(|line| line.contains("error"));
    let complaints = complaints.collect::<Vec<_>>().join("\n");
    assert!(
        output.status.success() || !complaints.is_empty(),
        "cc failed without a word: {output:?}"
    );
    complaints
}

/// The first folder with a header that is new enough.
fn include_folder() -> Result<PathBuf, String> {
    let named = std::env::var_os("UBLK_BPF_UAPI").map(PathBuf::from);
    // A folder that was named is the only one: a wrong name should not pass unnoticed.
    let folders = match named {
        Some(folder) => vec![folder],
        None => cached_folders()
            .into_iter()
            .chain(["/usr/include".into()])
            .collect(),
    };
    for folder in &folders {
        let header = std::fs::read_to_string(folder.join("linux/ublk_cmd.h"));
        if header.is_ok_and(|text| text.contains(NEWEST)) {
            return Ok(folder.clone());
        }
    }
    let folders: Vec<_> = folders
        .iter()
        .map(|folder| folder.display().to_string())
        .collect();
    Err(format!(
        "no linux/ublk_cmd.h of Linux >= 7.3 (one with {NEWEST}) in {}: run `cargo xtask setup`, or name the folder of \
         linux-libc-dev's `include` in UBLK_BPF_UAPI",
        folders.join(", ")
    ))
}

/// Where `cargo xtask setup` unpacks headers.
fn cached_folders() -> Vec<PathBuf> {
    let base = match std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from) {
        Some(folder) if folder.is_absolute() => folder,
        _ => PathBuf::from(std::env::var_os("HOME").unwrap_or_default()).join(".cache"),
    };
    let Ok(folders) = std::fs::read_dir(base.join("ublk-bpf/headers")) else {
        return Vec::new();
    };
    folders
        .filter_map(Result::ok)
        .map(|entry| entry.path().join("usr/include"))
        .collect()
}
