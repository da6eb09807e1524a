//! Names of devices, which stay the same when their numbers change.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::control::DeviceId;

/// The name of a device: 1 to 32 lower-case letters, digits, `_` and `-`, and nothing that is a number of a device.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct DeviceName(String);

/// Text that cannot be a name.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0:?} cannot be the name of a device: give 1 to 32 of the characters a-z, 0-9, _ and -, not all of them digits, and \
     not ublkbN"
)]
pub struct InvalidName(String);

impl DeviceName {
    const MOST: usize = 32;

    /// The name.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for DeviceName {
    type Err = InvalidName;

    fn from_str(text: &str) -> Result<Self, InvalidName> {
        let allowed = |byte: u8| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'_' | b'-');
        let is_number = text.bytes().all(|byte| byte.is_ascii_digit()) || text.parse::<DeviceId>().is_ok();
        if (1..=Self::MOST).contains(&text.len()) && text.bytes().all(allowed) && !is_number {
            Ok(Self(text.to_owned()))
        } else {
            Err(InvalidName(text.to_owned()))
        }
    }
}

impl TryFrom<String> for DeviceName {
    type Error = InvalidName;

    fn try_from(text: String) -> Result<Self, InvalidName> {
        text.parse()
    }
}

impl From<DeviceName> for String {
    fn from(name: DeviceName) -> Self {
        name.0
    }
}

impl fmt::Display for DeviceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_a_word_that_is_no_number() {
        for text in ["a", "mail-store_2", "0x", "ublkb", "ublkbx", &"a".repeat(32)] {
            assert_eq!(text.parse::<DeviceName>().unwrap().as_str(), text);
        }
        for text in [
            "",
            "7",
            "99999999999",
            "ublkb7",
            "A",
            "a b",
            "a/b",
            "a.b",
            "..",
            "ä",
            "a\n",
            &"a".repeat(33),
        ] {
            let error = text.parse::<DeviceName>().unwrap_err().to_string();
            assert!(error.starts_with(&format!("{text:?} cannot be")), "{error}");
            assert!(
                serde_json::from_value::<DeviceName>(text.into()).is_err(),
                "{text}"
            );
        }
    }
}
