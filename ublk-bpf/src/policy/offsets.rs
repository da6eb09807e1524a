//! Offsets of the members that the BPF programs read in the running kernel's structures, from the kernel's BTF.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use ublk_bpf_abi::{Member, req_op, request_flags};

use super::btf_format::{KIND_ENUM, KIND_FUNC, KIND_STRUCT, KIND_TYPEDEF};
use super::kernel_types::{KernelType, KernelTypes, Wanted};
use super::patch::Offsets;

/// The file of the running kernel's own type information.
pub const VMLINUX_BTF: &str = "/sys/kernel/btf/vmlinux";

/// The layout of the running kernel, once it was read.
static RUNNING: Mutex<Option<KernelLayout>> = Mutex::new(None);

const fn structure(name: &'static str) -> Wanted {
    Wanted {
        kind: KIND_STRUCT,
        name,
    }
}

/// The structures that the BPF programs read.
const STRUCTURES: [Wanted; 9] = [
    structure("request"),
    structure("bio"),
    structure("request_queue"),
    structure("gendisk"),
    structure("blk_mq_hw_ctx"),
    structure("iattr"),
    structure("dentry"),
    structure("inode"),
    structure("super_block"),
];
const OPERATIONS: Wanted = Wanted {
    kind: KIND_ENUM,
    name: "req_op",
};
const FLAG_BITS: Wanted = Wanted {
    kind: KIND_ENUM,
    name: "req_flag_bits",
};
/// The tracepoint `block_rq_issue`.
const ISSUE: Wanted = Wanted {
    kind: KIND_TYPEDEF,
    name: "btf_trace_block_rq_issue",
};
/// The tracepoint `block_rq_complete`.
const COMPLETE: Wanted = Wanted {
    kind: KIND_TYPEDEF,
    name: "btf_trace_block_rq_complete",
};
/// The function that truncates a file.
const NOTIFY_CHANGE: Wanted = Wanted {
    kind: KIND_FUNC,
    name: "notify_change",
};

/// The parts of a kernel's layout that the BPF programs depend on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KernelLayout {
    /// The offset of each [`Member`].
    pub offsets: Offsets,
    /// Masks of `REQ_*` in the order of [`request_flags`]' first bits.
    pub flag_masks: [u32; request_flags::FROM_KERNEL],
    /// The number of the type of tracepoint `block_rq_issue`, by which a program is attached to it.
    pub issue: u32,
    /// The same of `block_rq_complete`.
    pub complete: u32,
    /// The same of function `notify_change`, if this kernel has it.
    pub notify_change: Option<u32>,
}

/// Why the layout cannot be read from a kernel's type information.
#[derive(Debug, thiserror::Error)]
pub enum BtfError {
    /// The file could not be read.
    #[error(
        "reading the kernel's type information from {} failed (a kernel built with CONFIG_DEBUG_INFO_BTF has it): {source}",
        path.display()
    )]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The file is not type information.
    #[error("the kernel's type information is damaged: ublk-bpf does not support its format")]
    Damaged,
    /// A structure or enum is missing.
    #[error(
        "the kernel's type information has no `{0}`: ublk-bpf does not support this kernel's block layer"
    )]
    NoType(String),
    /// A member is missing, or is a bit field.
    #[error(
        "the kernel's type information has no `{}` at a byte offset: ublk-bpf does not support this kernel's block layer",
        .0.name()
    )]
    NoMember(Member),
    /// An enum's value is missing, or differs from the one that the classifier was built with.
    #[error(
        "the kernel numbers `{name}` {found}, the classifier was built with {wanted}: rebuild it for this kernel"
    )]
    OtherNumber {
        /// The value's name.
        name: &'static str,
        /// The kernel's number, or `not`.
        found: String,
        /// The classifier's number.
        wanted: u32,
    },
}

impl KernelLayout {
    /// The layout of the running kernel. It is read once in a process.
    ///
    /// # Errors
    /// If the kernel has no type information, or it lacks something that the programs depend on.
    pub fn of_running_kernel() -> Result<Self, BtfError> {
        let mut running = RUNNING.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(layout) = *running {
            return Ok(layout);
        }
        let layout = Self::from_file(Path::new(VMLINUX_BTF))?;
        *running = Some(layout);
        Ok(layout)
    }

    /// The layout that a file of BTF describes.
    ///
    /// # Errors
    /// As [`KernelLayout::of_running_kernel`].
    pub fn from_file(path: &Path) -> Result<Self, BtfError> {
        let bytes = fs::read(path).map_err(|source| BtfError::Read {
            path: path.to_owned(),
            source,
        })?;
        Self::from_btf(&bytes)
    }

