//! What the text formats share.

use super::fault::{At, Fault, quoted};

/// Bytes that decide whether a file is text.
const LOOKED_AT: usize = 4096;

/// The beginning of a text file; `None` if the file is not text.
pub(super) fn beginning(bytes: &[u8]) -> Option<&str> {
    let first = &bytes[..bytes.len().min(LOOKED_AT)];
    let text = match str::from_utf8(first) {
        Ok(text) => text,
        // The last character may be cut off.
        Err(error) if first.len() - error.valid_up_to() < 4 && bytes.len() > LOOKED_AT => {
            str::from_utf8(&first[..error.valid_up_to()]).ok()?
        }
        Err(_) => return None,
    };
    let is_text = !text.trim().is_empty() && !text.contains(|c: char| c.is_control() && !c.is_whitespace());
    is_text.then_some(text)
}

/// The whole file as text.
pub(super) fn whole(bytes: &[u8]) -> Result<&str, Fault> {
    str::from_utf8(bytes).map_err(|error| {
        let at = At::Byte(error.valid_up_to() as u64);
        Fault::new(at, "text", "a byte that is not UTF-8")
    })
}

/// The first line that is not blank.
pub(super) fn first_line(text: &str) -> &str {
    text.lines()
        .find(|line| !line.trim().is_empty())
        .unwrap_or_default()
}

/// The lines that are not blank, with their numbers.
pub(super) fn lines(text: &str) -> impl Iterator<Item = (At, &str)> {
    let numbered = (1..).map(At::Line).zip(text.lines());
    numbered.filter(|(_, line)| !line.trim().is_empty())
}

/// A whole number in decimal.
pub(super) fn number<T: std::str::FromStr>(at: At, what: &str, text: &str) -> Result<T, Fault> {
    let found = || Fault::new(at, format!("{what}, a whole number"), quoted(text));
    text.parse().map_err(|_| found())
}

/// Seconds, milliseconds or microseconds with decimals, as nanoseconds. `digits`: of a nanosecond in that unit.
pub(super) fn time(at: At, text: &str, digits: u32) -> Result<u64, Fault> {
    let fault = || Fault::new(at, "a time", quoted(text));
    let (whole, part) = text.split_once('.').unwrap_or((text, ""));
    if !part.bytes().all(|byte| byte.is_ascii_digit()) || whole.starts_with('+') {
        return Err(fault());
    }
    let whole: u64 = whole.parse().map_err(|_| fault())?;
    let kept: String = part
        .chars()
        .chain(std::iter::repeat('0'))
        .take(digits as usize)
        .collect();
    let part: u64 = if digits == 0 {
        0
    } else {
        kept.parse().map_err(|_| fault())?
    };
    let whole = whole.checked_mul(10u64.pow(digits));
    whole.and_then(|whole| whole.checked_add(part)).ok_or_else(fault)
}

/// A range of bytes as sectors: all that it touches.
pub(super) fn sectors(at: At, offset: u64, bytes: u64) -> Result<(u64, u32), Fault> {
    let fault = || Fault::new(at, "a range of a device", format!("{bytes} bytes at {offset}"));
    let end = offset.checked_add(bytes).ok_or_else(fault)?;
    let sector = offset / 512;
    let nr_sectors = end.div_ceil(512) - sector;
    Ok((sector, u32::try_from(nr_sectors).map_err(|_| fault())?))
}
