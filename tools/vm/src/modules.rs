//! The kernel modules that go into the guest: a list, with what they depend on.
//!
//! Debian's packages have no `modules.dep` (it is made at installation), so the dependencies are read from each
//! module's own `.modinfo` section: zero-terminated strings such as `depends=libcrc32c,ext4`.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail};

use host::command;

/// Loaded before the command starts. Distributions have mq-deadline loaded or built in, and the kernel gives it to every
/// disk with one hardware queue.
pub(crate) const AT_BOOT: [&str; 4] = ["ublk_drv", "loop", "dm_mod", "mq_deadline"];

/// There for `modprobe`, where the kernel has them as modules.
pub(crate) const AT_HAND: [&str; 17] = [
    "brd",
    "null_blk",
    "nbd",
    "bcache",
    "virtio_blk",
    "xfs",
    "ext4",
    "dm_flakey",
    "dm_delay",
    "dm_log_writes",
    "dm_cache",
    "dm_cache_smq",
    "dm_writecache",
    "dm_zero",
    "dm_snapshot",
    "nvmet_tcp",
    "nvme_tcp",
];

/// An unpacked module.
#[derive(Debug)]
pub(crate) struct Module {
    /// As the kernel says it, with underscores.
    pub(crate) name: String,
    pub(crate) contents: Vec<u8>,
    depends: Vec<String>,
}

/// Unpacks the modules of both lists and all that they depend on; each stands after its dependencies.
///
/// One that this kernel does not have as a module is built in, or the test that wants it will say so.
pub(crate) fn collect(root: &Path) -> Result<Vec<Module>> {
    let files = index(root)?;
    let mut modules = Vec::new();
    for name in AT_BOOT.iter().chain(&AT_HAND) {
        add(name, &files, &mut modules)?;
    }
    Ok(modules)
}

/// The text of `modules.dep` for modules that stand after their dependencies.
pub(crate) fn dependencies(modules: &[Module]) -> String {
    let mut text = String::new();
    for module in modules {
        let mut needed = Vec::new();
        closure(module, modules, &mut needed);
        text.push_str(&format!("{}.ko:", module.name));
        // A module's direct needs come first and what those need later, as `modprobe` expects.
        for name in needed.iter().rev() {
            text.push_str(&format!(" {name}.ko"));
        }
        text.push('\n');
    }
    text
}

fn closure<'a>(module: &'a Module, all: &'a [Module], needed: &mut Vec<&'a str>) {
    for name in &module.depends {
        if let Some(dependency) = all.iter().find(|other| other.name == *name)
            && !needed.contains(&name.as_str())
        {
            closure(dependency, all, needed);
            needed.push(name);
        }
    }
}

/// Every module file below `root` by the module's name.
fn index(root: &Path) -> Result<BTreeMap<String, PathBuf>> {
    let mut files = BTreeMap::new();
    let mut folders = vec![root.to_path_buf()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).with_context(|| format!("cannot read {}", folder.display()))? {
            let entry = entry?;
            let name = entry.file_name().to_string_lossy().into_owned();
            if entry.file_type()?.is_dir() {
                folders.push(entry.path());
            } else if let Some((stem, _)) = name.split_once(".ko") {
                files.insert(stem.replace('-', "_"), entry.path());
            }
        }
    }
    Ok(files)
}

fn add(name: &str, files: &BTreeMap<String, PathBuf>, modules: &mut Vec<Module>) -> Result<()> {
    let Some(path) = files.get(name) else {
        return Ok(());
    };
    if modules.iter().any(|module| module.name == name) {
        return Ok(());
    }
    let contents = unpack(path)?;
    let depends = depends(&contents);
    for dependency in &depends {
        add(dependency, files, modules)?;
    }
    modules.push(Module {
        name: name.to_owned(),
        contents,
        depends,
    });
    Ok(())
}

fn unpack(path: &Path) -> Result<Vec<u8>> {
    let decompressor = match path.extension().and_then(|extension| extension.to_str()) {
        Some("ko") => return fs::read(path).with_context(|| format!("cannot read {}", path.display())),
        Some("xz") => "xzcat",
        Some("gz") => "zcat",
        _ => bail!(
            "{}: compressed in a way that busybox does not know",
            path.display()
        ),
    };
    let mut command = Command::new("busybox");
    let output = command
        .arg(decompressor)
        .arg(path)
        .output()
        .context("cannot start busybox")?;
    if !output.status.success() {
        bail!("cannot unpack {}: {}", path.display(), command::said(&output));
    }
    Ok(output.stdout)
}

fn depends(contents: &[u8]) -> Vec<String> {
    let field = contents
        .split(|&byte| byte == 0)
        .find_map(|string| string.strip_prefix(b"depends="));
    let list = String::from_utf8_lossy(field.unwrap_or_default()).into_owned();
    list.split(',')
        .filter(|name| !name.is_empty())
        .map(|name| name.replace('-', "_"))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn module(name: &str, needs: &str) -> Module {
        let contents = format!("\x7fELF\0license=GPL\0depends={needs}\0name={name}\0").into_bytes();
        Module {
            name: name.to_owned(),
            depends: depends(&contents),
            contents,
        }
    }

    #[test]
    fn dependencies_are_read_from_the_module() {
        assert_eq!(
            module("dm-cache", "dm-mod,dm-bio-prison").depends,
            ["dm_mod", "dm_bio_prison"]
        );
        assert!(module("brd", "").depends.is_empty());
        assert!(depends(b"no such field").is_empty());
    }

    #[test]
    fn what_is_loaded_first_is_listed_last() {
        let all = [
            module("a", ""),
            module("b", "a"),
            module("c", "a,b"),
            module("d", "c"),
        ];
        assert_eq!(
            dependencies(&all),
            "a.ko:\nb.ko: a.ko\nc.ko: b.ko a.ko\nd.ko: c.ko b.ko a.ko\n"
        );
    }

    #[test]
    fn packed_modules_are_found_below_folders() {
        let root = tempfile::tempdir().expect("a temporary folder");
        fs::create_dir_all(root.path().join("kernel/md")).expect("made");
        fs::write(
            root.path().join("kernel/md/dm-mod.ko"),
            module("dm_mod", "").contents,
        )
        .expect("written");
        fs::write(
            root.path().join("kernel/md/dm-delay.ko"),
            module("dm_delay", "dm-mod").contents,
        )
        .expect("written");
        let names: Vec<String> = collect(root.path())
            .expect("collected")
            .into_iter()
            .map(|one| one.name)
            .collect();
        assert_eq!(names, ["dm_mod", "dm_delay"]);
    }
}
