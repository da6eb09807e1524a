//! The histograms of one device: two programs and their maps, pinned beside its classifier. They count as long as the
//! pins exist, whichever server has the device.

use std::os::fd::AsFd as _;

use ublk_bpf_abi::{CONFIG_GLOBAL, Latencies, Member, Sizes, map};

use super::builtin::HISTOGRAMS;
use super::config::{config_of_device, verdicts_of_device};
use super::error::PolicyError;
use super::load::name_operations;
use super::loader::{Loaded, Loader};
use super::offsets::KernelLayout;
use super::patch::patch;
use super::pin::{PinDir, pin_at};
use crate::sys::bpf::load::{Hook, attach};

/// The object, for messages, and its programs.
const WHAT: &str = "the histograms";
const ISSUE: &str = "issue";
const COMPLETE: &str = "complete";

/// The members that the programs load: they identify a request, and tell its operation and length.
const LOADED: [Member; 9] = [
    Member::RequestQueue,
    Member::RequestHctx,
    Member::RequestFlags,
    Member::RequestTag,
    Member::RequestBytes,
    Member::QueueDisk,
    Member::DiskName,
    Member::DiskNameEnd,
    Member::HctxNumber,
];

/// Attaches the programs to the disk of a classifier that is attached and pinned, and pins them and their maps.
pub(super) fn attach_and_pin(pins: &PinDir) -> Result<(), PolicyError> {
    let (config, slots) = config_of_device(pins)?;
    let verdicts = verdicts_of_device(pins, slots)?;
    let layout = KernelLayout::of_running_kernel()?;
    let object = patch(HISTOGRAMS, &LOADED, &layout.offsets)?;
    let mut loaded = Loader::default()
        .global(CONFIG_GLOBAL, &config)
        .pinned(map::VERDICTS, &verdicts)
        .entries(map::ISSUES, slots)
        .load(&object, WHAT)?;
    name_operations::<{ Latencies::WORDS }>(&mut loaded, map::LATENCIES)?;
    name_operations::<{ Sizes::WORDS }>(&mut loaded, map::SIZES)?;
    for name in [map::ISSUES, map::LATENCIES, map::SIZES] {
        loaded.pin_map(name, pins.map(name))?;
    }
    // The counting one first: it ignores requests whose issue the other has not seen.
    for (name, point) in [(COMPLETE, layout.complete), (ISSUE, layout.issue)] {
        pin_program(&loaded, name, Hook::Tracepoint(point), pins)?;
    }
    Ok(())
}

fn pin_program(loaded: &Loaded, name: &str, hook: Hook<'_>, pins: &PinDir) -> Result<(), PolicyError> {
    let program = loaded.program(name, hook)?;
    pin_at(program.as_fd(), &pins.histogram(name))?;
    let link = attach(program.as_fd(), hook).map_err(|error| PolicyError::Attach {
        what: WHAT.to_owned(),
        detail: error.to_string(),
    })?;
    pin_at(link.as_fd(), &pins.histogram(&format!("{name}_link")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_programs_load_these_members_and_no_others() {
        let mut offsets = [0x8000_u32; Member::COUNT];
        for member in LOADED {
            offsets[member as usize] = 8;
        }
        // An offset that no load can have is refused, so none of the others is loaded.
        patch(HISTOGRAMS, &LOADED, &offsets).expect("patched");
    }
}
