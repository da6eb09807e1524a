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
    Ok(format!("{head}{begin}\n{}\n\n{end}{tail}", body.trim()))
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
    fn a_page_without_the_section_is_not_touched() {
        assert!(replaced(PAGE, "c", "new").is_err());
        assert!(replaced("<!-- section: a -->\n", "a", "new").is_err());
    }
}
