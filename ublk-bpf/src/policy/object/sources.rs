//! Where in its author's source an object does what the verifier refuses.

use std::collections::BTreeMap;
use std::fmt;

use object::read::elf::{ElfFile64, ElfSection64, ElfSymbol64};
use object::{
    Endianness, Object as _, ObjectSection as _, ObjectSymbol as _, RelocationTarget, SectionIndex,
    SymbolKind,
};

use super::btf::Types;
use super::lines::Lines;
use super::{POLICY_SECTION, PolicyObject, one_line, section};
use crate::policy::bytes::u32_at;
use crate::policy::verifier::{SourceLine, panic_hint};

/// The section where rustc puts functions that are hardly ever called, all that panic among them.
const COLD: &str = ".text.unlikely";
/// The module of `core` that panics, in a mangled name.
const PANICKING: &str = "9panicking";
/// `BPF_JMP | BPF_CALL`, and the source register of a call of a function of the object.
const CALL: u8 = 0x85;
const TO_FUNCTION: u8 = 1;

/// A place where a policy may panic.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::policy) struct Panic {
    /// The mangled name of the function that panics.
    pub(in crate::policy) function: String,
    /// The author's line that calls it.
    pub(in crate::policy) source: SourceLine,
}

/// The line, and what to do there.
impl fmt::Display for Panic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = format!("{}; {}", self.source, panic_hint(&self.function));
        f.write_str(&one_line(&text))
    }
}

type File<'a> = ElfFile64<'a, Endianness>;
type Section<'a, 'file> = ElfSection64<'a, 'file, Endianness>;
type Symbol<'a, 'file> = ElfSymbol64<'a, 'file, Endianness>;

impl PolicyObject {
    /// Where it may panic, in the order of its code. Not all of these places need be reachable.
    pub(in crate::policy) fn panics(&self) -> Vec<Panic> {
        self.with_lines(|file, types, lines| {
            let mut panics = Vec::new();
            for section in file.sections() {
                let name = section.name().unwrap_or_default();
                if name != POLICY_SECTION && !name.starts_with(".text") || name.starts_with(COLD) {
                    continue;
                }
                for (at, function) in calls(file, &section) {
                    let source = lines.source(name, at, types);
                    // A library's line says nothing to the author: the next line of theirs does.
                    let source = source.filter(|line| !line.is_inlined()).or_else(|| {
                        let SourceLine { text, place } = lines.after(name, at, types)?;
                        let place = format!("before {place}");
                        Some(SourceLine { text, place })
                    });
                    panics.extend(source.map(|source| Panic { function, source }));
                }
            }
            Some(panics)
        })
        .unwrap_or_default()
    }

    /// The first line of the author's behind an instruction of the entry.
    pub(in crate::policy) fn line_after(&self, instruction: usize) -> Option<SourceLine> {
        let offset = u32::try_from(instruction.checked_mul(8)?).ok()?;
        self.with_lines(|file, types, lines| {
            let entry = file.section_by_name(POLICY_SECTION)?;
            (u64::from(offset) < entry.size()).then_some(())?;
            lines.after(POLICY_SECTION, offset, types)
        })
    }

    fn with_lines<T>(&self, look: impl FnOnce(&File<'_>, &Types<'_>, &Lines<'_>) -> Option<T>) -> Option<T> {
        let file = File::parse(&*self.bytes).ok()?;
        let types = Types::parse(section(&file, ".BTF")?).ok()?;
        let lines = Lines::parse(section(&file, ".BTF.ext")?, &types).ok()?;
        look(&file, &types, &lines)
    }
}

/// The calls of functions that panic in a section: the byte of the call, and the function.
fn calls(file: &File<'_>, section: &Section<'_, '_>) -> Vec<(u32, String)> {
    let relocations: BTreeMap<u64, _> = section.relocations().collect();
    let (instructions, _) = section.data().unwrap_or_default().as_chunks::<8>();
    let mut calls = Vec::new();
    for (at, instruction) in (0..).step_by(8).zip(instructions) {
        if instruction[0] != CALL || instruction[1] >> 4 != TO_FUNCTION {
            continue;
        }
        let (index, from) = match relocations.get(&at).map(object::Relocation::target) {
            Some(RelocationTarget::Symbol(symbol)) => match file.symbol_by_index(symbol) {
                Ok(symbol) => (symbol.section_index(), symbol.address()),
                Err(_) => continue,
            },
            _ => (Some(section.index()), at),
        };
        // In instructions, from the one behind the call or, relocated, from the one before the symbol.
        let distance = i64::from(u32_at(instruction, 4).unwrap_or_default().cast_signed()) + 1;
        let target = from.wrapping_add_signed(8 * distance);
        if let Some(function) = cold_function(file, index, target) {
            calls.push((u32::try_from(at).unwrap_or(u32::MAX), function));
        }
    }
    calls
}

/// The name of the function at this byte of a section, if it is one that panics.
fn cold_function(file: &File<'_>, index: Option<SectionIndex>, at: u64) -> Option<String> {
    let section = file.section_by_index(index?).ok()?;
    let is_it = |symbol: &Symbol<'_, '_>| {
        symbol.section_index() == index && symbol.address() == at && symbol.kind() == SymbolKind::Text
    };
    let name = file.symbols().find(is_it)?.name().ok()?;
    let is_cold = section.name().is_ok_and(|name| name.starts_with(COLD));
    (is_cold || name.contains(PANICKING)).then(|| name.to_owned())
}
