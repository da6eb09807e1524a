//! What the classifier has decided of a request, for the programs that the kernel runs after it.

use aya_ebpf::{bindings::BPF_F_MMAPABLE, btf_maps::Array, macros::btf_map};
use ublk_bpf_abi::{TakenVerdict, VerdictSlot};

/// The classifier's map, which the loader reuses.
#[btf_map(name = "verdicts")]
static VERDICTS: Array<VerdictSlot, 1, { BPF_F_MMAPABLE as usize }> = Array::new();

/// The first three bytes of the tag's slot, if it holds the verdict of this request; 0 if the kernel did not run the
/// classifier for it.
#[inline(always)]
pub(crate) fn advice(slot: u32, sector: u64, nr_sectors: u32, op: u32) -> u32 {
    let Some(slot) = VERDICTS.get_ptr(slot) else {
        return 0;
    };
    let words = slot.cast::<u64>();
    // SAFETY: a slot is two words. The server, which clears the first one, has not seen the request yet.
    let head = unsafe { words.read_volatile() };
    // SAFETY: as above.
    let place = unsafe { words.add(1).read_volatile() };
    let packed = head & 0x00ff_ffff;
    if (TakenVerdict { head, place }).is_at(sector) && head == VerdictSlot::head(packed, op, nr_sectors) {
        packed as u32
    } else {
        0
    }
}
