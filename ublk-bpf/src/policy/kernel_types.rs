//! The running kernel's type information (BTF), read without an index: a start looks for a dozen of its 150,000 types.
//!
//! The format is that of the kernel's `Documentation/bpf/btf.rst`.

use super::btf_format::{Header, KIND_ENUM, KIND_STRUCT, KIND_UNION, bytes_behind, count_of, kind_of};
use super::bytes::u32_at;

/// Bytes of a type before what its kind adds (`struct btf_type`).
const TYPE_LEN: usize = 12;
/// The average type is longer than this.
const SHORT_TYPE: usize = 24;
/// Bytes of a member of a structure and of a value of an enum.
const MEMBER_LEN: usize = 12;
const VALUE_LEN: usize = 8;
/// The bit of a structure's `info` that says that its members' offsets contain the size of a bit field.
const HAS_BITFIELDS: u32 = 1 << 31;

/// Anonymous members nest a few levels deep; type information that nests deeper is broken.
const MAX_NESTING: u32 = 16;

/// A type to look for.
#[derive(Clone, Copy, Debug)]
pub(super) struct Wanted {
    /// Its `BTF_KIND_*`.
    pub(super) kind: u32,
    pub(super) name: &'static str,
}

/// A type of the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct KernelType {
    /// Its number.
    pub(super) id: u32,
    at: u32,
}

/// The types of a kernel.
pub(super) struct KernelTypes<'a> {
    section: &'a [u8],
    strings: &'a [u8],
    /// Where each type is; the first one has number 1.
    places: Vec<u32>,
}

impl<'a> KernelTypes<'a> {
    /// Walks over all types and returns the first one of each kind and name that is wanted; none if the information is
    /// damaged.
    pub(super) fn find<const N: usize>(
        section: &'a [u8],
        wanted: &[Wanted; N],
    ) -> Option<(Self, [Option<KernelType>; N])> {
        let Header { types, strings } = Header::parse(section)?;
        let mut places = Vec::with_capacity(types.len() / SHORT_TYPE);
        let mut found = [None; N];
        // Most types are of another kind, or one of many functions.
        let mut missing: Vec<(usize, Wanted)> = wanted.iter().copied().enumerate().collect();
        let mut kinds = kinds_of(&missing);
        let mut at = types.start;
        while at < types.end {
            let [name, info] = [u32_at(section, at)?, u32_at(section, at + 4)?];
            let place = u32::try_from(at).ok()?;
            places.push(place);
            let kind = kind_of(info);
            if kinds >> kind & 1 != 0
                && let Some(here) = missing
                    .iter()
                    .position(|(_, wanted)| wanted.kind == kind && is_named(strings, name, wanted.name))
            {
                let (number, _) = missing.swap_remove(here);
                let id = u32::try_from(places.len()).ok()?;
                found[number] = Some(KernelType { id, at: place });
                kinds = kinds_of(&missing);
            }
            at += TYPE_LEN + bytes_behind(info)?;
        }
        let kernel = Self {
            section,
            strings,
            places,
        };
        (at == types.end).then_some((kernel, found))
    }

    /// The offset in bits of a structure's member, which may be inside anonymous members; none if there is no such
    /// member, or it is a bit field.
    pub(super) fn bit_offset(&self, structure: KernelType, member: &str) -> Option<u32> {
        self.bit_offset_at(structure.at as usize, member, MAX_NESTING)
    }

    fn bit_offset_at(&self, at: usize, wanted: &str, nesting: u32) -> Option<u32> {
        let info = u32_at(self.section, at + 4)?;
        if nesting == 0 || !matches!(kind_of(info), KIND_STRUCT | KIND_UNION) {
            return None;
        }
        (0..count_of(info)).find_map(|member| {
            let at = at + TYPE_LEN + member as usize * MEMBER_LEN;
            let [name, of, offset] = [0, 4, 8].map(|part| u32_at(self.section, at + part));
            let (name, offset) = (name?, offset?);
            let (bits, offset) = match info & HAS_BITFIELDS {
                0 => (0, offset),
                _ => (offset >> 24, offset & 0x00ff_ffff),
            };
            if is_named(self.strings, name, wanted) {
                return (bits == 0).then_some(offset);
            }
            if !is_named(self.strings, name, "") {
                return None;
            }
            let inner = *self.places.get((of? as usize).checked_sub(1)?)?;
            Some(offset + self.bit_offset_at(inner as usize, wanted, nesting - 1)?)
        })
    }

    /// The number of an enum's value.
    pub(super) fn value(&self, of: KernelType, wanted: &str) -> Option<u32> {
        let at = of.at as usize;
        let info = u32_at(self.section, at + 4)?;
        if kind_of(info) != KIND_ENUM {
            return None;
        }
        (0..count_of(info) as usize).find_map(|value| {
            let at = at + TYPE_LEN + value * VALUE_LEN;
            let is_it = is_named(self.strings, u32_at(self.section, at)?, wanted);
            is_it.then(|| u32_at(self.section, at + 4))?
        })
    }
}

/// A bit for each kind among these.
fn kinds_of(wanted: &[(usize, Wanted)]) -> u32 {
    wanted
        .iter()
        .fold(0, |kinds, (_, wanted)| kinds | 1 << (wanted.kind & 31))
}

/// Whether the string at this offset is `name`.
fn is_named(strings: &[u8], offset: u32, name: &str) -> bool {
    let start = offset as usize;
    let text = strings.get(start..start + name.len());
    text == Some(name.as_bytes()) && strings.get(start + name.len()) == Some(&0)
}