    fn from_btf(bytes: &[u8]) -> Result<Self, BtfError> {
        const OTHERS: [Wanted; 5] = [OPERATIONS, FLAG_BITS, ISSUE, COMPLETE, NOTIFY_CHANGE];
        let mut wanted = [ISSUE; STRUCTURES.len() + OTHERS.len()];
        wanted[..STRUCTURES.len()].copy_from_slice(&STRUCTURES);
        wanted[STRUCTURES.len()..].copy_from_slice(&OTHERS);
        let (types, found) = KernelTypes::find(bytes, &wanted).ok_or(BtfError::Damaged)?;
        let [
            structures @ ..,
            operations,
            flag_bits,
            issue,
            complete,
            notify_change,
        ] = found;
        check_operations(&types, operations)?;
        let tracepoint = |found: Option<KernelType>, wanted: Wanted| {
            let found = found.ok_or_else(|| BtfError::NoType(wanted.name.to_owned()))?;
            Ok(found.id)
        };
        Ok(Self {
            offsets: offsets(&types, &structures)?,
            flag_masks: flag_masks(&types, flag_bits)?,
            issue: tracepoint(issue, ISSUE)?,
            complete: tracepoint(complete, COMPLETE)?,
            notify_change: notify_change.map(|found| found.id),
        })
    }
}

/// The number of the type of another tracepoint, which has the prefix `btf_trace_`. Reads the kernel's type information.
///
/// # Errors
/// If there is none, or the kernel has no such tracepoint.
pub(super) fn tracepoint(name: &'static str) -> Result<u32, BtfError> {
    let path = Path::new(VMLINUX_BTF);
    let bytes = fs::read(path).map_err(|source| BtfError::Read {
        path: path.to_owned(),
        source,
    })?;
    let wanted = Wanted {
        kind: KIND_TYPEDEF,
        name,
    };
    let (_, [found]) = KernelTypes::find(&bytes, &[wanted]).ok_or(BtfError::Damaged)?;
    found
        .map(|found| found.id)
        .ok_or_else(|| BtfError::NoType(name.to_owned()))
}

/// `found` are the [`STRUCTURES`].
fn offsets(types: &KernelTypes<'_>, found: &[Option<KernelType>]) -> Result<Offsets, BtfError> {
    let mut offsets = [0; Member::COUNT];
    for (offset, member) in offsets.iter_mut().zip(Member::ALL) {
        *offset = offset_of(types, found, member)?;
    }
    Ok(offsets)
}

/// Byte offset of a member, which may be inside anonymous structures and unions.
fn offset_of(types: &KernelTypes<'_>, found: &[Option<KernelType>], member: Member) -> Result<u32, BtfError> {
    let missing = || BtfError::NoMember(member);
    let (of, name) = member.name().split_once('.').ok_or_else(missing)?;
    let (name, beyond) = name.split_once('+').unwrap_or((name, "0"));
    let beyond: u32 = beyond.parse().map_err(|_| missing())?;
    let structure = STRUCTURES.iter().zip(found).find(|(wanted, _)| wanted.name == of);
    let structure = structure
        .and_then(|(_, found)| *found)
        .ok_or_else(|| BtfError::NoType(format!("struct {of}")))?;
    let bits = types.bit_offset(structure, name);
    let bits = bits.filter(|bits| bits.is_multiple_of(8)).ok_or_else(missing)?;
    Ok(bits / 8 + beyond)
}

/// Checks that the kernel numbers operations as the classifier does.
fn check_operations(types: &KernelTypes<'_>, operations: Option<KernelType>) -> Result<(), BtfError> {
    let known = [
        ("REQ_OP_READ", req_op::READ),
        ("REQ_OP_WRITE", req_op::WRITE),
        ("REQ_OP_FLUSH", req_op::FLUSH),
        ("REQ_OP_DISCARD", req_op::DISCARD),
        ("REQ_OP_WRITE_ZEROES", req_op::WRITE_ZEROES),
    ];
    let operations = operations.ok_or_else(|| no_enum(OPERATIONS))?;
    for (name, wanted) in known {
        let found = types.value(operations, name);
        if found != Some(wanted) {
            let found = found.map_or_else(|| "not".to_owned(), |number| number.to_string());
            return Err(BtfError::OtherNumber { name, found, wanted });
        }
    }
    Ok(())
}

