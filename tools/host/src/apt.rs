//! Debian's archive, without touching the system's own apt: a private sources list, state and cache.
//!
//! The kernel for the guest and `rust-src` come from suites that the system may not have. An [`Archive`] reads one
//! suite into its own folder of the cache; its packages are unpacked there and never installed.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, SystemTime};

use anyhow::{Context as _, Result, bail};

use crate::{cache, command, progress};

const MIRROR: &str = "http://deb.debian.org/debian";
/// Where Debian and Ubuntu keep the keys (package `debian-archive-keyring`).
const KEYRINGS: [&str; 2] = [
    "/usr/share/keyrings/debian-archive-keyring.gpg",
    "/usr/share/keyrings/debian-archive-keyring.pgp",
];
/// How long a suite's package lists are taken as they are.
const LISTS_FRESH: Duration = Duration::from_secs(24 * 3600);

/// One suite of Debian's archive.
pub struct Archive {
    suite: String,
    folder: PathBuf,
    conf: PathBuf,
}

/// One version of a package, as `apt-cache show` prints it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Package {
    /// As the archive calls it.
    pub name: String,
    /// Upstream version and revision.
    pub version: String,
    /// Names alone, the first of alternatives.
    pub depends: Vec<String>,
}

impl Archive {
    /// Prepares the private folder for `suite` and fetches its package lists if they are missing or old.
    pub fn open(suite: &str) -> Result<Self> {
        if command::find("apt-get").is_none() {
            bail!(
                "there is no apt-get here; on Debian or Ubuntu this would be fetched from Debian's archive"
            );
        }
        let Some(keyring) = KEYRINGS.into_iter().find(|path| Path::new(path).exists()) else {
            bail!("the keys of Debian's archive are missing: apt-get install debian-archive-keyring");
        };
        let folder = cache::dir()?.join("apt").join(suite);
        let archive = Self {
            suite: suite.to_owned(),
            conf: folder.join("apt.conf"),
            folder,
        };
        archive.write_configuration(keyring)?;
        if !archive.lists_are_fresh() {
            archive.update()?;
        }
        Ok(archive)
    }

    /// The versions of `package` in this suite; none if it has none.
    pub fn versions(&self, package: &str) -> Result<Vec<Package>> {
        // `madison` succeeds for a package that does not exist, where `show` fails as it does for a broken list.
        if command::output(self.apt("apt-cache").args(["madison", package]))?
            .trim()
            .is_empty()
        {
            return Ok(Vec::new());
        }
        Ok(parse_show(&command::output(
            self.apt("apt-cache").args(["show", package]),
        )?))
    }

    /// Downloads `package` and unpacks it in `folder`.
    pub fn unpack(&self, package: &Package, folder: &Path) -> Result<()> {
        let step = progress::step(format!("fetching {} {}", package.name, package.version));
        let download = tempfile::tempdir_in(&self.folder).context("cannot make a folder for the download")?;
        let exact = format!("{}={}", package.name, package.version);
        command::output(
            self.apt("apt-get")
                .args(["--quiet", "download", &exact])
                .current_dir(download.path()),
        )
        .with_context(|| {
            format!(
                "cannot fetch {exact} from Debian's archive ({MIRROR}, {})",
                self.suite
            )
        })?;
        let deb = fs::read_dir(download.path())?
            .filter_map(Result::ok)
            .map(|entry| entry.path())
            .find(|path| path.extension().is_some_and(|extension| extension == "deb"))
            .with_context(|| format!("apt-get downloaded no file for {exact}"))?;
        command::output(Command::new("dpkg").arg("-x").args([&deb, folder]))?;
        step.done(&format!("{} {} unpacked", package.name, package.version));
        Ok(())
    }

    /// Downloads these packages and all that they depend on, and unpacks them in `folder`.
    pub fn unpack_all(&self, packages: &[&str], folder: &Path) -> Result<()> {
        let names = packages.join(", ");
        let step = progress::step(format!("fetching {names} with all that they need"));
        let download = tempfile::tempdir_in(&self.folder).context("cannot make a folder for the download")?;
        fs::create_dir(download.path().join("partial"))?;
        let mut archives = std::ffi::OsString::from("Dir::Cache::archives=");
        archives.push(download.path());
        command::output(
            self.apt("apt-get")
                .args([
                    "--quiet",
                    "--yes",
                    "--no-install-recommends",
                    "--download-only",
                    "-o",
                ])
                .arg(archives)
                .arg("install")
                .args(packages),
        )
        .with_context(|| {
            format!(
                "cannot fetch {names} from Debian's archive ({MIRROR}, {})",
                self.suite
            )
        })?;
        let mut unpacked = 0;
        for entry in fs::read_dir(download.path())? {
            let deb = entry?.path();
            if deb.extension().is_some_and(|extension| extension == "deb") {
                command::output(Command::new("dpkg").arg("-x").args([&deb, folder]))?;
                unpacked += 1;
            }
        }
        step.done(&format!(
            "{names} and what they need unpacked, {unpacked} packages"
        ));
        Ok(())
    }

