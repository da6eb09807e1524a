//! The allow-list of instructions, applied to every section of code, whether it is reachable or not.
//!
//! The verifier proves that a program accesses only valid memory and ends after at most a million instructions. The
//! limit does not hold for callbacks (`bpf_loop`, `bpf_for_each_map_elem`), loops that are limited by time (`may_goto`,
//! open-coded iterators) and global functions, which are verified once however often they are called: such programs can
//! run for years. This refuses the first two, and `object.rs` makes global functions static, so that the limit holds for
//! all of a policy's instructions together.

use super::elf::{Code, LinkTarget, Relocation};
use super::helpers;
use crate::policy::bytes::u32_at;

/// `R_BPF_64_64`: a map's, global's or function's address in a load of 16 bytes.
const RELOCATE_LOAD: u32 = 1;
/// `R_BPF_64_32`: a function in a call.
const RELOCATE_CALL: u32 = 10;

// `include/uapi/linux/bpf_common.h` and `bpf.h`.
const CLASS: u8 = 0x07;
const LD: u8 = 0x00;
const LDX: u8 = 0x01;
const ST: u8 = 0x02;
const STX: u8 = 0x03;
const ALU: u8 = 0x04;
const JMP: u8 = 0x05;
const JMP32: u8 = 0x06;
const ALU64: u8 = 0x07;
const MODE: u8 = 0xe0;
const MODE_ABS: u8 = 0x20;
const MODE_IND: u8 = 0x40;
const MODE_MEM: u8 = 0x60;
const MODE_MEMSX: u8 = 0x80;
const MODE_ATOMIC: u8 = 0xc0;
const LOAD_64: u8 = 0x18;
const CALL: u8 = 0x85;
const CALL_REGISTER: u8 = 0x8d;
const EXIT: u8 = 0x95;
const MAY_GOTO: u8 = 0xe5;
const GOTO_REGISTER: u8 = 0x0d;
const OPERATION: u8 = 0xf0;
const MOVE_REGISTER: u8 = ALU64 | 0x08 | 0xb0;
/// `off` of a move that converts an address of an arena (`BPF_ADDR_SPACE_CAST`).
const CAST: i16 = 1;

const SOURCE_HELPER: u8 = 0;
const SOURCE_FUNCTION: u8 = 1;
const SOURCE_KFUNC: u8 = 2;

/// An instruction that a policy may not contain.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Forbidden<'a> {
    /// Its section.
    pub(super) section: &'a str,
    /// Its first byte there.
    pub(super) at: u32,
    /// What it does.
    pub(super) what: String,
}

/// An instruction (`struct bpf_insn`).
#[derive(Clone, Copy)]
struct Instruction {
    code: u8,
    source: u8,
    destination: u8,
    offset: i16,
    immediate: i32,
}

impl Instruction {
    fn parse(bytes: &[u8; 8]) -> Self {
        let [code, registers, offset @ .., _, _, _, _] = *bytes;
        let immediate = u32_at(bytes, 4).unwrap_or_default().cast_signed();
        Self {
            code,
            source: registers >> 4,
            destination: registers & 0xf,
            offset: i16::from_le_bytes(offset),
            immediate,
        }
    }

    /// Checks an instruction without a relocation.
    fn check(self) -> Result<(), String> {
        let allowed = match self.code & CLASS {
            LD => match self.code & MODE {
                MODE_ABS | MODE_IND => return Err("it loads from a packet".to_owned()),
                _ => self.code == LOAD_64 && self.source == 0,
            },
            LDX => matches!(self.code & MODE, MODE_MEM | MODE_MEMSX),
            ST => self.code & MODE == MODE_MEM,
            STX => matches!(self.code & MODE, MODE_MEM | MODE_ATOMIC),
            ALU => true,
            ALU64 => self.code != MOVE_REGISTER || self.offset != CAST,
            JMP | JMP32 => return self.check_jump(),
            _ => false,
        };
        allowed.then_some(()).ok_or_else(|| self.unknown())
    }

    fn check_jump(self) -> Result<(), String> {
        match self.code {
            CALL => self.check_call(),
            CALL_REGISTER => Err("it calls a function by its address".to_owned()),
            MAY_GOTO => Err("it loops by `may_goto`, which ends by time alone".to_owned()),
            GOTO_REGISTER => Err("it jumps to an address".to_owned()),
            EXIT => Ok(()),
            // Jumps, with or without a condition.
            code if code & OPERATION < 0x80 || (0xa0..0xe0).contains(&(code & OPERATION)) => Ok(()),
            _ => Err(self.unknown()),
        }
    }

