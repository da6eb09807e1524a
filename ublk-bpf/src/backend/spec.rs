//! The names of backings on the command line.

use std::ffi::OsStr;
use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use ublk_bpf_abi::SECTOR_SIZE;

use crate::path_text::{self, ShowPath as _};

/// A backing as the user names it: `PATH`, `mem:SIZE` or `null:SIZE[,unfilled]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Spec {
    /// A file or a block device.
    Path(PathBuf),
    /// Memory of this many bytes (a multiple of 512), empty at start and gone at the end.
    Memory(u64),
    /// Nothing, pretending to be this many bytes (a multiple of 512): writes are forgotten.
    Null {
        /// The size.
        bytes: u64,
        /// What a read finds.
        reads: NullReads,
    },
}

/// What a read of a null backend does to the reader's pages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NullReads {
    /// They are filled with zeroes.
    Zeroes,
    /// They are not filled, so the reader may see old memory: for benchmarks only.
    Unfilled,
}

/// Why a text is not a [`Spec`] or a size. One line: what was wanted, what was found, what to do.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SpecError {
    /// An empty text.
    #[error("nothing named: give a path, mem:SIZE or null:SIZE")]
    Empty,
    /// Not a number with a known suffix.
    #[error("not a size: {0:?}: write a number with K, M, G or T, such as 64K, 1G or 1GiB (powers of 1024)")]
    NotASize(String),
    /// A size of nothing.
    #[error("a size of zero: {0:?}: a device needs at least {SECTOR_SIZE} bytes")]
    Zero(String),
    /// Beyond what a file offset can express.
    #[error("a size too large: {0:?}: the most is 8191P")]
    TooLarge(String),
    /// Not whole sectors.
    #[error("not a multiple of {SECTOR_SIZE}: {text:?} is {bytes} bytes: take {} or {}",
            bytes - bytes % SECTOR_SIZE, bytes.next_multiple_of(SECTOR_SIZE))]
    Unaligned {
        /// As it was written.
        text: String,
        /// What that means.
        bytes: u64,
    },
    /// Something other than `unfilled` after the size.
    #[error("not an option of null: {0:?}: only null:SIZE,unfilled is known")]
    NullOption(String),
}

impl Spec {
    /// Reads what a user wrote, where a path is what it is: any bytes, none of them with a special meaning.
    ///
    /// # Errors
    /// Says what is wrong with the text.
    pub fn from_user(text: &OsStr) -> Result<Self, SpecError> {
        match text.to_str() {
            Some(text) => Self::read(text, |path| path.into()),
            None => Ok(Self::Path(PathBuf::from(text))),
        }
    }

    /// Reads memory and null; anything else is a path, which `path` makes of it.
    fn read(text: &str, path: impl FnOnce(&str) -> PathBuf) -> Result<Self, SpecError> {
        if text.is_empty() {
            return Err(SpecError::Empty);
        }
        if let Some(size) = text.strip_prefix("mem:") {
            return parse_size(size).map(Self::Memory);
        }
        let Some(rest) = text.strip_prefix("null:") else {
            return Ok(Self::Path(path(text)));
        };
        let (size, reads) = match rest.split_once(',') {
            None => (rest, NullReads::Zeroes),
            Some((size, "unfilled")) => (size, NullReads::Unfilled),
            Some((_, option)) => return Err(SpecError::NullOption(option.to_owned())),
        };
        Ok(Self::Null {
            bytes: parse_size(size)?,
            reads,
        })
    }
}

/// Reads what [`Display`](fmt::Display) wrote, in which a path is escaped: any path comes back as it was.
impl FromStr for Spec {
    type Err = SpecError;

    fn from_str(text: &str) -> Result<Self, SpecError> {
        Self::read(text, path_text::parse)
    }
}

impl fmt::Display for Spec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Path(path) => path.shown().fmt(f),
            Self::Memory(bytes) => write!(f, "mem:{}", Size(*bytes)),
            Self::Null {
                bytes,
                reads: NullReads::Zeroes,
            } => write!(f, "null:{}", Size(*bytes)),
            Self::Null {
                bytes,
                reads: NullReads::Unfilled,
            } => write!(f, "null:{},unfilled", Size(*bytes)),
        }
    }
}

/// The suffixes of a size and the power of two that each stands for, the largest first.
const SUFFIXES: [(char, u32); 5] = [('P', 50), ('T', 40), ('G', 30), ('M', 20), ('K', 10)];

