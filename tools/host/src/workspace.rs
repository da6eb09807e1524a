//! Where the checkout is, and `cargo` started in it.

use std::env;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use anyhow::{Context as _, Result};

/// A file that the root of a checkout has, and no folder below it.
const LANDMARK: &str = "xtask/Cargo.toml";

/// The root of the checkout that this program works on: the one that cargo started it from, or the one around the
/// current folder.
///
/// Looked for at run time, never when this program is compiled: cargo takes a program that was copied along with its
/// checkout for new, and its compiled-in path would be the old checkout's.
///
/// # Errors
/// If neither is in a checkout.
pub fn root() -> Result<&'static Path> {
    static ROOT: OnceLock<PathBuf> = OnceLock::new();
    if let Some(root) = ROOT.get() {
        return Ok(root);
    }
    let current = env::current_dir().context("cannot find out the current folder")?;
    // `cargo run` and `cargo test` set it for the program that they start.
    let manifest = env::var_os("CARGO_MANIFEST_DIR").map(PathBuf::from);
    let root = manifest
        .iter()
        .chain([&current])
        .find_map(|folder| around(folder))
        .with_context(|| {
            format!(
                "want a checkout of ublk-bpf, and {} is in none: change to one",
                current.display()
            )
        })?;
    Ok(ROOT.get_or_init(|| root))
}

/// The root of the innermost checkout that `folder` is in.
fn around(folder: &Path) -> Option<PathBuf> {
    let root = folder.ancestors().find(|folder| folder.join(LANDMARK).is_file());
    root.map(Path::to_path_buf)
}

/// The folder that cargo builds in, as the environment or the default has it.
pub fn target_dir() -> Result<PathBuf> {
    let folder = env::var_os("CARGO_TARGET_DIR").unwrap_or_else(|| "target".into());
    Ok(root()?.join(folder))
}

/// The cargo that started this program, run in the workspace.
///
/// The variables that `cargo run` sets for this program are no business of the build that it starts: with them
/// build scripts would be run again for nothing.
pub fn cargo() -> Result<Command> {
    let program = env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut command = Command::new(program);
    command.current_dir(root()?);
    for (name, _) in env::vars_os() {
        if name
            .to_str()
            .is_some_and(|name| name.starts_with("CARGO_PKG_") || name.starts_with("CARGO_MANIFEST_"))
        {
            command.env_remove(name);
        }
    }
    Ok(command)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_innermost_checkout_is_found_from_any_folder_of_it() {
        let outer = tempfile::tempdir().expect("a temporary folder");
        assert_eq!(around(outer.path()), None);
        let inner = outer.path().join("copies/inner");
        for root in [outer.path(), &inner] {
            std::fs::create_dir_all(root.join("xtask/src")).expect("made");
            std::fs::write(root.join(LANDMARK), "").expect("written");
        }
        for (folder, root) in [
            ("", "."),
            ("copies", "."),
            ("xtask/src", "."),
            ("copies/inner/xtask", "copies/inner"),
        ] {
            assert_eq!(
                around(&outer.path().join(folder)),
                Some(outer.path().join(root)),
                "{folder}"
            );
        }
    }
}
