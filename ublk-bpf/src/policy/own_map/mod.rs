//! The entries of a policy's own maps, read and set by people: keys and values as text, by their types.

mod layout;
mod number;

use std::io;
use std::os::fd::{AsFd as _, OwnedFd};

use aya_obj::generated::bpf_map_type;
use serde_json::Value;

use self::layout::Layout;
pub(crate) use self::number::cgroup_path;
use super::PolicyError;
use super::object::kind_name;
use super::pin::{PinDir, pin_error};
use super::types::TypeTable;
use crate::sys::bpf::load::types_by_id;
use crate::sys::bpf::map::{MapEntries, MapInfo, map_info};
use crate::sys::bpf::open_pinned;

/// Why an entry of a policy's own map cannot be read or set.
#[derive(Debug, thiserror::Error)]
pub enum OwnMapError {
    /// The pins cannot be used.
    #[error(transparent)]
    Policy(#[from] PolicyError),
    /// There is no such map.
    #[error("the policy has no map `{name}`: it has {known}")]
    NoMap {
        /// The name.
        name: String,
        /// The names of its maps.
        known: String,
    },
    /// A map without entries.
    #[error("map `{name}` is a {kind}: it has no entries to get or set")]
    NoEntries {
        /// The map.
        name: String,
        /// The kernel's name of its kind.
        kind: String,
    },
    /// Keys or values of a type that people cannot write.
    #[error("the {what} of map `{name}` have {size} bytes of a type that is not known: use bpftool")]
    Untyped {
        /// Keys or values.
        what: &'static str,
        /// The map.
        name: String,
        /// Bytes.
        size: u32,
    },
    /// A wrong key.
    #[error("key of map `{name}`: {what}")]
    Key {
        /// The map.
        name: String,
        /// What is wrong.
        what: String,
    },
    /// A wrong value.
    #[error("value of map `{name}`: {what}")]
    Value {
        /// The map.
        name: String,
        /// What is wrong.
        what: String,
    },
    /// The map has a value for each CPU.
    #[error("map `{0}` has a value for each CPU, which the policy counts: it can be read and not set")]
    PerCpu(String),
    /// No value for a key.
    #[error("map `{name}` has no entry for {key}")]
    NoEntry {
        /// The map.
        name: String,
        /// The key as it was written.
        key: String,
    },
    /// The kernel refused.
    #[error("map `{name}`: {error}")]
    Kernel {
        /// The map.
        name: String,
        /// Why.
        error: io::Error,
    },
    /// There is no room.
    #[error("map `{name}` is full: it has {entries} entries; remove one first")]
    Full {
        /// The map.
        name: String,
        /// How many.
        entries: u32,
    },
}

/// A map of a device's policy.
#[derive(Debug)]
pub struct OwnMap {
    name: String,
    map: OwnedFd,
    info: MapInfo,
    kind: bpf_map_type,
    key: Layout,
    value: Layout,
    /// With a value for each CPU: how many CPUs.
    cpus: Option<usize>,
}

/// An entry of a policy's own map.
#[derive(Clone, Debug, PartialEq)]
pub struct OwnEntry {
    /// The key as `get` takes it.
    pub key: String,
    /// The value as `set` takes it; of a map with a value for each CPU, the sum.
    pub value: String,
    /// The key as JSON.
    pub key_json: Value,
    /// The value as JSON.
    pub value_json: Value,
    /// Whether all of the value is zero, as an array's entries are until they are set.
    pub is_zero: bool,
}

impl OwnMap {
    /// The names of the maps of a device's policy.
    ///
    /// # Errors
    /// If the directory of the pins cannot be read.
    pub fn names(pins: &PinDir) -> Result<Vec<String>, OwnMapError> {
        let folder = pins.policy_maps();
        let entries = std::fs::read_dir(&folder).map_err(|e| pin_error("reading", folder, e))?;
        let names = entries
            .flatten()
            .filter_map(|entry| entry.file_name().into_string().ok());
        let mut names: Vec<String> = names.collect();
        names.sort();
        Ok(names)
    }

