//! Numbers in keys and values, as people write them.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use rustix::fs::statfs;
use ublk_bpf_abi::SECTOR_SIZE;

/// Where the cgroups are.
const CGROUPS: &str = "/sys/fs/cgroup";
/// `CGROUP2_SUPER_MAGIC` of `include/uapi/linux/magic.h`.
const CGROUP2_MAGIC: i64 = 0x6367_7270;
/// Cgroups may be below each other so deep that a search ends.
const MAX_DEPTH: u32 = 32;

/// What a number counts or names, as far as the names of its type and field say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Unit {
    /// Nothing known.
    Plain,
    /// Sectors of 512 bytes: a number with a unit is converted to it.
    Sectors,
    /// The number of a cgroup, the inode of its directory.
    Cgroup,
}

impl Unit {
    /// What these names, of a type, a field or a map, say.
    pub(super) fn of(names: &[&str]) -> Self {
        let has = |word: &str| names.iter().any(|name| name.to_lowercase().contains(word));
        if has("cgroup") {
            Self::Cgroup
        } else if has("sector") {
            Self::Sectors
        } else {
            Self::Plain
        }
    }
}

/// An integer in memory: its bytes, and whether it has a sign.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Integer {
    pub(super) bytes: usize,
    pub(super) signed: bool,
}

impl Integer {
    /// The number at the start of these bytes.
    pub(super) fn read(self, bytes: &[u8]) -> i128 {
        let mut word = [0; 8];
        for (to, from) in word.iter_mut().zip(&bytes[..self.bytes.min(bytes.len())]) {
            *to = *from;
        }
        let unused = 64 - 8 * u32::try_from(self.bytes.clamp(1, 8)).unwrap_or(8);
        let number = u64::from_le_bytes(word);
        match self.signed {
            // The sign goes up to the last bit.
            true => ((number << unused).cast_signed() >> unused).into(),
            false => number.into(),
        }
    }

    /// Writes a number to the start of these bytes, if it fits.
    pub(super) fn write(self, number: i128, bytes: &mut [u8]) -> Result<(), String> {
        let bits = 8 * u32::try_from(self.bytes).unwrap_or(8);
        let (least, most) = match self.signed {
            true => (-(1_i128 << (bits - 1)), (1_i128 << (bits - 1)) - 1),
            false => (0, (1_i128 << bits) - 1),
        };
        if !(least..=most).contains(&number) {
            return Err(format!("{number} is not from {least} to {most}"));
        }
        for (to, from) in bytes.iter_mut().zip(&number.to_le_bytes()[..self.bytes]) {
            *to = *from;
        }
        Ok(())
    }

    /// Whether it may be the number of a cgroup.
    fn is_inode(self) -> bool {
        self.bytes == 8 && !self.signed
    }

    /// Parses a number: decimal or `0x...`, a size with its unit, or the directory of a cgroup.
    pub(super) fn parse(self, text: &str, unit: Unit) -> Result<i128, String> {
        if text.starts_with('/') && self.is_inode() {
            return cgroup(text);
        }
        let (sign, digits) = match text.strip_prefix('-') {
            Some(digits) => (-1, digits),
            None => (1, text),
        };
        if let Some(hex) = digits.strip_prefix("0x") {
            let number = i128::from_str_radix(hex, 16)
                .ok()
                .filter(|_| !hex.starts_with(['+', '-']));
            return number
                .map(|number| sign * number)
                .ok_or_else(|| not_a_number(text, self));
        }
        let end = digits.find(|c: char| !c.is_ascii_digit()).unwrap_or(digits.len());
        let (number, suffix) = digits.split_at(end);
        let number: i128 = number.parse().map_err(|_| not_a_number(text, self))?;
        let shift = shift(suffix).ok_or_else(|| not_a_number(text, self))?;
        // Few digits parse to a number that has room for the largest unit.
        let number = sign
            * number
                .checked_mul(1 << shift)
                .ok_or_else(|| not_a_number(text, self))?;
        if suffix.is_empty() || unit != Unit::Sectors {
            return Ok(number);
        }
        let sector = i128::from(SECTOR_SIZE);
        match number % sector {
            0 => Ok(number / sector),
            _ => Err(format!("{text} is no multiple of {SECTOR_SIZE} bytes, a sector")),
        }
    }
}

fn not_a_number(text: &str, of: Integer) -> String {
    let cgroup = if of.is_inode() {
        ", or a cgroup such as /system.slice"
    } else {
        ""
    };
    format!(
        "`{}` is no number: want one such as 4096, 0x1000 or 4K{cgroup}",
        text.escape_debug()
    )
}

