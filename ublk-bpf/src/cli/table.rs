//! Aligned text for people.

use std::fmt::Write;

use super::error::plain;
use super::output::{self, OutputError};

/// Prints rows in columns as wide as their widest cell; the last one is not padded.
pub(super) fn print(header: &[&str], rows: &[Vec<String>]) -> Result<(), OutputError> {
    output::print(render(header, rows))
}

fn render(header: &[&str], rows: &[Vec<String>]) -> String {
    let header: Vec<String> = header.iter().map(ToString::to_string).collect();
    let mut widths = vec![0; header.len()];
    for row in std::iter::once(&header).chain(rows) {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let mut text = String::new();
    for row in std::iter::once(&header).chain(rows) {
        let cells: Vec<String> = row
            .iter()
            .zip(&widths)
            .map(|(cell, &width)| format!("{:width$}", plain(cell)))
            .collect();
        text.push_str(cells.join("  ").trim_end());
        text.push('\n');
    }
    text
}

/// Prints names and values in two columns.
pub(super) fn print_facts(facts: &[(&str, String)]) -> Result<(), OutputError> {
    let width = facts.iter().map(|(name, _)| name.len()).max().unwrap_or(0);
    let mut text = String::new();
    for (name, value) in facts {
        // A `String` takes everything.
        let _ = writeln!(text, "{name:width$}  {}", plain(value));
    }
    output::print(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_aligned() {
        let rows = [vec!["ublkb0".into(), "1".into()], vec!["a".into(), "22".into()]];
        assert_eq!(
            render(&["NAME", "N"], &rows),
            "NAME    N\nublkb0  1\na       22\n"
        );
    }
}
