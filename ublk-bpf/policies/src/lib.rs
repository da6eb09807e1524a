//! The built-in policies on the host: the sources of the BPF objects, compiled for a replay of traces.

#![expect(
    clippy::duplicate_mod,
    reason = "each policy is a program of its own, with its own copy of what it shares"
)]

use ublk_bpf_policy::native::Native;

#[path = "../../../ublk-bpf-ebpf/src/auto.rs"]
mod auto;
#[path = "../../../ublk-bpf-ebpf/src/drop_discard.rs"]
mod drop_discard;
#[path = "../../../ublk-bpf-ebpf/src/frugal.rs"]
mod frugal;
#[path = "../../../ublk-bpf-ebpf/src/lru.rs"]
mod lru;
#[path = "../../../ublk-bpf-ebpf/src/passthrough.rs"]
mod passthrough;
#[path = "../../../ublk-bpf-ebpf/src/scan_resistant.rs"]
mod scan_resistant;

/// The policies by name. Those that depend on what a replay does not know are left out: which blocks were never written
/// (`sparse`), and a map that an operator sets (`fault`).
pub const ALL: [(&str, Native); 6] = [
    ("passthrough", passthrough::NATIVE_POLICY),
    ("drop-discard", drop_discard::NATIVE_POLICY),
    ("lru", lru::NATIVE_POLICY),
    ("scan-resistant", scan_resistant::NATIVE_POLICY),
    ("auto", auto::NATIVE_POLICY),
    ("frugal", frugal::NATIVE_POLICY),
];