/// The flags that a policy sees, in the order of `request_flags`.
const FLAGS: [&str; request_flags::FROM_KERNEL] = [
    "__REQ_FUA",
    "__REQ_META",
    "__REQ_SYNC",
    "__REQ_PRIO",
    "__REQ_RAHEAD",
    "__REQ_NOUNMAP",
];

/// The bits of request flags, which differ between kernel versions.
fn flag_masks(
    types: &KernelTypes<'_>,
    bits: Option<KernelType>,
) -> Result<[u32; request_flags::FROM_KERNEL], BtfError> {
    let bits = bits.ok_or_else(|| no_enum(FLAG_BITS))?;
    let mut masks = [0; request_flags::FROM_KERNEL];
    for (mask, name) in masks.iter_mut().zip(FLAGS) {
        *mask = types
            .value(bits, name)
            .and_then(|bit| 1u32.checked_shl(bit))
            .ok_or_else(|| BtfError::NoType(name.to_owned()))?;
    }
    Ok(masks)
}

fn no_enum(wanted: Wanted) -> BtfError {
    BtfError::NoType(format!("enum {}", wanted.name))
}

#[cfg(test)]
mod tests {
    use super::*;

    use super::super::btf_format::{KIND_TYPEDEF, KIND_UNION};

    /// Type information written by hand, in the format of `Documentation/bpf/btf.rst`.
    struct Handmade {
        types: Vec<u32>,
        strings: Vec<u8>,
        next_id: u32,
    }

    impl Handmade {
        fn new() -> Self {
            let mut new = Self {
                types: Vec::new(),
                strings: vec![0],
                next_id: 1,
            };
            // Type 1: an `int` of 32 bits, the type of every plain member.
            let name = new.string("int");
            new.types.extend([name, 1 << 24, 4, 32]);
            new.next_id += 1;
            new
        }

        fn string(&mut self, text: &str) -> u32 {
            if text.is_empty() {
                return 0;
            }
            let at = self.strings.len();
            self.strings.extend(text.as_bytes());
            self.strings.push(0);
            at.try_into().unwrap()
        }

        /// A structure or union of members `(name, type, offset in bits)`.
        fn composite(&mut self, kind: u32, name: &str, members: &[(&str, u32, u32)]) -> u32 {
            let name = self.string(name);
            let count: u32 = members.len().try_into().unwrap();
            self.types.extend([name, kind << 24 | count, 64]);
            for &(member, of, bits) in members {
                let member = self.string(member);
                self.types.extend([member, of, bits]);
            }
            self.next_id += 1;
            self.next_id - 1
        }

        fn enumeration(&mut self, name: &str, values: &[(&str, u32)]) {
            let name = self.string(name);
            let count: u32 = values.len().try_into().unwrap();
            self.types.extend([name, KIND_ENUM << 24 | count, 4]);
            for &(value, number) in values {
                let value = self.string(value);
                self.types.extend([value, number]);
            }
            self.next_id += 1;
        }

        /// A type without members: a typedef or function.
        fn plain(&mut self, kind: u32, name: &str) -> u32 {
            let name = self.string(name);
            self.types.extend([name, kind << 24, 1]);
            self.next_id += 1;
            self.next_id - 1
        }

        fn bytes(&self) -> Vec<u8> {
            let types: Vec<u8> = self.types.iter().flat_map(|word| word.to_le_bytes()).collect();
            let (types_len, strings_len) = (types.len() as u64, self.strings.len() as u64);
            let mut bytes = vec![0x9f, 0xeb, 1, 0];
            for word in [24, 0, types_len, types_len, strings_len] {
                bytes.extend(u32::try_from(word).unwrap().to_le_bytes());
            }
            bytes.extend(types);
            bytes.extend(&self.strings);
            bytes
        }
    }

