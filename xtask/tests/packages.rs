//! The crates that a policy depends on can be published: each is packed as `cargo publish` packs it.

use std::env;
use std::fs;
use std::path::Path;
use std::process::Command;

/// Each before those that depend on it.
const CRATES: [&str; 3] = ["ublk-bpf-abi", "ublk-bpf-core", "ublk-bpf-policy"];
const ROOT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/..");

/// What the cargo that runs this test says to these arguments.
fn cargo(args: &[&str]) -> String {
    let mut cargo = Command::new(env::var_os("CARGO").expect("run by cargo"));
    let output = cargo
        .args(args)
        .current_dir(ROOT)
        .env_remove("CARGO_TARGET_DIR")
        .output()
        .expect("cargo runs");
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "cargo {args:?}: {said}");
    assert!(!said.contains("manifest has no"), "{said}");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

#[test]
fn the_crates_of_a_policy_can_be_packed() {
    let target = tempfile::tempdir().expect("a temporary folder");
    let target = target.path().to_str().expect("text");
    let mut args = vec![
        "package",
        "--no-verify",
        "--allow-dirty",
        "--offline",
        "--target-dir",
        target,
    ];
    args.extend(CRATES.iter().flat_map(|name| ["-p", name]));
    cargo(&args);
    for name in CRATES {
        let version = env!("CARGO_PKG_VERSION");
        let packed = Path::new(target).join(format!("package/{name}-{version}.crate"));
        assert!(
            packed.metadata().is_ok_and(|facts| facts.len() > 1000),
            "{}",
            packed.display()
        );
    }
}

#[test]
fn a_package_has_its_sources_and_nothing_of_the_checkout() {
    let list = cargo(&["package", "--list", "--allow-dirty", "-p", "ublk-bpf-policy"]);
    let files: Vec<&str> = list.lines().collect();
    for file in ["Cargo.toml", "README.md", "src/lib.rs", "src/testkit/mod.rs"] {
        assert!(files.contains(&file), "no {file} in {files:?}");
    }
    let is_outside = |file: &&&str| {
        !file.starts_with("src/")
            && fs::exists(Path::new(ROOT).join("ublk-bpf-ebpf/sdk").join(file)).is_ok_and(|there| !there)
    };
    let generated = ["Cargo.lock", "Cargo.toml.orig", ".cargo_vcs_info.json"];
    let others: Vec<_> = files
        .iter()
        .filter(is_outside)
        .filter(|file| !generated.contains(file))
        .collect();
    assert!(others.is_empty(), "{others:?}");
}
