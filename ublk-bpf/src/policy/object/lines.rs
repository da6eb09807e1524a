//! The functions and source lines of an object's instructions (`.BTF.ext`), checked before a library reads it.

use super::btf::Types;
use crate::policy::bytes::{part, u16_at, u32_at};
use crate::policy::verifier::SourceLine;

const MAGIC: u16 = 0xeb9f;
const VERSION: u8 = 1;
/// `struct btf_ext_header` without the CO-RE part.
const HEADER_LEN: u32 = 24;
/// Far above legitimate sizes: the policies of this repository have 1 KiB. A library copies it for each function.
const MAX_BYTES: usize = 512 << 10;
/// `struct bpf_func_info`, `struct bpf_line_info`, `struct bpf_core_relo` of `include/uapi/linux/bpf.h`.
const FUNC_LEN: u32 = 8;
const LINE_LEN: u32 = 16;
const CORE_LEN: u32 = 16;
/// Each is looked up in the kernel's 150,000 types.
const MAX_CORE: usize = 256;

/// The functions and source lines of instructions.
#[derive(Debug, Default)]
pub(super) struct Lines<'a> {
    functions: Vec<LineRecord<'a>>,
    lines: Vec<LineRecord<'a>>,
}

/// A record about the instruction at a byte of a section.
#[derive(Clone, Copy, Debug)]
struct LineRecord<'a> {
    section: &'a str,
    offset: u32,
    rest: &'a [u8],
}

impl<'a> Lines<'a> {
    /// Checks the section `.BTF.ext`.
    pub(super) fn parse(section: &'a [u8], types: &Types<'a>) -> Result<Self, String> {
        if section.len() > MAX_BYTES {
            return Err(format!(".BTF.ext has {} bytes, more than 512 KiB", section.len()));
        }
        let damaged = |what: &str| format!("the {what} of .BTF.ext does not fit its section");
        let header_len = u32_at(section, 4).filter(|&len| len >= HEADER_LEN);
        let is_known = u16_at(section, 0) == Some(MAGIC) && section.get(2) == Some(&VERSION);
        let header_len = header_len.filter(|_| is_known).ok_or_else(|| damaged("header"))?;
        let table = |what, at, wanted: std::ops::RangeInclusive<u32>| {
            let bytes = subsection(section, header_len, at).ok_or_else(|| damaged(what))?;
            records(bytes, &wanted, types).ok_or_else(|| damaged(what))
        };
        // A newer compiler's records may be longer than the present kernel's.
        let functions = table("function information", 8, FUNC_LEN..=256)?;
        let lines = table("line information", 16, LINE_LEN..=256)?;
        let core = match header_len {
            ..32 => Vec::new(),
            _ => table("relocation information", 24, CORE_LEN..=CORE_LEN)?,
        };
        if core.len() > MAX_CORE {
            return Err(format!(
                "it has {} CO-RE relocations, more than {MAX_CORE}",
                core.len()
            ));
        }
        let is_sorted = |[a, b]: &[LineRecord<'_>; 2]| a.section != b.section || a.offset <= b.offset;
        if !lines.array_windows().all(is_sorted) {
            return Err("the lines of .BTF.ext are out of order".to_owned());
        }
        Ok(Self { functions, lines })
    }

    /// The first bytes of functions of type `id`: section and offset.
    pub(super) fn of_type(&self, id: u32) -> impl Iterator<Item = (&'a str, u32)> {
        let is_it = move |record: &&LineRecord<'_>| u32_at(record.rest, 0) == Some(id);
        let found = self.functions.iter().filter(is_it);
        found.map(|record| (record.section, record.offset))
    }

    /// The author's source line of the instruction at this byte of the section; a library's line if the instruction was
    /// inlined and no line of the author's is near.
    pub(super) fn source(&self, section: &str, offset: u32, types: &Types<'_>) -> Option<SourceLine> {
        let before = |record: &&LineRecord<'_>| record.section == section && record.offset <= offset;
        let near = self.lines.iter().filter(before).rev().take(16);
        let mut sources = near.filter_map(|record| record.source(types));
        let nearest = sources.next()?;
        if nearest.is_inlined() {
            return sources.find(|source| !source.is_inlined()).or(Some(nearest));
        }
        Some(nearest)
    }
}

impl<'a> Lines<'a> {
    /// The first line of the author's behind the instruction at this byte of the section.
    pub(super) fn after(&self, section: &str, offset: u32, types: &Types<'_>) -> Option<SourceLine> {
        let behind = |record: &&LineRecord<'_>| record.section == section && record.offset > offset;
        let mut sources = self
            .lines
            .iter()
            .filter(behind)
            .filter_map(|record| record.source(types));
        sources.find(|source| !source.is_inlined())
    }
}

impl LineRecord<'_> {
    /// `struct bpf_line_info` behind the offset: file name, line of text, line and column.
    fn source(&self, types: &Types<'_>) -> Option<SourceLine> {
        let [file, text, line] = [0, 4, 8].map(|at| u32_at(self.rest, at));
        let file = types.string(file?)?.rsplit('/').next()?;
        Some(SourceLine {
            text: types.string(text?)?.trim().to_owned(),
            place: format!("{file}:{}", line? >> 10),
        })
    }
}

/// A subsection, by its offset and length in the header; without a length, nothing.
fn subsection(section: &[u8], header_len: u32, at: usize) -> Option<&[u8]> {
    let [offset, len] = [u32_at(section, at)?, u32_at(section, at + 4)?];
    part(section, u64::from(header_len) + u64::from(offset), len.into())
}

/// The records of a subsection: their length, and for each section its name, their number, and they themselves.
fn records<'a>(
    bytes: &'a [u8],
    wanted: &std::ops::RangeInclusive<u32>,
    types: &Types<'a>,
) -> Option<Vec<LineRecord<'a>>> {
    let mut records = Vec::new();
    if bytes.is_empty() {
        return Some(records);
    }
    let record_len = u32_at(bytes, 0).filter(|len| wanted.contains(len) && len.is_multiple_of(4))?;
    let mut rest = bytes.get(4..)?;
    while !rest.is_empty() {
        let section = types.string(u32_at(rest, 0)?)?;
        let len = u64::from(u32_at(rest, 4)?) * u64::from(record_len);
        let of_section = part(rest, 8, len)?;
        rest = &rest[8 + of_section.len()..];
        for record in of_section.chunks_exact(record_len as usize) {
            records.push(LineRecord {
                section,
                offset: u32_at(record, 0)?,
                rest: &record[4..],
            });
        }
    }
    Some(records)
}
