//! A copied checkout, with the `target` folder that came along, works on itself and not on the one it was copied from.

use std::env;
use std::fs;
use std::path::Path;
use std::process::{Command, Output};

/// The cargo that runs this test, without what it set for this test alone.
fn cargo(folder: &Path) -> Command {
    let mut cargo = Command::new(env::var_os("CARGO").expect("run by cargo"));
    cargo
        .current_dir(folder)
        .env_remove("CARGO_MANIFEST_DIR")
        .env_remove("CARGO_TARGET_DIR");
    cargo
}

fn write(path: &Path, text: &str) {
    fs::create_dir_all(path.parent().expect("a file is in a folder")).expect("made");
    fs::write(path, text).expect("written");
}

/// A package that needs no other.
fn manifest(name: &str, more: &str) -> String {
    format!("[package]\nname = \"{name}\"\nversion = \"0.0.0\"\nedition = \"2024\"\n{more}")
}

fn copy_with_times(from: &Path, to: &Path) {
    let status = Command::new("cp").arg("-a").args([from, to]).status();
    assert!(status.expect("cp runs").success());
}

fn said(output: &Output) -> String {
    format!(
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    )
}

#[test]
fn xtask_works_on_the_checkout_it_is_started_in() {
    let copy = tempfile::tempdir().expect("a temporary folder");
    let source = copy.path().join("xtask/src/main.rs");
    write(
        &copy.path().join("Cargo.toml"),
        "[workspace]\nmembers = [\"xtask\"]\n",
    );
    write(&copy.path().join("xtask/Cargo.toml"), &manifest("xtask", ""));
    write(&source, "fn main(){}\n");
    // Of this copy, and of nothing else, the format is wrong: the first thing that `ci` checks.
    let xtask = env::var_os("CARGO_BIN_EXE_xtask").expect("cargo names it");
    let output = Command::new(xtask)
        .args(["ci", "--no-test"])
        .current_dir(copy.path().join("xtask/src"))
        .env_remove("CARGO_MANIFEST_DIR")
        .output()
        .expect("xtask runs");
    let said = said(&output);
    assert!(!output.status.success(), "{said}");
    let source = source.canonicalize().expect("it is there");
    assert!(said.contains(&*source.to_string_lossy()), "{said}");
}

#[test]
fn a_copied_target_folder_embeds_the_objects_of_the_copy() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let (one, two) = (folder.path().join("one"), folder.path().join("two"));
    let here = Path::new("..");
    write(
        &one.join("Cargo.toml"),
        "[workspace]\nresolver = \"3\"\nmembers = [\"ublk-bpf\", \"tools/objects\"]\n",
    );
    let needs = "[build-dependencies]\nublk-bpf-objects.path = \"../tools/objects\"\n";
    write(&one.join("ublk-bpf/Cargo.toml"), &manifest("ublk-bpf", needs));
    write(
        &one.join("ublk-bpf/src/main.rs"),
        "fn main() { print!(\"{}\", include_str!(concat!(env!(\"OUT_DIR\"), \"/classifier.o\"))); }\n",
    );
    write(
        &one.join("tools/objects/Cargo.toml"),
        &manifest("ublk-bpf-objects", ""),
    );
    copy_with_times(&here.join("tools/objects/src"), &one.join("tools/objects/src"));
    copy_with_times(&here.join("ublk-bpf/build.rs"), &one.join("ublk-bpf/build.rs"));
    let embedded = |root: &Path| {
        let output = cargo(root).args(["run", "--quiet", "--offline"]).output();
        said(&output.expect("cargo runs"))
    };

    build_objects(&one, "of one");
    assert_eq!(embedded(&one), "of one");
    copy_with_times(&one, &two);
    assert_eq!(embedded(&two), "of one");
    build_objects(&two, "of two");
    assert_eq!(embedded(&two), "of two");
    assert_eq!(embedded(&one), "of one");
}

/// What `cargo xtask build-ebpf` leaves behind.
fn build_objects(root: &Path, contents: &str) {
    write(
        &root.join(ublk_bpf_objects::SOURCES).join("src/classifier.rs"),
        contents,
    );
    for name in ublk_bpf_objects::NAMES {
        write(&ublk_bpf_objects::path(root, name), contents);
    }
    let stamp = ublk_bpf_objects::fingerprint(root).expect("the sources are read");
    write(&ublk_bpf_objects::stamp(root), &stamp);
}
