//! bpf(2) for the entries of a map whose sizes are known at run time only.

use std::io;
use std::os::fd::{AsRawFd as _, BorrowedFd};

use aya_obj::generated::{bpf_cmd, bpf_map_info};

use super::{bpf, zeroed_attr};

/// The kernel's information about a map (`struct bpf_map_info`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MapInfo {
    /// `BPF_MAP_TYPE_*`
    pub kind: u32,
    /// Bytes of a key.
    pub key_size: u32,
    /// Bytes of a value, on one CPU.
    pub value_size: u32,
    /// How many entries it holds.
    pub max_entries: u32,
    /// Which type information describes it; 0: none.
    pub types: u32,
    /// The number of the keys' type there; 0: none.
    pub key_type: u32,
    /// The number of the values' type there; 0: none.
    pub value_type: u32,
}

/// Reads the kernel's information about a map (`BPF_OBJ_GET_INFO_BY_FD`).
pub fn map_info(map: BorrowedFd<'_>) -> io::Result<MapInfo> {
    // SAFETY: plain integers, for which zero is a value.
    let mut info = unsafe { std::mem::zeroed::<bpf_map_info>() };
    let mut attr = zeroed_attr();
    attr.info.bpf_fd = map.as_raw_fd().cast_unsigned();
    attr.info.info_len = u32::try_from(size_of::<bpf_map_info>()).unwrap_or(u32::MAX);
    attr.info.info = (&raw mut info).expose_provenance() as u64;
    // SAFETY: `info` lives past the call and has `info_len` bytes, the most that the kernel writes.
    unsafe { bpf(bpf_cmd::BPF_OBJ_GET_INFO_BY_FD, &mut attr) }?;
    Ok(MapInfo {
        kind: info.type_,
        key_size: info.key_size,
        value_size: info.value_size,
        max_entries: info.max_entries,
        types: info.btf_id,
        key_type: info.btf_key_type_id,
        value_type: info.btf_value_type_id,
    })
}

/// An open map with its sizes, by which all memory that the kernel reads or writes is allocated.
#[derive(Debug)]
pub struct MapEntries<'a> {
    map: BorrowedFd<'a>,
    key_size: usize,
    value_size: usize,
}

impl<'a> MapEntries<'a> {
    /// The entries of a map. A value of `cpus` CPUs is read as the values of all, each rounded up to eight bytes.
    ///
    /// # Errors
    /// If the kernel tells nothing about the map.
    pub fn of(map: BorrowedFd<'a>, cpus: Option<usize>) -> io::Result<Self> {
        let info = map_info(map)?;
        let value_size = info.value_size as usize;
        Ok(Self {
            map,
            key_size: info.key_size as usize,
            value_size: cpus.map_or(value_size, |cpus| value_size.next_multiple_of(8) * cpus),
        })
    }

    /// The value of a key (`BPF_MAP_LOOKUP_ELEM`).
    ///
    /// # Errors
    /// If the key has not the map's length, or the kernel refuses.
    pub fn get(&self, key: &[u8]) -> io::Result<Option<Vec<u8>>> {
        self.check(key, self.key_size)?;
        let mut value = vec![0_u8; self.value_size];
        let place = value.as_mut_ptr().expose_provenance() as u64;
        let found = self.call(bpf_cmd::BPF_MAP_LOOKUP_ELEM, Some(key), place)?;
        Ok(found.then_some(value))
    }

    /// Sets the value of a key (`BPF_MAP_UPDATE_ELEM`).
    ///
    /// # Errors
    /// If key or value have not the map's lengths, the map is full, or the kernel refuses.
    pub fn set(&self, key: &[u8], value: &[u8]) -> io::Result<()> {
        self.check(key, self.key_size)?;
        self.check(value, self.value_size)?;
        let place = value.as_ptr().expose_provenance() as u64;
        match self.call(bpf_cmd::BPF_MAP_UPDATE_ELEM, Some(key), place)? {
            true => Ok(()),
            false => Err(io::ErrorKind::NotFound.into()),
        }
    }

    /// Removes a key (`BPF_MAP_DELETE_ELEM`). Returns whether it was there.
    ///
    /// # Errors
    /// If the key has not the map's length, or the kernel refuses, as it does for arrays.
    pub fn remove(&self, key: &[u8]) -> io::Result<bool> {
        self.check(key, self.key_size)?;
        self.call(bpf_cmd::BPF_MAP_DELETE_ELEM, Some(key), 0)
    }

    /// The key after this one, or the first one (`BPF_MAP_GET_NEXT_KEY`).
    ///
    /// # Errors
    /// If the key has not the map's length, or the kernel refuses.
    pub fn next_key(&self, key: Option<&[u8]>) -> io::Result<Option<Vec<u8>>> {
        if let Some(key) = key {
            self.check(key, self.key_size)?;
        }
        let mut next = vec![0_u8; self.key_size];
        let place = next.as_mut_ptr().expose_provenance() as u64;
        let found = self.call(bpf_cmd::BPF_MAP_GET_NEXT_KEY, key, place)?;
        Ok(found.then_some(next))
    }

    fn check(&self, bytes: &[u8], length: usize) -> io::Result<()> {
        let fits = bytes.len() == length;
        fits.then_some(())
            .ok_or_else(|| io::ErrorKind::InvalidInput.into())
    }

    /// Returns whether there is such an entry. `place` is the address of a value or key of the map's length, or 0 where
    /// the command has none; the key has the map's length too.
    fn call(&self, command: bpf_cmd, key: Option<&[u8]>, place: u64) -> io::Result<bool> {
        let mut attr = zeroed_attr();
        // SAFETY: every part of the zeroed union is plain integers; the kernel reads this one for these commands.
        let entry = unsafe { &mut attr.__bindgen_anon_2 };
        entry.map_fd = self.map.as_raw_fd().cast_unsigned();
        entry.key = key.map_or(0, |key| key.as_ptr().expose_provenance() as u64);
        entry.__bindgen_anon_1.value = place;
        // SAFETY: both addresses are of memory of the map's lengths, which lives past the call.
        match unsafe { bpf(command, &mut attr) } {
            Ok(_) => Ok(true),
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(false),
            Err(error) => Err(error),
        }
    }
}
