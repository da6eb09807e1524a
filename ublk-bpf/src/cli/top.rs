//! `ublk-bpf top`.

mod sample;
mod screen;
mod view;

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::io::{IsTerminal as _, stdin, stdout};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use ratatui::crossterm::event::{self, Event, KeyCode, KeyEvent, KeyEventKind, KeyModifiers};
use signal_hook::consts::{SIGHUP, SIGTERM};
use signal_hook::flag;

use super::args::{DeviceArg, device};
use super::error::one_line;
use crate::control::DeviceId;
use crate::observe::{self, Interval, Live, Stats};
use crate::policy::{Disk, builtin, cgroup_path};
use crate::registry::{Record, record};
use sample::Sample;
use screen::Screen;
use view::{Busiest, Menu, Row, View};

/// How often everything is read, and how often the sample is emptied.
const INTERVAL: Duration = Duration::from_secs(1);
const TICK: Duration = Duration::from_millis(50);
/// Kernel memory for the sample, and the requests that are sampled in a second.
const RING_BYTES: u32 = 1 << 20;
const SAMPLED: u64 = 2000;
/// Seconds that are kept of a device's rates.
const HISTORY: usize = 120;

/// Show the devices and what they do, on the whole terminal
///
/// Rates, hits and bandwidth are the counters'. Latencies, the map of the device and the busiest tasks are those of a
/// sample of the selected device's requests, taken as long as this runs. Keys: tab or arrows select a device, s sorts
/// the tasks, p swaps the policy, q ends.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// The device that is selected first: 0, ublkb0, /dev/ublkb0 or its name
    #[arg(value_name = "ID", value_parser = device)]
    id: Option<DeviceId>,
}

/// Shows the devices until the user ends it.
pub(super) fn run(args: &Args) -> anyhow::Result<()> {
    ensure!(
        stdin().is_terminal() && stdout().is_terminal(),
        "top needs a terminal for its input and output: `ublk-bpf stats ID --watch` writes to a file or pipe"
    );
    let mut top = Top::new(args.id)?;
    let ended = Arc::new(AtomicBool::new(false));
    for signal in [SIGTERM, SIGHUP] {
        flag::register(signal, Arc::clone(&ended)).context("cannot catch signals")?;
    }
    // Restores the terminal when it is dropped, and in a panic.
    let mut screen = Screen::open()?;
    let mut next = Instant::now() + INTERVAL;
    while !top.is_over && !ended.load(Relaxed) {
        screen.draw(&top.view())?;
        if event::poll(TICK)?
            && let Event::Key(key) = event::read()?
        {
            top.key(key);
        }
        top.take_sample();
        if Instant::now() >= next {
            next = Instant::now() + INTERVAL;
            top.read()?;
        }
    }
    Ok(())
}

/// What is known of a device.
struct Watched {
    id: DeviceId,
    policy: String,
    sectors: u64,
    stats: Stats,
    at: Instant,
    interval: Option<Interval>,
    /// Requests of each second, the last one last.
    history: Vec<u64>,
}

struct Top {
    devices: Vec<Watched>,
    selected: usize,
    live: Option<(DeviceId, Live)>,
    sample: Sample,
    /// The paths of the cgroups of tasks, as far as they were there when they were first seen.
    cgroups: BTreeMap<u64, Option<String>>,
    busiest: Busiest,
    menu: Option<Menu>,
    /// What the last key did, or why it failed.
    message: String,
    is_over: bool,
}

impl Top {
    fn new(wanted: Option<DeviceId>) -> anyhow::Result<Self> {
        let mut top = Self {
            devices: Vec::new(),
            selected: 0,
            live: None,
            sample: Sample::default(),
            cgroups: BTreeMap::new(),
            busiest: Busiest::Requests,
            menu: None,
            message: String::new(),
            is_over: false,
        };
        top.read()?;
        if let Some(id) = wanted {
            // Says better than an empty screen that there is no such device.
            Record::read(id)?;
            top.selected = top.devices.iter().position(|of| of.id == id).unwrap_or(0);
            top.follow();
        }
        if top.devices.is_empty() {
            bail!("there is no device to show: `ublk-bpf run` makes one");
        }
        Ok(top)
    }

    /// Reads the counters of all devices, and samples the selected one at a rate that fits its requests.
    fn read(&mut self) -> anyhow::Result<()> {
        let selected = self.devices.get(self.selected).map(|of| of.id);
        let before: BTreeMap<u32, Watched> = self.devices.drain(..).map(|of| (of.id.number(), of)).collect();
        let mut before = before;
        for id in record::ids()? {
            let (Ok(record), Ok(stats)) = (Record::read(id), observe::stats(&Disk::ublk(id.number()))) else {
                // It ended meanwhile, or another user's pins are not readable.
                continue;
            };
            self.devices
                .push(watched(id, &record, stats, before.remove(&id.number())));
        }
        let found = self.devices.iter().position(|of| Some(of.id) == selected);
        self.selected = found.unwrap_or(0);
        self.sample.age();
        self.name_cgroups();
        self.follow();
        Ok(())
    }

