//! The allowed kinds of a policy's maps, and the limit of their memory.

use std::collections::BTreeSet;

use aya_obj::generated::bpf_map_type;
use aya_obj::maps::{Map, PinningType};

use super::elf::MAX_VALUE;

/// The kernel lets a program use 64 (`MAX_USED_MAPS`).
const MAX_MAPS: usize = 64;
/// The name of a pin; the kernel keeps 15 bytes of a map's. Sections of globals are called after their symbols.
const MAX_NAME: usize = 200;
/// Flags that affect only the policy: `BPF_F_NO_PREALLOC`, `NO_COMMON_LRU`, `RDONLY`, `WRONLY`,
/// `ZERO_SEED`, `RDONLY_PROG`, `WRONLY_PROG`, `MMAPABLE`.
const FLAGS: u32 = 1 | 1 << 1 | 1 << 3 | 1 << 4 | 1 << 6 | 1 << 7 | 1 << 8 | 1 << 10;
/// Overhead of the kernel for each entry beside key and value (`struct htab_elem` and its bucket, `struct
/// lpm_trie_node`), rounded up.
const ENTRY: u64 = 64;

/// Checks that a policy may have these maps, and that they use at most `memory` bytes on `cpus` CPUs.
pub(super) fn check<'a>(
    maps: impl Iterator<Item = (&'a str, &'a Map)>,
    memory: u64,
    cpus: u64,
) -> Result<(), String> {
    let mut pins = BTreeSet::new();
    let mut total = 0_u64;
    for (name, map) in maps {
        let is_name = |name: &str| {
            name.bytes()
                .all(|byte| byte.is_ascii_alphanumeric() || b"_.".contains(&byte))
        };
        if name.trim_matches('.').is_empty() || name.len() > MAX_NAME || !is_name(name) {
            return Err(format!(
                "it has a map `{}`: a map's name is at most {MAX_NAME} letters, digits and _",
                name.escape_debug()
            ));
        }
        if !pins.insert(pin_name(name)) {
            return Err(format!("two of its maps would be pinned as `{}`", pin_name(name)));
        }
        if pins.len() > MAX_MAPS {
            return Err(format!("it has more than {MAX_MAPS} maps"));
        }
        if map.pinning() != PinningType::None {
            return Err(format!(
                "map `{name}` asks to be pinned: a policy's maps are pinned by ublk-bpf, and go with it"
            ));
        }
        let bytes = bytes_of(map, cpus).map_err(|what| format!("map `{name}` {what}"))?;
        total = total.saturating_add(bytes);
    }
    if total > memory {
        return Err(format!(
            "its maps take {} of memory, more than the {} of --policy-memory: make them smaller, or allow more",
            Mebibytes(total),
            Mebibytes(memory)
        ));
    }
    Ok(())
}

/// The name of a map's pin: bpffs allows no dot in a name, which the maps of an object's globals have.
pub(in crate::policy) fn pin_name(map: &str) -> String {
    map.trim_start_matches('.').replace('.', "_")
}

/// The kernel's name of a kind of map: `lru_hash`.
pub(in crate::policy) fn kind_name(of: bpf_map_type) -> String {
    format!("{of:?}")
        .trim_start_matches("BPF_MAP_TYPE_")
        .to_lowercase()
}

/// The memory of a full map in bytes, or why it is refused.
pub(super) fn bytes_of(map: &Map, cpus: u64) -> Result<u64, String> {
    use bpf_map_type as kind;
    let of = bpf_map_type::try_from(map.map_type())
        .map_err(|_| format!("has type {}, which is unknown", map.map_type()))?;
    let (key, value, entries) = (
        u64::from(map.key_size()).next_multiple_of(8),
        u64::from(map.value_size()).next_multiple_of(8),
        u64::from(map.max_entries()),
    );
    if key > MAX_VALUE || value > MAX_VALUE {
        return Err(format!(
            "has keys of {} and values of {} bytes, more than {MAX_VALUE}",
            map.key_size(),
            map.value_size()
        ));
    }
    if map.map_flags() & !FLAGS != 0 {
        return Err(format!(
            "has flags {:#x}, of which a policy may have {FLAGS:#x}",
            map.map_flags()
        ));
    }
    let each = match of {
        kind::BPF_MAP_TYPE_ARRAY => value,
        kind::BPF_MAP_TYPE_PERCPU_ARRAY => value * cpus,
        kind::BPF_MAP_TYPE_HASH | kind::BPF_MAP_TYPE_LRU_HASH | kind::BPF_MAP_TYPE_LPM_TRIE => {
            ENTRY + key + value
        }
        kind::BPF_MAP_TYPE_PERCPU_HASH | kind::BPF_MAP_TYPE_LRU_PERCPU_HASH => ENTRY + key + value * cpus,
        // `max_entries` is the number of bytes, which are rounded up.
        kind::BPF_MAP_TYPE_RINGBUF => 2,
        // One entry for each CPU, regardless of `max_entries`.
        kind::BPF_MAP_TYPE_PERF_EVENT_ARRAY => return Ok(8 * cpus),
        refused => {
            return Err(format!(
                "is of type {}: a policy's maps are array, hash, lru_hash, each also percpu, lpm_trie, ringbuf or perf_event_array",
                kind_name(refused)
            ));
        }
    };
    Ok(each.saturating_mul(entries))
}