    /// Opens the map of this name.
    ///
    /// # Errors
    /// If there is no such map, or its keys and values are of no type that people can write.
    pub fn open(pins: &PinDir, name: &str) -> Result<Self, OwnMapError> {
        let known = Self::names(pins)?;
        if !known.iter().any(|known| known == name) {
            let known = if known.is_empty() {
                "none".to_owned()
            } else {
                known.join(", ")
            };
            let name = name.escape_debug().to_string();
            return Err(OwnMapError::NoMap { name, known });
        }
        let path = pins.policy_maps().join(name);
        let map = open_pinned(&path).map_err(|e| pin_error("opening", path, e))?;
        Self::of(map, name)
    }

    fn of(map: OwnedFd, name: &str) -> Result<Self, OwnMapError> {
        let kernel = |error| OwnMapError::Kernel {
            name: name.to_owned(),
            error,
        };
        let info = map_info(map.as_fd()).map_err(kernel)?;
        let kind = bpf_map_type::try_from(info.kind).unwrap_or(bpf_map_type::BPF_MAP_TYPE_UNSPEC);
        use bpf_map_type as of;
        let cpus = match kind {
            of::BPF_MAP_TYPE_ARRAY | of::BPF_MAP_TYPE_HASH | of::BPF_MAP_TYPE_LRU_HASH => None,
            of::BPF_MAP_TYPE_PERCPU_ARRAY
            | of::BPF_MAP_TYPE_PERCPU_HASH
            | of::BPF_MAP_TYPE_LRU_PERCPU_HASH => {
                let cpus = aya::util::nr_cpus().map_err(|(_, error)| kernel(error))?;
                Some(cpus)
            }
            _ => {
                let (name, kind) = (name.to_owned(), kind_name(kind));
                return Err(OwnMapError::NoEntries { name, kind });
            }
        };
        let types = match info.types {
            0 => None,
            types => TypeTable::parse(types_by_id(types).map_err(kernel)?),
        };
        let layout = |what, id: u32, size: u32| {
            let types = types.as_ref().filter(|_| id != 0).map(|types| (types, id));
            Layout::of(types, size as usize, name).ok_or_else(|| OwnMapError::Untyped {
                what,
                name: name.to_owned(),
                size,
            })
        };
        Ok(Self {
            key: layout("keys", info.key_type, info.key_size)?,
            value: layout("values", info.value_type, info.value_size)?,
            name: name.to_owned(),
            map,
            info,
            kind,
            cpus,
        })
    }

    /// The kernel's name of its kind, and how many entries it holds.
    #[must_use]
    pub fn kind(&self) -> (String, u32) {
        (kind_name(self.kind), self.info.max_entries)
    }

    /// The entry of a key.
    ///
    /// # Errors
    /// If the key is wrong or has no entry.
    pub fn get(&self, key: &str) -> Result<OwnEntry, OwnMapError> {
        let bytes = self.parse_key(key)?;
        match self.entries()?.get(&bytes).map_err(|e| self.kernel(e))? {
            Some(value) => Ok(self.entry(&bytes, &value)),
            None => Err(self.no_entry(key)),
        }
    }

    /// Sets parts of the value of a key, `field=value` each; the rest stays as it is, or is zero in a new entry.
    ///
    /// # Errors
    /// If key or value are wrong, or there is no room. Nothing is changed then.
    pub fn set(&self, key: &str, parts: &[String]) -> Result<OwnEntry, OwnMapError> {
        if self.cpus.is_some() {
            return Err(OwnMapError::PerCpu(self.name.clone()));
        }
        let bytes = self.parse_key(key)?;
        let entries = self.entries()?;
        let old = entries.get(&bytes).map_err(|e| self.kernel(e))?;
        let mut value = old.unwrap_or_else(|| vec![0; self.value.size]);
        for part in parts {
            let wrong = |what| OwnMapError::Value {
                name: self.name.clone(),
                what,
            };
            self.value.assign(part, &mut value).map_err(wrong)?;
        }
        entries.set(&bytes, &value).map_err(|e| self.kernel(e))?;
        Ok(self.entry(&bytes, &value))
    }

