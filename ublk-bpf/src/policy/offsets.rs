//! Offsets of the members that the BPF programs read in the running kernel's structures, from the kernel's BTF.

use std::path::{Path, PathBuf};

use btf_rs::{Backend, Btf, BtfType, EnumMember, Struct, Type};
use ublk_bpf_abi::{Member, req_op, request_flags};

use super::patch::Offsets;

/// The file of the running kernel's own type information.
pub const VMLINUX_BTF: &str = "/sys/kernel/btf/vmlinux";

/// Anonymous members nest a few levels deep; a type description that nests deeper than this is broken.
const MAX_NESTING: u32 = 16;

/// The parts of a kernel's layout that the BPF programs depend on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KernelLayout {
    /// The offset of each [`Member`].
    pub offsets: Offsets,
    /// Masks of `REQ_*` in the order of [`request_flags`]' first bits.
    pub flag_masks: [u32; request_flags::FROM_KERNEL],
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
        source: btf_rs::Error,
    },
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
    /// The layout of the running kernel.
    pub fn of_running_kernel() -> Result<Self, BtfError> {
        Self::from_file(Path::new(VMLINUX_BTF))
    }

    /// The layout that a file of BTF describes.
    pub fn from_file(path: &Path) -> Result<Self, BtfError> {
        let read = |source| BtfError::Read {
            path: path.to_owned(),
            source,
        };
        let btf = Btf::from_file_with_backend(path, Backend::Mmap).map_err(read)?;
        Self::from_btf(&btf)
    }

    fn from_btf(btf: &Btf) -> Result<Self, BtfError> {
        check_operations(btf)?;
        Ok(Self {
            offsets: offsets(btf)?,
            flag_masks: flag_masks(btf)?,
        })
    }
}

fn offsets(btf: &Btf) -> Result<Offsets, BtfError> {
    let mut offsets = [0; Member::COUNT];
    for (offset, member) in offsets.iter_mut().zip(Member::ALL) {
        *offset = offset_of(btf, member)?;
    }
    Ok(offsets)
}

/// Byte offset of a member, which may be inside anonymous structures and unions.
fn offset_of(btf: &Btf, member: Member) -> Result<u32, BtfError> {
    let missing = || BtfError::NoMember(member);
    let (of, name) = member.name().split_once('.').ok_or_else(missing)?;
    let (name, beyond) = name.split_once('+').unwrap_or((name, "0"));
    let beyond: u32 = beyond.parse().map_err(|_| missing())?;
    let definition = structure(btf, of)?;
    let bits = bit_offset(btf, &definition, name, MAX_NESTING);
    let bits = bits.filter(|bits| bits.is_multiple_of(8)).ok_or_else(missing)?;
    Ok(bits / 8 + beyond)
}

fn structure(btf: &Btf, name: &str) -> Result<Struct, BtfError> {
    let types = btf.resolve_types_by_name(name).unwrap_or_default();
    let found = types.into_iter().find_map(|found| match found {
        Type::Struct(definition) => Some(definition),
        _ => None,
    });
    found.ok_or_else(|| BtfError::NoType(format!("struct {name}")))
}

fn bit_offset(btf: &Btf, definition: &Struct, wanted: &str, nesting: u32) -> Option<u32> {
    if nesting == 0 {
        return None;
    }
    definition.members.iter().find_map(|member| {
        let name = btf.resolve_name(member).unwrap_or_default();
        if name == wanted {
            let is_bitfield = member.bitfield_size().is_some_and(|bits| bits != 0);
            return (!is_bitfield).then(|| member.bit_offset());
        }
        if !name.is_empty() {
            return None;
        }
        match btf.resolve_type_by_id(member.get_type_id()?).ok()? {
            Type::Struct(inner) | Type::Union(inner) => {
                Some(member.bit_offset() + bit_offset(btf, &inner, wanted, nesting - 1)?)
            }
            _ => None,
        }
    })
}

