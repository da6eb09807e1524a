//! Objects that are refused and objects that are admitted.

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
    assert!(refusal(&altered(b"freplace/policy\0", b"freplace/polisy\0")).contains("no function `policy`"));
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

/// A built-in policy that says that it is built for this version of the policy interface.
fn of_abi(version: u32) -> Vec<u8> {
    let mut bytes = crate::policy::builtin::PASSTHROUGH.to_vec();
    let place = place_of(&bytes, ublk_bpf_abi::POLICY_ABI_SECTION);
    bytes[place].copy_from_slice(&version.to_le_bytes());
    bytes
}

#[test]
fn an_object_of_another_interface_is_refused_and_one_that_states_none_is_not() {
    assert!(admit(of_abi(POLICY_ABI_VERSION), DEFAULT_POLICY_MEMORY).is_ok());
    let said = refusal(&of_abi(POLICY_ABI_VERSION + 1));
    let wanted = format!(
        "it is built for version {} of the policy interface, and this ublk-bpf takes version {POLICY_ABI_VERSION}: \
         build it again with ublk-bpf-policy {}",
        POLICY_ABI_VERSION + 1,
        env!("CARGO_PKG_VERSION")
    );
    assert_eq!(said, wanted);
    let unstated = altered(b"\0ublk_bpf_abi\0", b"\0ublk_bpf_xyz\0");
    assert!(admit(unstated, DEFAULT_POLICY_MEMORY).is_ok());
}

/// What this object is made of.
fn facts(bytes: &[u8]) -> ObjectFacts {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(bytes).unwrap();
    let object = PolicyObject::open(file.path(), DEFAULT_POLICY_MEMORY).unwrap();
    object.facts().unwrap()
}

#[test]
fn an_object_is_described() {
    let find = |name| {
        crate::policy::builtin()
            .iter()
            .find(|of| of.name == name)
            .unwrap()
    };
    let fault = facts(find("fault").object());
    assert_eq!(fault.abi, Some(POLICY_ABI_VERSION));
    assert_eq!(fault.license, "Dual MIT/GPL");
    assert_eq!(fault.helpers, ["bpf_map_lookup_elem"]);
    assert!(fault.instructions > 10 && fault.functions > 0, "{fault:?}");
    let [map] = &fault.maps[..] else {
        panic!("{fault:?}")
    };
    assert_eq!(
        (map.name.as_str(), map.kind.as_str(), map.entries),
        ("fault_range", "array", 1)
    );
    assert_eq!((map.key.as_deref(), map.key_size), (Some("u32"), 4));
    assert_eq!((map.value.as_deref(), map.value_size), (Some("FaultRange"), 24));
    assert!(fault.reasons.is_empty());

    let (_, tiers) = corpus()
        .into_iter()
        .find(|(name, _)| name == "good-cgroup-tiers.o")
        .unwrap();
    let tiers = facts(&tiers);
    assert_eq!(tiers.abi, None);
    assert!(
        tiers.helpers.contains(&"bpf_get_current_cgroup_id".to_owned()),
        "{tiers:?}"
    );
    assert_eq!((tiers.maps[0].key_size, tiers.maps[0].entries), (8, 1024));
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
    // A fixed seed: what fails can be repeated.
    let mut rng = fastrand::Rng::with_seed(7);
    let mut random = |below: usize| rng.usize(..below);
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
