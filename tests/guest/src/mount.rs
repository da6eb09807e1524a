//! File systems: made, mounted for a while, checked.

use std::fs::File;
use std::path::Path;

use crate::run;

/// A kind of file system.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FileSystem {
    /// ext4.
    Ext4,
    /// XFS; mkfs needs at least 300 MiB.
    Xfs,
}

impl FileSystem {
    /// Creates an empty file system on this device.
    pub fn make(self, device: &str) {
        match self {
            Self::Ext4 => run("mkfs.ext4", &["-q", "-F", device]),
            Self::Xfs => run("mkfs.xfs", &["-q", "-f", device]),
        };
    }

    /// Mounts the file system on this device, with these `mount -o` options.
    pub fn mount(self, device: &str, options: &str) -> Mount {
        match self {
            Self::Ext4 => Mount::new(device, &["-t", "ext4", "-o", options]),
            Self::Xfs => {
                run("modprobe", &["xfs"]);
                Mount::new(device, &["-t", "xfs", "-o", options])
            }
        }
    }

    /// Panics unless the unmounted file system on this device is consistent.
    pub fn check(self, device: &str) {
        match self {
            Self::Ext4 => run("e2fsck", &["-f", "-n", device]),
            Self::Xfs => run("xfs_repair", &["-n", device]),
        };
    }
}

/// A mounted file system; unmounted when dropped. There is one at a time.
#[derive(Debug)]
pub struct Mount {
    at: &'static str,
}

impl Mount {
    /// Mounts the file system on this device, with these `mount` options.
    pub fn new(device: &str, options: &[&str]) -> Self {
        let at = "/tmp/mnt";
        std::fs::create_dir_all(at).expect("cannot create the mount point");
        let mut args = options.to_vec();
        args.extend([device, at]);
        run("mount", &args);
        Self { at }
    }

    /// Where it is mounted.
    pub fn at(&self) -> &str {
        self.at
    }

    /// The path of a file on it.
    pub fn file(&self, name: &str) -> String {
        Path::new(self.at).join(name).display().to_string()
    }

    /// Creates a sparse file of `mib` MiB on it and returns its path.
    pub fn make_file(&self, name: &str, mib: u64) -> String {
        let path = self.file(name);
        File::create(&path)
            .and_then(|file| file.set_len(mib << 20))
            .unwrap_or_else(|e| panic!("cannot make {path}: {e}"));
        path
    }

    /// The names and checksums of all files.
    pub fn checksums(&self) -> String {
        let list = run(
            "sh",
            &[
                "-c",
                &format!("cd {} && find . -type f | sort | xargs md5sum", self.at),
            ],
        );
        assert!(list.lines().count() > 10, "too few files: {list}");
        list
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        run("umount", &[self.at]);
    }
}
