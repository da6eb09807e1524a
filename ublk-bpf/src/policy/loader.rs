//! Loads a BPF object: creates its maps and links its programs, which are then loaded one by one.
//!
//! The parts that are the same for every kernel are those of aya: the parser, the relocations, the maps. aya's own
//! loader would parse the kernel's type information for each object, which no object of ours needs.

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::os::fd::{AsFd, AsRawFd as _, OwnedFd};
use std::path::{Path, PathBuf};

use aya::maps::{Map, MapData};
use aya_obj::btf::BtfFeatures;
use aya_obj::generated::bpf_map_type;
use aya_obj::{EbpfSectionKind, Features, Object};

use super::causes::chain;
use super::error::PolicyError;
use super::pin::pin_error;
use super::verifier::Refusal;
use crate::sys::bpf::load::{self, Hook, Refused};
use crate::sys::process::page_size;

type Failure<'a> = &'a (dyn std::error::Error + 'static);

/// What is set before an object is loaded.
#[derive(Default)]
pub(super) struct Loader<'a> {
    globals: HashMap<&'a str, (&'a [u8], bool)>,
    entries: HashMap<&'a str, u32>,
    pinned: HashMap<&'a str, &'a Path>,
}

impl<'a> Loader<'a> {
    /// Sets a read-only global, which must exist and be as long as `value`.
    pub(super) fn global<T: aya::Pod>(mut self, name: &'a str, value: &'a T) -> Self {
        // SAFETY: a `Pod` is plain bytes without padding, which live as long as `value`.
        let bytes = unsafe { std::slice::from_raw_parts((&raw const *value).cast(), size_of::<T>()) };
        self.globals.insert(name, (bytes, true));
        self
    }

    /// Sets a map's number of entries.
    pub(super) fn entries(mut self, map: &'a str, entries: u32) -> Self {
        self.entries.insert(map, entries);
        self
    }

    /// Uses a pinned map in place of a new one.
    pub(super) fn pinned(mut self, map: &'a str, path: &'a Path) -> Self {
        self.pinned.insert(map, path);
        self
    }

    /// Creates the object's maps. `what` is the object, for messages.
    pub(super) fn load(&self, object: &[u8], what: &str) -> Result<Loaded, PolicyError> {
        let failed = |error: Failure<'_>| failed(what, error);
        let mut object = Object::parse(object).map_err(|e| failed(&e))?;
        object
            .patch_map_data(self.globals.clone())
            .map_err(|e| failed(&e))?;
        let types = object.fixup_and_sanitize_btf(&types_features());
        let types = types.map_err(|e| failed(&e))?.map(aya_obj::btf::Btf::to_bytes);
        let types = load::load_types(&types.unwrap_or_default()).map_err(|e| failed(&e))?;
        let mut maps = BTreeMap::new();
        for (name, parsed) in std::mem::take(&mut object.maps) {
            let map = self.map(&name, &parsed, &types, what)?;
            maps.insert(name, (map, parsed));
        }
        link(&mut object, &maps).map_err(|e| failed(&*e))?;
        let maps = maps
            .into_iter()
            .map(|(name, (map, _))| Ok((name, Map::from_map_data(map)?)));
        let maps: Result<_, aya::maps::MapError> = maps.collect();
        Ok(Loaded {
            what: what.to_owned(),
            object,
            types,
            maps: maps.map_err(|e| failed(&e))?,
        })
    }

    fn map(
        &self,
        name: &str,
        parsed: &aya_obj::Map,
        types: &OwnedFd,
        what: &str,
    ) -> Result<MapData, PolicyError> {
        let failed = |error: Failure<'_>| failed(what, error);
        if let Some(path) = self.pinned.get(name) {
            return MapData::from_pin(path).map_err(|e| failed(&e));
        }
        let mut parsed = parsed.clone();
        if let Some(&entries) = self.entries.get(name) {
            parsed.set_max_entries(entries);
        }
        if parsed.map_type() == bpf_map_type::BPF_MAP_TYPE_RINGBUF as u32 {
            parsed.set_max_entries(ring_bytes(parsed.max_entries()));
            parsed.set_value_size(0);
        }
        let (globals, kind) = (parsed.data().to_vec(), parsed.section_kind());
        let map = MapData::create(parsed, name, Some(types.as_fd())).map_err(|e| failed(&e))?;
        let fd = map.fd().as_fd();
        if !globals.is_empty() {
            load::set_globals(fd, &globals).map_err(|e| failed(&e))?;
        }
        if kind == EbpfSectionKind::Rodata {
            load::freeze(fd).map_err(|e| failed(&e))?;
        }
        Ok(map)
    }
}

