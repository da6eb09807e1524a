//! A guest on the instruction clock in which the benchmark runs itself, for those parts whose figures the host wants.

use anyhow::{Result, ensure};

use host::{progress, setup};
use vm::{Config, Inherit, Outcome, Sink};

/// A guest whose clock counts instructions.
pub(super) struct Guest {
    pub(super) cpus: u32,
    /// As qemu takes it: `2G`.
    pub(super) memory: &'static str,
}

impl Guest {
    /// Runs `bench --here` with these options there, and gives what it printed.
    pub(super) fn output(&self, what: &str, options: &[&str]) -> Result<String> {
        setup::guest_tools()?;
        let built = vec![super::this_program()?, vm::server()?];
        let kernel = setup::guest()?;
        let config = Config {
            cpus: self.cpus,
            memory: self.memory.to_owned(),
            icount: true,
            built,
            ..super::machine()
        };
        progress::note(&format!(
            "booting Linux {} on the instruction clock {what}",
            kernel.release
        ));
        let options: Vec<String> = options.iter().map(|&option| option.to_owned()).collect();
        let mut said = Said::default();
        let outcome = super::in_guest(&config, &kernel, &options, &mut said)?;
        ensure!(
            outcome == Outcome::Exited(0),
            "cannot measure {what}: {}",
            vm::describe(&outcome)
        );
        Ok(String::from_utf8_lossy(&said.0).into_owned())
    }
}

/// Passes everything on, and keeps what is printed.
#[derive(Default)]
struct Said(Vec<u8>);

impl Sink for Said {
    fn out(&mut self, bytes: &[u8]) {
        self.0.extend_from_slice(bytes);
        Inherit.out(bytes);
    }

    fn err(&mut self, bytes: &[u8]) {
        Inherit.err(bytes);
    }
}
