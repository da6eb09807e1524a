//! Writes the manual pages and the shells' completions of `ublk-bpf` to a folder, for packages: `cargo xtask dist`.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use clap::Command;
use clap_complete::Shell;
use clap_mangen::Man;

/// The manual's section of system administration.
const SECTION: &str = "8";

fn main() -> io::Result<()> {
    let folder = std::env::args_os().nth(1).map(PathBuf::from);
    let folder = folder.ok_or_else(|| io::Error::other("name the folder to write to"))?;
    let pages = folder.join("man");
    let completions = folder.join("completions");
    fs::create_dir_all(&pages)?;
    fs::create_dir_all(&completions)?;
    let mut command = ublk_bpf::cli::command();
    for shell in [Shell::Bash, Shell::Zsh, Shell::Fish] {
        clap_complete::generate_to(shell, &mut command, "ublk-bpf", &completions)?;
    }
    let mut command = ublk_bpf::cli::command().disable_help_subcommand(true);
    command.build();
    write_page(&command, &pages)
}

/// The page of a command, and one for each of its subcommands.
fn write_page(command: &Command, folder: &Path) -> io::Result<()> {
    Man::new(command.clone()).section(SECTION).generate_to(folder)?;
    command
        .get_subcommands()
        .filter(|subcommand| !subcommand.is_hide_set())
        .try_for_each(|subcommand| write_page(subcommand, folder))
}
