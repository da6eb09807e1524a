//! The Debian package, made by dpkg-deb.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result};

use host::command;

/// The folder of the files that are installed as they are.
const ASSETS: &str = "ublk-bpf/dist";
const DOCUMENTATION: &str = "usr/share/doc/ublk-bpf";

/// Where each of [`ASSETS`] is installed.
const INSTALLED: [(&str, &str); 5] = [
    ("ublk-bpf.service", "usr/lib/systemd/system/ublk-bpf.service"),
    ("60-ublk-bpf.rules", "usr/lib/udev/rules.d/60-ublk-bpf.rules"),
    ("ublk-bpf.tmpfiles", "usr/lib/tmpfiles.d/ublk-bpf.conf"),
    ("devices.toml", "usr/share/doc/ublk-bpf/examples/devices.toml"),
    ("grafana.json", "usr/share/doc/ublk-bpf/examples/grafana.json"),
];

/// Where each shell looks for completions.
const COMPLETIONS: [(&str, &str); 3] = [
    ("ublk-bpf.bash", "usr/share/bash-completion/completions/ublk-bpf"),
    ("_ublk-bpf", "usr/share/zsh/vendor-completions/_ublk-bpf"),
    (
        "ublk-bpf.fish",
        "usr/share/fish/vendor_completions.d/ublk-bpf.fish",
    ),
];

/// Makes the package of `program` and of the pages in `folder`, there, and gives its path.
pub(super) fn build(root: &Path, folder: &Path, program: &Path) -> Result<PathBuf> {
    let version = version(root)?;
    let architecture = command::output(Command::new("dpkg").arg("--print-architecture"))?;
    let architecture = architecture.trim();
    let needs = needed_libc(program);
    let tree = tempfile::tempdir_in(folder).context("cannot make a temporary folder")?;
    fill(root, folder, program, tree.path())?;
    let control = control(&version, architecture, needs.as_deref());
    let scripts = tree.path().join("DEBIAN");
    write(&scripts.join("control"), control.as_bytes(), 0o644)?;
    for script in ["postinst", "prerm", "postrm"] {
        copy(
            &root.join(ASSETS).join("debian").join(script),
            &scripts.join(script),
            0o755,
        )?;
    }
    // A temporary folder is its owner's alone, and the package's root must not be.
    set_mode(tree.path(), 0o755)?;
    let package = folder.join(format!("ublk-bpf_{version}_{architecture}.deb"));
    let mut dpkg = Command::new("dpkg-deb");
    dpkg.args(["--root-owner-group", "-Zxz", "--build"]);
    command::output(dpkg.arg(tree.path()).arg(&package))?;
    Ok(package)
}

/// Lays out what is installed below `tree`.
fn fill(root: &Path, folder: &Path, program: &Path, tree: &Path) -> Result<()> {
    copy(program, &tree.join("usr/bin/ublk-bpf"), 0o755)?;
    for (name, path) in INSTALLED {
        copy(&root.join(ASSETS).join(name), &tree.join(path), 0o644)?;
    }
    for (name, path) in COMPLETIONS {
        copy(&folder.join("completions").join(name), &tree.join(path), 0o644)?;
    }
    for page in entries(&folder.join("man"))? {
        let name = page.file_name().context("a page has a name")?;
        zip(&page, &tree.join("usr/share/man/man8").join(name))?;
    }
    zip(
        &root.join("CHANGELOG.md"),
        &tree.join(DOCUMENTATION).join("changelog"),
    )?;
    let licences = ["LICENSE-MIT", "LICENSE-APACHE"].map(|name| fs::read_to_string(root.join(name)));
    let [mit, apache] = licences.map(|text| text.context("cannot read a licence"));
    let licence = format!(
        "ublk-bpf is under either of two licences, at your choice.\n\n{}\n\n{}",
        mit?, apache?
    );
    write(
        &tree.join(DOCUMENTATION).join("copyright"),
        licence.as_bytes(),
        0o644,
    )
}

