//! What to do about the faults that authors of policies meet, by what cargo, rustc and bpf-linker say.

const NO_STD: &str = "a policy has no `std` on BPF: begin src/main.rs with \
                      `#![cfg_attr(target_arch = \"bpf\", no_std, no_main)]`";
const STD_USED: &str = "BPF has no `std` and no allocation: use `core`, a map (`map!`) in place of a collection, and a \
                        reason (`reasons!`) in place of output";
const SIGNATURE: &str = "`policy!(f)` takes a function `fn(&Request) -> Decision`: give `f` this signature";
const EDITION: &str = "cargo chose a dependency for a newer compiler, as editions before 2024 do: write \
                       `edition = \"2024\"` and `rust-version = \"1.95\"` in Cargo.toml, and remove Cargo.lock";
const NO_SDK: &str =
    "the crate does not depend on the SDK: add `ublk-bpf-policy` to [dependencies] in Cargo.toml";
const LINKER: &str = "bpf-linker is missing: run `cargo xtask setup` in a checkout of ublk-bpf";
const RUST_SRC: &str = "the sources of `core` are missing: run `rustup component add rust-src`";
const ARGUMENTS: &str = "a function of BPF has at most five arguments, in registers: pass a reference to a structure, or \
                         mark the function `#[inline(always)]`";
const STACK: &str = "a policy has 512 bytes of stack: keep larger data in a map";

/// What to do, by words that are all in what was said.
const HINTS: [(&[&str], &str); 15] = [
    (&["can't find crate for `std`"], NO_STD),
    (&["using `fn main` requires the standard library"], NO_STD),
    (&["unresolved module or unlinked crate `std`"], STD_USED),
    (&["use of undeclared crate or module `std`"], STD_USED),
    (&["cannot find macro `println`"], STD_USED),
    (&["cannot find macro `eprintln`"], STD_USED),
    (&["expected fn pointer", "policy!("], SIGNATURE),
    (&["no method named `pack`"], SIGNATURE),
    (
        &["is not supported by the following package", "requires rustc"],
        EDITION,
    ),
    (&["unlinked crate `ublk_bpf_policy`"], NO_SDK),
    (&["linker", "bpf-linker", "not found"], LINKER),
    (&["unable to build with the standard library"], RUST_SRC),
    (&["too many args to"], ARGUMENTS),
    (&["stack arguments are not supported"], ARGUMENTS),
    (&["Looks like the BPF stack limit is exceeded"], STACK),
];

/// What to do about what cargo, rustc and bpf-linker say, as far as the faults are known. Each once, in the order of the
/// table.
#[must_use]
pub fn hints(said: &str) -> Vec<&'static str> {
    let mut found: Vec<&str> = Vec::new();
    for (words, hint) in HINTS {
        if words.iter().all(|word| said.contains(word)) && !found.contains(&hint) {
            found.push(hint);
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What rustc 1.95, its cargo and bpf-linker 0.10.3 say.
    const SAID: [(&str, &[&str]); 8] = [
        (
            "error[E0463]: can't find crate for `std`\n  |\n  = note: the `bpfel-unknown-none` target may not support the standard library",
            &[NO_STD],
        ),
        ("error: using `fn main` requires the standard library", &[NO_STD]),
        (
            "error[E0433]: cannot find module or crate `std` in this scope: use of unresolved module or unlinked crate `std`\n\
             error: cannot find macro `println` in this scope",
            &[STD_USED],
        ),
        (
            "46 | policy!(decide);\n   | ^^^^^^^^^^^^^^^ expected fn pointer, found fn item\n   |\n   \
             = note: expected fn pointer `for<'a> fn(&'a ublk_bpf_policy::Request) -> Decision`\n\
             found fn item `for<'a> fn(&'a ublk_bpf_policy::Request) -> bool {decide}`",
            &[SIGNATURE],
        ),
        (
            "error: rustc 1.95.0 is not supported by the following packages:\n  aya-ebpf@0.3.0 requires rustc 1.98",
            &[EDITION],
        ),
        ("error: linker `/nowhere/bpf-linker` not found", &[LINKER]),
        (
            "error: Looks like the BPF stack limit is exceeded. Please move large on stack variables into BPF per-cpu array map.",
            &[STACK],
        ),
        ("error[E0308]: mismatched types", &[]),
    ];

    #[test]
    fn known_faults_have_hints() {
        for (said, wanted) in SAID {
            assert_eq!(hints(said), wanted, "{said}");
        }
    }
}
