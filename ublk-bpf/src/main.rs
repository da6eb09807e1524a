//! The `ublk-bpf` command.
fn main() {}