    /// Removes the entry of a key.
    ///
    /// # Errors
    /// If the key is wrong or has no entry, or the map is an array.
    pub fn remove(&self, key: &str) -> Result<(), OwnMapError> {
        if self.is_array() {
            let what = "an array keeps all of its entries: set the value to zero".to_owned();
            let name = self.name.clone();
            return Err(OwnMapError::Key { name, what });
        }
        let bytes = self.parse_key(key)?;
        match self.entries()?.remove(&bytes).map_err(|e| self.kernel(e))? {
            true => Ok(()),
            false => Err(self.no_entry(key)),
        }
    }

    /// All entries, in the order of their keys' bytes. Entries that the policy adds or removes meanwhile may be missing.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub fn list(&self) -> Result<Vec<OwnEntry>, OwnMapError> {
        let entries = self.entries()?;
        let mut found = Vec::new();
        let mut key = entries.next_key(None).map_err(|e| self.kernel(e))?;
        // A policy that removes and adds keys could have this go round for ever.
        for _ in 0..self.info.max_entries {
            let Some(bytes) = key else { break };
            if let Some(value) = entries.get(&bytes).map_err(|e| self.kernel(e))? {
                found.push((self.key.number(&bytes), bytes.clone(), value));
            }
            key = entries.next_key(Some(&bytes)).map_err(|e| self.kernel(e))?;
        }
        found.sort_by(|(a, a_bytes, _), (b, b_bytes, _)| a.cmp(b).then_with(|| a_bytes.cmp(b_bytes)));
        let entry = |(_, key, value): &(_, Vec<u8>, Vec<u8>)| self.entry(key, value);
        Ok(found.iter().map(entry).collect())
    }

    fn entries(&self) -> Result<MapEntries<'_>, OwnMapError> {
        MapEntries::of(self.map.as_fd(), self.cpus).map_err(|e| self.kernel(e))
    }

    fn is_array(&self) -> bool {
        matches!(
            self.kind,
            bpf_map_type::BPF_MAP_TYPE_ARRAY | bpf_map_type::BPF_MAP_TYPE_PERCPU_ARRAY
        )
    }

    fn parse_key(&self, text: &str) -> Result<Vec<u8>, OwnMapError> {
        let wrong = |what| OwnMapError::Key {
            name: self.name.clone(),
            what,
        };
        let bytes = self.key.parse_whole(text).map_err(wrong)?;
        let last = i128::from(self.info.max_entries) - 1;
        match self.key.number(&bytes).filter(|_| self.is_array()) {
            Some(number) if number > last => Err(wrong(format!("{number} is not from 0 to {last}"))),
            _ => Ok(bytes),
        }
    }

    fn entry(&self, key: &[u8], value: &[u8]) -> OwnEntry {
        let value = match self.cpus {
            Some(_) => self.value.sum(value),
            None => value.to_vec(),
        };
        OwnEntry {
            key: self.key.show(key, ","),
            value: self.value.show(&value, " "),
            key_json: self.key.json(key),
            value_json: self.value.json(&value),
            is_zero: value.iter().all(|&byte| byte == 0),
        }
    }

    fn no_entry(&self, key: &str) -> OwnMapError {
        OwnMapError::NoEntry {
            name: self.name.clone(),
            key: key.escape_debug().to_string(),
        }
    }

    fn kernel(&self, error: io::Error) -> OwnMapError {
        let name = self.name.clone();
        match error.raw_os_error() {
            Some(libc::E2BIG) => OwnMapError::Full {
                name,
                entries: self.info.max_entries,
            },
            _ => OwnMapError::Kernel { name, error },
        }
    }
}
