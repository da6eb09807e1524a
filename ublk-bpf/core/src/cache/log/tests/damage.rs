//! Logs that were damaged or forged.

use super::*;
use crate::cache::log::block::{Kind, Place, encode, seed};

fn log_page(page: u32) -> usize {
    usize::try_from(layout().log_page(page)).unwrap()
}

#[test]
fn a_log_without_a_head_is_not_taken_for_empty() {
    let mut running = Running::empty();
    running.append(&slots(0, 9, 1));
    let other = LogSeal { log_id: 2, ..SEAL };
    let error = replay(&mut running.device, &layout(), &other, BLOCKS).unwrap_err();
    assert_eq!(
        error.to_string(),
        "the heads of the log at byte 8192: neither is one of this log"
    );
    let other = LogSeal {
        cache_id: [8; 16],
        ..SEAL
    };
    replay(&mut running.device, &layout(), &other, BLOCKS).unwrap_err();
}

#[test]
fn a_hole_in_the_log_is_damage_and_its_end_is_not() {
    for page in 0..5 {
        let mut running = Running::empty();
        (0..5).for_each(|nth| running.append(&slots(nth, 1, 1)));
        running.device.bytes()[log_page(page) + 100] ^= 1;
        match page {
            4 => assert_eq!(running.replay().unwrap(), slots(0, 4, 1)),
            _ => {
                let error = running.replay().unwrap_err();
                let place = format!("the log at byte {}: a transaction is missing", log_page(page));
                assert_eq!(error, place);
            }
        }
    }
}

#[test]
fn a_flipped_byte_of_the_last_head_is_harmless_or_refused() {
    let mut running = Running::empty();
    running.append(&slots(0, 9, 1));
    running.checkpoint();
    for at in 8192..layout().areas_offset {
        let at = usize::try_from(at).unwrap();
        running.device.bytes()[at] ^= 0x40;
        running.assert_replays();
        running.device.bytes()[at] ^= 0x40;
    }
    // Once the log went on over what the other head needs, that one does not help.
    (0..8).for_each(|nth| {
        running.append(&slots(nth, 1, 3));
        running.checkpoint();
    });
    running.append(&slots(1, 1, 7));
    for half in Half::BOTH {
        let at = usize::try_from(layout().head(half)).unwrap();
        let before = running.device.bytes().to_vec();
        running.device.bytes()[at] ^= 1;
        assert!(running.replay().is_err() || running.replay() == Ok(dirty(&running.state)));
        running.device.bytes().copy_from_slice(&before);
    }
}

#[test]
fn a_damaged_checkpoint_is_refused_by_place() {
    let mut running = Running::empty();
    (0..8).for_each(|nth| {
        running.append(&slots(nth, 1, 1));
        running.checkpoint();
    });
    for _ in 0..7 {
        running.append(&slots(9, 1, 1));
    }
    let areas = usize::try_from(layout().areas_offset).unwrap();
    for page in 0..6 {
        running.device.bytes()[areas + page * LOG_PAGE + 70] ^= 1;
    }
    let error = running.replay().unwrap_err();
    assert!(
        error.contains("the checkpoint of the log at byte")
            && error.ends_with("not the block that its head counts"),
        "{error}"
    );
}

/// A log whose first transaction is this block, with a right checksum.
fn forged(change: impl Fn(&mut Place, &mut Vec<LogEntry>)) -> Running {
    let mut running = Running::empty();
    let mut place = Place {
        seq: 0,
        tx: 1,
        k: 1,
        n: 1,
    };
    let mut entries = slots(0, 3, 1);
    change(&mut place, &mut entries);
    let at = log_page(0);
    let page = &mut running.device.bytes()[at..at + LOG_PAGE];
    encode(Kind::Log, &SEAL, place, &entries, page);
    running
}

#[test]
fn what_cannot_be_is_refused_whatever_the_checksum_says() {
    let refused = |change: fn(&mut Place, &mut Vec<LogEntry>), words: &str| {
        let error = forged(change).replay().unwrap_err();
        assert!(error.contains(words), "{error}");
    };
    assert_eq!(forged(|_, _| {}).replay().unwrap(), slots(0, 3, 1));
    refused(|place, _| place.n = 0, "an impossible transaction");
    refused(|place, _| place.n = 2, "an impossible transaction");
    refused(|place, _| place.k = 2, "an impossible transaction");
    refused(|place, _| place.n = 3, "an impossible transaction");
    refused(|_, entries| entries.clear(), "an impossible number of entries");
    refused(|_, entries| entries[1].slot = SLOTS, "a slot that there is not");
    refused(
        |_, entries| entries[1].block = 900,
        "a dirty block beyond the backing's end",
    );
    refused(|_, entries| entries[1].block = 2, "a dirty block in two slots");
    // What is clean may have been beyond the end of a backing that was larger.
    let clean = forged(|_, entries| entries[1] = entry(1, 900, 0))
        .replay()
        .unwrap();
    assert_eq!(clean, [entry(0, 0, 1), entry(2, 2, 1)]);
}

#[test]
fn unknown_values_are_refused_whatever_the_checksum_says() {
    // The kind of an entry, what is reserved in one, in the header and behind the last.
    for (at, words) in [
        (64 + 10, "an entry of unknown kind"),
        (64 + 12, "unknown values"),
        (44, "unknown values"),
        (64 + 3 * 16, "unknown values"),
        (4095, "unknown values"),
    ] {
        let mut running = forged(|_, _| {});
        let start = log_page(0);
        let page = &mut running.device.bytes()[start..start + LOG_PAGE];
        page[at] ^= 2;
        let crc = crc32c::crc32c_append(seed(&SEAL), &page[..60]);
        let crc = crc32c::crc32c_append(crc, &page[64..]);
        page[60..64].copy_from_slice(&crc.to_le_bytes());
        let error = running.replay().unwrap_err();
        assert!(error.contains(words), "{at}: {error}");
    }
}