/// The powers of two of a unit: `K`, `KB`, `KiB` and so on, or `B`.
fn shift(suffix: &str) -> Option<u32> {
    let mut letters = suffix.chars();
    let shift = match letters.next().map(|letter| letter.to_ascii_uppercase()) {
        None => return Some(0),
        Some('B') => return (suffix.len() == 1).then_some(0),
        Some('K') => 10,
        Some('M') => 20,
        Some('G') => 30,
        Some('T') => 40,
        Some('P') => 50,
        Some(_) => return None,
    };
    matches!(letters.as_str(), "" | "B" | "iB").then_some(shift)
}

/// The number of the cgroup with this path: as a directory, or below the root of all cgroups.
fn cgroup(path: &str) -> Result<i128, String> {
    let below = Path::new(CGROUPS).join(path.trim_start_matches('/'));
    let is_cgroup = |path: &Path| statfs(path).is_ok_and(|of| of.f_type == CGROUP2_MAGIC) && path.is_dir();
    let candidates = [PathBuf::from(path), below];
    let found = candidates.iter().find(|path| is_cgroup(path));
    let inode = found.and_then(|path| Some(fs::metadata(path).ok()?.ino()));
    inode.map(i128::from).ok_or_else(|| {
        format!(
            "there is no cgroup {}, neither as a directory nor below {CGROUPS}",
            path.escape_debug()
        )
    })
}

/// The path of the cgroup with this number, below the root of all cgroups; none if there is no such cgroup now.
pub(crate) fn cgroup_path(inode: u64) -> Option<String> {
    let found = find(Path::new(CGROUPS), inode, MAX_DEPTH)?;
    let below = found.strip_prefix(CGROUPS).ok()?.to_str()?;
    Some(format!("/{below}"))
}

fn find(folder: &Path, inode: u64, depth: u32) -> Option<PathBuf> {
    if fs::metadata(folder).ok()?.ino() == inode {
        return Some(folder.to_owned());
    }
    let depth = depth.checked_sub(1)?;
    let folders = fs::read_dir(folder).ok()?.flatten();
    let folders = folders.filter(|entry| entry.file_type().is_ok_and(|of| of.is_dir()));
    folders
        .into_iter()
        .find_map(|entry| find(&entry.path(), inode, depth))
}

#[cfg(test)]
mod tests {
    use super::*;

    const U64: Integer = Integer {
        bytes: 8,
        signed: false,
    };
    const I16: Integer = Integer {
        bytes: 2,
        signed: true,
    };

    #[test]
    fn numbers_are_written_as_people_write_them() {
        let parse = |text| U64.parse(text, Unit::Plain).unwrap();
        assert_eq!(
            ["7", "0x10", "4K", "4KiB", "1G", "9B"].map(parse),
            [7, 16, 4096, 4096, 1 << 30, 9]
        );
        assert_eq!(I16.parse("-3", Unit::Plain), Ok(-3));
        let sectors = |text| U64.parse(text, Unit::Sectors);
        assert_eq!(
            [sectors("8"), sectors("1M"), sectors("4kiB")],
            [Ok(8), Ok(2048), Ok(8)]
        );
        assert_eq!(
            sectors("100B"),
            Err("100B is no multiple of 512 bytes, a sector".to_owned())
        );
        for wrong in [
            "",
            "-",
            "K",
            "0x",
            "0x-1",
            "1.5",
            "4Ki",
            "4X",
            "1 ",
            &"9".repeat(50),
        ] {
            let said = U64.parse(wrong, Unit::Plain).unwrap_err();
            assert!(said.contains("is no number: want one such as"), "{wrong}: {said}");
        }
        assert!(
            U64.parse("/no/such", Unit::Cgroup)
                .unwrap_err()
                .contains("there is no cgroup /no/such")
        );
        assert!(I16.parse("/", Unit::Cgroup).is_err());
    }

    #[test]
    fn numbers_keep_their_value_in_memory() {
        let mut bytes = [0xff; 8];
        I16.write(-2, &mut bytes[2..]).unwrap();
        assert_eq!(bytes, [0xff, 0xff, 0xfe, 0xff, 0xff, 0xff, 0xff, 0xff]);
        assert_eq!(I16.read(&bytes[2..]), -2);
        assert_eq!(
            I16.write(40_000, &mut bytes),
            Err("40000 is not from -32768 to 32767".to_owned())
        );
        U64.write(u64::MAX.into(), &mut bytes).unwrap();
        assert_eq!(U64.read(&bytes), u64::MAX.into());
        assert!(U64.write(-1, &mut bytes).is_err());
        assert!(U64.write(1 << 64, &mut bytes).is_err());
    }

    #[test]
    fn names_say_what_a_number_counts() {
        assert_eq!(Unit::of(&["CgroupId", "x"]), Unit::Cgroup);
        assert_eq!(Unit::of(&["u64", "first_sector"]), Unit::Sectors);
        assert_eq!(Unit::of(&["u64", "tier"]), Unit::Plain);
    }
}