/// Checks that the kernel numbers operations as the classifier does.
fn check_operations(btf: &Btf) -> Result<(), BtfError> {
    let operations = [
        ("REQ_OP_READ", req_op::READ),
        ("REQ_OP_WRITE", req_op::WRITE),
        ("REQ_OP_FLUSH", req_op::FLUSH),
        ("REQ_OP_DISCARD", req_op::DISCARD),
        ("REQ_OP_WRITE_ZEROES", req_op::WRITE_ZEROES),
    ];
    let values = enum_values(btf, "req_op")?;
    for (name, wanted) in operations {
        let found = value_of(&values, name);
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
fn flag_masks(btf: &Btf) -> Result<[u32; request_flags::FROM_KERNEL], BtfError> {
    let values = enum_values(btf, "req_flag_bits")?;
    let mut masks = [0; request_flags::FROM_KERNEL];
    for (mask, name) in masks.iter_mut().zip(FLAGS) {
        *mask = value_of(&values, name)
            .and_then(|bit| 1u32.checked_shl(bit))
            .ok_or_else(|| BtfError::NoType(name.to_owned()))?;
    }
    Ok(masks)
}

fn enum_values(btf: &Btf, name: &str) -> Result<Vec<(String, u32)>, BtfError> {
    let types = btf.resolve_types_by_name(name).unwrap_or_default();
    for found in types {
        if let Type::Enum(found) = found {
            let value = |member: &EnumMember| (btf.resolve_name(member).unwrap_or_default(), member.val());
            return Ok(found.members.iter().map(value).collect());
        }
    }
    Err(BtfError::NoType(format!("enum {name}")))
}

fn value_of(values: &[(String, u32)], name: &str) -> Option<u32> {
    values
        .iter()
        .find(|(known, _)| known == name)
        .map(|&(_, value)| value)
}

#[cfg(test)]
mod tests {
    use super::*;

    const STRUCT: u32 = 4;
    const UNION: u32 = 5;
    const ENUM: u32 = 6;

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
            self.types.extend([name, ENUM << 24 | count, 4]);
            for &(value, number) in values {
                let value = self.string(value);
                self.types.extend([value, number]);
            }
            self.next_id += 1;
        }

        fn parse(&self) -> Btf {
            let types: Vec<u8> = self.types.iter().flat_map(|word| word.to_le_bytes()).collect();
            let (types_len, strings_len) = (types.len() as u64, self.strings.len() as u64);
            let mut bytes = vec![0x9f, 0xeb, 1, 0];
            for word in [24, 0, types_len, types_len, strings_len] {
                bytes.extend(u32::try_from(word).unwrap().to_le_bytes());
            }
            bytes.extend(types);
            bytes.extend(&self.strings);
            Btf::from_bytes(&bytes).unwrap()
        }
    }

    fn kernel(discard: u32, sector: &str) -> Handmade {
        let mut btf = Handmade::new();
        let inner = btf.composite(STRUCT, "", &[("rq_flags", 1, 0), ("tag", 1, 32)]);
        let either = btf.composite(UNION, "", &[("other", 1, 0), ("", inner, 64)]);
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
        btf.composite(STRUCT, "request", &members);
        btf.composite(STRUCT, "bio", &[("bi_ioprio", 1, 160)]);
        btf.composite(STRUCT, "request_queue", &[("disk", 1, 96)]);
        btf.composite(STRUCT, "gendisk", &[("disk_name", 1, 160)]);
        btf.composite(STRUCT, "blk_mq_hw_ctx", &[("queue_num", 1, 320)]);
        btf.composite(STRUCT, "iattr", &[("ia_valid", 1, 0), ("ia_size", 1, 128)]);
        btf.composite(STRUCT, "dentry", &[("d_inode", 1, 384)]);
        btf.composite(STRUCT, "inode", &[("i_sb", 1, 320), ("i_ino", 1, 512)]);
        btf.composite(STRUCT, "super_block", &[("s_dev", 1, 128)]);
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
        btf
    }

    #[test]
    fn members_are_found_inside_anonymous_ones() {
        let layout = KernelLayout::from_btf(&kernel(3, "__sector").parse()).unwrap();
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
    }

    #[test]
    fn what_is_missing_is_named() {
        let error = KernelLayout::from_btf(&kernel(3, "sector").parse())
            .unwrap_err()
            .to_string();
        assert!(error.contains("no `request.__sector`"), "{error}");
        let error = KernelLayout::from_btf(&kernel(4, "__sector").parse())
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("`REQ_OP_DISCARD` 4, the classifier was built with 3"),
            "{error}"
        );
        let error = KernelLayout::from_btf(&Handmade::new().parse())
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
