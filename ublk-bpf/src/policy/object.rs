//! A user's policy object, checked at the door: what would fail later in the kernel's words, harm the machine or break a
//! parser is refused here in ours.
//!
//! The checks stand in an order in which each relies on those before it: sizes and places ([`elf`]), type information ([`btf`],
//! [`lines`]), instructions ([`code`]), and then, read by the loader's own library, maps ([`maps`]).

mod btf;
mod bytes;
mod code;
mod elf;
mod helpers;
mod lines;
mod maps;

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
use ublk_bpf_abi::POLICY_FUNCTION;

use self::btf::Types;
use self::bytes::u16_at;
use self::code::Forbidden;
use self::elf::Elf;
use self::lines::Lines;
pub(super) use self::maps::pin_name;
use crate::path_text::ShowPath as _;

/// The section that a policy's entry stands in.
pub const POLICY_SECTION: &str = "freplace/policy";

/// Bytes that a policy's maps may take where nothing else is said: 64 MiB.
pub const DEFAULT_POLICY_MEMORY: u64 = 64 << 20;

/// Why an object is refused that breaks the library although it passed all checks.
const BROKEN: &str = "it breaks the parser of its type information";

/// No policy needs more; a file that is bigger was named by mistake.
const MAX_BYTES: u64 = 16 << 20;

/// `ELFCLASS64`, `ELFDATA2LSB`.
const CLASS_64_LITTLE: [u8; 2] = [2, 1];

/// What the kernel takes for compatible with the GPL (`include/linux/license.h`).
const GPL_COMPATIBLE: [&str; 6] = [
    "GPL",
    "GPL v2",
    "GPL and additional rights",
    "Dual BSD/GPL",
    "Dual MIT/GPL",
    "Dual MPL/GPL",
];

/// An object that has what a policy must have, and nothing that a policy may not have. The verifier still has its say.
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
    #[error("it has no license section; ublk_bpf_policy::policy! makes one")]
    NoLicense,
    #[error(
        "its license `{0}` is not one that the kernel takes for compatible with the GPL, such as `Dual MIT/GPL`"
    )]
    License(String),
    #[error("{0}; build it again")]
    Damaged(String),
    #[error("{what} ({place}), which a policy may not: docs/policies.md lists what it may")]
    Forbidden { what: String, place: String },
    #[error("{0}")]
    Maps(String),
}

impl PolicyObject {
    /// Reads and checks a file. Its maps may take `memory` bytes.
    ///
    /// # Errors
    /// If the file cannot be read, is no policy, is damaged, or does or has what a policy may not.
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

