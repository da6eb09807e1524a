//! The pages of `docs`: each part of the benchmark writes its own sections, and leaves the rest as it is.

use std::fs;
use std::path::PathBuf;

use anyhow::{Context as _, Result, ensure};

use host::workspace;

/// The page of what an I/O costs.
pub(crate) const BENCHMARKS: &str = "docs/benchmarks.md";

fn path(page: &str) -> Result<PathBuf> {
    Ok(workspace::root()?.join(page))
}

/// Puts `body` where a page has `<!-- section: NAME -->` to `<!-- end: NAME -->`.
///
/// # Errors
/// If the page cannot be read or written, or has no such section.
pub(crate) fn replace(page: &str, name: &str, body: &str) -> Result<()> {
    let path = path(page)?;
    let text = fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
    let text = replaced(&text, name, body).with_context(|| page.to_owned())?;
    fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))
}

/// Writes a picture beside the pages: `NAME.svg`.
pub(crate) fn picture(name: &str, svg: &str) -> Result<()> {
    let path = path(BENCHMARKS)?.with_file_name(format!("{name}.svg"));
    fs::write(&path, svg).with_context(|| format!("cannot write {}", path.display()))
}

fn replaced(text: &str, name: &str, body: &str) -> Result<String> {
    let (begin, end) = (
        format!("<!-- section: {name} -->\n"),
        format!("<!-- end: {name} -->"),
    );
    let (head, rest) = text
        .split_once(&begin)
        .with_context(|| format!("there is no section {name}: {} is missing", begin.trim()))?;
    let (_, tail) = rest
        .split_once(&end)
        .with_context(|| format!("section {name} has no end: {end} is missing"))?;
    ensure!(!body.contains("<!-- section:"), "a section holds no other");
    Ok(format!("{head}{begin}\n{}\n\n{end}{tail}", filled(body).trim()))
}

/// Columns of a page.
const COLUMNS: usize = 120;

/// The text with each paragraph and list item filled to [`COLUMNS`]. Tables, code, headings and pictures stay as they are.
fn filled(text: &str) -> String {
    let mut lines: Vec<String> = Vec::new();
    let (mut is_code, mut is_open) = (false, false);
    for line in text.lines() {
        let is_fence = line.starts_with("```");
        let is_prose = !(is_code || is_fence || line.is_empty() || line.starts_with(['|', '#', '!', '<']));
        is_code ^= is_fence;
        if !is_prose || line.starts_with("- ") || !is_open {
            lines.push(String::new());
        }
        if is_prose {
            line.split_whitespace().for_each(|word| add(&mut lines, word));
        } else {
            lines.pop();
            lines.push(line.to_owned());
        }
        is_open = is_prose;
    }
    lines.join("\n")
}

/// Adds a word to the last line, or to a new one of the same paragraph or list item.
fn add(lines: &mut Vec<String>, word: &str) {
    let Some(last) = lines.last_mut() else { return };
    if last.is_empty() {
        last.push_str(word);
    } else if last.chars().count() + 1 + word.chars().count() <= COLUMNS {
        last.push(' ');
        last.push_str(word);
    } else {
        let is_item = last.starts_with("- ") || last.starts_with("  ");
        lines.push(format!("{}{word}", if is_item { "  " } else { "" }));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PAGE: &str =
        "# A\n<!-- section: a -->\nold\n<!-- end: a -->\nbetween\n<!-- section: b -->\n<!-- end: b -->\n";

    #[test]
    fn a_section_is_replaced_and_the_rest_stays() {
        let once = replaced(PAGE, "a", "new\n").expect("replaced");
        assert_eq!(
            once,
            "# A\n<!-- section: a -->\n\nnew\n\n<!-- end: a -->\nbetween\n<!-- section: b -->\n<!-- end: b -->\n"
        );
        assert_eq!(replaced(&once, "a", "new").expect("replaced"), once);
    }

    #[test]
    fn paragraphs_and_items_are_filled() {
        let long = "word ".repeat(40);
        let text = format!("{long}\n\n| {long}|\n- `a` {long}\n  b\n- c\n```\n{long}\n```\n");
        let filled = filled(&text);
        let lines: Vec<&str> = filled.lines().collect();
        assert_eq!(lines[0].len(), 119);
        assert_eq!(lines[3], format!("| {long}|"));
        assert!(
            lines[4].starts_with("- `a` word") && lines[5].starts_with("  word") && lines[5].ends_with(" b")
        );
        assert_eq!(lines[6..], ["- c", "```", long.as_str(), "```"]);
    }

    #[test]
    fn a_page_without_the_section_is_not_touched() {
        assert!(replaced(PAGE, "c", "new").is_err());
        assert!(replaced("<!-- section: a -->\n", "a", "new").is_err());
    }
}