/// Prints bytes in a readable unit.
struct Mebibytes(u64);

impl std::fmt::Display for Mebibytes {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.0 {
            bytes @ ..0x10_0000 => write!(f, "{bytes} bytes"),
            bytes => write!(f, "{} MiB", bytes.div_ceil(1 << 20)),
        }
    }
}

#[cfg(test)]
mod tests {
    use aya_obj::EbpfSectionKind;
    use aya_obj::maps::{LegacyMap, bpf_map_def};

    use super::*;

    const MEMORY: u64 = 64 << 20;

    fn map(of: bpf_map_type, key: u32, value: u32, entries: u32) -> bpf_map_def {
        bpf_map_def {
            map_type: of as u32,
            key_size: key,
            value_size: value,
            max_entries: entries,
            ..Default::default()
        }
    }

    fn refusal(named: &[(&str, bpf_map_def)]) -> Result<(), String> {
        let legacy = |def| {
            Map::Legacy(LegacyMap {
                def,
                inner_def: None,
                section_index: 1,
                section_kind: EbpfSectionKind::Maps,
                symbol_index: Some(1),
                data: Vec::new(),
            })
        };
        let maps: Vec<(&str, Map)> = named.iter().map(|&(name, def)| (name, legacy(def))).collect();
        check(maps.iter().map(|(name, map)| (*name, map)), MEMORY, 4)
    }

    #[test]
    fn kinds_are_admitted_by_a_list() {
        use bpf_map_type as kind;
        for (number, admitted) in
            (0..34).map(|number| (number, [1, 2, 4, 5, 6, 9, 10, 11, 27].contains(&number)))
        {
            let Ok(of) = kind::try_from(number) else { continue };
            assert_eq!(refusal(&[("map", map(of, 4, 8, 16))]).is_ok(), admitted, "{of:?}");
        }
        let prog_array = refusal(&[("next", map(kind::BPF_MAP_TYPE_PROG_ARRAY, 4, 4, 1))]).unwrap_err();
        assert!(
            prog_array.starts_with("map `next` is of type prog_array: "),
            "{prog_array}"
        );
        assert!(refusal(&[("map", map(kind::__MAX_BPF_MAP_TYPE, 4, 4, 1))]).is_err());
    }

    #[test]
    fn memory_is_bounded() {
        use bpf_map_type as kind;
        let array = |entries| map(kind::BPF_MAP_TYPE_ARRAY, 4, 64, entries);
        assert_eq!(refusal(&[("map", array(1 << 20))]), Ok(()));
        let two = refusal(&[("a", array(1 << 20)), ("b", array(1))]).unwrap_err();
        assert!(
            two.contains("65 MiB of memory, more than the 64 MiB of --policy-memory"),
            "{two}"
        );
        assert!(refusal(&[("map", map(kind::BPF_MAP_TYPE_PERCPU_ARRAY, 4, 64, 1 << 20))]).is_err());
        assert!(refusal(&[("map", map(kind::BPF_MAP_TYPE_ARRAY, 4, u32::MAX, u32::MAX))]).is_err());
        assert!(refusal(&[("map", map(kind::BPF_MAP_TYPE_HASH, 4, 8, u32::MAX))]).is_err());
        assert!(refusal(&[("map", map(kind::BPF_MAP_TYPE_RINGBUF, 0, 0, 1 << 31))]).is_err());
    }

    #[test]
    fn pins_flags_and_names_are_checked() {
        let array = map(bpf_map_type::BPF_MAP_TYPE_ARRAY, 4, 8, 1);
        let pinned = bpf_map_def {
            pinning: PinningType::ByName,
            ..array
        };
        assert!(
            refusal(&[("kept", pinned)])
                .unwrap_err()
                .contains("map `kept` asks to be pinned")
        );
        let inner = bpf_map_def {
            map_flags: 1 << 12,
            ..array
        };
        assert!(refusal(&[("map", inner)]).unwrap_err().contains("flags 0x1000"));
        for name in ["", ".", "..", "../../link", "/sys/fs/bpf/x", "a b", "a\nb"] {
            assert!(
                refusal(&[(name, array)]).unwrap_err().contains("a map's name is"),
                "{name}"
            );
        }
        let twice = refusal(&[(".data.a", array), ("data_a", array)]).unwrap_err();
        assert!(twice.contains("pinned as `data_a`"), "{twice}");
    }
}
