//! Backings of test devices.

use std::path::{Path, PathBuf};

use crate::{run, try_run, write};

/// Where null_blk disks are made.
const NULL_BLK: &str = "/sys/kernel/config/nullb";

/// The backing of a test device, created for the test and removed when dropped.
#[derive(Debug)]
pub struct Backing {
    spec: String,
    undo: Vec<Undo>,
}

#[derive(Debug)]
enum Undo {
    RemoveFile(PathBuf),
    DetachLoop(String),
    UnloadModule(&'static str),
    RemoveFolder(PathBuf),
    /// The module may still have other disks.
    UnloadUnusedModule(&'static str),
}

impl Backing {
    /// `mem:SIZE`.
    pub fn memory(size: &str) -> Self {
        Self {
            spec: format!("mem:{size}"),
            undo: Vec::new(),
        }
    }

    /// A sparse file of `mib` MiB on the guest's tmpfs.
    pub fn file(name: &str, mib: u64) -> Self {
        let path = PathBuf::from(format!("/tmp/{name}.img"));
        let file =
            std::fs::File::create(&path).unwrap_or_else(|e| panic!("cannot make {}: {e}", path.display()));
        file.set_len(mib << 20)
            .unwrap_or_else(|e| panic!("cannot size {}: {e}", path.display()));
        Self {
            spec: path.display().to_string(),
            undo: vec![Undo::RemoveFile(path)],
        }
    }

    /// A brd RAM disk of `mib` MiB.
    pub fn brd(mib: u64) -> Self {
        run("modprobe", &["brd", "rd_nr=1", &format!("rd_size={}", mib << 10)]);
        Self {
            spec: "/dev/ram0".into(),
            undo: vec![Undo::UnloadModule("brd")],
        }
    }

    /// A null_blk disk of `mib` MiB called `name`, which keeps what is written and never tears a sector.
    pub fn null_blk(name: &str, mib: u64) -> Self {
        let size = mib.to_string();
        let settings = [("size", size.as_str()), ("blocksize", "512"), ("discard", "1")];
        Self::null_blk_with(name, &settings)
    }

    /// The same with these settings of the driver.
    pub fn null_blk_with(name: &str, settings: &[(&str, &str)]) -> Self {
        run("modprobe", &["null_blk", "nr_devices=0"]);
        if !Path::new(NULL_BLK).exists() {
            run("mount", &["-t", "configfs", "none", "/sys/kernel/config"]);
        }
        let config = Path::new(NULL_BLK).join(name);
        std::fs::create_dir(&config).unwrap_or_else(|e| panic!("cannot make {}: {e}", config.display()));
        for (setting, value) in settings.iter().chain(&[("memory_backed", "1"), ("power", "1")]) {
            write(config.join(setting), value);
        }
        Self {
            spec: format!("/dev/{name}"),
            undo: vec![Undo::RemoveFolder(config), Undo::UnloadUnusedModule("null_blk")],
        }
    }

    /// A loop device over a file of `mib` MiB.
    pub fn loop_device(name: &str, mib: u64) -> Self {
        let mut file = Self::file(name, mib);
        let device = run("losetup", &["--find", "--show", &file.spec])
            .trim()
            .to_owned();
        file.undo.insert(0, Undo::DetachLoop(device.clone()));
        Self {
            spec: device,
            undo: std::mem::take(&mut file.undo),
        }
    }

    /// The argument of `--backing`.
    pub fn spec(&self) -> &str {
        &self.spec
    }

    /// Its path, to check it directly; none for memory.
    pub fn path(&self) -> Option<&Path> {
        (!self.spec.starts_with("mem:")).then(|| Path::new(&self.spec))
    }
}

impl Drop for Backing {
    fn drop(&mut self) {
        for step in &self.undo {
            match step {
                Undo::RemoveFile(path) => drop(std::fs::remove_file(path)),
                Undo::DetachLoop(device) => drop(run("losetup", &["-d", device])),
                Undo::UnloadModule(module) => drop(run("rmmod", &[module])),
                Undo::UnloadUnusedModule(module) => drop(try_run("rmmod", &[module])),
                Undo::RemoveFolder(path) => drop(std::fs::remove_dir(path)),
            }
        }
    }
}

/// Drops the page cache, so that later reads come from the devices.
pub fn drop_caches() {
    run("sync", &[]);
    write("/proc/sys/vm/drop_caches", "3");
}
