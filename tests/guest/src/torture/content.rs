//! Sector contents: a function of the write and the position, so that any content identifies its origin.

/// Bytes of the unit in which content is identified. A disk writes this much atomically.
pub(crate) const SECTOR: usize = 512;
/// The version of a sector of zeroes.
pub(crate) const ZEROES: u64 = 0;
/// The version written before the first operation; operation N writes version N + 2.
pub(crate) const FIRST: u64 = 1;

/// Bytes at the start of a sector for its version, position and a checksum of both; the rest is from the table.
const HEADER: usize = 24;
const TABLE: usize = 1 << 16;

/// The contents for a seed.
#[derive(Debug)]
pub(crate) struct Pattern {
    seed: u64,
    table: Vec<u8>,
}

impl Pattern {
    pub(crate) fn new(seed: u64) -> Self {
        let words = (0..TABLE as u64 / 8).map(|i| mix(seed ^ mix(i)));
        Self {
            seed,
            table: words.flat_map(u64::to_le_bytes).collect(),
        }
    }

    /// Fills the buffer with version `version` of the sectors from `first` on.
    pub(crate) fn fill(&self, buffer: &mut [u8], first: u64, version: u64) {
        for (position, sector) in (first..).zip(buffer.chunks_exact_mut(SECTOR)) {
            let (header, body) = self.sector(position, version);
            sector[..HEADER].copy_from_slice(&header);
            sector[HEADER..].copy_from_slice(body);
        }
    }

    /// Where `found` differs from this version of the sector; `None` if nowhere.
    pub(crate) fn difference(&self, found: &[u8], position: u64, version: u64) -> Option<usize> {
        if version == ZEROES {
            return first_difference(found, &[0; SECTOR]);
        }
        let (header, body) = self.sector(position, version);
        first_difference(&found[..HEADER], &header)
            .or_else(|| first_difference(&found[HEADER..], body).map(|at| at + HEADER))
    }

    /// The version and position whose complete content `found` holds.
    pub(crate) fn origin(&self, found: &[u8]) -> Option<(u64, u64)> {
        let (version, position) = (version(found), word(found, 8));
        self.difference(found, position, version)
            .is_none()
            .then_some((version, position))
    }

    fn sector(&self, position: u64, version: u64) -> ([u8; HEADER], &[u8]) {
        let sum = mix(self.seed ^ mix(version ^ mix(position)));
        let mut header = [0; HEADER];
        for (field, value) in header.chunks_exact_mut(8).zip([version, position, sum]) {
            field.copy_from_slice(&value.to_le_bytes());
        }
        let bodies = (TABLE - SECTOR) as u64 / 8;
        let start = usize::try_from(sum % bodies * 8).expect("within the table");
        (header, &self.table[start..start + SECTOR - HEADER])
    }
}

/// The version that a sector claims to be.
pub(crate) fn version(sector: &[u8]) -> u64 {
    word(sector, 0)
}

/// A pseudorandom hash of a number (the finaliser of splitmix64).
pub(crate) fn mix(number: u64) -> u64 {
    let z = number.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

fn word(sector: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(sector[at..at + 8].try_into().expect("eight bytes"))
}

fn first_difference(a: &[u8], b: &[u8]) -> Option<usize> {
    // Equal slices are the rule, and found equal by one call.
    if a == b {
        return None;
    }
    a.iter().zip(b).position(|(a, b)| a != b)
}
