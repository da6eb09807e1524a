//! The `ublk-bpf` command.

use std::process::ExitCode;

fn main() -> ExitCode {
    ublk_bpf::cli::main()
}