fn control(version: &str, architecture: &str, libc: Option<&str>) -> String {
    let depends = libc.map_or_else(String::new, |libc| {
        format!("Depends: libc6 (>= {libc}), libgcc-s1\n")
    });
    format!(
        "Package: ublk-bpf\nVersion: {version}\nArchitecture: {architecture}\nSection: admin\nPriority: optional\n\
         Maintainer: The ublk-bpf developers <ublk-bpf@localhost>\n{depends}Recommends: systemd, udev\n\
         Description: block devices whose requests are classified by eBPF\n \
         A ublk server (Linux >= 7.0) that asks a BPF program, which can be replaced\n \
         while the device runs, about every request: pass it to the backing device,\n \
         serve it from the cache, drop it, or handle it in the server.\n"
    )
}

/// The workspace's version.
fn version(root: &Path) -> Result<String> {
    let path = root.join("Cargo.toml");
    let text = fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
    let manifest: toml::Table = text
        .parse()
        .with_context(|| format!("cannot parse {}", path.display()))?;
    let version = manifest
        .get("workspace")
        .and_then(|of| of.get("package")?.get("version")?.as_str());
    Ok(version.context("the workspace has no version")?.to_owned())
}

/// The least version of the C library that has all symbols of the program; `None` if it is not linked with one.
fn needed_libc(program: &Path) -> Option<String> {
    let symbols = command::output(Command::new("objdump").arg("-T").arg(program)).unwrap_or_default();
    let versions = symbols.split("GLIBC_").skip(1).filter_map(|rest| {
        let version = rest.split(|c: char| !c.is_ascii_digit() && c != '.').next()?;
        let numbers: Option<Vec<u32>> = version.split('.').map(|number| number.parse().ok()).collect();
        Some((numbers?, version.to_owned()))
    });
    versions.max().map(|(_, version)| version)
}

fn copy(from: &Path, to: &Path, mode: u32) -> Result<()> {
    let content = fs::read(from).with_context(|| format!("cannot read {}", from.display()))?;
    write(to, &content, mode)
}

/// Copies a file, compressed, with `.gz` at the end of its name.
fn zip(from: &Path, to: &Path) -> Result<()> {
    write(
        to,
        &fs::read(from).with_context(|| format!("cannot read {}", from.display()))?,
        0o644,
    )?;
    command::run(Command::new("gzip").args(["-9", "--no-name", "--force"]).arg(to))
}

fn write(path: &Path, content: &[u8], mode: u32) -> Result<()> {
    let folder = path.parent().context("a file is in a folder")?;
    fs::create_dir_all(folder)
        .and_then(|()| fs::write(path, content))
        .with_context(|| format!("cannot write {}", path.display()))?;
    set_mode(path, mode)
}

fn set_mode(path: &Path, mode: u32) -> Result<()> {
    fs::set_permissions(path, Permissions::from_mode(mode))
        .with_context(|| format!("cannot set the mode of {}", path.display()))
}

