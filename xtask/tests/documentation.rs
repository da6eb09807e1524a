//! The paths that ARCHITECTURE.md names exist, and so do the files that the project's pages link to; source files and
//! lines of pages are no longer than CONTRIBUTING.md allows.
//!
//! A path in ARCHITECTURE.md is a word in back quotes that contains `/` or ends with `.rs`, and in a figure one that ends
//! with `/` or `.rs`. It is relative to the checkout, `ublk-bpf/src` or `ublk-bpf/core/src`. A word that starts with `/`
//! names a file of the running system and is not checked.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};

/// What a path in ARCHITECTURE.md may be relative to.
const ROOTS: [&str; 3] = ["", "ublk-bpf/src", "ublk-bpf/core/src"];

/// The pages whose links and lines are checked.
const PAGES: &[&str] = &[
    "ARCHITECTURE.md",
    "CHANGELOG.md",
    "CONTRIBUTING.md",
    "README.md",
    "docs/benchmarks.md",
    "docs/caching.md",
    "docs/observability.md",
    "docs/live.md",
    "docs/operations.md",
    "docs/policies.md",
    "docs/traces.md",
    "docs/writeback.md",
    "examples/cgroup-tiers/README.md",
    "examples/tenants/README.md",
    "examples/metadata-first/README.md",
    "examples/pin-range/README.md",
    "examples/size-histogram/README.md",
    "examples/writeback-for-database/README.md",
    "fuzz/README.md",
];

#[test]
fn every_path_in_architecture_exists() {
    let checkout = checkout();
    let paths = paths_in(&read(&checkout.join("ARCHITECTURE.md")));
    assert!(paths.len() > 50, "ARCHITECTURE.md names only {paths:?}");
    let missing: Vec<String> = paths
        .iter()
        .filter(|(_, path)| ROOTS.iter().all(|root| !checkout.join(root).join(path).exists()))
        .map(|(line, path)| format!("ARCHITECTURE.md:{line}: {path} does not exist"))
        .collect();
    assert!(missing.is_empty(), "{}", missing.join("\n"));
}

#[test]
fn every_linked_file_exists() {
    let checkout = checkout();
    let mut missing = Vec::new();
    for page in PAGES {
        let folder = checkout
            .join(page)
            .parent()
            .expect("a page is in a folder")
            .to_owned();
        for (line, link) in links_in(&read(&checkout.join(page))) {
            if !folder.join(&link).exists() {
                missing.push(format!("{page}:{line}: the linked file {link} does not exist"));
            }
        }
    }
    assert!(missing.is_empty(), "{}", missing.join("\n"));
}

#[test]
fn no_source_file_is_too_long() {
    const MAX_LINES: usize = 500;
    let lengths = sources(&checkout()).map(|path| (read(&path).lines().count(), path));
    let long: Vec<_> = lengths.filter(|(lines, _)| *lines > MAX_LINES).collect();
    assert!(long.is_empty(), "more than {MAX_LINES} lines: {long:?}");
}

#[test]
fn no_line_of_a_page_is_too_long() {
    const MAX_COLUMNS: usize = 120;
    let checkout = checkout();
    let mut long = Vec::new();
    for page in PAGES {
        for (line, text) in (1..).zip(read(&checkout.join(page)).lines()) {
            let columns = text.chars().count();
            if columns > MAX_COLUMNS {
                long.push(format!(
                    "{page}:{line}: {columns} columns, at most {MAX_COLUMNS} are allowed"
                ));
            }
        }
    }
    assert!(long.is_empty(), "{}", long.join("\n"));
}

#[test]
fn every_page_is_checked() {
    let checkout = checkout();
    for folder in ["", "docs"] {
        let entries = fs::read_dir(checkout.join(folder)).expect("a folder");
        for path in entries.map(|entry| entry.expect("read").path()) {
            if path.extension().is_some_and(|extension| extension == "md") {
                let known = PAGES.iter().any(|page| path.ends_with(page));
                assert!(
                    known,
                    "{} is not among the pages that are checked",
                    path.display()
                );
            }
        }
    }
}

#[test]
fn paths_and_links_are_found() {
    let page = "See `a/b.rs`, `c.rs`, `d/` and `/dev/e`, or `f` and `g h/i`.\n```\n a or b ── j/k.rs, (l/)\n```\n[m](n.md#o) [p](https://q)";
    let words = |found: Vec<(usize, String)>| found.into_iter().map(|(line, word)| format!("{line}:{word}"));
    let expected = ["1:a/b.rs", "1:c.rs", "1:d/", "3:j/k.rs", "3:l/"];
    assert_eq!(words(paths_in(page)).collect::<Vec<_>>(), expected);
    assert_eq!(words(links_in(page)).collect::<Vec<_>>(), ["5:n.md"]);
}

/// The root of the checkout that cargo tests, which is not always the one that this was compiled in.
fn checkout() -> PathBuf {
    let manifest = env::var_os("CARGO_MANIFEST_DIR").expect("run by cargo");
    Path::new(&manifest).join("..")
}

fn read(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_else(|error| panic!("cannot read {}: {error}", path.display()))
}

/// The Rust files below a folder, without what cargo builds.
fn sources(folder: &Path) -> Box<dyn Iterator<Item = PathBuf>> {
    let entries =
        fs::read_dir(folder).unwrap_or_else(|error| panic!("cannot read {}: {error}", folder.display()));
    let paths = entries.map(|entry| entry.expect("read").path());
    Box::new(paths.flat_map(|path| match path.extension() {
        _ if path.is_dir() && !path.ends_with("target") => sources(&path),
        Some(extension) if extension == "rs" => Box::new(std::iter::once(path)),
        _ => Box::new(std::iter::empty()),
    }))
}

/// The paths that a page names, each with its line.
fn paths_in(page: &str) -> Vec<(usize, String)> {
    let mut paths = Vec::new();
    let mut is_figure = false;
    for (line, text) in (1..).zip(page.lines()) {
        if text.starts_with("```") {
            is_figure = !is_figure;
        } else if is_figure {
            let words = text.split(|c: char| c.is_whitespace() || "(),:".contains(c));
            let named = words.filter(|word| word.ends_with('/') || word.ends_with(".rs"));
            paths.extend(named.map(|word| (line, word.to_owned())));
        } else {
            let quoted = text.split('`').skip(1).step_by(2);
            let named = quoted.filter(|word| word.contains('/') || word.ends_with(".rs"));
            let named = named.filter(|word| !word.starts_with('/') && !word.contains(' '));
            paths.extend(named.map(|word| (line, word.to_owned())));
        }
    }
    paths
}

/// The files that a page links to, without their anchors, each with its line.
fn links_in(page: &str) -> Vec<(usize, String)> {
    let mut links = Vec::new();
    for (line, text) in (1..).zip(page.lines()) {
        for link in text.split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
            let file = link.split('#').next().unwrap_or_default();
            if !file.is_empty() && !file.contains("://") {
                links.push((line, file.to_owned()));
            }
        }
    }
    links
}
