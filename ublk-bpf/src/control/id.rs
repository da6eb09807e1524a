//! The number of a device, and how it is written.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::sys::uapi::UBLK_MAX_UBLKS;

/// The N of `/dev/ublkbN`: below 2^20.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(into = "u32", try_from = "u32")]
pub struct DeviceId(u32);

impl DeviceId {
    /// The id with this number; `None` if no device can have it.
    pub const fn new(number: u32) -> Option<Self> {
        if number < UBLK_MAX_UBLKS {
            Some(Self(number))
        } else {
            None
        }
    }

    /// Its number.
    pub const fn number(self) -> u32 {
        self.0
    }

    /// The block device's name: `ublkbN`.
    pub fn disk_name(self) -> String {
        format!("ublkb{self}")
    }

    /// The block device, `/dev/ublkbN`. It exists while the device is started.
    pub fn block_path(self) -> PathBuf {
        format!("/dev/ublkb{self}").into()
    }

    /// The server's character device, `/dev/ublkcN`. It exists as long as the device.
    pub fn char_path(self) -> PathBuf {
        format!("/dev/ublkc{self}").into()
    }
}

impl From<DeviceId> for u32 {
    fn from(id: DeviceId) -> Self {
        id.0
    }
}

impl TryFrom<u32> for DeviceId {
    type Error = InvalidDeviceId;

    fn try_from(number: u32) -> Result<Self, InvalidDeviceId> {
        Self::new(number).ok_or_else(|| InvalidDeviceId(number.to_string()))
    }
}

impl fmt::Display for DeviceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Text that names no device.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not a ublk device: give its number (0 to 1048575), ublkbN or /dev/ublkbN")]
pub struct InvalidDeviceId(String);

impl FromStr for DeviceId {
    type Err = InvalidDeviceId;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let digits = text.strip_prefix("/dev/").unwrap_or(text);
        let digits = digits.strip_prefix("ublkb").unwrap_or(digits);
        // `u32::from_str` takes a sign, which no device name has.
        let number = if digits.starts_with('+') {
            None
        } else {
            digits.parse().ok()
        };
        number
            .and_then(Self::new)
            .ok_or_else(|| InvalidDeviceId(text.into()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_numbers_or_names() {
        for text in ["3", "ublkb3", "/dev/ublkb3"] {
            assert_eq!(text.parse(), Ok(DeviceId(3)));
        }
        for text in [
            "",
            "-1",
            "+3",
            "3x",
            "ublkc3",
            "1048576",
            "99999999999",
            "/dev/sda",
        ] {
            let error = text.parse::<DeviceId>().unwrap_err();
            assert!(
                error
                    .to_string()
                    .starts_with(&format!("`{text}` is not a ublk device")),
                "{error}"
            );
        }
    }
}