    /// Where it came from.
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

/// Whether a policy object of these bytes would be admitted, and the bytes that a loader gets then. For fuzzing.
#[doc(hidden)]
pub fn check_policy_object(bytes: Vec<u8>) -> Result<Vec<u8>, String> {
    admit(bytes, DEFAULT_POLICY_MEMORY).map_err(|reason| one_line(&reason.to_string()))
}

/// Names and lines of source come from the object: they do not break a line, nor write to a terminal what they like.
fn one_line(text: &str) -> String {
    text.replace(char::is_control, " ")
}

fn read(path: &Path) -> Result<Vec<u8>, Reason> {
    // Asked before opening: to open a device may do something. And again: another may stand there by then.
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

/// Checks an object, and gives it back as a loader should have it.
fn admit(mut bytes: Vec<u8>, memory: u64) -> Result<Vec<u8>, Reason> {
    let globals = check(&bytes)?;
    check_maps(&bytes, memory)?;
    for (at, info) in globals {
        bytes[at..at + info.len()].copy_from_slice(&info);
    }
    Ok(bytes)
}

/// Four bytes of the file, and where they belong.
type Patch = (usize, [u8; 4]);

/// Checks all but the maps. Gives what makes the object's functions static.
fn check(bytes: &[u8]) -> Result<Vec<Patch>, Reason> {
    let file = parse(bytes)?;
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
    // It is a part of the file: `section` found it there.
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

/// The bytes of the first section of this name, as the loader's library finds it.
fn section<'a>(file: &ElfFile64<'a, Endianness>, name: &str) -> Option<&'a [u8]> {
    file.section_by_name(name)?.data().ok()
}

/// The entry is there once, and so is the section of every function.
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

/// One function is described as the entry, and it stands where the entry is. All others are made static.
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

/// Names the line of the source, or the instruction.
fn place(forbidden: Forbidden<'_>, lines: &Lines<'_>, types: &Types<'_>) -> Reason {
    let Forbidden { section, at, what } = forbidden;
    let place = match lines.source(section, at, types) {
        Some(source) => source.to_string(),
        None => format!("instruction {} of section {section}", at / 8),
    };
    Reason::Forbidden { what, place }
}

/// Checks the maps as the library sees them that will make them, after it has gone through all of its work that needs no
/// kernel.
fn check_maps(bytes: &[u8], memory: u64) -> Result<(), Reason> {
    // What is known to break the library was refused before. Should there be more, it is the object that ends.
    let maps = catch_unwind(|| link(bytes)).map_err(|_| Reason::Damaged(BROKEN.to_owned()))?;
    let maps = maps.map_err(|error| Reason::Damaged(super::chain(&*error)))?;
    let cpus = aya::util::nr_cpus().map_err(|(_, error)| Reason::Io(error))?;
    let maps = maps.iter().map(|(name, map)| (name.as_str(), map));
    maps::check(maps, memory, cpus as u64).map_err(Reason::Maps)
}

/// Does what the loader does with an object, with a kernel that has everything, and gives the object's maps.
fn link(bytes: &[u8]) -> Result<Vec<(String, Map)>, Box<dyn std::error::Error>> {
    let mut object = aya_obj::Object::parse(bytes)?;
    object.fixup_and_sanitize_btf(&BtfFeatures::new(true, true, true, true, true, true, true, true))?;
    let maps: Vec<(String, Map)> = object.maps.drain().collect();
    let sections = object.functions.keys().map(|(section, _)| *section).collect();
    // Any number is as good as a file's: nothing is done with it.
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

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    fn refusal(bytes: &[u8]) -> String {
        admit(bytes.to_vec(), DEFAULT_POLICY_MEMORY)
            .unwrap_err()
            .to_string()
    }

    /// A copy of a built-in policy with one byte string replaced by another of the same length.
    fn altered(from: &[u8], to: &[u8]) -> Vec<u8> {
        assert_eq!(from.len(), to.len());
        let mut bytes = crate::policy::builtin::PASSTHROUGH.to_vec();
        let mut at = 0;
        let mut changed = false;
        while at + from.len() <= bytes.len() {
            if &bytes[at..at + from.len()] == from {
                bytes[at..at + from.len()].copy_from_slice(to);
                changed = true;
            }
            at += 1;
        }
        assert!(changed);
        bytes
    }

    #[test]
    fn a_built_in_policy_would_be_admitted() {
        for builtin in crate::policy::builtin() {
            admit(builtin.object().to_vec(), DEFAULT_POLICY_MEMORY).unwrap();
        }
    }

    #[test]
    fn what_is_no_policy_is_named() {
        assert!(refusal(b"").contains("not an ELF object"));
        assert!(refusal(b"#!/bin/sh\n").contains("not an ELF object"));
        assert!(refusal(b"\x7fELF").contains("not for BPF"));
        let own = std::fs::read("/proc/self/exe").unwrap();
        assert!(refusal(&own).contains("not for BPF"), "{}", refusal(&own));
        assert!(refusal(crate::policy::builtin::CLASSIFIER).contains("no function `policy` in section"));
        assert!(
            refusal(&altered(b"freplace/policy\0", b"freplace/polisy\0")).contains("no function `policy`")
        );
        assert!(refusal(&altered(b".BTF\0", b".BTX\0")).contains("no type information"));
        assert!(refusal(&altered(b"Dual MIT/GPL\0", b"Proprietary!\0")).contains("license `Proprietary!`"));
    }

    #[test]
    fn truncated_objects_are_refused_and_do_not_panic() {
        let whole = crate::policy::builtin::PASSTHROUGH;
        for len in (0..whole.len()).step_by(97) {
            let _ = admit(whole[..len].to_vec(), DEFAULT_POLICY_MEMORY);
        }
        assert!(admit(whole[..64].to_vec(), DEFAULT_POLICY_MEMORY).is_err());
    }

    #[test]
    fn what_is_no_file_is_named() {
        let text = |path: &str| {
            PolicyObject::open(Path::new(path), DEFAULT_POLICY_MEMORY)
                .unwrap_err()
                .to_string()
        };
        assert_eq!(
            text("/nowhere.o"),
            "/nowhere.o cannot be a policy: No such file or directory (os error 2)"
        );
        assert_eq!(
            text("/dev/zero"),
            "/dev/zero cannot be a policy: it is not a regular file"
        );
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(b"text").unwrap();
        assert!(text(file.path().to_str().unwrap()).contains("not an ELF object"));
    }

    /// Where `section` is in an object.
    fn place_of(bytes: &[u8], name: &str) -> std::ops::Range<usize> {
        let file = ElfFile64::<Endianness>::parse(bytes).unwrap();
        let (at, len) = file.section_by_name(name).unwrap().file_range().unwrap();
        usize::try_from(at).unwrap()..usize::try_from(at + len).unwrap()
    }

    /// A built-in policy whose first instruction is another.
    fn with_instruction(instruction: [u8; 8]) -> Vec<u8> {
        let mut bytes = crate::policy::builtin::PASSTHROUGH.to_vec();
        let at = place_of(&bytes, POLICY_SECTION).start;
        bytes[at..at + 8].copy_from_slice(&instruction);
        bytes
    }

    #[test]
    fn what_a_policy_may_not_do_is_named_with_its_line() {
        for (instruction, what) in [
            ([0x85, 0, 0, 0, 181, 0, 0, 0], "it calls the helper `bpf_loop` ("),
            (
                [0x85, 0, 0, 0, 109, 0, 0, 0],
                "it calls the helper `bpf_send_signal` (",
            ),
            (
                [0x85, 0, 0, 0, 36, 0, 0, 0],
                "it calls the helper `bpf_probe_write_user` (",
            ),
            ([0xe5, 0, 0, 0, 0, 0, 0, 0], "it loops by `may_goto`"),
            ([0x85, 0x20, 0, 0, 9, 0, 0, 0], "kfunc 9"),
        ] {
            let said = refusal(&with_instruction(instruction));
            assert!(said.starts_with(what) || said.contains(what), "{said}");
            assert!(
                said.contains("lib.rs:") || said.contains("passthrough.rs:"),
                "{said}"
            );
            assert_eq!(said.lines().count(), 1);
        }
    }

    #[test]
    fn functions_are_made_static_but_for_the_entry() {
        let global = |bytes: &[u8]| -> Vec<String> {
            let types = Types::parse(&bytes[place_of(bytes, ".BTF")]).unwrap();
            let global = types.functions().iter().filter(|function| function.is_global());
            global.map(|function| function.name.to_owned()).collect()
        };
        let before = crate::policy::builtin::PASSTHROUGH;
        assert!(global(before).len() > 1, "{:?}", global(before));
        let after = admit(before.to_vec(), DEFAULT_POLICY_MEMORY).unwrap();
        assert_eq!(global(&after), [POLICY_FUNCTION]);
    }

    /// The objects that the fuzzer starts from, by name.
    fn corpus() -> Vec<(String, Vec<u8>)> {
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../fuzz/corpus/policy_object");
        let entries = std::fs::read_dir(folder).unwrap().map(Result::unwrap);
        let mut all: Vec<_> = entries
            .map(|entry| {
                (
                    entry.file_name().into_string().unwrap(),
                    std::fs::read(entry.path()).unwrap(),
                )
            })
            .collect();
        all.sort();
        assert!(all.len() > 10);
        all
    }

    #[test]
    fn the_corpus_is_judged_by_its_names() {
        for (name, bytes) in corpus() {
            let judged = admit(bytes, DEFAULT_POLICY_MEMORY).map_err(|reason| reason.to_string());
            let words = match name.split(['-', '.']).next() {
                Some("good") => {
                    assert!(judged.is_ok(), "{name}: {judged:?}");
                    continue;
                }
                Some("hang") => "`bpf_loop` (hang.c:5: `static long out(",
                Some("kill") => "`bpf_send_signal` (kill.c:3: `",
                Some("scribble") => "`bpf_probe_write_user` (scribble.c:4: `",
                Some("pinned") => "map `left_behind` asks to be pinned",
                _ => "; build it again",
            };
            let said = judged.expect_err(&name);
            assert!(said.contains(words), "{name}: {said}");
        }
    }

    #[test]
    fn a_section_of_any_size_is_refused_or_harmless() {
        for (name, whole) in corpus() {
            let Ok(file) = ElfFile64::<Endianness>::parse(&*whole) else {
                continue;
            };
            let headers = usize::try_from(file.elf_header().e_shoff.get(Endianness::Little)).unwrap();
            for section in 0..file.sections().count() {
                for (size, kind) in [
                    (1 << 31, 1_u32),
                    (1 << 31, 8),
                    (1 << 40, 8),
                    (1 << 55, 8),
                    (u64::MAX, 8),
                ] {
                    let mut bytes = whole.clone();
                    let header = headers + 64 * section;
                    bytes[header + 4..header + 8].copy_from_slice(&kind.to_le_bytes());
                    bytes[header + 32..header + 40].copy_from_slice(&size.to_le_bytes());
                    let judged = admit(bytes, DEFAULT_POLICY_MEMORY);
                    let is_belt = matches!(judged, Err(Reason::Damaged(what)) if what == BROKEN);
                    assert!(!is_belt, "{name}: section {section} of {size} bytes");
                }
            }
        }
    }

    #[test]
    fn two_gibibytes_of_globals_are_refused_by_size() {
        let (_, mut bytes) = corpus().into_iter().find(|(name, _)| name == "hang.o").unwrap();
        let file = ElfFile64::<Endianness>::parse(&*bytes).unwrap();
        let headers = usize::try_from(file.elf_header().e_shoff.get(Endianness::Little)).unwrap();
        let header = headers + 64 * file.section_by_name(".bss").unwrap().index().0;
        bytes[header + 32..header + 40].copy_from_slice(&(1_u64 << 31).to_le_bytes());
        let said = refusal(&bytes);
        assert!(
            said.contains("`.bss` have 2147483648 bytes, more than 64 KiB"),
            "{said}"
        );
    }

    #[test]
    fn random_damage_is_refused_or_harmless_and_breaks_no_parser() {
        // xorshift64*: what fails can be repeated.
        let mut state = 0x9e37_79b9_7f4a_7c15_u64;
        let mut random = |below: usize| {
            state ^= state >> 12;
            state ^= state << 25;
            state ^= state >> 27;
            usize::try_from(state.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33).unwrap() % below
        };
        let corpus = corpus();
        for round in 0..20_000 {
            let (name, whole) = &corpus[random(corpus.len())];
            let mut bytes = whole.clone();
            for _ in 0..=random(4) {
                let at = random(bytes.len());
                match random(4) {
                    0 => bytes[at] = u8::try_from(random(256)).unwrap(),
                    1 => bytes[at] ^= 1 << random(8),
                    2 => bytes[at] = [0, 1, 0x7f, 0x80, 0xff][random(5)],
                    _ => {
                        let from = random(bytes.len());
                        let len = random(64).min(bytes.len() - at.max(from));
                        bytes.copy_within(from..from + len, at);
                    }
                }
            }
            let judged = admit(bytes, DEFAULT_POLICY_MEMORY);
            let is_belt = matches!(judged, Err(Reason::Damaged(what)) if what == BROKEN);
            assert!(!is_belt, "round {round} of {name}");
        }
    }
}