/// What is in a folder, sorted.
fn entries(folder: &Path) -> Result<Vec<PathBuf>> {
    let entries = fs::read_dir(folder).with_context(|| format!("cannot read {}", folder.display()))?;
    let mut paths: Vec<PathBuf> = entries.map(|entry| Ok(entry?.path())).collect::<Result<_>>()?;
    paths.sort();
    Ok(paths)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A package of a script, and the folder it is in.
    fn package() -> (tempfile::TempDir, PathBuf) {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let at = |name: &str| folder.path().join(name);
        write(&at("program"), b"#!/bin/sh\n", 0o755).expect("written");
        write(&at("man/ublk-bpf.8"), b".TH x", 0o644).expect("written");
        for (name, _) in COMPLETIONS {
            write(&at("completions").join(name), b"# x", 0o644).expect("written");
        }
        let root = host::workspace::root().expect("found");
        let package = build(root, folder.path(), &at("program")).expect("built");
        (folder, package)
    }

    #[test]
    fn a_package_has_everything_and_a_purge_leaves_nothing() {
        if command::find("dpkg").is_none() || command::find("dpkg-deb").is_none() {
            return;
        }
        let (folder, package) = package();
        let list = command::output(Command::new("dpkg-deb").arg("--contents").arg(&package)).expect("listed");
        let files = [
            "usr/bin/ublk-bpf",
            "usr/share/man/man8/ublk-bpf.8.gz",
            "usr/share/doc/ublk-bpf/copyright",
            "usr/share/doc/ublk-bpf/changelog.gz",
        ];
        let files = files.into_iter();
        let installed = INSTALLED.iter().chain(&COMPLETIONS).map(|(_, path)| *path);
        for file in files.chain(installed) {
            let line = list.lines().find(|line| line.ends_with(&format!("./{file}")));
            let line = line.unwrap_or_else(|| panic!("no {file} in\n{list}"));
            let mode = if file == "usr/bin/ublk-bpf" {
                "-rwxr-xr-x"
            } else {
                "-rw-r--r--"
            };
            assert!(line.starts_with(mode) && line.contains("root/root"), "{line}");
        }

        let root = folder.path().join("root");
        let admin = root.join("var/lib/dpkg");
        fs::create_dir_all(admin.join("info")).expect("made");
        fs::create_dir_all(admin.join("updates")).expect("made");
        fs::write(admin.join("status"), "").expect("written");
        let dpkg = |action: &str, what: &Path| {
            let mut dpkg = Command::new("dpkg");
            dpkg.arg(format!("--root={}", root.display()));
            dpkg.args([
                "--force-script-chrootless",
                "--force-not-root",
                "--force-depends",
                "--log=/dev/null",
            ]);
            command::output(dpkg.arg(action).arg(what)).expect("dpkg runs")
        };
        dpkg("--install", &package);
        assert!(root.join("usr/lib/systemd/system/ublk-bpf.service").is_file());
        fs::create_dir_all(root.join("etc/ublk-bpf")).expect("made");
        fs::write(root.join("etc/ublk-bpf/devices.toml"), "# mine").expect("written");
        dpkg("--remove", Path::new("ublk-bpf"));
        assert!(!root.join("usr/bin/ublk-bpf").exists());
        assert!(root.join("etc/ublk-bpf/devices.toml").exists(), "until the purge");
        dpkg("--purge", Path::new("ublk-bpf"));
        let mut left =
            command::output(Command::new("find").arg(&root).args(["-name", "*ublk*"])).expect("found");
        left.retain(|c| c != '\n');
        assert_eq!(left, "");
    }

    #[test]
    fn systemd_understands_the_unit() {
        if command::find("systemd-analyze").is_none() {
            return;
        }
        let root = host::workspace::root().expect("found");
        let unit = fs::read_to_string(root.join(ASSETS).join("ublk-bpf.service")).expect("read");
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = folder.path().join("ublk-bpf.service");
        // It wants a program that is there.
        fs::write(&path, unit.replace("/usr/bin/ublk-bpf", "/bin/true")).expect("written");
        let mut verify = Command::new("systemd-analyze");
        let output = verify
            .args(["verify", "--man=no"])
            .arg(&path)
            .output()
            .expect("it runs");
        assert!(
            output.status.success() && output.stderr.is_empty(),
            "{}",
            command::said(&output)
        );
    }

    #[test]
    fn the_least_libc_is_the_greatest_of_the_symbols() {
        // Numbers are compared as numbers: 2.4 < 2.34.
        let me = std::env::current_exe().expect("this program");
        let needed = needed_libc(&me);
        if command::find("objdump").is_some() && cfg!(target_env = "gnu") {
            assert!(needed.is_some_and(|version| version.starts_with("2.")));
        }
        assert_eq!(needed_libc(Path::new("/etc/passwd")), None);
    }
}
