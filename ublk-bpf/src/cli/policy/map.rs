//! `ublk-bpf policy map`.

use clap::Subcommand;
use serde_json::{Value, json};

use crate::cli::args::DeviceArg;
use crate::cli::output::print_line;
use crate::cli::table;
use crate::policy::{Disk, OwnEntry, OwnMap, OwnMapError, PinDir};
use crate::registry::Record;

const EXAMPLES: &str = "\
Examples:
  ublk-bpf policy map 0                                          the maps of the device's policy
  ublk-bpf policy map 0 tiers list
  ublk-bpf policy map 0 tiers set /system.slice/backup.service tier=1
  ublk-bpf policy map 0 ranges set 0 first_sector=0 last_sector=2047 rule=1
  ublk-bpf policy map 0 read get 4711

A number may have a unit (4K, 1GiB); as a sector it is the one at that offset. A cgroup is its path.";

/// Read and set what a device's policy keeps in its maps
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct Args {
    #[command(flatten)]
    device: DeviceArg,
    /// The map; without it, list the maps
    #[arg(value_name = "NAME")]
    name: Option<String>,
    /// Print JSON
    #[arg(long, global = true)]
    json: bool,
    #[command(subcommand)]
    action: Option<MapAction>,
}

#[derive(Debug, Subcommand)]
enum MapAction {
    /// Print all entries, of an array those that are not zero
    List {
        /// Also those that are zero
        #[arg(long)]
        all: bool,
    },
    /// Print the value of a key
    Get {
        /// A number, a text, a cgroup's path, or FIELD=VALUE,FIELD=VALUE
        #[arg(allow_hyphen_values = true)]
        key: String,
    },
    /// Set the value of a key, or some of its fields
    Set {
        /// As for `get`
        #[arg(allow_hyphen_values = true)]
        key: String,
        /// FIELD=VALUE for each field to set, or the value alone if it has no fields
        #[arg(value_name = "VALUE", required = true, allow_hyphen_values = true)]
        values: Vec<String>,
    },
    /// Remove a key
    Remove {
        /// As for `get`
        #[arg(allow_hyphen_values = true)]
        key: String,
    },
}

/// Reads or sets.
pub(super) fn run(args: &Args) -> anyhow::Result<()> {
    Record::read(args.device.id)?;
    let pins = PinDir::open(&Disk::ublk(args.device.id.number()))?;
    let Some(name) = &args.name else {
        return list_maps(&pins, args.json);
    };
    let map = OwnMap::open(&pins, name)?;
    match &args.action {
        None => list(&map, args.json, false),
        Some(MapAction::List { all }) => list(&map, args.json, *all),
        Some(MapAction::Get { key }) => value(&map.get(key)?, args.json),
        Some(MapAction::Set { key, values }) => value(&map.set(key, values)?, args.json),
        Some(MapAction::Remove { key }) => Ok(map.remove(key)?),
    }
}

fn list_maps(pins: &PinDir, is_json: bool) -> anyhow::Result<()> {
    let mut rows = Vec::new();
    for name in OwnMap::names(pins)? {
        let (kind, entries) = match OwnMap::open(pins, &name) {
            Ok(map) => map.kind(),
            Err(OwnMapError::NoEntries { kind, .. }) => (kind, 0),
            Err(OwnMapError::Untyped { .. }) => ("of a type that is not known".to_owned(), 0),
            Err(error) => return Err(error.into()),
        };
        rows.push((name, kind, entries));
    }
    if is_json {
        let rows = rows
            .iter()
            .map(|(name, kind, entries)| json!({"name": name, "kind": kind, "entries": entries}));
        print_line(serde_json::to_string_pretty(&rows.collect::<Vec<_>>())?)?;
        return Ok(());
    }
    let rows: Vec<_> = rows
        .into_iter()
        .map(|(name, kind, entries)| vec![name, entries.to_string(), kind])
        .collect();
    table::print(&["MAP", "ENTRIES", "KIND"], &rows)?;
    Ok(())
}

fn list(map: &OwnMap, is_json: bool, all: bool) -> anyhow::Result<()> {
    let (kind, _) = map.kind();
    let entries = map.list()?;
    let total = entries.len();
    let shown: Vec<OwnEntry> = entries
        .into_iter()
        .filter(|entry| all || !entry.is_zero || !kind.ends_with("array"))
        .collect();
    if is_json {
        let entries: Vec<Value> = shown.iter().map(json_of).collect();
        print_line(serde_json::to_string_pretty(&entries)?)?;
        return Ok(());
    }
    let rows: Vec<_> = shown
        .iter()
        .map(|entry| vec![entry.key.clone(), entry.value.clone()])
        .collect();
    table::print(&["KEY", "VALUE"], &rows)?;
    if shown.len() < total {
        print_line(format_args!("{} more entries are zero", total - shown.len()))?;
    }
    Ok(())
}

fn value(entry: &OwnEntry, is_json: bool) -> anyhow::Result<()> {
    match is_json {
        true => print_line(serde_json::to_string_pretty(&json_of(entry))?)?,
        false => print_line(crate::cli::error::plain(&entry.value))?,
    }
    Ok(())
}

fn json_of(entry: &OwnEntry) -> Value {
    json!({"key": entry.key_json, "value": entry.value_json})
}
