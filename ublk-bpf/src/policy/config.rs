//! The configuration of a pinned classifier.

use std::mem::offset_of;
use std::path::PathBuf;

use aya::maps::{Array, Map};
use ublk_bpf_abi::{ABI_VERSION, Config, VerdictSlot, map};

use super::causes::chain;
use super::error::PolicyError;
use super::pin::{PinDir, open_map};
use super::spec::ClassifierSpec;

/// The name of its pin.
pub(super) const CONFIG_PIN: &str = "config";

const CONFIG_WORDS: usize = size_of::<Config>() / size_of::<u64>();

/// [`Config`] as words.
pub(super) type ConfigWords = [u64; CONFIG_WORDS];

/// Whether the pinned classifier counts its decisions.
pub fn is_counting(pins: &PinDir) -> Result<bool, PolicyError> {
    Ok(number(&config_words(pins)?, offset_of!(Config, uncounted)) == 0)
}

/// Whether the pinned classifier is configured with a cache.
pub fn has_cache(pins: &PinDir) -> Result<bool, PolicyError> {
    let words = config_words(pins)?;
    Ok(number(&words, offset_of!(Config, cache_shift)) != 0)
}

/// The sizes of the blocks by which the pinned classifier looks at a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BlockShifts {
    /// log2 of a cache block's bytes; none without a cache.
    pub cache: Option<u32>,
    /// log2 of the bytes of a block of [`map::WRITTEN`]; none if the map is not used.
    pub written: Option<u32>,
}

/// The block sizes of the pinned classifier.
///
/// # Errors
/// If it cannot be read, or is of another version of the interface.
pub fn block_shifts(pins: &PinDir) -> Result<BlockShifts, PolicyError> {
    let (words, _) = config_of_device(pins)?;
    let shift = |at, sizes: std::ops::RangeInclusive<u32>| {
        let shift = u32::try_from(number(&words, at)).ok();
        shift.filter(|shift| sizes.contains(shift))
    };
    Ok(BlockShifts {
        cache: shift(offset_of!(Config, cache_shift), 12..=20),
        written: shift(offset_of!(Config, written_shift), 12..=30),
    })
}

/// The 32-bit number at this byte of the configuration.
fn number(words: &ConfigWords, at: usize) -> u64 {
    let half = if at.is_multiple_of(8) { 0 } else { 32 };
    words[at / 8] >> half & u64::from(u32::MAX)
}

/// The pinned configuration.
fn config_words(pins: &PinDir) -> Result<ConfigWords, PolicyError> {
    let map = open_map(&pins.map(CONFIG_PIN), size_of::<Config>(), 1)?;
    let failed = |e: aya::maps::MapError| PolicyError::Access {
        map: CONFIG_PIN,
        detail: chain(&e),
    };
    let map: Array<_, ConfigWords> = Array::try_from(Map::Array(map)).map_err(failed)?;
    map.get(&0, 0).map_err(failed)
}

/// The pinned configuration of a device that this program did not start, for another program that is attached to the same
/// tracepoint, and the number of its verdicts.
///
/// # Errors
/// If the device's server is of another version of the interface.
pub(super) fn config_of_device(pins: &PinDir) -> Result<(ConfigWords, u32), PolicyError> {
    let words = config_words(pins)?;
    let number = |at| number(&words, at);
    let found = number(offset_of!(Config, abi_version));
    if found != u64::from(ABI_VERSION) {
        return Err(PolicyError::Foreign {
            path: pins.map(CONFIG_PIN),
            what: "its interface version",
            found,
            wanted: ABI_VERSION.into(),
        });
    }
    let slots = number(offset_of!(Config, queues)) * number(offset_of!(Config, depth));
    Ok((words, u32::try_from(slots).unwrap_or(u32::MAX)))
}

/// Where the device's verdicts are pinned, of which there are so many.
///
/// # Errors
/// If they are not: the loader would make a map of its own.
pub(super) fn verdicts_of_device(pins: &PinDir, slots: u32) -> Result<PathBuf, PolicyError> {
    let verdicts = pins.map(map::VERDICTS);
    open_map(&verdicts, size_of::<VerdictSlot>(), slots)?;
    Ok(verdicts)
}

/// Checks that the pinned configuration is the one that this program would write for the same device.
pub(super) fn check_config(spec: &ClassifierSpec, pins: &PinDir) -> Result<(), PolicyError> {
    let path = pins.map(CONFIG_PIN);
    let words = config_words(pins)?;
    let number = |at| number(&words, at);
    let wanted_shift = spec.written.map_or(0, |written| written.shift);
    let wanted_cache_shift = spec.cache.map_or(0, |cache| cache.shift);
    let [name, name_end] = spec.disk.name_words();
    let properties = [
        (
            "its interface version",
            number(offset_of!(Config, abi_version)),
            ABI_VERSION.into(),
        ),
        (
            "its queue depth",
            number(offset_of!(Config, depth)),
            spec.depth.into(),
        ),
        (
            "its block shift",
            number(offset_of!(Config, written_shift)),
            wanted_shift.into(),
        ),
        (
            "its cache block's shift",
            number(offset_of!(Config, cache_shift)),
            wanted_cache_shift.into(),
        ),
        ("its disk name", words[0], name),
        ("its disk name", words[1], name_end),
    ];
    for (what, found, wanted) in properties {
        if found != wanted {
            return Err(PolicyError::Foreign {
                path,
                what,
                found,
                wanted,
            });
        }
    }
    Ok(())
}
