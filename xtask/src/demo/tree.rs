//! A folder of files and their checksums.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Read as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use sha2::{Digest as _, Sha256};

/// Folders that hold nothing one would copy.
const SKIPPED: [&str; 2] = ["target", ".git"];

/// The files below `root`, as paths relative to it, in order; what is built and git's own are left out.
pub(crate) fn files(root: &Path) -> Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    let mut folders = vec![root.to_path_buf()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).with_context(|| format!("cannot read {}", folder.display()))? {
            let entry = entry?;
            let kind = entry.file_type()?;
            if kind.is_dir() && !SKIPPED.iter().any(|name| entry.file_name() == *name) {
                folders.push(entry.path());
            } else if kind.is_file() {
                files.push(entry.path().strip_prefix(root)?.to_path_buf());
            }
        }
    }
    files.sort();
    Ok(files)
}

/// Copies `files` from one folder to another; gives the bytes copied.
pub(crate) fn copy(files: &[PathBuf], from: &Path, to: &Path) -> Result<u64> {
    let mut bytes = 0;
    for path in files {
        let target = to.join(path);
        let folder = target.parent().context("a file has a folder")?;
        fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
        let source = from.join(path);
        bytes += fs::copy(&source, &target)
            .with_context(|| format!("cannot copy {} to {}", source.display(), target.display()))?;
    }
    Ok(bytes)
}

/// SHA-256 sums of files below `root`.
pub(crate) type Sums = BTreeMap<PathBuf, [u8; 32]>;

/// The sums of `files`.
pub(crate) fn sums(root: &Path, files: &[PathBuf]) -> Result<Sums> {
    files
        .iter()
        .map(|path| Ok((path.clone(), sum(&root.join(path))?)))
        .collect()
}

/// The files whose sums are not the same in both, and those that only one has.
pub(crate) fn differences<'a>(one: &'a Sums, other: &'a Sums) -> Vec<&'a Path> {
    let mut paths: Vec<&Path> = one
        .iter()
        .filter(|(path, sum)| other.get(*path) != Some(sum))
        .map(|(path, _)| path.as_path())
        .collect();
    paths.extend(
        other
            .keys()
            .filter(|path| !one.contains_key(*path))
            .map(PathBuf::as_path),
    );
    paths
}

fn sum(path: &Path) -> Result<[u8; 32]> {
    let context = || format!("cannot read {}", path.display());
    let mut file = File::open(path).with_context(context)?;
    let mut hasher = Sha256::new();
    let mut buffer = vec![0; 128 * 1024];
    loop {
        match file.read(&mut buffer).with_context(context)? {
            0 => return Ok(hasher.finalize().into()),
            n => hasher.update(&buffer[..n]),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_copy_is_the_same_until_a_byte_is_another() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let (from, to) = (folder.path().join("from"), folder.path().join("to"));
        for (path, text) in [
            ("a/b.rs", "one"),
            ("c.rs", ""),
            ("target/x", "built"),
            (".git/y", "git's"),
        ] {
            let path = from.join(path);
            fs::create_dir_all(path.parent().expect("a folder")).expect("made");
            fs::write(path, text).expect("written");
        }
        let files = files(&from).expect("listed");
        assert_eq!(files, ["a/b.rs", "c.rs"].map(PathBuf::from));
        assert_eq!(copy(&files, &from, &to).expect("copied"), 3);
        let before = sums(&from, &files).expect("read");
        assert!(differences(&before, &sums(&to, &files).expect("read")).is_empty());

        fs::write(to.join("a/b.rs"), "onE").expect("written");
        assert_eq!(
            differences(&before, &sums(&to, &files).expect("read")),
            [Path::new("a/b.rs")]
        );
        assert_eq!(differences(&before, &Sums::new()).len(), 2);
        assert_eq!(differences(&Sums::new(), &before).len(), 2);
    }
}
