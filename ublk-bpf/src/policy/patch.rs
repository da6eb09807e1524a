//! Patches the running kernel's offsets into the instructions of BPF objects, as CO-RE does for programs written in C.

use object::read::elf::ElfFile64;
use object::{Endianness, Object, ObjectSection, SectionKind};
use ublk_bpf_abi::Member;

/// The offset of each [`Member`] in its structure, in bytes.
pub type Offsets = [u32; Member::COUNT];

/// Bytes of an instruction (`struct bpf_insn`: opcode, registers, 16 bits of offset, 32 bits of immediate).
const INSTRUCTION: usize = 8;
/// `BPF_LD | BPF_DW | BPF_IMM`: the only instruction that is as long as two.
const LD_IMM64: u8 = 0x18;
/// The bits of an opcode that hold its class, and the class of loads from memory.
const CLASS: u8 = 0x07;
const LDX: u8 = 0x01;

/// Why an object cannot be patched for this kernel.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum PatchError {
    /// It is not an object of this program.
    #[error("the classifier's object is damaged: {0}: rebuild it with `cargo xtask build-ebpf`")]
    Object(String),
    /// The offset does not fit in an instruction, which has 15 bits for it.
    #[error("this kernel has `{}` at byte {offset} of its structure, and a load reaches 32767", member.name())]
    TooFar {
        /// The member.
        member: Member,
        /// Its offset in bytes.
        offset: u32,
    },
    /// The object loads other members than expected: it is from another build.
    #[error("the classifier's object {0}: rebuild it with `cargo xtask build-ebpf`")]
    Stale(String),
}

/// Returns the object with every placeholder replaced by its member's offset. The object must load these `members`.
///
/// # Errors
/// If the object is not what `cargo xtask build-ebpf` makes, or an offset does not fit in an instruction.
pub(super) fn patch(object: &[u8], members: &[Member], offsets: &Offsets) -> Result<Vec<u8>, PatchError> {
    let mut patched = object.to_vec();
    let mut loads = [0_u32; Member::COUNT];
    for section in code(object)? {
        let instructions = patched
            .get_mut(section)
            .ok_or_else(|| PatchError::Object("a section ends beyond the file".to_owned()))?;
        patch_section(instructions, offsets, &mut loads)?;
    }
    match members.iter().find(|&&member| loads[member as usize] == 0) {
        Some(member) => Err(PatchError::Stale(format!("does not load `{}`", member.name()))),
        None => Ok(patched),
    }
}

/// The sections of instructions, as ranges of bytes of the file.
fn code(object: &[u8]) -> Result<Vec<std::ops::Range<usize>>, PatchError> {
    let damaged = |error: object::Error| PatchError::Object(error.to_string());
    let elf = ElfFile64::<Endianness>::parse(object).map_err(damaged)?;
    let sections = elf
        .sections()
        .filter(|section| section.kind() == SectionKind::Text);
    Ok(sections
        .filter_map(|section| section.file_range())
        .filter_map(|(start, length)| {
            let start = usize::try_from(start).ok()?;
            Some(start..start.checked_add(usize::try_from(length).ok()?)?)
        })
        .collect())
}

fn patch_section(
    code: &mut [u8],
    offsets: &Offsets,
    loads: &mut [u32; Member::COUNT],
) -> Result<(), PatchError> {
    let mut is_second_half = false;
    for instruction in code.as_chunks_mut::<INSTRUCTION>().0 {
        let opcode = instruction[0];
        if is_second_half {
            is_second_half = false;
            continue;
        }
        is_second_half = opcode == LD_IMM64;
        let offset = u16::from_le_bytes([instruction[2], instruction[3]]);
        if opcode & CLASS != LDX || !(Member::FIRST_PLACEHOLDER..0x8000).contains(&offset) {
            continue;
        }
        let number = usize::from(offset - Member::FIRST_PLACEHOLDER);
        let Some(&member) = Member::ALL.get(number) else {
            return Err(PatchError::Stale(format!("loads unknown member {number}")));
        };
        let offset = offsets[number];
        let fits = i16::try_from(offset).map_err(|_| PatchError::TooFar { member, offset })?;
        instruction[2..4].copy_from_slice(&fits.to_le_bytes());
        loads[number] += 1;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::builtin::{CLASSIFIER, WATCH};
    use super::*;

    const OFFSETS: Offsets = [
        8, 16, 24, 32, 40, 48, 56, 64, 72, 80, 88, 0x1234, 96, 104, 112, 120, 128, 136,
    ];

    fn classified() -> &'static [Member] {
        &Member::ALL[..Member::CLASSIFIED]
    }

    fn load(member: Member) -> [u8; INSTRUCTION] {
        let [low, high] = member.placeholder().to_le_bytes();
        [0x61, 0x21, low, high, 0, 0, 0, 0]
    }

    #[test]
    fn every_placeholder_of_the_classifier_is_replaced() {
        let patched = patch(CLASSIFIER, classified(), &OFFSETS).expect("patched");
        assert_eq!(patched.len(), CLASSIFIER.len());
        let changed = patched
            .iter()
            .zip(CLASSIFIER)
            .filter(|(new, old)| new != old)
            .count();
        assert!(
            (Member::CLASSIFIED..=20 * Member::COUNT).contains(&changed),
            "{changed} bytes"
        );
        // A patched object has no placeholders.
        let again = patch(&patched, classified(), &OFFSETS);
        assert_eq!(
            again,
            Err(PatchError::Stale("does not load `request.q`".to_owned()))
        );
    }

    #[test]
    fn every_member_of_the_watch_is_loaded() {
        let members = &Member::ALL[Member::CLASSIFIED..];
        patch(WATCH, members, &OFFSETS).expect("patched");
        let missing = patch(WATCH, classified(), &OFFSETS);
        assert!(matches!(missing, Err(PatchError::Stale(_))));
    }

    #[test]
    fn only_loads_are_changed() {
        let place = Member::RequestTag.placeholder().to_le_bytes();
        let store = [0x63, 0x21, place[0], place[1], 0, 0, 0, 0];
        let wide = [LD_IMM64, 0x01, 0, 0, 1, 2, 3, 4];
        // Its second half begins as a load with a placeholder would.
        let mut code = [wide, load(Member::RequestTag), store, load(Member::RequestTag)].concat();
        let before = code.clone();
        let mut loads = [0; Member::COUNT];
        patch_section(&mut code, &OFFSETS, &mut loads).expect("patched");
        assert_eq!(code[..24], before[..24]);
        assert_eq!(code[24..], [0x61, 0x21, 32, 0, 0, 0, 0, 0]);
        assert_eq!(loads[Member::RequestTag as usize], 1);
        assert_eq!(loads.iter().sum::<u32>(), 1);
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        let mut far = OFFSETS;
        far[Member::DiskName as usize] = 0x8000;
        let error = patch(CLASSIFIER, classified(), &far)
            .expect_err("too far")
            .to_string();
        assert!(error.contains("`gendisk.disk_name` at byte 32768"), "{error}");
        let mut code = load(Member::SuperBlockDevice);
        code[2] += 1;
        let error = patch_section(&mut code, &OFFSETS, &mut [0; Member::COUNT]).expect_err("no member");
        assert!(error.to_string().contains("unknown member 18"), "{error}");
        let error = patch(b"\x7fELF", classified(), &OFFSETS)
            .expect_err("no object")
            .to_string();
        assert!(error.contains("damaged"), "{error}");
    }
}
