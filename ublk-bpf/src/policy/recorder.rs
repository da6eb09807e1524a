//! Passes the requests of a live device to this process.

use std::os::fd::AsFd;

use aya::maps::{MapData, PerCpuArray, RingBuf};
use aya::programs::BtfTracePoint;
use aya::{Btf, Ebpf, EbpfLoader};
use ublk_bpf_abi::{CONFIG_GLOBAL, Member, TraceRecord, VerdictSlot, map};

use super::builtin::RECORDER;
use super::causes::chain;
use super::config::config_of_device;
use super::error::PolicyError;
use super::load::{TRACEPOINT, ebpf_error, program_error};
use super::offsets::KernelLayout;
use super::patch::patch;
use super::pin::{Disk, PinDir, open_map};
use crate::sys::bpf::program_facts;

/// The program in the object.
const PROGRAM: &str = "record";
const WHAT: &str = "the recorder";

/// The bytes of a request in the ring.
const RECORD_BYTES: usize = size_of::<TraceRecord>();

/// The recorder of one device, attached until this is dropped. Nothing of it is pinned, so it ends with its process.
pub struct Recorder {
    program: Ebpf,
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
        // The loader would make a map where none is pinned.
        let verdicts = pins.map(map::VERDICTS);
        open_map(&verdicts, size_of::<VerdictSlot>(), slots)?;
        let layout = KernelLayout::of_running_kernel()?;
        let object = patch(RECORDER, &Member::ALL[..Member::CLASSIFIED], &layout.offsets)?;
        let mut program = EbpfLoader::new()
            .override_global(CONFIG_GLOBAL, &config, true)
            .map_pin_path(map::VERDICTS, verdicts)
            .map_max_entries(map::RECORDS, ring_bytes)
            .load(&object)
            .map_err(|error| ebpf_error(WHAT, error))?;
        let mut recorder = Self {
            records: taken(&mut program, map::RECORDS)?,
            dropped: taken(&mut program, map::DROPPED)?,
            program,
        };
        recorder.start()?;
        Ok(recorder)
    }

    fn start(&mut self) -> Result<(), PolicyError> {
        let btf = Btf::from_sys_fs().map_err(|e| failed(chain(&e)))?;
        let program = self.program()?;
        program
            .load(TRACEPOINT, &btf)
            .map_err(|e| program_error(WHAT, e))?;
        program.attach().map_err(|e| failed(chain(&e)))?;
        Ok(())
    }

    /// Detaches the program: from now on, no request is added.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub fn detach(&mut self) -> Result<(), PolicyError> {
        self.program()?.unload().map_err(|e| failed(chain(&e)))
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
        let cpus = self.dropped.get(&0, 0).map_err(|e| PolicyError::Access {
            map: map::DROPPED,
            detail: chain(&e),
        })?;
        Ok(cpus.iter().fold(0, |sum, count| sum.wrapping_add(*count)))
    }

    /// Requests of any disk for which the kernel did not run the recorder, because it already ran on their CPU.
    ///
    /// # Errors
    /// If the kernel refuses to describe the program.
    pub fn skipped(&mut self) -> Result<u64, PolicyError> {
        let fd = self.program()?.fd().map_err(|e| failed(chain(&e)))?;
        let facts = program_facts(fd.as_fd()).map_err(|e| failed(e.to_string()))?;
        Ok(facts.recursion_misses)
    }

    fn program(&mut self) -> Result<&mut BtfTracePoint, PolicyError> {
        let program = self.program.program_mut(PROGRAM);
        let program = program.ok_or_else(|| failed(format!("no program {PROGRAM}")))?;
        program.try_into().map_err(|e| failed(chain(&e)))
    }
}

fn failed(detail: String) -> PolicyError {
    PolicyError::Attach {
        what: WHAT.to_owned(),
        detail,
    }
}

/// A map of the object.
fn taken<M>(program: &mut Ebpf, name: &'static str) -> Result<M, PolicyError>
where
    M: TryFrom<aya::maps::Map, Error = aya::maps::MapError>,
{
    let map = program
        .take_map(name)
        .ok_or_else(|| failed(format!("no map {name}")))?;
    M::try_from(map).map_err(|e| PolicyError::Access {
        map: name,
        detail: chain(&e),
    })
}
