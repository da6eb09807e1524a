//! What names a device.

use std::fmt;

use super::super::sysfs::BlockSysfs;

/// What the kernel calls a device, in at most [`Name::LEN`] bytes of printable text; empty if it has no name for it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Name(pub(super) String);

/// Where the kernel keeps a name of a disk that stays with it, the best first, and what it is.
const NAMES: [(&str, &str); 8] = [
    ("wwid", "WWID"),
    ("device/wwid", "WWID"),
    ("dm/uuid", "device-mapper UUID"),
    ("md/uuid", "md UUID"),
    ("serial", "serial number"),
    ("device/serial", "serial number"),
    ("dm/name", "device-mapper name"),
    ("loop/backing_file", "loop device on"),
];

pub(super) fn name(sysfs: &BlockSysfs) -> Name {
    let disk = NAMES
        .iter()
        .find_map(|(file, what)| Some(format!("{what} {}", sysfs.disk_text(file)?)));
    let part = sysfs.device_text("partition").map(|number| {
        let start = sysfs.device("start").unwrap_or(0);
        format!("partition {number} at sector {start}")
    });
    let parts: Vec<String> = part.into_iter().chain(disk).collect();
    Name::new(&parts.join(", "))
}

impl Name {
    /// Room for a name on the disk.
    pub(super) const LEN: usize = 96;

    /// The text, made printable; of one that is too long the beginning and a checksum of all.
    pub(super) fn new(text: &str) -> Self {
        let text: String = text
            .chars()
            .map(|c| if c.is_control() { '?' } else { c })
            .collect();
        if text.len() <= Self::LEN {
            return Self(text);
        }
        let sum = format!("~{:08x}", crc32c::crc32c(text.as_bytes()));
        let cut = text.floor_char_boundary(Self::LEN - sum.len());
        Self(format!("{}{sum}", &text[..cut]))
    }

    pub(super) fn parse(bytes: &[u8]) -> Option<Self> {
        let text = std::str::from_utf8(bytes).ok()?;
        (!text.chars().any(char::is_control)).then(|| Self(text.to_owned()))
    }
}

/// 128 bits, written as a UUID.
pub(crate) struct Uuid(pub(crate) [u8; 16]);

impl fmt::Display for Uuid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let hex = format!("{:032x}", u128::from_be_bytes(self.0));
        let (a, b, c, d, e) = (&hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..]);
        write!(f, "{a}-{b}-{c}-{d}-{e}")
    }
}
