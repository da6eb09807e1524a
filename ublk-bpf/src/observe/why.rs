//! What happens to a request of these sectors, and why: what the maps hold of its block, and what the policy answers.

use std::ffi::CStr;
use std::path::Path;

use aya::maps::{Array, Map, MapData, MapError};
use serde::{Serialize, Serializer};
use ublk_bpf_abi::{BlockState, Decision, IndexEntry, Op, REGIONS, Request, map, regions, request_flags};

use super::words::{hint_words, meaning};
use crate::policy::{Asker, Disk, PinDir, PolicyError, block_shifts, chain};

/// The sectors of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct SectorRange {
    /// First sector.
    pub sector: u64,
    /// Length in sectors: at least 1.
    pub nr_sectors: u32,
}

impl SectorRange {
    /// The sector behind the last one.
    #[must_use]
    pub const fn end(self) -> u64 {
        self.sector.saturating_add(self.nr_sectors as u64)
    }
}

/// Why a device cannot be asked about a range.
#[derive(Debug, thiserror::Error)]
pub enum WhyError {
    /// The range is not on the device.
    #[error("sectors {} to {} are not on the device, whose last one is {}", .range.sector, .range.end() - 1, .sectors - 1)]
    Beyond {
        /// The range.
        range: SectorRange,
        /// Sectors of the device.
        sectors: u64,
    },
    /// The range is in two cache blocks.
    #[error(
        "sectors {} to {} are in more than one cache block, and the block layer splits such a request at sector {at}: ask about a part",
        .range.sector, .range.end() - 1
    )]
    Split {
        /// The range.
        range: SectorRange,
        /// Where it is split.
        at: u64,
    },
    /// The maps or the policy cannot be reached.
    #[error(transparent)]
    Policy(#[from] PolicyError),
}

/// What is known of a range. The names of its fields, as JSON has them, are stable.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Why {
    /// The range.
    #[serde(flatten)]
    pub range: SectorRange,
    /// Its cache block; none on a device without a cache.
    pub block: Option<ExplainedBlock>,
    /// Whether no sector of the range was ever written, so that it reads as zeroes; none if the device does not track it.
    pub never_written: Option<bool>,
    /// What the policy answers to a read and to a write of the range.
    pub answers: Vec<PolicyAnswer>,
}

/// A cache block. The names of its fields, as JSON has them, are stable.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ExplainedBlock {
    /// Its number.
    pub number: u64,
    /// Its sectors.
    #[serde(flatten)]
    pub sectors: SectorRange,
    /// Its state in the index.
    #[serde(serialize_with = "state_name")]
    pub state: BlockState,
    /// Its slot; none if it has none.
    pub slot: Option<u32>,
    /// Writes, discards and write-zeroes in flight on it.
    pub writers: u32,
    /// For each of its sixteen regions, whether the slot can serve it.
    pub valid: [bool; REGIONS as usize],
    /// Recent reads.
    pub heat: u8,
    /// How much of the range is cached.
    pub cached: Cached,
}

/// How much of a range is cached.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Cached {
    /// All of it.
    Whole,
    /// Its block is in the cache, and not all of the range.
    Part,
    /// Its block is not in the cache.
    No,
}

/// What the policy answers to one operation. The names of its fields, as JSON has them, are stable.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct PolicyAnswer {
    /// The operation.
    pub op: &'static str,
    /// The verdict.
    pub verdict: &'static str,
    /// The reason.
    pub reason: &'static str,
    /// The policy's own reason; 0 with every other one.
    pub code: u8,
    /// The hints, in words.
    pub hints: Vec<String>,
    /// What the server does then.
    pub meaning: String,
}

impl PolicyAnswer {
    fn new(op: Op, decision: &Decision) -> Self {
        Self {
            op: op.name(),
            verdict: decision.verdict.name(),
            reason: decision.reason.name(),
            code: decision.code,
            hints: hint_words(decision.hints),
            meaning: meaning(op, decision),
        }
    }
}

fn state_name<S: Serializer>(state: &BlockState, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(state.name())
}

