//! The file with each case's recorded cost, and what it was measured with.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context as _, Result, bail, ensure};
use serde::Deserialize;

use bench_guest::guard as cases;
use host::{command, workspace};

/// The command that writes the baseline.
pub(super) const UPDATE: &str = "cargo xtask bench --guard --update";
/// The file, from the workspace's folder.
pub(super) const PATH: &str = "xtask/baseline.toml";

/// Instructions per I/O of each case: of all of them and no others.
pub(super) type Figures = BTreeMap<String, u32>;

/// What was measured, and with what.
#[derive(Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Baseline {
    #[serde(rename = "measured-with")]
    pub(super) environment: Environment,
    pub(super) instructions: Figures,
}

/// What instructions per I/O depend on beside the project: the kernel, the server's compiler, the CPU, the client.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Environment {
    pub(super) kernel: String,
    pub(super) rustc: String,
    pub(super) qemu: String,
    pub(super) fio: String,
}

impl Environment {
    /// That of this machine, whose fio the guest has too.
    pub(super) fn of(kernel: &str) -> Result<Self> {
        let version = |program: &str| {
            let said = command::output(Command::new(program).arg("--version"))?;
            let line = said.lines().next().map(str::trim);
            line.map(str::to_owned)
                .with_context(|| format!("`{program} --version` printed nothing"))
        };
        Ok(Self {
            kernel: kernel.to_owned(),
            rustc: version("rustc")?,
            qemu: version("qemu-system-x86_64")?,
            fio: version("fio")?,
        })
    }

    /// A line for each one that differs in `now`.
    pub(super) fn differences(&self, now: &Self) -> Vec<String> {
        self.named()
            .into_iter()
            .zip(now.named())
            .filter(|(was, is)| was != is)
            .map(|((name, was), (_, is))| format!("{name}: {is}, and {was} in {PATH}"))
            .collect()
    }

    fn named(&self) -> [(&'static str, &str); 4] {
        [
            ("kernel", &self.kernel),
            ("rustc", &self.rustc),
            ("qemu", &self.qemu),
            ("fio", &self.fio),
        ]
    }
}

/// The baseline of this repository.
pub(super) fn read() -> Result<Baseline> {
    let path = path()?;
    let text = fs::read_to_string(&path)
        .with_context(|| format!("cannot read {}: `{UPDATE}` writes it", path.display()))?;
    parse(&text).with_context(|| format!("{PATH} is no baseline: `{UPDATE}` writes it anew"))
}

/// Makes this the baseline.
pub(super) fn write(baseline: &Baseline) -> Result<PathBuf> {
    let path = path()?;
    fs::write(&path, format(baseline)).with_context(|| format!("cannot write {}", path.display()))?;
    Ok(path)
}

/// Reads the lines that a measurement prints.
pub(super) fn parse_figures(text: &str) -> Result<Figures> {
    let figures = toml::from_str(text).with_context(|| format!("these are no figures: {text}"))?;
    complete(figures)
}

fn path() -> Result<PathBuf> {
    Ok(workspace::root()?.join(PATH))
}

fn parse(text: &str) -> Result<Baseline> {
    let mut baseline: Baseline = toml::from_str(text).map_err(|error| {
        let line = error
            .span()
            .map_or(1, |span| 1 + text[..span.start].matches('\n').count());
        anyhow::anyhow!("line {line}: {}", error.message().replace('\n', ", "))
    })?;
    baseline.instructions = complete(baseline.instructions)?;
    Ok(baseline)
}

/// Refuses figures that are not of all cases, or of others.
fn complete(figures: Figures) -> Result<Figures> {
    for name in cases::names() {
        match figures.get(name) {
            Some(0) => bail!("the case {name} costs nothing"),
            Some(_) => {}
            None => bail!("the case {name} is missing"),
        }
    }
    for name in figures.keys() {
        ensure!(
            cases::names().any(|case| case == name),
            "there is no case {name}: {} are measured",
            cases::names().collect::<Vec<_>>().join(", ")
        );
    }
    Ok(figures)
}

fn format(baseline: &Baseline) -> String {
    let mut text = format!(
        "# Instructions per I/O of client, kernel and server together, which may not rise unnoticed: `cargo xtask test`\n\
         # compares with them. Written by `{UPDATE}`.\n\n[measured-with]\n"
    );
    for (name, version) in baseline.environment.named() {
        text.push_str(&format!("{name} = {version:?}\n"));
    }
    text.push_str("\n[instructions]\n");
    for (name, figure) in cases::names().filter_map(|name| Some((name, baseline.instructions.get(name)?))) {
        text.push_str(&format!("{name} = {figure}\n"));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn baseline() -> Baseline {
        let versions = ["7.3.4", "rustc 1.95.0 (x)", "QEMU \"7.2\"", "fio-3.33"].map(str::to_owned);
        let [kernel, rustc, qemu, fio] = versions;
        Baseline {
            environment: Environment {
                kernel,
                rustc,
                qemu,
                fio,
            },
            instructions: (9000..)
                .zip(cases::names())
                .map(|(figure, name)| (name.to_owned(), figure))
                .collect(),
        }
    }

    /// The line of one case.
    fn drop_line() -> String {
        format!("drop-4k = {}\n", baseline().instructions["drop-4k"])
    }

    fn refused(text: &str) -> String {
        format!("{:#}", parse(text).expect_err("refused"))
    }

    #[test]
    fn what_is_written_is_read_again() {
        assert_eq!(parse(&format(&baseline())).expect("parsed"), baseline());
    }

    #[test]
    fn the_committed_baseline_is_whole() {
        read().expect("read");
    }

    #[test]
    fn every_case_has_to_be_there_and_no_other() {
        let text = format(&baseline());
        let drop = drop_line();
        let without = text.replace(&drop, "");
        assert_eq!(refused(&without), "the case drop-4k is missing");
        let more = format!("{text}hit-8k = 1\n");
        assert!(refused(&more).starts_with("there is no case hit-8k: passthrough-brd-4k, "));
        let nothing = text.replace(&drop, "drop-4k = 0\n");
        assert_eq!(refused(&nothing), "the case drop-4k costs nothing");
    }

    #[test]
    fn a_file_that_is_none_is_refused_with_the_line() {
        let text = format(&baseline());
        let word = refused(&text.replace(&drop_line(), "drop-4k = \"few\"\n"));
        assert!(word.starts_with("line ") && word.contains("u32"), "{word}");
        assert!(refused(&text.replace("fio = ", "fox = ")).contains("fox"));
        assert!(refused(&text.replace("qemu = ", "#")).contains("qemu"));
    }

    #[test]
    fn what_a_measurement_prints_is_read() {
        let lines: String = cases::names().map(|name| format!("{name} = 7000\n")).collect();
        assert_eq!(parse_figures(&lines).expect("parsed")["hit-64k"], 7000);
        assert!(parse_figures("hit-64k = 7000\n").is_err());
        assert!(parse_figures("fio: nothing").is_err());
    }

    #[test]
    fn differences_are_told_by_name() {
        let was = baseline().environment;
        assert!(was.differences(&was).is_empty());
        let now = Environment {
            kernel: "7.4.0".to_owned(),
            ..was.clone()
        };
        assert_eq!(
            was.differences(&now),
            ["kernel: 7.4.0, and 7.3.4 in xtask/baseline.toml"]
        );
    }
}