    fn kernel(discard: u32, sector: &str) -> Handmade {
        let mut btf = Handmade::new();
        let inner = btf.composite(KIND_STRUCT, "", &[("rq_flags", 1, 0), ("tag", 1, 32)]);
        let either = btf.composite(KIND_UNION, "", &[("other", 1, 0), ("", inner, 64)]);
        let members = [
            ("q", 1, 0),
            ("mq_hctx", 1, 64),
            ("cmd_flags", 1, 128),
            ("", either, 256),
            ("__data_len", 1, 512),
            ("bio", 1, 608),
        ];
        let mut members = members.to_vec();
        members.push((sector, 1, 576));
        btf.composite(KIND_STRUCT, "request", &members);
        btf.composite(KIND_STRUCT, "bio", &[("bi_ioprio", 1, 160)]);
        btf.composite(KIND_STRUCT, "request_queue", &[("disk", 1, 96)]);
        btf.composite(KIND_STRUCT, "gendisk", &[("disk_name", 1, 160)]);
        btf.composite(KIND_STRUCT, "blk_mq_hw_ctx", &[("queue_num", 1, 320)]);
        btf.composite(KIND_STRUCT, "iattr", &[("ia_valid", 1, 0), ("ia_size", 1, 128)]);
        btf.composite(KIND_STRUCT, "dentry", &[("d_inode", 1, 384)]);
        btf.composite(KIND_STRUCT, "inode", &[("i_sb", 1, 320), ("i_ino", 1, 512)]);
        btf.composite(KIND_STRUCT, "super_block", &[("s_dev", 1, 128)]);
        let operations = [
            ("REQ_OP_READ", 0),
            ("REQ_OP_WRITE", 1),
            ("REQ_OP_FLUSH", 2),
            ("REQ_OP_DISCARD", discard),
        ];
        let mut operations = operations.to_vec();
        operations.push(("REQ_OP_WRITE_ZEROES", 9));
        btf.enumeration("req_op", &operations);
        let flags: Vec<(&str, u32)> = FLAGS.into_iter().zip(8..).collect();
        btf.enumeration("req_flag_bits", &flags);
        btf.plain(KIND_FUNC, "btf_trace_block_rq_issue");
        btf.plain(KIND_TYPEDEF, "btf_trace_block_rq_complete");
        btf.plain(KIND_TYPEDEF, "btf_trace_block_rq_issue");
        btf.plain(KIND_FUNC, "notify_change");
        btf
    }

    #[test]
    fn members_are_found_inside_anonymous_ones() {
        let layout = KernelLayout::from_btf(&kernel(3, "__sector").bytes()).unwrap();
        let at = |member: Member| layout.offsets[member as usize];
        assert_eq!(at(Member::RequestTag), (256 + 64 + 32) / 8);
        assert_eq!(at(Member::RequestSector), 72);
        assert_eq!((at(Member::RequestBio), at(Member::BioPriority)), (76, 20));
        assert_eq!(at(Member::QueueDisk), 12);
        assert_eq!((at(Member::DiskName), at(Member::DiskNameEnd)), (20, 28));
        assert_eq!(at(Member::HctxNumber), 40);
        assert_eq!((at(Member::AttributesSet), at(Member::AttributeSize)), (0, 16));
        assert_eq!((at(Member::DentryInode), at(Member::InodeNumber)), (48, 64));
        assert_eq!(
            (at(Member::InodeSuperBlock), at(Member::SuperBlockDevice)),
            (40, 16)
        );
        assert_eq!(
            layout.flag_masks,
            [1 << 8, 1 << 9, 1 << 10, 1 << 11, 1 << 12, 1 << 13]
        );
        // The last two types: an earlier one has the tracepoint's name and is of another kind.
        assert_eq!(layout.notify_change, Some(layout.issue + 1));
        assert_eq!(layout.complete, layout.issue - 1);
    }

    #[test]
    fn damage_is_not_read() {
        let whole = kernel(3, "__sector").bytes();
        for len in 0..whole.len() {
            let cut = KernelLayout::from_btf(&whole[..len]);
            assert!(matches!(cut, Err(BtfError::Damaged)), "{len} of {}", whole.len());
        }
        let mut unknown = whole;
        unknown[24 + 7] = 31;
        assert!(matches!(KernelLayout::from_btf(&unknown), Err(BtfError::Damaged)));
    }

    #[test]
    fn what_is_missing_is_named() {
        let error = KernelLayout::from_btf(&kernel(3, "sector").bytes())
            .unwrap_err()
            .to_string();
        assert!(error.contains("no `request.__sector`"), "{error}");
        let error = KernelLayout::from_btf(&kernel(4, "__sector").bytes())
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("`REQ_OP_DISCARD` 4, the classifier was built with 3"),
            "{error}"
        );
        let error = KernelLayout::from_btf(&Handmade::new().bytes())
            .unwrap_err()
            .to_string();
        assert!(error.contains("no `enum req_op`"), "{error}");
    }

    #[test]
    fn a_file_that_is_missing_is_named() {
        let error = KernelLayout::from_file(Path::new("/nowhere"))
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("/nowhere") && error.contains("CONFIG_DEBUG_INFO_BTF"),
            "{error}"
        );
    }
}
