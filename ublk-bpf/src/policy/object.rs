//! A user's policy object, checked at the door: what would fail later in the kernel's words fails here in ours.

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use object::elf::{EM_BPF, ET_REL};
use object::read::elf::ElfFile64;
use object::{Architecture, Endianness, Object, ObjectSection, ObjectSymbol, SymbolKind};
use ublk_bpf_abi::POLICY_FUNCTION;

use crate::path_text::ShowPath as _;

/// The section that a policy's entry stands in.
pub const POLICY_SECTION: &str = "freplace/policy";

/// No policy needs more; a file that is bigger was named by mistake.
const MAX_BYTES: u64 = 16 << 20;

/// What the kernel takes for compatible with the GPL (`include/linux/license.h`).
const GPL_COMPATIBLE: [&str; 6] = [
    "GPL",
    "GPL v2",
    "GPL and additional rights",
    "Dual BSD/GPL",
    "Dual MIT/GPL",
    "Dual MPL/GPL",
];

/// An object that has what a policy must have. The verifier still has its say.
#[derive(Clone, Debug)]
pub struct PolicyObject {
    path: PathBuf,
    bytes: Vec<u8>,
}

/// Why a file cannot be a policy.
#[derive(Debug, thiserror::Error)]
#[error("{} cannot be a policy: {reason}", path.shown())]
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
}

impl PolicyObject {
    /// Reads and checks a file.
    pub fn open(path: &Path) -> Result<Self, ObjectError> {
        let refuse = |reason| ObjectError {
            path: path.to_owned(),
            reason,
        };
        let bytes = read(path).map_err(refuse)?;
        check(&bytes).map_err(refuse)?;
        Ok(Self {
            path: path.to_owned(),
            bytes,
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

fn read(path: &Path) -> Result<Vec<u8>, Reason> {
    // Asked before opening: to open a FIFO would wait for its writer.
    let metadata = std::fs::metadata(path).map_err(Reason::Io)?;
    if !metadata.is_file() {
        return Err(Reason::NotAFile);
    }
    if metadata.len() > MAX_BYTES {
        return Err(Reason::TooBig(metadata.len()));
    }
    let mut bytes = Vec::new();
    let file = File::open(path).map_err(Reason::Io)?;
    file.take(MAX_BYTES).read_to_end(&mut bytes).map_err(Reason::Io)?;
    Ok(bytes)
}

fn check(bytes: &[u8]) -> Result<(), Reason> {
    if !bytes.starts_with(b"\x7fELF") {
        return Err(Reason::NotElf);
    }
    let Ok(elf) = ElfFile64::<Endianness>::parse(bytes) else {
        // An ELF of 32 bits, or one with a broken head.
        return Err(Reason::NotBpf("another machine".to_owned()));
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
    if elf.section_by_name(".BTF").is_none() {
        return Err(Reason::NoBtf);
    }
    let license = elf
        .section_by_name("license")
        .and_then(|section| section.data().ok());
    check_license(license.ok_or(Reason::NoLicense)?)
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
        check(bytes).unwrap_err().to_string()
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
            check(builtin.object()).unwrap();
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
            let _ = check(&whole[..len]);
        }
        assert!(check(&whole[..64]).is_err());
    }

    #[test]
    fn what_is_no_file_is_named() {
        let text = |path: &str| PolicyObject::open(Path::new(path)).unwrap_err().to_string();
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
}
