//! The folder for what is obtained once and used by every checkout: `$XDG_CACHE_HOME/ublk-bpf`, or
//! `~/.cache/ublk-bpf`. It may be deleted at any time; `setup` fills it again.

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};

/// The file, written last, that says an unpacked folder is whole.
const STAMP: &str = ".complete";

/// The cache folder, made if it does not exist.
pub fn dir() -> Result<PathBuf> {
    let base = match std::env::var_os("XDG_CACHE_HOME") {
        Some(dir) if Path::new(&dir).is_absolute() => PathBuf::from(dir),
        _ => {
            let home = std::env::var_os("HOME").context("neither HOME nor XDG_CACHE_HOME is set: set one")?;
            PathBuf::from(home).join(".cache")
        }
    };
    let dir = base.join("ublk-bpf");
    fs::create_dir_all(&dir).with_context(|| format!("cannot make the cache folder {}", dir.display()))?;
    Ok(dir)
}

/// Waits until no other process fills the cache; until the returned file is dropped, none does.
pub fn lock() -> Result<File> {
    let path = dir()?.join("lock");
    let file = File::create(&path).with_context(|| format!("cannot open {}", path.display()))?;
    file.lock()
        .with_context(|| format!("cannot lock {}", path.display()))?;
    Ok(file)
}

/// Whether `folder` was filled to the end, and what its stamp says still holds.
///
/// The stamp lists files with their sizes: a folder from which something was deleted is filled again.
pub fn is_complete(folder: &Path) -> bool {
    let Ok(stamp) = fs::read_to_string(folder.join(STAMP)) else {
        return false;
    };
    !stamp.is_empty()
        && stamp.lines().all(|line| {
            line.split_once(' ').is_some_and(|(size, path)| {
                folder
                    .join(path)
                    .metadata()
                    .is_ok_and(|meta| size.parse() == Ok(meta.len()))
            })
        })
}

/// Says that `folder` is whole; `witnesses` are files in it (paths relative to it) whose sizes are kept.
pub fn complete(folder: &Path, witnesses: &[PathBuf]) -> Result<()> {
    let mut stamp = String::new();
    for path in witnesses {
        let full = folder.join(path);
        let meta = full
            .metadata()
            .with_context(|| format!("{} is missing after unpacking", full.display()))?;
        stamp.push_str(&format!("{} {}\n", meta.len(), path.display()));
    }
    write_whole(&folder.join(STAMP), stamp.as_bytes())
}

/// Writes a file so that it is either there whole or not at all, also when several processes do it at once.
pub fn write_whole(path: &Path, bytes: &[u8]) -> Result<()> {
    use std::io::Write as _;
    use std::os::unix::fs::PermissionsExt as _;
    let folder = path.parent().context("a file has a folder")?;
    let context = || format!("cannot write {}", path.display());
    let mut file = tempfile::NamedTempFile::new_in(folder).with_context(context)?;
    file.write_all(bytes).with_context(context)?;
    // A temporary file is its owner's alone; this one is for everybody.
    file.as_file()
        .set_permissions(fs::Permissions::from_mode(0o644))
        .with_context(context)?;
    file.persist(path).with_context(context)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_is_complete_until_something_is_missing() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let witness = PathBuf::from("a b/file");
        fs::create_dir(folder.path().join("a b")).expect("made");
        fs::write(folder.path().join(&witness), b"12345").expect("written");
        assert!(!is_complete(folder.path()), "there is no stamp yet");

        complete(folder.path(), std::slice::from_ref(&witness)).expect("stamped");
        assert!(is_complete(folder.path()));

        fs::write(folder.path().join(&witness), b"1234").expect("written");
        assert!(!is_complete(folder.path()), "the size is another");
        fs::remove_file(folder.path().join(&witness)).expect("removed");
        assert!(!is_complete(folder.path()), "the file is gone");
    }
}
