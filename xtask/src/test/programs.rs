//! What the tests are made of: test programs for the guest, and the policies that they attach.

use std::path::PathBuf;

use anyhow::{Context as _, Result};

use super::{GUEST_PACKAGE, Options};
use host::{build, workspace};

const GUEST_TESTS: &str = "tests/guest";
/// The packages of policies that the tests attach, and where the guest has the objects.
const POLICIES: [&str; 7] = [
    "tests/policies",
    "examples/cgroup-tiers",
    "examples/metadata-first",
    "examples/pin-range",
    "examples/size-histogram",
    "examples/tenants",
    "examples/writeback-for-database",
];
const POLICY_FOLDER: &str = "/root/policies";

/// The objects of the policies that the tests attach, and where the guest has them.
pub(super) fn policies() -> Result<Vec<(PathBuf, String)>> {
    let mut files = Vec::new();
    for package in POLICIES {
        for object in build::policy(&workspace::root()?.join(package))? {
            let name = object
                .file_name()
                .context("an object has a name")?
                .to_string_lossy();
            let place = format!("{POLICY_FOLDER}/{name}");
            files.push((object, place));
        }
    }
    Ok(files)
}

/// Builds all test programs that are asked for; gives the names and paths of the guest's.
///
/// Always from the whole workspace, whatever is asked for: what is built of a library depends on who else is in the
/// selection, and would be built again for another.
pub(super) fn obtain(options: &Options) -> Result<Vec<(String, PathBuf)>> {
    let mut cargo = workspace::cargo()?;
    cargo.args(["test", "--workspace", "--no-run"]);
    if options.host {
        cargo.args(["--exclude", GUEST_PACKAGE]);
    } else if options.guest && options.programs.is_empty() {
        let names = guest_programs()?;
        cargo.args(names.iter().flat_map(|name| ["--test", name]));
    } else {
        cargo.args(options.programs.iter().flat_map(|name| ["--test", name]));
    }
    let manifest = workspace::root()?.join(GUEST_TESTS).join("Cargo.toml");
    let made = build::programs("the tests", &mut cargo)?.into_iter();
    let of_guest = made.filter(|(made_of, _)| made_of.profile.test && made_of.manifest_path == manifest);
    Ok(of_guest
        .map(|(made_of, path)| (made_of.target.name, path))
        .collect())
}

/// The names of the guest's test programs.
pub(super) fn guest_programs() -> Result<Vec<String>> {
    let folder = workspace::root()?.join(GUEST_TESTS).join("tests");
    let mut names = Vec::new();
    for entry in std::fs::read_dir(&folder).with_context(|| format!("cannot read {}", folder.display()))? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "rs") {
            names.extend(path.file_stem().map(|name| name.to_string_lossy().into_owned()));
        }
    }
    names.sort();
    Ok(names)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_guests_programs_are_known() {
        let names = guest_programs().expect("listed");
        assert!(names.contains(&"data".to_owned()), "{names:?}");
    }
}