    fn write_configuration(&self, keyring: &str) -> Result<()> {
        let context = || {
            format!(
                "cannot write apt's private configuration in {}",
                self.folder.display()
            )
        };
        for part in ["state/lists/partial", "cache/archives/partial"] {
            fs::create_dir_all(self.folder.join(part)).with_context(context)?;
        }
        let status = self.folder.join("state/status");
        if !status.exists() {
            fs::write(&status, "").with_context(context)?;
        }
        let (folder, sources) = (self.folder.display(), self.folder.join("sources.list"));
        let list = format!(
            "deb [arch=amd64 signed-by={keyring}] {MIRROR} {} main\n",
            self.suite
        );
        let conf = format!(
            "Dir::State \"{folder}/state\";\n\
             Dir::State::status \"{folder}/state/status\";\n\
             Dir::Cache \"{folder}/cache\";\n\
             Dir::Etc::sourcelist \"{}\";\n\
             Dir::Etc::sourceparts \"-\";\n\
             Dir::Etc::preferences \"-\";\n\
             Dir::Etc::preferencesparts \"-\";\n\
             APT::Architecture \"amd64\";\n\
             APT::Default-Release \"\";\n\
             APT::Sandbox::User \"\";\n\
             APT::Update::Post-Invoke-Success {{ }};\n\
             Acquire::Languages \"none\";\n\
             Acquire::Retries \"3\";\n",
            sources.display()
        );
        cache::write_whole(&sources, list.as_bytes())?;
        cache::write_whole(&self.conf, conf.as_bytes())
    }

    fn lists_are_fresh(&self) -> bool {
        let age = |meta: fs::Metadata| SystemTime::now().duration_since(meta.modified().ok()?).ok();
        fs::metadata(self.updated())
            .ok()
            .and_then(age)
            .is_some_and(|age| age < LISTS_FRESH)
    }

    fn update(&self) -> Result<()> {
        let step = progress::step(format!("reading the package lists of Debian {}", self.suite));
        command::output(self.apt("apt-get").args(["--quiet", "--error-on=any", "update"]))
            .with_context(|| format!("cannot read {MIRROR} (suite {}): is there a network?", self.suite))?;
        fs::write(self.updated(), "")?;
        step.done(&format!("package lists of Debian {} read", self.suite));
        Ok(())
    }

    fn updated(&self) -> PathBuf {
        self.folder.join("updated")
    }

    fn apt(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        command.arg("-c").arg(&self.conf).env("LC_ALL", "C");
        command
    }
}

/// Whether this process may install packages.
pub fn is_root() -> bool {
    // SAFETY: geteuid has no argument and cannot fail.
    unsafe { libc::geteuid() == 0 }
}

fn parse_show(text: &str) -> Vec<Package> {
    text.split("\n\n").filter_map(parse_stanza).collect()
}

fn parse_stanza(stanza: &str) -> Option<Package> {
    let field = |name: &str| {
        stanza
            .lines()
            .find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))
            .map(str::trim)
    };
    let depends = field("Depends").unwrap_or_default();
    Some(Package {
        name: field("Package")?.to_owned(),
        version: field("Version")?.to_owned(),
        depends: depends
            .split(',')
            .filter_map(|one| one.split_whitespace().next())
            .map(str::to_owned)
            .collect(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHOW: &str = "\
Package: linux-image-cloud-amd64
Source: linux-signed-amd64 (7.3.4+1~bpo13+1)
Version: 7.3.4-1~bpo13+1
Installed-Size: 15
Depends: linux-image-7.3.4+deb13-cloud-amd64 (= 7.3.4-1~bpo13+1), kmod | busybox
Description: Linux for cloud (meta-package)
 Package: not a field, but a line of the description

Package: linux-image-cloud-amd64
Version: 6.12.1-1

";

    #[test]
    fn stanzas_become_packages() {
        let packages = parse_show(SHOW);
        assert_eq!(packages.len(), 2);
        assert_eq!(packages[0].name, "linux-image-cloud-amd64");
        assert_eq!(packages[0].version, "7.3.4-1~bpo13+1");
        assert_eq!(
            packages[0].depends,
            ["linux-image-7.3.4+deb13-cloud-amd64", "kmod"]
        );
        assert_eq!(packages[1].version, "6.12.1-1");
        assert!(packages[1].depends.is_empty());
    }

    #[test]
    fn nothing_printed_is_no_package() {
        assert!(parse_show("").is_empty());
        assert!(parse_show("N: Unable to locate package x\n").is_empty());
    }
}
