//! `ublk-bpf policy check`.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, bail};
use serde::Serialize;
use ublk_bpf_policy_build::{BuildError, Tools, build};

use crate::backend::parse_size;
use crate::cli::args::OutputFormat;
use crate::cli::error::one_line;
use crate::cli::output::print_line;
use crate::cli::table::print_facts;
use crate::log;
use crate::path_text::ShowPath as _;
use crate::policy::{self, Judgement, MapFacts, ObjectFacts, POLICY_SECTION, Policy, PolicyObject, Verified};

/// Say what a policy is made of and whether the kernel takes it, without a device
///
/// The verifier is asked if this process may load BPF programs, as root may, and this kernel can run the classifier;
/// otherwise the last line says why it was not. The exit status is 0 if nothing was found wrong, and 1 otherwise.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// A BPF object file, or the folder of a policy's crate, which is built first
    #[arg(value_name = "FILE.o|CRATE")]
    policy: PathBuf,
    /// Memory limit for the maps
    #[arg(long, value_name = "SIZE", value_parser = parse_size, default_value = "64M")]
    policy_memory: u64,
    #[command(flatten)]
    format: OutputFormat,
}

/// What was found, as JSON.
#[derive(Serialize)]
struct Report<'a> {
    file: String,
    #[serde(flatten)]
    facts: &'a ObjectFacts,
    /// Instructions that the verifier processed; none if it refused the policy or was not asked.
    verified_instructions: Option<u32>,
    /// Why the verifier refuses it.
    refused: Option<String>,
    /// Why the verifier was not asked.
    not_asked: Option<String>,
}

/// Checks and reports.
pub(super) fn run(args: &Args) -> anyhow::Result<()> {
    let path = match args.policy.is_dir() {
        true => built(&args.policy)?,
        false => args.policy.clone(),
    };
    let object = PolicyObject::open(&path, args.policy_memory)?;
    let file = path.shown().to_string();
    let Some(facts) = object.facts() else {
        bail!("{file} cannot be a policy: its sections contradict each other; build it again");
    };
    let judgement = policy::try_policy(&Policy::Object(object));
    if args.format.json {
        print_line(serde_json::to_string_pretty(&report(file, &facts, &judgement))?)?;
    } else {
        print_facts(&table(file, &facts, &judgement))?;
    }
    match judgement {
        Judgement::Verified(verified) => verified.warning().iter().for_each(|warning| {
            log::say(format_args!("warning: {warning}"));
        }),
        Judgement::NotAsked(_) => {}
        Judgement::Refused(error) => return Err(error.into()),
    }
    Ok(())
}

/// Builds the crate in this folder, and gives its object: `NAME.o` in its target folder.
fn built(folder: &Path) -> anyhow::Result<PathBuf> {
    if !folder.join("Cargo.toml").is_file() {
        return Err(BuildError::NoManifest(folder.join("Cargo.toml")).into());
    }
    let mut cargo = Command::new("cargo");
    cargo.current_dir(folder);
    let programs = build(cargo, &folder.canonicalize()?, &Tools::find()?, None)?;
    let [program] = &programs[..] else {
        bail!(
            "the crate {} has {} programs: check the object of one of them",
            folder.shown(),
            programs.len()
        );
    };
    // TARGET/bpfel-unknown-none/bpf/NAME
    let target = program
        .ancestors()
        .nth(3)
        .context("cargo names no target folder")?;
    let name = program.file_name().context("cargo names no program")?;
    let object = target.join(name).with_extension("o");
    fs::copy(program, &object).with_context(|| format!("cannot write {}", object.shown()))?;
    Ok(object)
}

fn report<'a>(file: String, facts: &'a ObjectFacts, judgement: &Judgement) -> Report<'a> {
    let mut report = Report {
        file,
        facts,
        verified_instructions: None,
        refused: None,
        not_asked: None,
    };
    match judgement {
        Judgement::Verified(Verified { instructions }) => report.verified_instructions = Some(*instructions),
        Judgement::Refused(error) => report.refused = Some(error.to_string()),
        Judgement::NotAsked(error) => report.not_asked = Some(error.to_string()),
    }
    report
}

fn table(file: String, facts: &ObjectFacts, judgement: &Judgement) -> Vec<(&'static str, String)> {
    let mut rows = vec![
        ("object", file),
        (
            "entry",
            format!(
                "policy, in section {POLICY_SECTION}: {} instructions, {} functions",
                facts.instructions, facts.functions
            ),
        ),
        ("interface", interface(facts)),
        ("licence", facts.license.clone()),
        ("helpers", or_none(facts.helpers.join(", "))),
    ];
    let names = std::iter::once("maps").chain(std::iter::repeat(""));
    rows.extend(names.zip(facts.maps.iter().map(map)));
    if facts.maps.is_empty() {
        rows.push(("maps", or_none(String::new())));
    }
    rows.extend(facts.panics.iter().map(|place| ("may panic", place.clone())));
    let named = facts.reasons.iter().map(|(code, name)| format!("{code} {name}"));
    rows.push(("reasons", or_none(named.collect::<Vec<_>>().join(", "))));
    rows.push(("verifier", verifier(judgement)));
    rows
}

fn interface(facts: &ObjectFacts) -> String {
    match facts.abi {
        Some(version) => format!("version {version}"),
        None => "it states no version, which the SDK would have it do".to_owned(),
    }
}

fn map(map: &MapFacts) -> String {
    let of = |name: &Option<String>, size: u32| match name {
        Some(name) => format!("{name} ({size} bytes)"),
        None => format!("{size} bytes"),
    };
    format!(
        "{}: {} of {}, {} => {}, {} KiB",
        map.name,
        map.kind,
        map.entries,
        of(&map.key, map.key_size),
        of(&map.value, map.value_size),
        map.bytes.div_ceil(1024)
    )
}

fn verifier(judgement: &Judgement) -> String {
    match judgement {
        Judgement::Verified(verified) => format!("takes it: {} instructions verified", verified.instructions),
        Judgement::Refused(_) => "refuses it".to_owned(),
        Judgement::NotAsked(error) => format!("not asked: {}", one_line(&anyhow::anyhow!("{error}"))),
    }
}

fn or_none(text: String) -> String {
    if text.is_empty() { "none".to_owned() } else { text }
}