/// Looks at the maps and asks the policy, as a task of this name, about a range of a device of `sectors` sectors.
///
/// # Errors
/// If the range cannot be one request's, or the maps or the policy cannot be reached.
pub fn why(disk: &Disk, sectors: u64, range: SectorRange, task: &CStr) -> Result<Why, WhyError> {
    if range.end() > sectors {
        return Err(WhyError::Beyond { range, sectors });
    }
    let pins = PinDir::open(disk)?;
    let shifts = block_shifts(&pins)?;
    let block = shifts.cache.map(|shift| block(&pins, shift, range, sectors));
    let block = block.transpose()?;
    let never_written = shifts.written.map(|shift| never_written(&pins, shift, range));
    let never_written = never_written.transpose()?;
    let asked = |op| request(op, range, block.as_ref(), never_written);
    Ok(Why {
        range,
        answers: answers(&pins.policy(), task, [asked(Op::Read), asked(Op::Write)])?,
        block,
        never_written,
    })
}

/// The request that the classifier would pass to the policy.
fn request(
    op: Op,
    range: SectorRange,
    block: Option<&ExplainedBlock>,
    never_written: Option<bool>,
) -> Request {
    let cached = block.map_or(0, |block| match block.cached {
        Cached::Whole => request_flags::CACHED,
        Cached::Part => request_flags::PARTLY_CACHED,
        Cached::No => 0,
    });
    let dirty = match block {
        Some(block) if block.state == BlockState::Dirty => request_flags::DIRTY,
        _ => 0,
    };
    let zeroes = match never_written {
        Some(true) if op == Op::Read => request_flags::NEVER_WRITTEN,
        _ => 0,
    };
    Request {
        flags: cached | dirty | zeroes,
        block: block.map_or(0, |block| block.number),
        heat: block.map_or(0, |block| block.heat.into()),
        ..Request::new(op, range.sector, range.nr_sectors)
    }
}

/// The answers of the pinned policy, or the classifier's own without one.
fn answers(policy: &Path, task: &CStr, requests: [Request; 2]) -> Result<Vec<PolicyAnswer>, PolicyError> {
    let mut answers = Vec::new();
    if matches!(policy.try_exists(), Ok(false)) {
        let default = Decision::pass();
        answers.extend(requests.map(|request| PolicyAnswer::new(request.op(), &default)));
        return Ok(answers);
    }
    let mut asker = Asker::of(policy, task)?;
    for request in requests {
        answers.push(PolicyAnswer::new(request.op(), &asker.ask(&request)?));
    }
    Ok(answers)
}

fn block(pins: &PinDir, shift: u32, range: SectorRange, sectors: u64) -> Result<ExplainedBlock, WhyError> {
    let per_block = 1_u64 << (shift - 9);
    let number = range.sector / per_block;
    let first = number * per_block;
    let end = (first + per_block).min(sectors);
    if range.end() > end {
        return Err(WhyError::Split { range, at: end });
    }
    let entry = IndexEntry(element(pins, map::INDEX, number)?);
    let heat = element(pins, map::HEAT, number / 8)?.to_le_bytes()[(number % 8) as usize];
    let hidden = entry.hidden();
    let wanted = regions(shift, range.sector, range.nr_sectors);
    Ok(ExplainedBlock {
        number,
        sectors: SectorRange {
            sector: first,
            nr_sectors: u32::try_from(end - first).unwrap_or(u32::MAX),
        },
        state: entry.state(),
        slot: (entry.state() != BlockState::Absent).then(|| entry.slot()),
        writers: entry.writers(),
        valid: std::array::from_fn(|region| entry.is_present() && hidden >> region & 1 == 0),
        heat,
        cached: match (entry.is_present(), entry.serves(wanted)) {
            (_, true) => Cached::Whole,
            (true, false) => Cached::Part,
            (false, false) => Cached::No,
        },
    })
}

/// Whether no block of the range is marked as holding data.
fn never_written(pins: &PinDir, shift: u32, range: SectorRange) -> Result<bool, PolicyError> {
    let per_block = 1_u64 << (shift - 9);
    let last = (range.end() - 1) / per_block;
    for block in range.sector / per_block..=last {
        if element(pins, map::WRITTEN, block / 64)? >> (block % 64) & 1 != 0 {
            return Ok(false);
        }
    }
    Ok(true)
}

/// A word of one of the classifier's arrays.
fn element(pins: &PinDir, name: &'static str, at: u64) -> Result<u64, PolicyError> {
    let failed = |e: MapError| PolicyError::Access {
        map: name,
        detail: chain(&e),
    };
    let map = MapData::from_pin(pins.map(name)).map_err(failed)?;
    let map: Array<_, u64> = Array::try_from(Map::Array(map)).map_err(failed)?;
    let at = u32::try_from(at).unwrap_or(u32::MAX);
    map.get(&at, 0).map_err(failed)
}
