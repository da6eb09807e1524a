//! Checks a user's policy object before it is used. It refuses, with one clear line, an object that the kernel would
//! refuse later, that could harm the machine, or that breaks a parser.
//!
//! Each check relies on the ones before it: sizes and offsets ([`elf`]), type information ([`btf`], [`lines`]),
//! instructions ([`code`]), and then, parsed by the loader's own library, maps ([`maps`]).

mod btf;
mod code;
mod elf;
mod facts;
mod helpers;
mod lines;
mod maps;
mod sources;
#[cfg(test)]
mod tests;

use std::fs::OpenOptions;
use std::io::{self, Read};
use std::os::unix::fs::OpenOptionsExt;
use std::panic::catch_unwind;
use std::path::{Path, PathBuf};

use aya_obj::Map;
use aya_obj::btf::BtfFeatures;
use object::elf::{EM_BPF, ET_REL};
use object::read::elf::ElfFile64;
use object::{Architecture, Endianness, Object, ObjectSection, ObjectSymbol, SymbolKind};
use ublk_bpf_abi::{POLICY_ABI_VERSION, POLICY_FUNCTION};

use self::btf::Types;
use self::code::Forbidden;
use self::elf::Elf;
pub use self::elf::POLICY_SECTION;
pub use self::facts::{MapFacts, ObjectFacts};
use self::facts::{check_abi, stated_abi};
use self::lines::Lines;
pub(super) use self::maps::{kind_name, pin_name};
pub(super) use self::sources::Panic;
use super::bytes::u16_at;
use super::causes::chain;
use crate::path_text::ShowPath as _;

/// Default limit of the memory of a policy's maps: 64 MiB.
pub const DEFAULT_POLICY_MEMORY: u64 = 64 << 20;

/// The reason for refusing an object that passed all checks and makes the library panic.
const BROKEN: &str = "it breaks the parser of its type information";

/// No policy needs more; a larger file was named by mistake.
const MAX_BYTES: u64 = 16 << 20;

/// `ELFCLASS64`, `ELFDATA2LSB`.
const CLASS_64_LITTLE: [u8; 2] = [2, 1];

/// Licenses that the kernel treats as compatible with the GPL (`include/linux/license.h`).
const GPL_COMPATIBLE: [&str; 6] = [
    "GPL",
    "GPL v2",
    "GPL and additional rights",
    "Dual BSD/GPL",
    "Dual MIT/GPL",
    "Dual MPL/GPL",
];

/// An object that passed all checks. The verifier may still refuse it.
#[derive(Clone, Debug)]
pub struct PolicyObject {
    path: PathBuf,
    bytes: Vec<u8>,
}

/// Why a file cannot be a policy.
#[derive(Debug, thiserror::Error)]
#[error("{} cannot be a policy: {}", path.shown(), one_line(&reason.to_string()))]
pub struct ObjectError {
    path: PathBuf,
    reason: Reason,
}

#[derive(Debug, thiserror::Error)]
enum Reason {
    #[error("{0}")]
    Io(io::Error),
    #[error("it is not a regular file")]
    NotAFile,
    #[error("it has {0} bytes, more than 16 MiB")]
    TooBig(u64),
    #[error("it is not an ELF object; a policy is a crate built for bpfel-unknown-none with ublk-bpf-policy")]
    NotElf,
    #[error("it is an ELF object for {0}, not for BPF (little endian); build it for bpfel-unknown-none")]
    NotBpf(String),
    #[error("it is a linked program, not a relocatable BPF object")]
    NotRelocatable,
    #[error(
        "it has no function `{POLICY_FUNCTION}` in section `{POLICY_SECTION}`; make one with ublk_bpf_policy::policy!"
    )]
    NoEntry,
    #[error(
        "it has no type information (.BTF); link it with -C link-arg=--btf and build with -C debuginfo=2"
    )]
    NoBtf,
    #[error(
        "it is built for version {0} of the policy interface, and this ublk-bpf takes version {POLICY_ABI_VERSION}: build it again with ublk-bpf-policy {sdk}",
        sdk = env!("CARGO_PKG_VERSION")
    )]
    Abi(u32),
    #[error("it has no license section; ublk_bpf_policy::policy! makes one")]
    NoLicense,
    #[error("its license `{0}` is not compatible with the GPL; use one that is, such as `Dual MIT/GPL`")]
    License(String),
    #[error("{0}; build it again")]
    Damaged(String),
    #[error("{what} ({place}), which a policy may not do: see docs/policies.md")]
    Forbidden { what: String, place: String },
    #[error("{0}")]
    Maps(String),
}