    fn check_call(self) -> Result<(), String> {
        if self.destination != 0 || self.offset != 0 && self.source != SOURCE_KFUNC {
            return Err(self.unknown());
        }
        match self.source {
            SOURCE_HELPER => match helpers::name(self.immediate) {
                Some(name) if helpers::is_admitted(name) => Ok(()),
                Some(name) => Err(format!("it calls the helper `bpf_{name}`")),
                None => Err(format!(
                    "it calls helper number {}, which is not a helper of the kernel",
                    self.immediate
                )),
            },
            SOURCE_FUNCTION if self.immediate < i32::MAX => Ok(()),
            SOURCE_KFUNC => Err(format!(
                "it calls a function of the kernel (kfunc {})",
                self.immediate
            )),
            _ => Err(self.unknown()),
        }
    }

    fn unknown(self) -> String {
        format!("it has an instruction {:#04x} that no policy needs", self.code)
    }
}

/// Checks that a policy may contain every instruction of a section.
pub(super) fn check<'a>(code: &Code<'a>) -> Result<(), Forbidden<'a>> {
    let (instructions, _) = code.bytes.as_chunks::<8>();
    // The second halves of 16-byte loads.
    let mut halves = vec![false; instructions.len() + 1];
    let forbidden = |at: usize, what: String| Forbidden {
        section: code.name,
        at: u32::try_from(at * 8).unwrap_or(u32::MAX),
        what,
    };
    let mut at = 0;
    while let Some(bytes) = instructions.get(at) {
        let instruction = Instruction::parse(bytes);
        instruction.check().map_err(|what| forbidden(at, what))?;
        if instruction.code == LOAD_64 {
            at += 1;
            // It has a number in its last four bytes, the rest is zero.
            let is_half = instructions.get(at).is_some_and(|half| half[..4] == [0; 4]);
            is_half
                .then_some(())
                .ok_or_else(|| forbidden(at - 1, instruction.unknown()))?;
            halves[at] = true;
        }
        at += 1;
    }
    for &(start, size) in &code.functions {
        let cuts = |at: u64| usize::try_from(at / 8).is_ok_and(|at| halves[at]);
        if cuts(start) || cuts(start + size) {
            return Err(forbidden(
                0,
                format!("a function at byte {start} cuts an instruction"),
            ));
        }
    }
    for relocation in &code.relocations {
        let at = usize::try_from(relocation.at / 8).unwrap_or(usize::MAX);
        let first = instructions
            .get(at)
            .filter(|_| relocation.at.is_multiple_of(8) && !halves[at]);
        let first = first.map(Instruction::parse);
        check_relocation(relocation, first).map_err(|what| forbidden(at, what))?;
    }
    Ok(())
}

/// The helpers that an admitted section calls, by their names.
pub(super) fn helpers(code: &Code<'_>) -> Vec<String> {
    let (instructions, _) = code.bytes.as_chunks::<8>();
    let calls = instructions.iter().map(Instruction::parse);
    let calls = calls.filter(|call| call.code == CALL && call.source == SOURCE_HELPER);
    calls
        .filter_map(|call| helpers::name(call.immediate))
        .map(|name| format!("bpf_{name}"))
        .collect()
}

