//! The sections and symbols of an object. Every size is bounded before anything is allocated for it.

use object::elf::{SHF_EXECINSTR, SHT_NOBITS};
use object::read::elf::{ElfFile64, ElfSection64};
use object::{
    Endianness, Object, ObjectSection, ObjectSymbol, RelocationFlags, RelocationTarget, SectionFlags,
};
use object::{SectionIndex, SymbolKind};

/// The section of a policy's entry.
pub const POLICY_SECTION: &str = "freplace/policy";
/// Rust makes about 25 sections.
const MAX_SECTIONS: usize = 512;
/// `KSYM_NAME_LEN` of `include/linux/kallsyms.h` is 512; longer names of Rust are in debug information only.
const MAX_NAME: usize = 4096;
const MAX_SYMBOLS: usize = 16_384;
/// 131,072 instructions. The verifier gives up after processing a million.
const MAX_CODE: u64 = 1 << 20;
/// The kernel takes 256 (`BPF_MAX_SUBPROGS`).
const MAX_FUNCTIONS: usize = 128;
/// Bytes of one value of a map, which a section of globals is too. A call may copy a value, and a policy may make some
/// hundred thousand calls.
pub(super) const MAX_VALUE: u64 = 64 << 10;
/// Prefixes of section names for which `aya-obj` creates a map of the section's bytes.
const GLOBALS: [&str; 3] = [".bss", ".data", ".rodata"];
/// Legacy maps, an array of `struct bpf_map_def`.
const OLD_MAPS: &str = "maps";
/// Offset of `pinning` in a `struct bpf_map_def`.
const OLD_PINNING: usize = 24;

/// An ELF object whose parts are inside the file and not too large.
#[derive(Debug)]
pub(super) struct Elf<'a> {
    pub(super) code: Vec<Code<'a>>,
}

/// A section of instructions.
#[derive(Debug)]
pub(super) struct Code<'a> {
    pub(super) name: &'a str,
    pub(super) bytes: &'a [u8],
    /// Functions: first byte and length.
    pub(super) functions: Vec<(u64, u64)>,
    pub(super) relocations: Vec<Relocation<'a>>,
}

/// An instruction that the loader completes.
#[derive(Clone, Copy, Debug)]
pub(super) struct Relocation<'a> {
    /// The byte of the instruction.
    pub(super) at: u64,
    /// `R_BPF_*`.
    pub(super) kind: u32,
    /// What it refers to.
    pub(super) target: LinkTarget<'a>,
}

/// What a relocation refers to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum LinkTarget<'a> {
    /// A function of the object.
    Code,
    /// A map or global of the object.
    Data,
    /// Something of this name that is not in the object.
    Missing(&'a str),
}

type File<'a> = ElfFile64<'a, Endianness>;
type Section<'a, 'file> = ElfSection64<'a, 'file, Endianness>;

impl<'a> Elf<'a> {
    /// Checks sizes, places and names.
    pub(super) fn parse(file: &File<'a>, bytes: &'a [u8]) -> Result<Self, String> {
        check_sections(file, bytes)?;
        check_symbols(file)?;
        let mut code = Vec::new();
        for section in file.sections().filter(is_code) {
            code.push(Code::parse(file, &section)?);
        }
        let len: usize = code.iter().map(|code| code.bytes.len()).sum();
        if len as u64 > MAX_CODE {
            return Err(format!(
                "it has {} instructions, more than {}",
                len / 8,
                MAX_CODE / 8
            ));
        }
        if code.iter().map(|code| code.functions.len()).sum::<usize>() > MAX_FUNCTIONS {
            return Err(format!("it has more than {MAX_FUNCTIONS} functions"));
        }
        Ok(Self { code })
    }
}

/// Whether the loader treats the section as instructions.
fn is_code(section: &Section<'_, '_>) -> bool {
    let is_executable = matches!(section.flags(), SectionFlags::Elf { sh_flags, .. } if sh_flags & u64::from(SHF_EXECINSTR) != 0);
    let is_text = section.name().is_ok_and(|name| name.starts_with(".text"));
    section.size() > 0 && (is_executable || is_text)
}

/// Checks that sections are inside the file and do not overlap, and bounds what the loader allocates for them.
fn check_sections(file: &File<'_>, bytes: &[u8]) -> Result<(), String> {
    if file.sections().count() > MAX_SECTIONS {
        return Err(format!("it has more than {MAX_SECTIONS} sections"));
    }
    let mut in_file = 0_u64;
    for section in file.sections() {
        let index = section.index();
        let name = section.name().ok().filter(|name| name.len() <= MAX_NAME);
        let name = name.ok_or_else(|| format!("section {index} has no name"))?;
        let data = section
            .data()
            .map_err(|_| format!("section `{name}` is outside the file"))?;
        in_file = in_file.saturating_add(data.len() as u64);
        if section.address() != 0 {
            return Err(format!("section `{name}` has an address"));
        }
        if GLOBALS.iter().any(|start| name.starts_with(start)) && section.size() > MAX_VALUE {
            return Err(format!(
                "its globals in `{name}` have {} bytes, more than 64 KiB: keep them in a map",
                section.size()
            ));
        }
        if name.starts_with(OLD_MAPS) {
            check_old_maps(file, &section, data)?;
        }
    }
    // Two sections may not share bytes: a loader would copy them for each.
    if in_file > bytes.len() as u64 {
        return Err("its sections have more bytes than the file".to_owned());
    }
    Ok(())
}