/// Reads a size in bytes: a number with an optional `K`, `M`, `G`, `T` or `P`, alone or followed by `iB`;
/// either case; always powers of 1024. The result is a positive multiple of 512 that fits a file offset.
///
/// # Errors
/// Says what is wrong with the text.
pub fn parse_size(text: &str) -> Result<u64, SpecError> {
    let not_a_size = || SpecError::NotASize(text.to_owned());
    let digits = text.len() - text.trim_start_matches(|c: char| c.is_ascii_digit()).len();
    let (number, suffix) = text.split_at(digits);
    if number.is_empty() {
        return Err(not_a_size());
    }
    let shift = parse_suffix(suffix).ok_or_else(not_a_size)?;
    let too_large = || SpecError::TooLarge(text.to_owned());
    let number: u64 = number.parse().map_err(|_| too_large())?;
    let bytes = number.checked_mul(1 << shift).ok_or_else(too_large)?;
    if i64::try_from(bytes).is_err() {
        return Err(too_large());
    }
    if bytes == 0 {
        return Err(SpecError::Zero(text.to_owned()));
    }
    if !bytes.is_multiple_of(SECTOR_SIZE) {
        return Err(SpecError::Unaligned {
            text: text.to_owned(),
            bytes,
        });
    }
    Ok(bytes)
}

fn parse_suffix(suffix: &str) -> Option<u32> {
    let mut letters = suffix.chars();
    let Some(letter) = letters.next() else {
        return Some(0);
    };
    let rest = letters.as_str();
    if !(rest.is_empty() || rest.eq_ignore_ascii_case("ib")) {
        return None;
    }
    let letter = letter.to_ascii_uppercase();
    SUFFIXES
        .iter()
        .find(|(name, _)| *name == letter)
        .map(|&(_, shift)| shift)
}

/// A number of bytes, printed as [`parse_size`] reads it: with the largest suffix that loses nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Size(pub u64);

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let whole = |&&(_, shift): &&(char, u32)| self.0 != 0 && self.0.is_multiple_of(1 << shift);
        match SUFFIXES.iter().find(whole) {
            Some((letter, shift)) => write!(f, "{}{letter}", self.0 >> shift),
            None => write!(f, "{}", self.0),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::ffi::OsStrExt;

    use super::*;

    #[test]
    fn sizes_are_powers_of_1024_and_whole_sectors() {
        for (text, bytes) in [
            ("512", 512),
            ("64K", 64 << 10),
            ("64k", 64 << 10),
            ("1M", 1 << 20),
            ("1G", 1 << 30),
            ("1GiB", 1 << 30),
            ("1gib", 1 << 30),
            ("3T", 3 << 40),
            ("8191P", 8191 << 50),
        ] {
            assert_eq!(parse_size(text), Ok(bytes), "{text}");
        }
    }

    #[test]
    fn what_is_not_a_size_is_refused_in_one_line() {
        for (text, words) in [
            ("", "not a size"),
            ("G", "not a size"),
            ("1GB", "not a size"),
            ("1.5G", "not a size"),
            ("-1G", "not a size"),
            ("1 G", "not a size"),
            ("1GiBs", "not a size"),
            ("0", "zero"),
            ("0G", "zero"),
            ("513", "take 512 or 1024"),
            ("8192P", "too large"),
            ("99999999999999999999", "too large"),
        ] {
            let error = parse_size(text).expect_err(text).to_string();
            assert!(error.contains(words), "{text}: {error}");
            assert!(!error.contains('\n'));
        }
    }

    #[test]
    fn specs_are_parsed_at_the_door_and_print_as_they_are_read() {
        for (text, spec) in [
            ("mem:1G", Spec::Memory(1 << 30)),
            (
                "null:512",
                Spec::Null {
                    bytes: 512,
                    reads: NullReads::Zeroes,
                },
            ),
            (
                "null:64K,unfilled",
                Spec::Null {
                    bytes: 64 << 10,
                    reads: NullReads::Unfilled,
                },
            ),
            ("/dev/loop0", Spec::Path("/dev/loop0".into())),
            ("memory", Spec::Path("memory".into())),
        ] {
            assert_eq!(text.parse::<Spec>(), Ok(spec.clone()));
            assert_eq!(spec.to_string(), text);
        }
        assert_eq!("".parse::<Spec>(), Err(SpecError::Empty));
        for path in [&b"/a\nb"[..], b"/\xff", b"/a\\nb"] {
            let path = OsStr::from_bytes(path);
            let spec = Spec::from_user(path).unwrap();
            assert_eq!(spec, Spec::Path(path.into()));
            assert_eq!(spec.to_string().lines().count(), 1);
            assert_eq!(spec.to_string().parse(), Ok(spec));
        }
        assert_eq!(
            "null:1G,full".parse::<Spec>(),
            Err(SpecError::NullOption("full".into()))
        );
        assert!(matches!("mem:".parse::<Spec>(), Err(SpecError::NotASize(_))));
    }
}