impl PolicyObject {
    /// Reads and checks a file. Its maps may use `memory` bytes.
    ///
    /// # Errors
    /// If the file cannot be read, is no policy, is damaged, or contains something that a policy may not contain.
    pub fn open(path: &Path, memory: u64) -> Result<Self, ObjectError> {
        let refuse = |reason| ObjectError {
            path: path.to_owned(),
            reason,
        };
        let bytes = read(path).map_err(refuse)?;
        Ok(Self {
            path: path.to_owned(),
            bytes: admit(bytes, memory).map_err(refuse)?,
        })
    }

    /// The file that it was read from.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The object.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }
}

/// Checks a policy object, and returns the bytes for the loader. For fuzzing.
#[doc(hidden)]
pub fn check_policy_object(bytes: Vec<u8>) -> Result<Vec<u8>, String> {
    admit(bytes, DEFAULT_POLICY_MEMORY).map_err(|reason| one_line(&reason.to_string()))
}

/// Names and source lines come from the object: they must not break a line or control a terminal.
fn one_line(text: &str) -> String {
    text.replace(char::is_control, " ")
}

fn read(path: &Path) -> Result<Vec<u8>, Reason> {
    // Checked before opening, because opening a device may have an effect, and again after, because it may be replaced.
    let is_file = std::fs::metadata(path).map_err(Reason::Io)?.is_file();
    let options = || {
        OpenOptions::new()
            .read(true)
            .custom_flags(libc::O_NONBLOCK)
            .open(path)
    };
    let file = is_file
        .then(options)
        .ok_or(Reason::NotAFile)?
        .map_err(Reason::Io)?;
    let metadata = file.metadata().map_err(Reason::Io)?;
    if !metadata.is_file() {
        return Err(Reason::NotAFile);
    }
    if metadata.len() > MAX_BYTES {
        return Err(Reason::TooBig(metadata.len()));
    }
    let mut bytes = Vec::new();
    file.take(MAX_BYTES).read_to_end(&mut bytes).map_err(Reason::Io)?;
    Ok(bytes)
}

/// Checks an object, and returns it as the loader should get it.
fn admit(mut bytes: Vec<u8>, memory: u64) -> Result<Vec<u8>, Reason> {
    let globals = check(&bytes)?;
    check_maps(&bytes, memory)?;
    for (at, info) in globals {
        bytes[at..at + info.len()].copy_from_slice(&info);
    }
    Ok(bytes)
}

/// Four bytes, and their offset in the file.
type Patch = (usize, [u8; 4]);

/// Checks everything except the maps. Returns the patches that make the object's functions static.
fn check(bytes: &[u8]) -> Result<Vec<Patch>, Reason> {
    let file = parse(bytes)?;
    check_abi(stated_abi(&file)).map_err(Reason::Abi)?;
    let license = section(&file, "license").ok_or(Reason::NoLicense)?;
    check_license(license)?;
    let elf = Elf::parse(&file, bytes).map_err(Reason::Damaged)?;
    check_entry(&elf)?;
    let btf = section(&file, ".BTF").ok_or(Reason::NoBtf)?;
    let types = Types::parse(btf).map_err(Reason::Damaged)?;
    let lines = section(&file, ".BTF.ext").map(|section| Lines::parse(section, &types));
    let lines = lines.transpose().map_err(Reason::Damaged)?.unwrap_or_default();
    for section in &elf.code {
        code::check(section).map_err(|forbidden| place(forbidden, &lines, &types))?;
    }
    check_types(&types, &lines)?;
    // `section` returned a part of the file.
    let base = btf.as_ptr().addr() - bytes.as_ptr().addr();
    Ok(types
        .functions()
        .iter()
        .filter_map(|function| {
            let is_entry = function.name == POLICY_FUNCTION;
            (function.is_global() && !is_entry).then(|| function.static_info(base))
        })
        .collect())
}

/// The object as an ELF file for BPF that has an entry.
fn parse(bytes: &[u8]) -> Result<ElfFile64<'_, Endianness>, Reason> {
    if !bytes.starts_with(b"\x7fELF") {
        return Err(Reason::NotElf);
    }
    let Ok(elf) = ElfFile64::<Endianness>::parse(bytes) else {
        let is_bpf = bytes.get(4..6) == Some(&CLASS_64_LITTLE) && u16_at(bytes, 18) == Some(EM_BPF);
        return Err(match is_bpf {
            true => Reason::Damaged("its ELF headers are damaged".to_owned()),
            // One of 32 bits, for instance.
            false => Reason::NotBpf("another machine".to_owned()),
        });
    };
    let header = elf.elf_header();
    let endian = elf.endian();
    if header.e_machine.get(endian) != EM_BPF || endian != Endianness::Little {
        return Err(Reason::NotBpf(machine_name(elf.architecture())));
    }
    if header.e_type.get(endian) != ET_REL {
        return Err(Reason::NotRelocatable);
    }
    let section = elf.section_by_name(POLICY_SECTION).ok_or(Reason::NoEntry)?;
    let is_entry = |symbol: &object::read::elf::ElfSymbol64<'_, '_, Endianness>| {
        symbol.name() == Ok(POLICY_FUNCTION)
            && symbol.kind() == SymbolKind::Text
            && symbol.section_index() == Some(section.index())
    };
    if !elf.symbols().any(|symbol| is_entry(&symbol)) {
        return Err(Reason::NoEntry);
    }
    Ok(elf)
}

