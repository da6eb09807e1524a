//! The format of type information (BTF), by the kernel's `Documentation/bpf/btf.rst`.

use super::bytes::{part, u16_at, u32_at};

const MAGIC: u16 = 0xeb9f;
pub(super) const VERSION: u8 = 1;
pub(super) const HEADER_LEN: u32 = 24;

// `BTF_KIND_*` of `include/uapi/linux/btf.h`.
pub(super) const KIND_INT: u32 = 1;
pub(super) const KIND_PTR: u32 = 2;
pub(super) const KIND_ARRAY: u32 = 3;
pub(super) const KIND_STRUCT: u32 = 4;
pub(super) const KIND_UNION: u32 = 5;
pub(super) const KIND_ENUM: u32 = 6;
pub(super) const KIND_FWD: u32 = 7;
pub(super) const KIND_TYPEDEF: u32 = 8;
pub(super) const KIND_RESTRICT: u32 = 11;
pub(super) const KIND_FUNC: u32 = 12;
pub(super) const KIND_FUNC_PROTO: u32 = 13;
pub(super) const KIND_VAR: u32 = 14;
pub(super) const KIND_DATASEC: u32 = 15;
pub(super) const KIND_FLOAT: u32 = 16;
pub(super) const KIND_DECL_TAG: u32 = 17;
pub(super) const KIND_TYPE_TAG: u32 = 18;
pub(super) const KIND_ENUM64: u32 = 19;

/// The kind in a type's `info`.
pub(super) fn kind_of(info: u32) -> u32 {
    info >> 24 & 0x1f
}

/// The number of members, values or parameters in a type's `info`.
pub(super) fn count_of(info: u32) -> u32 {
    info & 0xffff
}

/// The bytes between a type and the next one, for its `info`; none if the kind is unknown.
pub(super) fn bytes_behind(info: u32) -> Option<usize> {
    let count = count_of(info) as usize;
    Some(match kind_of(info) {
        KIND_INT | KIND_VAR | KIND_DECL_TAG => 4,
        KIND_ARRAY => 12,
        KIND_STRUCT | KIND_UNION | KIND_DATASEC | KIND_ENUM64 => 12 * count,
        KIND_ENUM | KIND_FUNC_PROTO => 8 * count,
        KIND_PTR | KIND_TYPE_TAG | KIND_FLOAT | KIND_FWD..=KIND_FUNC => 0,
        _ => return None,
    })
}

/// The parts of a section with types and with strings.
pub(super) struct Header<'a> {
    pub(super) types: std::ops::Range<usize>,
    pub(super) strings: &'a [u8],
}

impl<'a> Header<'a> {
    /// `struct btf_header`.
    pub(super) fn parse(section: &'a [u8]) -> Option<Self> {
        let header_len = u32_at(section, 4)?;
        let is_known =
            u16_at(section, 0)? == MAGIC && section.get(2) == Some(&VERSION) && header_len >= HEADER_LEN;
        let [types_at, types_len, strings_at, strings_len] =
            [8, 12, 16, 20].map(|at| u32_at(section, at).map(u64::from));
        let types_at = u64::from(header_len) + types_at?;
        part(section, types_at, types_len?)?;
        let strings = part(section, u64::from(header_len) + strings_at?, strings_len?)?;
        let start = usize::try_from(types_at).ok()?;
        let types = start..start + usize::try_from(types_len?).ok()?;
        is_known.then_some(Self { types, strings })
    }
}

/// A section of these words and strings.
#[cfg(test)]
pub(super) fn section(types: &[u32], strings: &[u8]) -> Vec<u8> {
    let types: Vec<u8> = types.iter().flat_map(|word| word.to_le_bytes()).collect();
    let len = |bytes: &[u8]| u32::try_from(bytes.len()).unwrap();
    let header = [HEADER_LEN, 0, len(&types), len(&types), len(strings)];
    let mut section = vec![0x9f, 0xeb, VERSION, 0];
    section.extend(header.iter().flat_map(|word| word.to_le_bytes()));
    section.extend(types);
    section.extend(strings);
    section
}
