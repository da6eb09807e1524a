//! Paths as text that stays one line and loses nothing.
//!
//! A path is bytes: it may hold line feeds, control characters and what is not UTF-8. Every message, record and table
//! shows it in this one form: printable characters as they are, everything else and the backslash escaped, so that
//! [`parse`] gives the same bytes back.

use std::ffi::{OsStr, OsString};
use std::fmt;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

/// A path, displayed in this module's form.
#[derive(Clone, Copy, Debug)]
pub struct PathText<'a>(&'a OsStr);

/// What can be displayed as a [`PathText`].
pub trait ShowPath {
    /// The path as text: see [`PathText`].
    fn shown(&self) -> PathText<'_>;
}

impl ShowPath for Path {
    fn shown(&self) -> PathText<'_> {
        PathText(self.as_os_str())
    }
}

impl ShowPath for OsStr {
    fn shown(&self) -> PathText<'_> {
        PathText(self)
    }
}

impl fmt::Display for PathText<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for chunk in self.0.as_bytes().utf8_chunks() {
            escape(chunk.valid(), f)?;
            for byte in chunk.invalid() {
                write!(f, "\\x{byte:02x}")?;
            }
        }
        Ok(())
    }
}

/// Text of others that is shown in a line, such as a process's name: control characters escaped as in a path.
pub fn escape(text: &str, f: &mut impl fmt::Write) -> fmt::Result {
    for c in text.chars() {
        match c {
            '\\' => f.write_str("\\\\")?,
            '\n' => f.write_str("\\n")?,
            // Control characters of both ranges, and the separators of lines and paragraphs that terminals obey.
            c if c.is_control() || matches!(c, '\u{2028}' | '\u{2029}') => {
                for byte in c.encode_utf8(&mut [0; 4]).bytes() {
                    write!(f, "\\x{byte:02x}")?;
                }
            }
            c => f.write_char(c)?,
        }
    }
    Ok(())
}

/// The path that a [`PathText`] shows. A backslash that begins no escape stands for itself.
#[must_use]
pub fn parse(text: &str) -> PathBuf {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let [first, tail @ ..] = rest {
        rest = match (first, tail) {
            (b'\\', [b'\\', behind @ ..]) => {
                bytes.push(b'\\');
                behind
            }
            (b'\\', [b'n', behind @ ..]) => {
                bytes.push(b'\n');
                behind
            }
            (b'\\', [b'x', high, low, behind @ ..]) if is_hex(*high) && is_hex(*low) => {
                bytes.push(nibble(*high) << 4 | nibble(*low));
                behind
            }
            _ => {
                bytes.push(*first);
                tail
            }
        };
    }
    OsString::from_vec(bytes).into()
}

const fn is_hex(digit: u8) -> bool {
    matches!(digit, b'0'..=b'9' | b'a'..=b'f')
}

/// The value of a digit that [`is_hex`].
const fn nibble(digit: u8) -> u8 {
    match digit {
        b'0'..=b'9' => digit - b'0',
        _ => digit.wrapping_sub(b'a').wrapping_add(10),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn what_breaks_a_line_is_escaped_and_the_rest_is_as_it_is() {
        for (path, text) in [
            (&b"/srv/disk.img"[..], "/srv/disk.img"),
            ("/srv/größe 1".as_bytes(), "/srv/größe 1"),
            (b"/a\nb", "/a\\nb"),
            (b"/a\x1b[2J\r", "/a\\x1b[2J\\x0d"),
            (b"/a\xffb", "/a\\xffb"),
            (b"/a\\nb", "/a\\\\nb"),
            ("/\u{85}\u{2028}".as_bytes(), "/\\xc2\\x85\\xe2\\x80\\xa8"),
        ] {
            assert_eq!(OsStr::from_bytes(path).shown().to_string(), text);
            assert_eq!(parse(text).as_os_str().as_bytes(), path);
        }
        // Written by hand.
        assert_eq!(parse("C:\\dir\\x1"), Path::new("C:\\dir\\x1"));
    }

    proptest! {
        #[test]
        fn any_path_is_one_line_and_comes_back(bytes: Vec<u8>) {
            let text = OsStr::from_bytes(&bytes).shown().to_string();
            prop_assert!(!text.chars().any(char::is_control), "{text:?}");
            let back = parse(&text);
            prop_assert_eq!(back.as_os_str().as_bytes(), &bytes[..]);
        }
    }
}