/// The bytes of the first section of this name, the one that the loader's library uses.
fn section<'a>(file: &ElfFile64<'a, Endianness>, name: &str) -> Option<&'a [u8]> {
    file.section_by_name(name)?.data().ok()
}

/// Checks that there is an entry, and that no two sections of functions have the same name.
fn check_entry(elf: &Elf<'_>) -> Result<(), Reason> {
    let named = |name: &str| elf.code.iter().filter(|code| code.name == name).count();
    if named(POLICY_SECTION) == 0 {
        return Err(Reason::NoEntry);
    }
    match elf.code.iter().find(|code| named(code.name) > 1) {
        Some(code) => Err(Reason::Damaged(format!("it has two sections `{}`", code.name))),
        None => Ok(()),
    }
}

/// Checks that the type information describes exactly one function as the entry, at the entry's place.
fn check_types(types: &Types<'_>, lines: &Lines<'_>) -> Result<(), Reason> {
    let mut entries = types
        .functions()
        .iter()
        .filter(|function| function.name == POLICY_FUNCTION);
    let (Some(entry), None) = (entries.next(), entries.next()) else {
        return Err(Reason::Damaged(format!(
            "its type information does not have one function `{POLICY_FUNCTION}`"
        )));
    };
    if lines.of_type(entry.id).any(|place| place != (POLICY_SECTION, 0)) {
        return Err(Reason::Damaged(format!(
            "another function is described as `{POLICY_FUNCTION}`"
        )));
    }
    Ok(())
}

/// Adds the source line, or the instruction.
fn place(forbidden: Forbidden<'_>, lines: &Lines<'_>, types: &Types<'_>) -> Reason {
    let Forbidden { section, at, what } = forbidden;
    let place = match lines.source(section, at, types) {
        Some(source) => source.to_string(),
        None => format!("instruction {} of section {section}", at / 8),
    };
    Reason::Forbidden { what, place }
}

/// Checks the maps as the loader's library parses them, after all of its steps that need no kernel.
fn check_maps(bytes: &[u8], memory: u64) -> Result<(), Reason> {
    // Objects that are known to break the library were refused before. Any other panic refuses this object only.
    let maps = catch_unwind(|| link(bytes)).map_err(|_| Reason::Damaged(BROKEN.to_owned()))?;
    let maps = maps.map_err(|error| Reason::Damaged(chain(&*error)))?;
    let cpus = aya::util::nr_cpus().map_err(|(_, error)| Reason::Io(error))?;
    let maps = maps.iter().map(|(name, map)| (name.as_str(), map));
    maps::check(maps, memory, cpus as u64).map_err(Reason::Maps)
}

/// Runs the loader's steps for a kernel with all features, and returns the object's maps.
fn link(bytes: &[u8]) -> Result<Vec<(String, Map)>, Box<dyn std::error::Error>> {
    let mut object = aya_obj::Object::parse(bytes)?;
    object.fixup_and_sanitize_btf(&BtfFeatures::new(true, true, true, true, true, true, true, true))?;
    let maps: Vec<(String, Map)> = object.maps.drain().collect();
    let sections = object.functions.keys().map(|(section, _)| *section).collect();
    // Any number will do as a map's descriptor: it is not used.
    object.relocate_maps(maps.iter().map(|(name, map)| (name.as_str(), 0, map)), &sections)?;
    object.relocate_calls(&sections)?;
    Ok(maps)
}

fn check_license(section: &[u8]) -> Result<(), Reason> {
    let text = section.split(|&byte| byte == 0).next().unwrap_or_default();
    let text = String::from_utf8_lossy(text);
    if GPL_COMPATIBLE.contains(&text.as_ref()) {
        return Ok(());
    }
    Err(Reason::License(text.into_owned()))
}

fn machine_name(architecture: Architecture) -> String {
    match architecture {
        Architecture::Bpf => "big-endian BPF".to_owned(),
        Architecture::Unknown => "an unknown machine".to_owned(),
        known => format!("{known:?}"),
    }
}
