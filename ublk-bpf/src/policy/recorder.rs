//! Passes the requests of a live device to this process.

use std::os::fd::{AsFd, OwnedFd};

use aya::maps::{MapData, PerCpuArray, RingBuf};
use ublk_bpf_abi::{CONFIG_GLOBAL, Member, TraceRecord, map};

use super::builtin::RECORDER;
use super::causes::chain;
use super::config::{config_of_device, verdicts_of_device};
use super::error::PolicyError;
use super::loader::{Loaded, Loader};
use super::offsets::KernelLayout;
use super::patch::patch;
use super::pin::{Disk, PinDir};
use crate::sys::bpf::load::{self, Hook};
use crate::sys::bpf::program_facts;

/// The program in the object.
const PROGRAM: &str = "record";
const WHAT: &str = "the recorder";

/// The bytes of a request in the ring.
const RECORD_BYTES: usize = size_of::<TraceRecord>();

/// The recorder of one device, attached until this is dropped. Nothing of it is pinned, so it ends with its process.
pub struct Recorder {
    program: OwnedFd,
    /// Attached while there is one.
    link: Option<OwnedFd>,
    records: RingBuf<MapData>,
    dropped: PerCpuArray<MapData, u64>,
}

impl Recorder {
    /// Attaches the recorder to a disk whose classifier is pinned. The kernel holds `ring_bytes` (rounded up to a power
    /// of two) of requests that were not [taken](Self::take) yet; more are [dropped](Self::dropped).
    ///
    /// # Errors
    /// If there is no such classifier, it is of another version, or the kernel refuses the program.
    pub fn attach(disk: &Disk, ring_bytes: u32) -> Result<Self, PolicyError> {
        let pins = PinDir::open(disk)?;
        let (config, slots) = config_of_device(&pins)?;
        let verdicts = verdicts_of_device(&pins, slots)?;
        let layout = KernelLayout::of_running_kernel()?;
        let object = patch(RECORDER, &Member::ALL[..Member::CLASSIFIED], &layout.offsets)?;
        let mut loaded = Loader::default()
            .global(CONFIG_GLOBAL, &config)
            .pinned(map::VERDICTS, &verdicts)
            .entries(map::RECORDS, ring_bytes)
            .load(&object, WHAT)?;
        let records = taken(&mut loaded, WHAT, map::RECORDS)?;
        let dropped = taken(&mut loaded, WHAT, map::DROPPED)?;
        let hook = Hook::Tracepoint(layout.issue);
        let program = loaded.program(PROGRAM, hook)?;
        let link = load::attach(program.as_fd(), hook).map_err(|e| failed(e.to_string()))?;
        Ok(Self {
            program,
            link: Some(link),
            records,
            dropped,
        })
    }

    /// Detaches the program: from now on, no request is added.
    pub fn detach(&mut self) {
        self.link = None;
    }

    /// The next request in the order of issue: the bytes of a [`TraceRecord`].
    pub fn take(&mut self) -> Option<[u8; RECORD_BYTES]> {
        // Nothing else writes to the ring, so every item has this length.
        self.records.next().and_then(|item| item.first_chunk().copied())
    }

    /// Requests that found the ring full.
    ///
    /// # Errors
    /// If the kernel refuses to read the map.
    pub fn dropped(&self) -> Result<u64, PolicyError> {
        dropped(&self.dropped)
    }

    /// Requests of any disk for which the kernel did not run the recorder, because it already ran on their CPU.
    ///
    /// # Errors
    /// If the kernel refuses to describe the program.
    pub fn skipped(&self) -> Result<u64, PolicyError> {
        let facts = program_facts(self.program.as_fd()).map_err(|e| failed(e.to_string()))?;
        Ok(facts.recursion_misses)
    }
}

fn failed(detail: String) -> PolicyError {
    PolicyError::Attach {
        what: WHAT.to_owned(),
        detail,
    }
}

/// Sums over CPUs the requests that found a ring full.
pub(super) fn dropped(counts: &PerCpuArray<MapData, u64>) -> Result<u64, PolicyError> {
    let cpus = counts.get(&0, 0).map_err(|e| PolicyError::Access {
        map: map::DROPPED,
        detail: chain(&e),
    })?;
    Ok(cpus.iter().fold(0, |sum, count| sum.wrapping_add(*count)))
}

/// A map of the object, which is `what`.
pub(super) fn taken<M>(loaded: &mut Loaded, what: &str, name: &'static str) -> Result<M, PolicyError>
where
    M: TryFrom<aya::maps::Map, Error = aya::maps::MapError>,
{
    let map = loaded.take_map(name).ok_or_else(|| PolicyError::Load {
        what: what.to_owned(),
        detail: format!("no map {name}"),
    })?;
    M::try_from(map).map_err(|e| PolicyError::Access {
        map: name,
        detail: chain(&e),
    })
}
