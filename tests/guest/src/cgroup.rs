//! Cgroups for the processes of tests.

use std::fs;
use std::os::unix::fs::MetadataExt as _;

/// A cgroup below the root of all.
#[derive(Debug)]
pub struct Cgroup(String);

impl Cgroup {
    /// Makes it.
    pub fn new(name: &str) -> Self {
        let path = format!("/sys/fs/cgroup/{name}");
        fs::create_dir_all(&path).unwrap_or_else(|e| panic!("cannot make the cgroup {path}: {e}"));
        Self(path)
    }

    /// Its directory.
    pub fn path(&self) -> &str {
        &self.0
    }

    /// Its number, the inode of its directory.
    pub fn id(&self) -> u64 {
        let found = fs::metadata(&self.0);
        found
            .unwrap_or_else(|e| panic!("no cgroup {}: {e}", self.0))
            .ino()
    }

    /// The shell command by which a process enters it.
    pub fn enter(&self) -> String {
        format!("echo $$ > {}/cgroup.procs", self.0)
    }

    /// Removes it; panics unless it is empty.
    pub fn remove(self) {
        fs::remove_dir(&self.0).unwrap_or_else(|e| panic!("the cgroup {} is not empty: {e}", self.0));
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        // A test that failed may have left processes in it, and others have removed it.
        let _ = fs::remove_dir(&self.0);
    }
}