/// `aya-obj` does not check the enumerator at `pinning`.
fn check_old_maps(file: &File<'_>, section: &Section<'_, '_>, data: &[u8]) -> Result<(), String> {
    for symbol in file
        .symbols()
        .filter(|symbol| symbol.section_index() == Some(section.index()))
    {
        let damaged = || {
            format!(
                "map `{}` is not in its section",
                symbol.name().unwrap_or_default()
            )
        };
        let start = usize::try_from(symbol.address()).ok();
        let len = usize::try_from(symbol.size()).ok();
        let end = start.zip(len).and_then(|(start, len)| start.checked_add(len));
        let map = start.zip(end).and_then(|(start, end)| data.get(start..end));
        let map = map.ok_or_else(damaged)?;
        if map.iter().skip(OLD_PINNING).take(4).any(|&byte| byte != 0) {
            return Err(format!(
                "map `{}` asks to be pinned: a policy's maps are pinned by ublk-bpf, and go with it",
                symbol.name().unwrap_or_default()
            ));
        }
    }
    Ok(())
}

fn check_symbols(file: &File<'_>) -> Result<(), String> {
    let mut symbols = 0;
    for symbol in file.symbols() {
        symbols += 1;
        if symbols > MAX_SYMBOLS {
            return Err(format!("it has more than {MAX_SYMBOLS} symbols"));
        }
        if symbol.name().ok().is_none_or(|name| name.len() > MAX_NAME) {
            return Err(format!("symbol {} has no name", symbol.index()));
        }
    }
    Ok(())
}

impl<'a> Code<'a> {
    fn parse(file: &File<'a>, section: &Section<'a, '_>) -> Result<Self, String> {
        // `check_sections` has checked both.
        let name = section.name().unwrap_or_default();
        let bytes = section.data().unwrap_or_default();
        if name != POLICY_SECTION && !name.starts_with(".text") {
            return Err(format!(
                "it has a program in section `{name}`: a policy is one program, in `{POLICY_SECTION}`, with its functions in `.text`"
            ));
        }
        let is_nobits = matches!(section.flags(), SectionFlags::Elf { .. })
            && section.elf_section_header().sh_type.get(file.endian()) == SHT_NOBITS;
        if is_nobits || !bytes.len().is_multiple_of(8) {
            return Err(format!("section `{name}` does not consist of instructions"));
        }
        let functions = functions(file, section, bytes.len() as u64)?;
        if name == POLICY_SECTION && functions != [(0, bytes.len() as u64)] {
            return Err(format!(
                "section `{name}` has more in it than the function `policy`"
            ));
        }
        Ok(Self {
            name,
            bytes,
            functions,
            relocations: relocations(file, section)?,
        })
    }
}

/// The functions in a section, each of whole instructions within it.
fn functions(file: &File<'_>, section: &Section<'_, '_>, len: u64) -> Result<Vec<(u64, u64)>, String> {
    let mut functions = Vec::new();
    for symbol in file.symbols() {
        if symbol.section_index() != Some(section.index()) || symbol.kind() != SymbolKind::Text {
            continue;
        }
        let (start, size) = (symbol.address(), symbol.size());
        let is_inside = start.checked_add(size).is_some_and(|end| end <= len);
        if size == 0 || !is_inside || !start.is_multiple_of(8) || !size.is_multiple_of(8) {
            return Err(format!(
                "function `{}` does not consist of instructions of its section",
                symbol.name().unwrap_or_default()
            ));
        }
        functions.push((start, size));
    }
    Ok(functions)
}

fn relocations<'a>(file: &File<'a>, section: &Section<'a, '_>) -> Result<Vec<Relocation<'a>>, String> {
    let mut all = Vec::new();
    for (at, relocation) in section.relocations() {
        let RelocationFlags::Elf { r_type: kind } = relocation.flags() else {
            continue;
        };
        let symbol = match relocation.target() {
            RelocationTarget::Symbol(index) => file.symbol_by_index(index).ok(),
            _ => None,
        };
        let symbol = symbol.ok_or_else(|| format!("the relocation at byte {at} has no symbol"))?;
        let name = symbol.name().unwrap_or_default();
        let target = match symbol.section_index() {
            None => LinkTarget::Missing(name),
            Some(index) if is_code_at(file, index) => match symbol.kind() {
                SymbolKind::Text | SymbolKind::Section => LinkTarget::Code,
                _ => {
                    return Err(format!(
                        "the relocation at byte {at} leads into code, but not to a function"
                    ));
                }
            },
            Some(_) => LinkTarget::Data,
        };
        all.push(Relocation { at, kind, target });
    }
    Ok(all)
}

fn is_code_at(file: &File<'_>, index: SectionIndex) -> bool {
    file.section_by_index(index)
        .is_ok_and(|section| is_code(&section))
}
