//! `ublk-bpf policy new`.

use std::env;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};

use crate::cli::error::Usage;
use crate::cli::output::print_line;
use crate::path_text::ShowPath as _;

/// Make a crate for a policy in a new folder, with a test
///
/// It depends on the SDK of the checkout that this program or the current folder is in, or else on the released one.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// The folder; its last part is the crate's name
    #[arg(value_name = "NAME")]
    path: PathBuf,
    /// The folder of the SDK, `ublk-bpf-ebpf/sdk` of a checkout
    #[arg(long, value_name = "DIR")]
    sdk: Option<PathBuf>,
}

/// The files of the crate, with `{name}` and `{sdk}` to be filled in.
const FILES: [(&str, &str); 3] = [
    ("Cargo.toml", include_str!("../../../template/manifest.toml")),
    ("src/main.rs", include_str!("../../../template/main.rs")),
    (".gitignore", "/target\n"),
];
/// Where a checkout has the SDK.
const SDK: &str = "ublk-bpf-ebpf/sdk";
/// Names that cargo takes for no package, and those of the crates that a policy is built with.
const TAKEN: [&str; 7] = [
    "test",
    "core",
    "std",
    "alloc",
    "proc_macro",
    "ublk-bpf-policy",
    "target",
];

/// Makes the crate, and says how to go on.
pub(super) fn run(args: &Args) -> anyhow::Result<()> {
    let name = name(&args.path)?;
    let sdk = sdk(args)?;
    let shown = args.path.shown();
    // One step, so that nothing that is there is touched.
    if let Err(error) = fs::create_dir(&args.path) {
        match error.kind() {
            io::ErrorKind::AlreadyExists => bail!("{shown} exists already: name a new folder"),
            _ => return Err(error).with_context(|| format!("cannot make {shown}")),
        }
    }
    for (file, template) in FILES {
        let path = args.path.join(file);
        let text = template.replace("{name}", name).replace("{sdk}", &sdk);
        let written =
            fs::create_dir_all(path.parent().unwrap_or(&path)).and_then(|()| fs::write(&path, text));
        written.with_context(|| format!("cannot write {}", path.shown()))?;
    }
    print_line(format_args!(
        "made {shown}, a policy with ublk-bpf-policy = {sdk}\n\
         next: cd {shown} && cargo test && ublk-bpf policy check ."
    ))?;
    Ok(())
}

/// The crate's name: the last part of its path.
fn name(path: &Path) -> Result<&str, Usage> {
    let name = path
        .file_name()
        .and_then(|name| name.to_str())
        .unwrap_or_default();
    let is_start = name.starts_with(|c: char| c.is_ascii_lowercase());
    let is_rest = name
        .chars()
        .all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || "-_".contains(c));
    if is_start && is_rest && name.len() <= 64 && !TAKEN.contains(&name) {
        return Ok(name);
    }
    Err(Usage(format!(
        "`{}` cannot be the name of a policy's crate: want at most 64 lower-case letters, digits, - and _, a letter \
         first, and none of {}",
        name.escape_debug(),
        TAKEN.join(", ")
    )))
}

/// The dependency on the SDK, as a value of TOML.
fn sdk(args: &Args) -> anyhow::Result<String> {
    let found = match &args.sdk {
        Some(folder) => Some(folder.clone()),
        None => checkout().map(|root| root.join(SDK)),
    };
    let Some(folder) = found else {
        return Ok(format!("\"{}\"", env!("CARGO_PKG_VERSION")));
    };
    if !folder.join("Cargo.toml").is_file() {
        bail!(
            "no SDK in {}: --sdk takes the folder {SDK} of a checkout of ublk-bpf",
            folder.shown()
        );
    }
    let folder = folder.canonicalize().context("cannot resolve --sdk")?;
    let path = folder.to_str().with_context(|| {
        format!(
            "the path of the SDK is no text, and TOML takes no other: {}",
            folder.shown()
        )
    })?;
    // A string of JSON is one of TOML.
    Ok(format!("{{ path = {} }}", serde_json::to_string(path)?))
}

/// The checkout that the current folder or this program is in.
fn checkout() -> Option<PathBuf> {
    let places = [env::current_dir(), env::current_exe()];
    let mut folders = places.iter().flatten().flat_map(|place| place.ancestors());
    let is_root = |folder: &&Path| folder.join(SDK).join("Cargo.toml").is_file();
    folders.find(is_root).map(Path::to_path_buf)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_crate_is_named_by_its_folder() {
        assert_eq!(name(Path::new("/srv/second-read")).unwrap(), "second-read");
        for wrong in ["", "..", "2nd", "Second", "a b", "a\"", "core", "-a"] {
            let said = name(Path::new(wrong)).unwrap_err().to_string();
            assert!(said.contains("cannot be the name"), "{said}");
        }
    }

    #[test]
    fn the_manifest_is_one() {
        let text = FILES[0].1.replace("{name}", "n").replace("{sdk}", "\"1\"");
        let manifest: toml::Table = text.parse().unwrap();
        assert_eq!(manifest["package"]["name"].as_str(), Some("n"));
        assert_eq!(manifest["dependencies"]["ublk-bpf-policy"].as_str(), Some("1"));
    }
}
