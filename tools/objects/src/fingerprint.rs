//! A hash of the sources below a folder.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

/// A number that changes when a source or manifest below `folder` does: 16 hexadecimal digits.
pub(crate) fn of(folder: &Path) -> io::Result<String> {
    let mut files = Vec::new();
    list(folder, &mut files)?;
    files.sort();
    let mut hash = 0xcbf2_9ce4_8422_2325;
    for path in files {
        let name = path.strip_prefix(folder).unwrap_or(&path);
        let bytes = fs::read(&path)?;
        for part in [name.as_os_str().as_encoded_bytes(), &bytes] {
            // With its length, so that nothing moves unseen from one part to the next.
            hash = fnv1a(hash, &part.len().to_le_bytes());
            hash = fnv1a(hash, part);
        }
    }
    Ok(format!("{hash:016x}"))
}

fn list(folder: &Path, files: &mut Vec<PathBuf>) -> io::Result<()> {
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        if path.is_dir() {
            list(&path, files)?;
        } else if path.extension().is_some_and(|extension| extension == "rs") || path.ends_with("Cargo.toml")
        {
            files.push(path);
        }
    }
    Ok(())
}

/// FNV-1a with 64 bits: the same in every version of every compiler, and against mistakes, not malice.
fn fnv1a(hash: u64, bytes: &[u8]) -> u64 {
    let step = |hash: u64, byte: &u8| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
    bytes.iter().fold(hash, step)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fingerprint_follows_sources_and_nothing_else() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let write = |path: &str, text: &str| {
            let path = folder.path().join(path);
            fs::create_dir_all(path.parent().expect("a folder")).expect("made");
            fs::write(path, text).expect("written");
        };
        let now = || of(folder.path()).expect("read");
        write("src/a.rs", "one");
        write("abi/Cargo.toml", "two");
        let first = now();
        assert_eq!((first.len(), now()), (16, first.clone()));

        write("README.md", "words");
        write("src/.a.rs.swp", "an editor's");
        assert_eq!(now(), first);
        write("src/a.rs", "onE");
        let edited = now();
        assert_ne!(edited, first);
        write("src/a.rs", "one");
        assert_eq!(now(), first, "the sources count, not their age");
        fs::rename(folder.path().join("src/a.rs"), folder.path().join("src/b.rs")).expect("renamed");
        assert!(![first, edited].contains(&now()));
        assert!(of(&folder.path().join("none")).is_err());
    }

    #[test]
    fn the_hash_is_fnv1a() {
        assert_eq!(fnv1a(0xcbf2_9ce4_8422_2325, b"foobar"), 0x8594_4171_f739_67e8);
    }
}
