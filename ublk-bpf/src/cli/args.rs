//! What several subcommands take.

use clap::Args;

/// The largest id that a ublk device can have.
const MAX_ID: u32 = crate::sys::uapi::UBLK_MAX_UBLKS - 1;

/// Which device.
#[derive(Clone, Copy, Debug, Args)]
pub(super) struct Device {
    /// The device: 0, ublkb0 or /dev/ublkb0
    #[arg(value_name = "ID", value_parser = parse_id)]
    pub(super) id: u32,
}

/// How to print.
#[derive(Clone, Copy, Debug, Args)]
pub(super) struct Format {
    /// Print JSON
    #[arg(long)]
    pub(super) json: bool,
}

/// Reads a device id as users write it.
pub(super) fn parse_id(text: &str) -> Result<u32, String> {
    let name = text.strip_prefix("/dev/").unwrap_or(text);
    let digits = name.strip_prefix("ublkb").unwrap_or(name);
    match digits.parse() {
        Ok(id) if id <= MAX_ID && digits.bytes().all(|b| b.is_ascii_digit()) => Ok(id),
        _ => Err(format!("not a device: write 0, ublkb0 or /dev/ublkb0, with a number of at most {MAX_ID}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_has_three_spellings() {
        for text in ["7", "ublkb7", "/dev/ublkb7"] {
            assert_eq!(parse_id(text), Ok(7));
        }
        for text in ["", "-1", "+7", "ublkc7", "sda", "/dev/7x", "1048576", "99999999999"] {
            parse_id(text).unwrap_err();
        }
    }
}
