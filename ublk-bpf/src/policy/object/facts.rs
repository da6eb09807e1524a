//! What an admitted object is made of, for its author.

use std::collections::BTreeSet;

use aya_obj::generated::bpf_map_type;
use aya_obj::maps::Map;
use object::Endianness;
use object::read::elf::ElfFile64;
use serde::Serialize;
use ublk_bpf_abi::{POLICY_ABI_SECTION, POLICY_ABI_VERSION};

use super::elf::Elf;
use super::maps::{bytes_of, kind_name};
use super::{Panic, PolicyObject, code, link, section};
use crate::policy::bytes::u32_at;
use crate::policy::reasons::{self, ReasonNames};
use crate::policy::types::TypeTable;

/// What a policy's object is made of.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ObjectFacts {
    /// The version of the policy interface that it is built for, if it states one.
    pub abi: Option<u32>,
    /// Its licence.
    pub license: String,
    /// Instructions, all functions together.
    pub instructions: usize,
    /// Functions, the entry included.
    pub functions: usize,
    /// The helpers that it calls, in alphabetic order.
    pub helpers: Vec<String>,
    /// Its maps, in alphabetic order.
    pub maps: Vec<MapFacts>,
    /// Where it may panic, which BPF cannot, as far as its code shows; the verifier may know that it does not.
    pub panics: Vec<String>,
    /// Its names for its own reasons.
    pub reasons: ReasonNames,
}

/// A map of a policy's object.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct MapFacts {
    /// Its name.
    pub name: String,
    /// The kernel's name of its type, such as `lru_hash`.
    pub kind: String,
    /// How many entries it holds.
    pub entries: u32,
    /// The type of its keys; none where the object does not say.
    pub key: Option<String>,
    /// Bytes of a key.
    pub key_size: u32,
    /// The type of its values; none where the object does not say.
    pub value: Option<String>,
    /// Bytes of a value.
    pub value_size: u32,
    /// Memory of the full map in bytes, by the estimate that `--policy-memory` limits.
    pub bytes: u64,
}

/// The version that an object states, if it does.
pub(super) fn stated_abi(file: &ElfFile64<'_, Endianness>) -> Option<u32> {
    u32_at(section(file, POLICY_ABI_SECTION)?, 0)
}

/// Whether this ublk-bpf takes objects of the version. An object that states none was not made with the SDK: the
/// classifier checks each of its answers, as it does with all.
pub(super) fn check_abi(stated: Option<u32>) -> Result<(), u32> {
    match stated {
        None | Some(POLICY_ABI_VERSION) => Ok(()),
        Some(other) => Err(other),
    }
}

impl PolicyObject {
    /// What the object is made of; none if it is damaged in a way that its checks do not look for.
    #[must_use]
    pub fn facts(&self) -> Option<ObjectFacts> {
        let file = ElfFile64::<Endianness>::parse(&*self.bytes).ok()?;
        let elf = Elf::parse(&file, &self.bytes).ok()?;
        let types = TypeTable::parse(section(&file, ".BTF")?.to_vec())?;
        let helpers: BTreeSet<String> = elf.code.iter().flat_map(code::helpers).collect();
        let license = section(&file, "license")?.split(|&byte| byte == 0).next()?;
        Some(ObjectFacts {
            abi: stated_abi(&file),
            license: String::from_utf8_lossy(license).into_owned(),
            instructions: elf.code.iter().map(|code| code.bytes.len() / 8).sum(),
            functions: elf.code.iter().map(|code| code.functions.len()).sum(),
            helpers: helpers.into_iter().collect(),
            maps: self.maps(&types)?,
            panics: self.panics().iter().map(Panic::to_string).collect(),
            reasons: reasons::named_in(&types),
        })
    }

    fn maps(&self, types: &TypeTable) -> Option<Vec<MapFacts>> {
        let mut maps = link(&self.bytes).ok()?;
        maps.sort_by(|(a, _), (b, _)| a.cmp(b));
        let cpus = aya::util::nr_cpus().ok()? as u64;
        let facts = maps.iter().map(|(name, map)| {
            let [key, value] = type_names(map, types);
            Some(MapFacts {
                name: name.clone(),
                kind: kind_name(bpf_map_type::try_from(map.map_type()).ok()?),
                entries: map.max_entries(),
                key,
                key_size: map.key_size(),
                value,
                value_size: map.value_size(),
                bytes: bytes_of(map, cpus).ok()?,
            })
        });
        facts.collect()
    }
}

/// The types of a map's keys and values.
fn type_names(map: &Map, types: &TypeTable) -> [Option<String>; 2] {
    let Map::Btf(map) = map else {
        return [None, None];
    };
    let name = |id: u32| (id != 0).then(|| types.name(id));
    [name(map.def.btf_key_type_id), name(map.def.btf_value_type_id)]
}
