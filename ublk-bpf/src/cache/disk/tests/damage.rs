//! Metadata that was damaged or forged, or is not ours.

use super::*;

#[test]
fn a_lost_write_of_entries_is_noticed() {
    let (_folder, _, identity) = backing();
    let disk = Disk::new(saved(&identity, &entries(7)));
    open_on(&disk, &layout(), &identity).unwrap();
    let old = disk.content();
    save_on(&disk, &layout(), &identity, entries(7).into_iter()).unwrap();
    let mut content = disk.content();
    content[8192..12288].copy_from_slice(&old[8192..12288]);
    let message = refusal(open_on(&Disk::new(content), &layout(), &identity));
    assert!(message.contains("damaged at slot 0"), "{message}");
}

#[test]
fn every_flipped_byte_of_the_metadata_is_harmless_or_noticed() {
    let (_folder, _, identity) = backing();
    let good = saved(&identity, &entries(7));
    // What follows is the log, of which a cache without dirty blocks has none.
    let metadata = usize::try_from(layout().log().heads_offset).unwrap();
    assert_eq!(metadata, 12288);
    let (mut harmless, mut refused) = (0, 0);
    for at in 0..metadata {
        for mask in [0x01, 0x80, 0xff] {
            let mut content = good.clone();
            content[at] ^= mask;
            let disk = Disk::new(content);
            match open_on(&disk, &layout(), &identity) {
                Ok(Opened::Warm(found)) => {
                    assert_eq!(found, entries(7), "byte {at}");
                    assert!(Copies::read(&disk).unwrap().both(|copy| !copy.clean), "byte {at}");
                    harmless += 1;
                }
                Ok(opened) => assert!(is_cold(&opened), "byte {at}"),
                Err(error) => {
                    assert!(matches!(error, DiskError::Entry { .. }), "byte {at}: {error}");
                    refused += 1;
                }
            }
        }
    }
    // Either copy is harmless, and so is what follows the last slot's entry.
    let entries = usize::try_from(layout().slots).unwrap() * 16;
    assert_eq!((harmless, refused), ((metadata - entries) * 3, entries * 3));
}

#[test]
fn both_copies_damaged_are_refused() {
    let (_folder, _, identity) = backing();
    let mut content = saved(&identity, &entries(7));
    content[100] ^= 1;
    content[4096] ^= 1;
    assert_eq!(
        refusal(open_on(&Disk::new(content), &layout(), &identity)),
        "both copies of its superblock are damaged (A wrong checksum, B not a superblock of a cache): empty it with \
         --cache-reset"
    );
}

#[test]
fn what_is_not_ours_is_never_overwritten() {
    let (_folder, _, identity) = backing();
    // An ext4 superblock, a btrfs one, a GPT at the end.
    for at in [
        1024 + 56,
        4096,
        (64 << 10) + 64,
        usize::try_from(DEVICE).unwrap() - 512,
    ] {
        let mut content = blank().content();
        content[at] = 1;
        let disk = Disk::new(content.clone());
        assert!(refusal(open_on(&disk, &layout(), &identity)).contains("not a cache of ublk-bpf"));
        assert_eq!(disk.content(), content);
    }
}

#[test]
fn another_version_is_refused_even_if_one_copy_is_ours() {
    let (_folder, _, identity) = backing();
    for version in [0, 4] {
        for copies in [&[0][..], &[4096], &[0, 4096]] {
            let mut content = saved(&identity, &entries(7));
            copies
                .iter()
                .for_each(|&at| set_version(&mut content, at, version));
            let disk = Disk::new(content.clone());
            let message = refusal(open_on(&disk, &layout(), &identity));
            assert!(
                message.contains(&format!("format version {version}")),
                "{message}"
            );
            assert_eq!(disk.content(), content);
        }
    }
}

fn set_version(content: &mut [u8], copy: usize, version: u8) {
    content[copy + 8] = version;
    let crc = crc32c::crc32c(&content[copy..copy + 4092]);
    content[copy + 4092..copy + 4096].copy_from_slice(&crc.to_le_bytes());
}

/// A saved cache with bytes of its superblock changed and the checksums made right again.
fn forged(identity: &Identity, at: usize, bytes: &[u8]) -> Disk {
    let mut content = saved(identity, &entries(7));
    for copy in [0, 4096] {
        content[copy + at..copy + at + bytes.len()].copy_from_slice(bytes);
        let crc = crc32c::crc32c(&content[copy..copy + 4092]);
        content[copy + 4092..copy + 4096].copy_from_slice(&crc.to_le_bytes());
    }
    Disk::new(content)
}

#[test]
fn values_that_cannot_be_are_refused_whatever_the_checksum_says() {
    let (_folder, _, identity) = backing();
    for (at, bytes, words) in [
        (12, &0_u32.to_le_bytes()[..], "impossible slots or block size"),
        (12, &5000_u32.to_le_bytes(), "impossible slots or block size"),
        (16, &0_u32.to_le_bytes(), "impossible slots or block size"),
        (16, &u32::MAX.to_le_bytes(), "impossible slots or block size"),
        (20, &u32::MAX.to_le_bytes(), "impossible state"),
        (20, &1_u32.to_le_bytes(), "another number of blocks"),
        (24, &0_u64.to_le_bytes(), "impossible offsets"),
        (32, &u64::MAX.to_le_bytes(), "impossible offsets"),
        (40, &u64::MAX.to_le_bytes(), "impossible generation"),
        (64, &[2], "impossible state"),
        (65, &[1], "unknown values"),
        (72, &[9], "impossible backing"),
        (2000, &[1], "unknown values"),
    ] {
        let message = refusal(open_on(&forged(&identity, at, bytes), &layout(), &identity));
        assert!(message.contains(words), "{at}: {message}");
    }
}

#[test]
fn entries_that_cannot_be_are_refused() {
    let (_folder, _, identity) = backing();
    let mut twice = entries(7);
    twice[4].block = twice[1].block;
    let message = refusal(open_on(
        &Disk::new(saved(&identity, &twice)),
        &layout(),
        &identity,
    ));
    assert!(message.contains("slot 12 (a block in two slots)"), "{message}");
    let mut beyond = entries(7);
    beyond[2].block = 256;
    let message = refusal(open_on(
        &Disk::new(saved(&identity, &beyond)),
        &layout(),
        &identity,
    ));
    assert!(message.contains("slot 6 (a block beyond"), "{message}");
}
