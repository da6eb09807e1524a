//! The content of sectors: bytes that name their writer and their place.

/// Bytes of a sector.
pub(super) const SECTOR: usize = 512;

/// What unfilled pages hold: bytes of another process.
pub(super) const POISON: u8 = 0xa5;

/// What a slot holds that was not filled whole.
pub(super) const STALE: u8 = 0x5c;

/// The writer of a sector. 0: it reads as zeroes.
pub(super) type Writer = u64;

/// Word `i` of a sector, beyond the first, which is the writer itself.
const fn word(writer: Writer, sector: u64, i: u64) -> u64 {
    let seed = writer.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ sector.wrapping_mul(0xd6e8_feb8_6659_fd93);
    seed.rotate_left(23)
        .wrapping_add(i.wrapping_mul(0xa076_1d64_78bd_642f))
}

/// Fills one sector.
pub(super) fn fill(bytes: &mut [u8], writer: Writer, sector: u64) {
    if writer == 0 {
        bytes.fill(0);
        return;
    }
    for (chunk, i) in bytes.chunks_exact_mut(8).zip(0..) {
        let word = if i == 0 { writer } else { word(writer, sector, i) };
        chunk.copy_from_slice(&word.to_le_bytes());
    }
}

/// The writer of this sector; `None` if no single writer wrote all of it at this place.
pub(super) fn writer_of(bytes: &[u8], sector: u64) -> Option<Writer> {
    let mut words = bytes
        .chunks_exact(8)
        .map(|chunk| chunk.try_into().map_or(0, u64::from_le_bytes));
    let writer = words.next()?;
    let same = if writer == 0 {
        words.all(|found| found == 0)
    } else {
        words.zip(1..).all(|(found, i)| found == word(writer, sector, i))
    };
    same.then_some(writer)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sector_names_its_writer_if_it_is_whole_and_in_its_place() {
        let mut bytes = [POISON; SECTOR];
        assert_eq!(writer_of(&bytes, 3), None, "poison");
        for writer in [0, 1, 77] {
            fill(&mut bytes, writer, 3);
            assert_eq!(writer_of(&bytes, 3), Some(writer));
        }
        assert_eq!(writer_of(&bytes, 4), None, "another sector's bytes");
        bytes[511] ^= 1;
        assert_eq!(writer_of(&bytes, 3), None, "one bit");
    }
}
