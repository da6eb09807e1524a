//! A disk that may be overwritten: checked before anything is written to it.

use std::fs::File;
use std::io::{Seek as _, SeekFrom};
use std::os::unix::fs::{FileExt as _, FileTypeExt as _, OpenOptionsExt as _};
use std::path::Path;

use anyhow::{Context as _, Result, ensure};

use crate::peers::wait_until;

const MIB: u64 = 1 << 20;
/// Places between start and end that are looked at, too.
const SAMPLES: u64 = 64;

/// A block device that no one else uses, and that holds nothing or may be overwritten.
#[derive(Debug)]
pub(crate) struct Disk {
    /// As it was given.
    pub(crate) path: String,
    /// Its size.
    pub(crate) mib: u64,
}

impl Disk {
    /// Looks at it, and refuses it if it is no free block device, or holds data that was not given up.
    pub(crate) fn open(path: &str, may_destroy: bool) -> Result<Self> {
        let kind = std::fs::metadata(path).with_context(|| format!("cannot read {path}"))?;
        ensure!(
            kind.file_type().is_block_device(),
            "a block device was wanted, but {path} is none: give a disk, a partition or a loop device"
        );
        // Of a block device O_EXCL is refused while it is mounted or part of another.
        let mut file = File::options()
            .read(true)
            .custom_flags(libc::O_EXCL)
            .open(path)
            .with_context(|| format!("{path} must not be in use: unmount or detach it first"))?;
        let bytes = file
            .seek(SeekFrom::End(0))
            .with_context(|| format!("cannot size {path}"))?;
        if !may_destroy {
            let data = holds_data(&file, bytes).with_context(|| format!("cannot read {path}"))?;
            ensure!(
                data.is_none(),
                "an empty device was wanted, but {path} holds data at byte {}: this would overwrite it; give another, or \
                 --destroy-data",
                data.unwrap_or_default()
            );
        }
        Ok(Self {
            path: path.to_owned(),
            mib: bytes / MIB,
        })
    }

    /// Overwrites the first and the last MiB, where caches and file systems have their heads.
    pub(crate) fn clear(&self) -> Result<()> {
        let open = || {
            File::options()
                .write(true)
                .custom_flags(libc::O_EXCL)
                .open(&self.path)
        };
        // bcache lets go of its devices a little later than it says.
        wait_until(&format!("{} is free again", self.path), || open().is_ok())?;
        let write = || {
            let file = open()?;
            let zeroes = vec![0; usize::try_from(MIB).unwrap_or_default()];
            file.write_all_at(&zeroes, 0)?;
            file.write_all_at(&zeroes, (self.mib - 1) * MIB)?;
            file.sync_all()
        };
        write().with_context(|| format!("cannot overwrite the ends of {}", self.path))
    }

    /// Its file.
    pub(crate) fn path(&self) -> &Path {
        Path::new(&self.path)
    }
}

/// Where the first and last MiB, or a sample of the rest, is not zero.
fn holds_data(file: &File, bytes: u64) -> std::io::Result<Option<u64>> {
    let last = bytes.saturating_sub(MIB);
    let between = (1..SAMPLES).map(|n| bytes / SAMPLES / 4096 * 4096 * n);
    for (at, length) in [(0, MIB), (last, MIB)]
        .into_iter()
        .chain(between.map(|at| (at, 4096)))
    {
        let length = length.min(bytes - at);
        let mut part = vec![0; usize::try_from(length).unwrap_or_default()];
        file.read_exact_at(&mut part, at)?;
        if let Some(offset) = part.iter().position(|byte| *byte != 0) {
            return Ok(Some(at + offset as u64));
        }
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn data_is_found_at_the_start_the_end_and_between() {
        let bytes = 64 * MIB;
        for at in [0, 1080, bytes - 1, bytes / 2 + 17] {
            let file = tempfile::tempfile().expect("a file");
            file.set_len(bytes).expect("sized");
            assert_eq!(holds_data(&file, bytes).expect("read"), None);
            file.write_all_at(b"x", at).expect("written");
            assert_eq!(holds_data(&file, bytes).expect("read"), Some(at));
        }
    }

    #[test]
    fn what_is_no_disk_is_refused() {
        let file = tempfile::NamedTempFile::new().expect("a file");
        let path = file.path().to_string_lossy().into_owned();
        let error = Disk::open(&path, true).expect_err("a file");
        assert!(error.to_string().contains("is none"), "{error}");
        assert!(Disk::open("/nowhere", true).is_err());
    }
}