/// Every feature: the kernels that have batch-mode ublk have them all.
fn types_features() -> BtfFeatures {
    BtfFeatures::new(true, true, true, true, true, true, true, true)
}

/// The kernel wants a power of two of pages.
fn ring_bytes(wanted: u32) -> u32 {
    let page = u32::try_from(page_size()).unwrap_or(4096);
    wanted.max(page).checked_next_power_of_two().unwrap_or(1 << 31)
}

/// Puts the maps and the called functions into the programs.
fn link(
    object: &mut Object,
    maps: &BTreeMap<String, (MapData, aya_obj::Map)>,
) -> Result<(), Box<dyn std::error::Error>> {
    let sections = object.functions.keys().map(|(section, _)| *section).collect();
    let maps = maps
        .iter()
        .map(|(name, (map, parsed))| (name.as_str(), map.fd().as_fd().as_raw_fd(), parsed));
    object.relocate_maps(maps, &sections)?;
    object.relocate_calls(&sections)?;
    let features = Features::new(true, true, true, true, true, true, true, Some(types_features()));
    object.sanitize_functions(&features);
    Ok(())
}

/// An object whose maps are in the kernel.
pub(super) struct Loaded {
    what: String,
    object: Object,
    types: OwnedFd,
    maps: BTreeMap<String, Map>,
}

impl Loaded {
    /// Pins each of its maps at the path for the map's name.
    pub(super) fn pin_maps(&self, path: impl Fn(&str) -> PathBuf) -> Result<(), PolicyError> {
        for name in self.maps.keys() {
            self.pin_map(name, path(name))?;
        }
        Ok(())
    }

    /// Pins one of its maps.
    pub(super) fn pin_map(&self, name: &str, path: PathBuf) -> Result<(), PolicyError> {
        let map = self.maps.get(name).ok_or_else(|| self.lacks("map", name))?;
        map.pin(&path)
            .map_err(|e| pin_error("pinning to", path, io::Error::other(chain(&e))))
    }

    /// One of its maps.
    pub(super) fn map_mut(&mut self, name: &str) -> Option<&mut Map> {
        self.maps.get_mut(name)
    }

    /// One of them, which this keeps no longer.
    pub(super) fn take_map(&mut self, name: &str) -> Option<Map> {
        self.maps.remove(name)
    }

    /// Loads one of its programs; the verifier checks it.
    pub(super) fn program(&self, name: &str, hook: Hook<'_>) -> Result<OwnedFd, PolicyError> {
        let function = self.object.programs.get(name).and_then(|program| {
            let function = self.object.functions.get(&program.function_key())?;
            Some((program, function))
        });
        let (program, function) = function.ok_or_else(|| self.lacks("program", name))?;
        load::load_program(name, &program.license, function, self.types.as_fd(), hook).map_err(|refused| {
            let Refused { error, log } = refused;
            if error.raw_os_error() == Some(libc::EPERM) {
                return PolicyError::NoPermission;
            }
            Refusal::from_log(&self.what, &error, &log).into()
        })
    }

    fn lacks(&self, what: &str, name: &str) -> PolicyError {
        PolicyError::Load {
            what: self.what.clone(),
            detail: format!("no {what} `{name}` in it"),
        }
    }
}

fn failed(what: &str, error: Failure<'_>) -> PolicyError {
    if is_permission(error) {
        return PolicyError::NoPermission;
    }
    PolicyError::Load {
        what: what.to_owned(),
        detail: chain(error),
    }
}

/// The verifier refuses with EACCES, EINVAL and others; EPERM is about the caller.
fn is_permission(error: Failure<'_>) -> bool {
    let mut error = Some(error);
    while let Some(cause) = error {
        let errno = cause
            .downcast_ref::<io::Error>()
            .and_then(io::Error::raw_os_error);
        if errno == Some(libc::EPERM) {
            return true;
        }
        error = cause.source();
    }
    false
}
