//! What the tests are made of: test programs for the guest, and the policies that they attach.

use std::path::{Path, PathBuf};
use std::process::Stdio;

use anyhow::{Context as _, Result, bail};
use serde_json::Value;

use super::{GUEST_PACKAGE, Options};
use host::{command, workspace};

const GUEST_TESTS: &str = "tests/guest";
/// The packages of policies that the tests attach, and where the guest has the objects.
const POLICIES: [&str; 5] = [
    "tests/policies",
    "examples/cgroup-tiers",
    "examples/metadata-first",
    "examples/pin-range",
    "examples/size-histogram",
];
const POLICY_FOLDER: &str = "/root/policies";

/// The objects of the policies that the tests attach, and where the guest has them.
pub(super) fn policies() -> Result<Vec<(PathBuf, String)>> {
    let mut files = Vec::new();
    for package in POLICIES {
        for object in host::build::policy(&workspace::root()?.join(package))? {
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
pub(super) fn build(options: &Options) -> Result<Vec<(String, PathBuf)>> {
    let mut cargo = workspace::cargo()?;
    cargo.args(["test", "--workspace", "--no-run"]);
    cargo.arg("--message-format=json-render-diagnostics");
    if options.host {
        cargo.args(["--exclude", GUEST_PACKAGE]);
    } else if options.guest && options.programs.is_empty() {
        let names = guest_programs()?;
        cargo.args(names.iter().flat_map(|name| ["--test", name]));
    } else {
        cargo.args(options.programs.iter().flat_map(|name| ["--test", name]));
    }
    let output = cargo
        .stderr(Stdio::inherit())
        .output()
        .context("cannot start cargo")?;
    if !output.status.success() {
        bail!("`{}` failed: {}", command::line(&cargo), output.status);
    }
    let manifest = workspace::root()?.join(GUEST_TESTS).join("Cargo.toml");
    Ok(parse_messages(
        &String::from_utf8_lossy(&output.stdout),
        &manifest,
    ))
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

/// The test programs of the package with this manifest among cargo's messages.
fn parse_messages(text: &str, manifest: &Path) -> Vec<(String, PathBuf)> {
    let messages = text
        .lines()
        .filter_map(|line| serde_json::from_str::<Value>(line).ok());
    let program = |message: Value| {
        let path = message.get("executable")?.as_str()?;
        let test = message.get("profile")?.get("test")?.as_bool()?;
        let name = message.get("target")?.get("name")?.as_str()?;
        let package = message.get("manifest_path")?.as_str()?;
        (test && Path::new(package) == manifest).then(|| (name.to_owned(), PathBuf::from(path)))
    };
    messages.filter_map(program).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn test_programs_are_found_among_cargos_messages() {
        let message = |package: &str, name: &str, test: bool, path: &str| {
            format!(
                "{{\"manifest_path\":\"{package}\",\"target\":{{\"name\":\"{name}\"}},\
                 \"profile\":{{\"test\":{test}}},\"executable\":{path}}}\n"
            )
        };
        let text = [
            message("/w/guest/Cargo.toml", "data", true, "\"/t/data-1\""),
            message("/w/guest/Cargo.toml", "tool", false, "\"/t/tool\""),
            message("/w/guest/Cargo.toml", "lib", true, "null"),
            message("/w/cli/Cargo.toml", "cli", true, "\"/t/cli-1\""),
        ];
        assert_eq!(
            parse_messages(&text.concat(), Path::new("/w/guest/Cargo.toml")),
            [("data".to_owned(), PathBuf::from("/t/data-1"))]
        );
    }

    #[test]
    fn the_guests_programs_are_known() {
        let names = guest_programs().expect("listed");
        assert!(names.contains(&"data".to_owned()), "{names:?}");
    }
}
