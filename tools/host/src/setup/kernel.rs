//! A Linux >= 7.0 kernel for the guest, from Debian's archive.
//!
//! The package `linux-image-cloud-amd64` depends, by way of `linux-image-VERSION`, on `linux-binary-VERSION` (the kernel)
//! and `linux-modules-VERSION`. Old versions leave the archive, so the version is always the newest there is.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};

use crate::apt::{Archive, Package};
use crate::cache;

/// Suites to look in, in order.
pub const SUITES: [&str; 2] = ["trixie-backports", "sid"];
const META_PACKAGE: &str = "linux-image-cloud-amd64";
/// Batch-mode ublk came with Linux 7.0.
const OLDEST: u32 = 7;

/// An unpacked kernel.
#[derive(Debug)]
pub struct Kernel {
    /// What `uname -r` will say.
    pub release: String,
    /// The file to boot.
    pub image: PathBuf,
    /// The folder with this release's modules, packed as Debian packs them.
    pub modules: PathBuf,
}

/// The newest whole kernel in the cache.
pub fn present() -> Result<Option<Kernel>> {
    let Ok(folders) = fs::read_dir(cache::dir()?.join("kernel")) else {
        return Ok(None);
    };
    let mut whole: Vec<PathBuf> = folders
        .filter_map(Result::ok)
        .map(|entry| entry.path())
        .filter(|folder| cache::is_complete(folder))
        .collect();
    whole.sort_by_key(|folder| folder.file_name().map(|name| numbers(&name.to_string_lossy())));
    whole.last().map(|folder| locate(folder)).transpose()
}

/// The kernel in the cache, fetched if there is none. The caller holds the cache's lock.
pub fn obtain() -> Result<Kernel> {
    if let Some(kernel) = present()? {
        return Ok(kernel);
    }
    for suite in SUITES {
        let archive = Archive::open(suite)?;
        if let Some(parts) = newest(&archive)? {
            return fetch(&archive, &parts);
        }
    }
    bail!(
        "Debian's archive has no {META_PACKAGE} of Linux >= {OLDEST}.0 in {}",
        SUITES.join(" or ")
    )
}

/// The packages that make up the newest kernel, if it is new enough.
fn newest(archive: &Archive) -> Result<Option<Vec<Package>>> {
    let mut found = archive.versions(META_PACKAGE)?;
    found.sort_by_key(|package| numbers(&package.version));
    let Some(meta) = found
        .pop()
        .filter(|package| numbers(&package.version).0.first() >= Some(&OLDEST))
    else {
        return Ok(None);
    };
    let image = one(archive, dependency(&meta, "linux-image-")?)?;
    let parts = ["linux-binary-", "linux-modules-"].map(|prefix| one(archive, dependency(&image, prefix)?));
    Ok(Some(parts.into_iter().collect::<Result<_>>()?))
}

fn dependency<'a>(package: &'a Package, prefix: &str) -> Result<&'a str> {
    let named = package.depends.iter().find(|name| name.starts_with(prefix));
    named
        .map(String::as_str)
        .with_context(|| format!("{} {} depends on no {prefix}*", package.name, package.version))
}

/// The newest version of a package.
pub fn one(archive: &Archive, name: &str) -> Result<Package> {
    let mut found = archive.versions(name)?;
    found.sort_by_key(|package| numbers(&package.version));
    found
        .pop()
        .with_context(|| format!("Debian's archive lists no package {name}"))
}

fn fetch(archive: &Archive, parts: &[Package]) -> Result<Kernel> {
    let version = parts
        .first()
        .context("a kernel has packages")?
        .name
        .trim_start_matches("linux-binary-")
        .to_owned();
    let folder = cache::dir()?.join("kernel").join(version);
    if folder.exists() {
        fs::remove_dir_all(&folder)
            .with_context(|| format!("cannot remove the unfinished {}", folder.display()))?;
    }
    fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
    for part in parts {
        archive.unpack(part, &folder)?;
    }
    let kernel = locate(&folder)?;
    let witness = |path: PathBuf| {
        path.strip_prefix(&folder)
            .map(Path::to_path_buf)
            .context("inside the folder")
    };
    let ublk = kernel.modules.join("kernel/drivers/block/ublk_drv.ko.xz");
    cache::complete(&folder, &[witness(kernel.image.clone())?, witness(ublk)?])?;
    Ok(kernel)
}

/// Finds the kernel's parts in an unpacked folder.
fn locate(folder: &Path) -> Result<Kernel> {
    let modules = ["usr/lib/modules", "lib/modules"].map(|path| folder.join(path));
    for root in modules.iter().filter(|root| root.is_dir()) {
        for entry in fs::read_dir(root)? {
            let modules = entry?.path();
            let release = modules
                .file_name()
                .map(|name| name.to_string_lossy().into_owned())
                .unwrap_or_default();
            let images = [
                modules.join("vmlinuz"),
                folder.join(format!("boot/vmlinuz-{release}")),
            ];
            if let Some(image) = images.into_iter().find(|image| image.is_file()) {
                return Ok(Kernel {
                    release,
                    image,
                    modules,
                });
            }
        }
    }
    bail!(
        "{} holds no kernel with modules: remove it and run `cargo xtask setup`",
        folder.display()
    )
}

/// The numbers in a version, those of Linux itself apart from those of the packaging: enough to tell which of two
/// kernels is newer.
pub fn numbers(version: &str) -> (Vec<u32>, Vec<u32>) {
    let upstream = version
        .find(|c: char| !c.is_ascii_digit() && c != '.')
        .unwrap_or(version.len());
    let (upstream, packaging) = version.split_at(upstream);
    let numbers = |text: &str| {
        text.split(|c: char| !c.is_ascii_digit())
            .filter_map(|digits| digits.parse().ok())
            .collect()
    };
    (numbers(upstream), numbers(packaging))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_ordered_by_number() {
        assert!(numbers("7.10.1-1~bpo13+1") > numbers("7.9.12-2~bpo13+1"));
        assert!(numbers("7.3.4+deb13-cloud-amd64") > numbers("7.3+deb13-cloud-amd64"));
        assert!(numbers("6.12.117-1").0.first() < Some(&OLDEST));
    }

    #[test]
    fn a_kernel_is_found_where_debian_puts_it() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        assert!(locate(folder.path()).is_err());
        let modules = folder.path().join("usr/lib/modules/7.3.4-x");
        fs::create_dir_all(&modules).expect("made");
        assert!(locate(folder.path()).is_err(), "modules alone are no kernel");
        fs::write(modules.join("vmlinuz"), "").expect("written");
        let kernel = locate(folder.path()).expect("found");
        assert_eq!((kernel.release.as_str(), kernel.modules), ("7.3.4-x", modules));
    }
}
