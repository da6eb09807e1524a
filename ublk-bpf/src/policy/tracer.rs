//! Passes the requests of a live device to this process when they end, with the time they took.

use std::os::fd::{AsFd, OwnedFd};

use aya::maps::{Array, MapData, PerCpuArray, RingBuf};
use ublk_bpf_abi::{CONFIG_GLOBAL, EndedRecord, Member, map};

use super::builtin::TRACER;
use super::causes::chain;
use super::config::{config_of_device, verdicts_of_device};
use super::error::PolicyError;
use super::loader::Loader;
use super::offsets::KernelLayout;
use super::patch::patch;
use super::pin::{Disk, PinDir};
use super::recorder::{dropped, taken};
use crate::sys::bpf::load::{self, Hook};
use crate::sys::bpf::program_facts;

const WHAT: &str = "the tracer";
/// The object's programs: at a request's issue, and at its end.
const BEGIN: &str = "begin";
const END: &str = "end";

/// The bytes of a request in the ring.
const RECORD_BYTES: usize = size_of::<EndedRecord>();

/// The tracer of one device, attached until this is dropped. Nothing of it is pinned, so it ends with its process.
pub struct Tracer {
    programs: [OwnedFd; 2],
    _links: [OwnedFd; 2],
    ended: RingBuf<MapData>,
    dropped: PerCpuArray<MapData, u64>,
    every: Array<MapData, u64>,
}

impl Tracer {
    /// Attaches the tracer to a disk whose classifier is pinned. Of requests that were not [taken](Self::take) yet, the
    /// kernel holds `ring_bytes` (rounded up to a power of two); more are [dropped](Self::dropped).
    ///
    /// # Errors
    /// If there is no such classifier, it is of another version, or the kernel refuses a program.
    pub fn attach(disk: &Disk, ring_bytes: u32) -> Result<Self, PolicyError> {
        let pins = PinDir::open(disk)?;
        let (config, slots) = config_of_device(&pins)?;
        let verdicts = verdicts_of_device(&pins, slots)?;
        let layout = KernelLayout::of_running_kernel()?;
        let object = patch(TRACER, &Member::ALL[..Member::CLASSIFIED], &layout.offsets)?;
        let mut loaded = Loader::default()
            .global(CONFIG_GLOBAL, &config)
            .pinned(map::VERDICTS, &verdicts)
            .entries(map::ISSUED, slots)
            .entries(map::ENDED, ring_bytes)
            .load(&object, WHAT)?;
        let (begin, end) = (Hook::Tracepoint(layout.issue), Hook::Tracepoint(layout.complete));
        let programs = [loaded.program(BEGIN, begin)?, loaded.program(END, end)?];
        let attach =
            |program: &OwnedFd, hook| load::attach(program.as_fd(), hook).map_err(|e| failed(e.to_string()));
        let links = [attach(&programs[0], begin)?, attach(&programs[1], end)?];
        Ok(Self {
            programs,
            _links: links,
            ended: taken(&mut loaded, WHAT, map::ENDED)?,
            dropped: taken(&mut loaded, WHAT, map::DROPPED)?,
            every: taken(&mut loaded, WHAT, map::EVERY)?,
        })
    }

    /// Traces one request in `every` from now on, chosen at random.
    ///
    /// # Errors
    /// If the kernel refuses to write the map.
    pub fn sample(&mut self, every: u32) -> Result<(), PolicyError> {
        self.every
            .set(0, u64::from(every), 0)
            .map_err(|e| PolicyError::Access {
                map: map::EVERY,
                detail: chain(&e),
            })
    }

    /// The next request in the order of their ends: the bytes of an [`EndedRecord`].
    pub fn take(&mut self) -> Option<[u8; RECORD_BYTES]> {
        // Nothing else writes to the ring, so every item has this length.
        self.ended.next().and_then(|item| item.first_chunk().copied())
    }

    /// Requests that found the ring full.
    ///
    /// # Errors
    /// If the kernel refuses to read the map.
    pub fn dropped(&self) -> Result<u64, PolicyError> {
        dropped(&self.dropped)
    }

    /// Requests of any disk whose issue or end was not seen, because the program already ran on that CPU.
    ///
    /// # Errors
    /// If the kernel refuses to describe the programs.
    pub fn skipped(&self) -> Result<u64, PolicyError> {
        let mut skipped = 0_u64;
        for program in &self.programs {
            let facts = program_facts(program.as_fd()).map_err(|e| failed(e.to_string()))?;
            skipped = skipped.saturating_add(facts.recursion_misses);
        }
        Ok(skipped)
    }
}

fn failed(detail: String) -> PolicyError {
    PolicyError::Attach {
        what: WHAT.to_owned(),
        detail,
    }
}