/// Checks that the relocation fits its instruction, so that the loader does not turn it into another one.
fn check_relocation(relocation: &Relocation<'_>, into: Option<Instruction>) -> Result<(), String> {
    let damaged = || Err("a relocation leads nowhere".to_owned());
    let Some(into) = into else {
        return damaged();
    };
    let is_call = into.code == CALL && into.source == SOURCE_FUNCTION;
    match (relocation.kind, relocation.target) {
        (_, LinkTarget::Missing(name)) if is_call => Err(format!(
            "it calls `{name}`, which is not in the object (a kfunc?)"
        )),
        (_, LinkTarget::Missing(name)) => Err(format!("it uses `{name}`, which is not in the object")),
        // The loader adds one to the number and multiplies it, without a look at its sign.
        (RELOCATE_CALL, LinkTarget::Code) if is_call && (-1..i32::MAX).contains(&into.immediate) => Ok(()),
        (RELOCATE_LOAD, LinkTarget::Data) if into.code == LOAD_64 => Ok(()),
        (RELOCATE_LOAD, LinkTarget::Code) => {
            Err("it takes a function's address, as for a callback".to_owned())
        }
        _ => damaged(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn forbidden(bytes: &[u8], relocations: Vec<Relocation<'static>>) -> Result<(), String> {
        let code = Code {
            name: "freplace/policy",
            bytes,
            functions: vec![(0, bytes.len() as u64)],
            relocations,
        };
        check(&code).map_err(|forbidden| format!("{}: {}", forbidden.at / 8, forbidden.what))
    }

    fn instruction(code: u8, registers: u8, offset: i16, immediate: i32) -> [u8; 8] {
        let [o0, o1] = offset.to_le_bytes();
        let [i0, i1, i2, i3] = immediate.to_le_bytes();
        [code, registers, o0, o1, i0, i1, i2, i3]
    }

    #[test]
    fn helpers_are_admitted_by_a_list() {
        for (number, name) in [
            (12, "tail_call"),
            (36, "probe_write_user"),
            (58, "override_return"),
            (93, "spin_lock"),
            (109, "send_signal"),
            (117, "send_signal_thread"),
            (164, "for_each_map_elem"),
            (169, "timer_init"),
            (180, "find_vma"),
            (181, "loop"),
            (209, "user_ringbuf_drain"),
        ] {
            let found = forbidden(&instruction(CALL, 0, 0, number), vec![]);
            assert_eq!(found, Err(format!("0: it calls the helper `bpf_{name}`")));
        }
        for number in [1, 2, 3, 5, 7, 8, 14, 15, 16, 80, 113, 130, 195] {
            assert_eq!(
                forbidden(&instruction(CALL, 0, 0, number), vec![]),
                Ok(()),
                "{number}"
            );
        }
        let unknown = forbidden(&instruction(CALL, 0, 0, 212), vec![]).unwrap_err();
        assert!(unknown.contains("helper number 212"), "{unknown}");
    }

    #[test]
    fn instructions_are_admitted_by_a_list() {
        for (bytes, words) in [
            (
                instruction(CALL, 0x20, 0, 1234),
                "function of the kernel (kfunc 1234)",
            ),
            (instruction(CALL, 0x20, 1, 1234), "function of the kernel"),
            (instruction(CALL, 0x30, 0, 1), "an instruction 0x85"),
            (instruction(CALL, 0x01, 0, 1), "an instruction 0x85"),
            (instruction(CALL_REGISTER, 0, 0, 2), "by its address"),
            (instruction(MAY_GOTO, 0, 0, 0), "may_goto"),
            (instruction(GOTO_REGISTER, 0, 0, 0), "jumps to an address"),
            (instruction(JMP32 | 0xe0, 0, 0, 0), "an instruction 0xe6"),
            (instruction(0x20, 0, 0, 0), "loads from a packet"),
            (instruction(0x50, 0x10, 0, 0), "loads from a packet"),
            (instruction(MOVE_REGISTER, 0x11, CAST, 1), "an instruction 0xbf"),
            (instruction(ST | MODE_ATOMIC, 0, 0, 0), "an instruction 0xc2"),
            // A map by a number that the loading process may have a file under.
            (instruction(LOAD_64, 0x10, 0, 5), "an instruction 0x18"),
            // Its second half is missing.
            (instruction(LOAD_64, 0, 0, 5), "an instruction 0x18"),
        ] {
            let found = forbidden(&bytes, vec![]).unwrap_err();
            assert!(found.contains(words), "{found}");
        }
        // Every other instruction that a compiler makes.
        for code in [
            0xb7, 0x0f, 0x61, 0x79, 0x91, 0x7b, 0x62, 0xdb, 0x05, 0x06, 0x15, 0x1e, 0xdd, 0x95, 0xdc, 0xd7,
        ] {
            assert_eq!(
                forbidden(&instruction(code, 0x10, 0, 1), vec![]),
                Ok(()),
                "{code:#x}"
            );
        }
    }

    #[test]
    fn a_relocation_fits_its_instruction() {
        let relocation = |at, kind, target| vec![Relocation { at, kind, target }];
        let load = [instruction(LOAD_64, 0x01, 0, 0), [0; 8]].concat();
        let call = instruction(CALL, 0x10, 0, -1);
        assert_eq!(
            forbidden(&load, relocation(0, RELOCATE_LOAD, LinkTarget::Data)),
            Ok(())
        );
        assert_eq!(
            forbidden(&call, relocation(0, RELOCATE_CALL, LinkTarget::Code)),
            Ok(())
        );
        for (bytes, at, kind, target, words) in [
            (&load[..], 0, RELOCATE_LOAD, LinkTarget::Code, "callback"),
            (&load, 8, RELOCATE_LOAD, LinkTarget::Data, "leads nowhere"),
            (&load, 4, RELOCATE_LOAD, LinkTarget::Data, "leads nowhere"),
            (&load, u64::MAX, RELOCATE_LOAD, LinkTarget::Data, "leads nowhere"),
            (
                &load,
                0,
                RELOCATE_LOAD,
                LinkTarget::Missing("jiffies"),
                "`jiffies`, which is not in",
            ),
            (&call, 0, RELOCATE_LOAD, LinkTarget::Data, "leads nowhere"),
            (
                &call,
                0,
                RELOCATE_CALL,
                LinkTarget::Missing("bpf_iter_num_new"),
                "`bpf_iter_num_new`",
            ),
            (
                &instruction(CALL, 0, 0, 1),
                0,
                RELOCATE_LOAD,
                LinkTarget::Data,
                "leads nowhere",
            ),
        ] {
            let found = forbidden(bytes, relocation(at, kind, target)).unwrap_err();
            assert!(found.contains(words), "{found}");
        }
    }
}