    /// Looks for the paths of cgroups that are new.
    fn name_cgroups(&mut self) {
        for (_, cgroup, _) in self.sample.tasks(|load| load.requests) {
            self.cgroups.entry(cgroup).or_insert_with(|| cgroup_path(cgroup));
        }
    }

    /// Samples the selected device.
    fn follow(&mut self) {
        let Some(device) = self.devices.get(self.selected) else {
            self.live = None;
            return;
        };
        if self
            .live
            .as_ref()
            .is_none_or(|(id, live)| *id != device.id || !live.is_there())
        {
            self.sample = Sample::default();
            let disk = Disk::ublk(device.id.number());
            self.live = match Live::start(&disk, device.sectors, RING_BYTES) {
                Ok(live) => Some((device.id, live)),
                Err(error) => {
                    self.message = format!("no sample: {error}");
                    None
                }
            };
        }
        let every = device
            .history
            .last()
            .map_or(1, |&requests| requests.div_ceil(SAMPLED).max(1));
        self.sample.every = u32::try_from(every).unwrap_or(u32::MAX);
        if let Some((_, live)) = &mut self.live
            && let Err(error) = live.sample(self.sample.every)
        {
            self.message = format!("no sample: {error}");
        }
    }

    fn take_sample(&mut self) {
        let Some(device) = self.devices.get(self.selected) else {
            return;
        };
        if let Some((_, live)) = &mut self.live {
            for ended in live.by_ref() {
                self.sample.add(&ended, device.sectors);
            }
        }
    }

    fn view(&self) -> View<'_> {
        let selected = self.devices.get(self.selected);
        View {
            rows: self.devices.iter().map(row).collect(),
            selected: self.selected,
            history: selected.map_or(&[], |of| &of.history),
            interval: selected.and_then(|of| of.interval.as_ref()),
            server: selected.map(|of| of.stats.server.0).unwrap_or_default(),
            sample: &self.sample,
            cgroups: &self.cgroups,
            busiest: self.busiest,
            menu: self.menu.as_ref(),
            message: &self.message,
        }
    }

    fn key(&mut self, key: KeyEvent) {
        if key.kind != KeyEventKind::Press {
            return;
        }
        self.message.clear();
        let is_ctrl_c = key.code == KeyCode::Char('c') && key.modifiers.contains(KeyModifiers::CONTROL);
        if is_ctrl_c {
            self.is_over = true;
        } else if self.menu.is_some() {
            self.menu_key(key.code);
        } else {
            self.main_key(key.code);
        }
    }

    fn main_key(&mut self, key: KeyCode) {
        let count = self.devices.len().max(1);
        match key {
            KeyCode::Char('q') | KeyCode::Esc => self.is_over = true,
            KeyCode::Tab | KeyCode::Down | KeyCode::Right => self.select((self.selected + 1) % count),
            KeyCode::BackTab | KeyCode::Up | KeyCode::Left => {
                self.select((self.selected + count - 1) % count);
            }
            KeyCode::Char('s') => self.busiest = self.busiest.next(),
            KeyCode::Char('p') => {
                let names = builtin().iter().map(|of| of.name).collect();
                self.menu = Some(Menu { names, at: 0 });
            }
            _ => {}
        }
    }

    fn select(&mut self, device: usize) {
        self.selected = device;
        self.follow();
    }

    fn menu_key(&mut self, key: KeyCode) {
        let Some(menu) = &mut self.menu else {
            return;
        };
        let count = menu.names.len().max(1);
        match key {
            KeyCode::Down => menu.at = (menu.at + 1) % count,
            KeyCode::Up => menu.at = (menu.at + count - 1) % count,
            KeyCode::Enter => {
                let name = menu.names.get(menu.at).copied();
                self.menu = None;
                if let Some(name) = name {
                    self.swap(name);
                }
            }
            KeyCode::Esc | KeyCode::Char('q' | 'p') => self.menu = None,
            _ => {}
        }
    }

    fn swap(&mut self, name: &str) {
        let Some(id) = self.devices.get(self.selected).map(|of| of.id) else {
            return;
        };
        self.message = match super::policy::swap(DeviceArg { id }, OsStr::new(name), 0) {
            Ok((name, verified)) => {
                let instructions = verified.instructions;
                format!("ublkb{id}: policy {name}, {instructions} instructions verified")
            }
            Err(error) => one_line(&error),
        };
    }
}

fn watched(id: DeviceId, record: &Record, stats: Stats, before: Option<Watched>) -> Watched {
    let at = Instant::now();
    let mut history = before.as_ref().map_or_else(Vec::new, |of| of.history.clone());
    let interval = before.map(|of| {
        let seconds = at.duration_since(of.at).as_secs_f64();
        Interval::between(&of.stats, &stats, seconds)
    });
    if let Some(interval) = &interval {
        let requests: u64 = interval.requests.iter().map(|of| of.requests).sum();
        history.push(view::per_second(requests, interval.seconds));
        let surplus = history.len().saturating_sub(HISTORY);
        history.drain(..surplus);
    }
    Watched {
        id,
        policy: record.policy.clone(),
        sectors: record.sectors,
        stats,
        at,
        interval,
        history,
    }
}

fn row(of: &Watched) -> Row {
    Row::new(of.stats.disk.clone(), &of.policy, of.interval.as_ref())
}
