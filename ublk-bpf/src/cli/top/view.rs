//! What is on the screen.

use std::collections::BTreeMap;

use ratatui::Frame;
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::style::{Color, Modifier, Style};
use ratatui::text::{Line, Span};
use ratatui::widgets::{Block, Clear, List, ListState, Paragraph, Sparkline, Table, TableState};
use ublk_bpf_abi::{Op, SECTOR_SIZE, ServerCounters};

use super::sample::{Sample, TaskLoad};
use crate::observe::{Interval, amount, duration};

/// Columns of the tasks' box from which on names of cgroups have room.
const WIDE_TASKS: u16 = 72;

/// Everything that is drawn.
pub(super) struct View<'a> {
    pub(super) rows: Vec<Row>,
    pub(super) selected: usize,
    pub(super) history: &'a [u64],
    pub(super) interval: Option<&'a Interval>,
    pub(super) server: ServerCounters,
    pub(super) sample: &'a Sample,
    /// Paths of cgroups.
    pub(super) cgroups: &'a BTreeMap<u64, Option<String>>,
    pub(super) busiest: Busiest,
    pub(super) menu: Option<&'a Menu>,
    pub(super) message: &'a str,
}

/// A device's line.
pub(super) struct Row([String; 7]);

/// What tasks are sorted by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Busiest {
    Requests,
    Bytes,
    Longest,
}

/// Policies to choose from.
pub(super) struct Menu {
    pub(super) names: Vec<&'static str>,
    pub(super) at: usize,
}

const HEADER: [&str; 7] = [
    "DEVICE",
    "POLICY",
    "READS/s",
    "WRITES/s",
    "READ/s",
    "WRITTEN/s",
    "HITS",
];
const KEYS: &str = " tab device  s sort  p policy  q quit";
/// From no request to the busiest part of the device.
const SHADES: [&str; 5] = [" ", "░", "▒", "▓", "█"];

impl Row {
    /// The rates of a device; `-` before there is an interval.
    pub(super) fn new(disk: String, policy: &str, interval: Option<&Interval>) -> Self {
        let dash = || "-".to_owned();
        let rate = |op: Op, of: fn(&crate::observe::OpRequests) -> u64| {
            let interval = interval?;
            let found = interval.requests.iter().find(|requests| requests.op == op)?;
            Some(per_second(of(found), interval.seconds))
        };
        let requests = |op| rate(op, |of| of.requests).map_or_else(dash, |n| n.to_string());
        let bytes = |op| rate(op, |of| of.sectors.saturating_mul(SECTOR_SIZE)).map_or_else(dash, amount);
        let hits = interval.and_then(|of| of.savings?.hit_ratio);
        let hits = hits.map_or_else(dash, |ratio| format!("{:.1} %", ratio * 100.0));
        let (read, write) = (Op::Read, Op::Write);
        // A path is best known by its end.
        let policy = policy.rsplit('/').next().unwrap_or_default().to_owned();
        Self([
            disk,
            policy,
            requests(read),
            requests(write),
            bytes(read),
            bytes(write),
            hits,
        ])
    }
}

impl Busiest {
    pub(super) fn next(self) -> Self {
        match self {
            Self::Requests => Self::Bytes,
            Self::Bytes => Self::Longest,
            Self::Longest => Self::Requests,
        }
    }

    fn key(self, load: &TaskLoad) -> u64 {
        match self {
            Self::Requests => load.requests,
            Self::Bytes => load.bytes,
            Self::Longest => load.longest,
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Requests => "requests",
            Self::Bytes => "bytes",
            Self::Longest => "longest request",
        }
    }
}

impl View<'_> {
    /// Draws it over the whole frame.
    pub(super) fn draw(&self, frame: &mut Frame<'_>) {
        let devices = u16::try_from(self.rows.len().min(6)).unwrap_or(6) + 3;
        let parts = [
            Constraint::Length(devices),
            Constraint::Length(5),
            Constraint::Length(4),
            Constraint::Min(3),
            Constraint::Length(1),
        ];
        let [devices, rates, map, below, keys] = Layout::vertical(parts).areas(frame.area());
        self.devices(frame, devices);
        self.rates(frame, rates);
        self.map(frame, map);
        let [tasks, slow] = Layout::horizontal([Constraint::Fill(3), Constraint::Fill(2)]).areas(below);
        self.tasks(frame, tasks);
        self.slow(frame, slow);
        let line = if self.message.is_empty() {
            KEYS
        } else {
            self.message
        };
        frame.render_widget(Line::styled(line, Modifier::DIM), keys);
        self.menu(frame);
    }

    fn devices(&self, frame: &mut Frame<'_>, area: Rect) {
        let widths = [10, 16, 9, 9, 11, 11, 8].map(Constraint::Length);
        let rows = self
            .rows
            .iter()
            .map(|row| ratatui::widgets::Row::new(row.0.clone()));
        let table = Table::new(rows, widths)
            .header(ratatui::widgets::Row::new(HEADER).style(Modifier::BOLD))
            .row_highlight_style(Modifier::REVERSED)
            .block(Block::bordered().title(" ublk-bpf "));
        let mut state = TableState::new().with_selected(self.selected);
        frame.render_stateful_widget(table, area, &mut state);
    }

    fn rates(&self, frame: &mut Frame<'_>, area: Rect) {
        let title = format!(" requests/s{} ", self.latency().unwrap_or_default());
        let width = usize::from(area.width.saturating_sub(2));
        let from = self.history.len().saturating_sub(width);
        let line = Sparkline::default()
            .data(&self.history[from..])
            .style(Color::Green)
            .block(Block::bordered().title(title));
        frame.render_widget(line, area);
    }

    /// Percentiles of the latency: counted of the most frequent kind of request, or of all that were sampled.
    fn latency(&self) -> Option<String> {
        let counted = self.interval.and_then(|of| of.histograms.as_ref());
        let most = counted.and_then(|of| of.latencies.iter().max_by_key(|of| of.ns.count()));
        let (what, of) = match most {
            Some(most) => {
                let of = [0.5, 0.9, 0.99].map(|part| most.ns.quantile(part).unwrap_or(0));
                (
                    format!("latency of {}, {}", most.op.name(), most.verdict.name()),
                    of,
                )
            }
            None => (
                "sampled latency".to_owned(),
                self.sample.percentiles([50, 90, 99])?,
            ),
        };
        let [half, most, nearly] = of.map(duration);
        Some(format!(" | {what}: p50 {half}, p90 {most}, p99 {nearly}"))
    }

    /// One line of shades over the device, from its first sector to its last.
    fn map(&self, frame: &mut Frame<'_>, area: Rect) {
        let width = usize::from(area.width.saturating_sub(2)).max(1);
        let regions = &self.sample.regions;
        let count = |column: usize| {
            let from = column * regions.len() / width;
            let to = ((column + 1) * regions.len() / width).max(from + 1);
            regions[from..to.min(regions.len())].iter().sum::<u64>()
        };
        let counts: Vec<u64> = (0..width).map(count).collect();
        let most = counts.iter().copied().max().unwrap_or(0);
        let shades = counts.iter().map(|&count| Span::raw(SHADES[shade(count, most)]));
        let scale = format!("0 %{:>1$}", "100 %", width.saturating_sub(3));
        let lines = vec![
            Line::from(shades.collect::<Vec<_>>()),
            Line::styled(scale, Modifier::DIM),
        ];
        let title = format!(
            " where on the device, one request in {} sampled ",
            self.sample.every
        );
        frame.render_widget(Paragraph::new(lines).block(Block::bordered().title(title)), area);
    }

    fn tasks(&self, frame: &mut Frame<'_>, area: Rect) {
        let tasks = self.sample.tasks(|load| self.busiest.key(load));
        let rows = tasks.iter().map(|(name, cgroup, load)| {
            let cells = [
                (*name).to_owned(),
                self.cgroup(*cgroup),
                load.requests.to_string(),
                amount(load.bytes),
                duration(load.longest),
            ];
            ratatui::widgets::Row::new(cells)
        });
        let cgroup = if area.width < WIDE_TASKS { 8 } else { 24 };
        let widths = [15, cgroup, 8, 10, 9].map(Constraint::Length);
        let header = ratatui::widgets::Row::new(["TASK", "CGROUP", "REQUESTS", "BYTES", "LONGEST"]);
        let title = format!(" busiest by {} ", self.busiest.name());
        let table = Table::new(rows, widths)
            .header(header.style(Modifier::BOLD))
            .block(Block::bordered().title(title));
        frame.render_widget(table, area);
    }

    /// A cgroup's name: the last part of its path, or its number if it is gone.
    fn cgroup(&self, number: u64) -> String {
        let path = self.cgroups.get(&number).and_then(Option::as_deref);
        match path.map(|path| path.rsplit('/').next().unwrap_or(path)) {
            None => number.to_string(),
            Some("") => "/".to_owned(),
            Some(name) => name.to_owned(),
        }
    }

    fn slow(&self, frame: &mut Frame<'_>, area: Rect) {
        let lines: Vec<Line<'_>> = reasons(&self.server)
            .into_iter()
            .map(|(name, count)| Line::raw(format!("{count:>10} {name}")))
            .collect();
        let lines = match lines.is_empty() {
            true => vec![Line::raw("none since the start")],
            false => lines,
        };
        let block = Block::bordered().title(" not on the fast path ");
        frame.render_widget(Paragraph::new(lines).block(block), area);
    }

    fn menu(&self, frame: &mut Frame<'_>) {
        let Some(menu) = self.menu else {
            return;
        };
        let height = u16::try_from(menu.names.len())
            .unwrap_or(u16::MAX)
            .saturating_add(2);
        let whole = frame.area();
        let area = Rect {
            x: whole.width.saturating_sub(32) / 2,
            y: whole.height.saturating_sub(height) / 2,
            width: 32.min(whole.width),
            height: height.min(whole.height),
        };
        let list = List::new(menu.names.iter().copied())
            .highlight_symbol("> ")
            .highlight_style(Style::new().add_modifier(Modifier::REVERSED))
            .block(Block::bordered().title(" policy: enter swaps "));
        frame.render_widget(Clear, area);
        let mut state = ListState::default().with_selected(Some(menu.at));
        frame.render_stateful_widget(list, area, &mut state);
    }
}

/// Which of [`SHADES`] stands for a count, where `most` is the largest: any request is seen.
fn shade(count: u64, most: u64) -> usize {
    if count == 0 {
        return 0;
    }
    let steps = SHADES.len() as u128 - 1;
    usize::try_from((u128::from(count) * steps).div_ceil(u128::from(most.max(1)))).unwrap_or(0)
}

/// Why requests took a longer way since the start, the most frequent reason first.
fn reasons(server: &ServerCounters) -> Vec<(&'static str, u64)> {
    let mut reasons = vec![
        ("advised: slow", server.slow),
        ("delayed", server.delayed),
        ("no verdict", server.verdict_missing),
        ("verdict of another request", server.verdict_stale),
        ("invalid verdict", server.verdict_invalid),
        ("drop refused", server.drop_refused),
        ("pages not registered", server.unregistered),
        ("hit lost", server.hits_lost),
        ("hit failed", server.hits_failed),
        ("waited for a fill", server.fill_waits),
        ("failed", server.failed),
    ];
    reasons.retain(|(_, count)| *count != 0);
    reasons.sort_by_key(|(_, count)| u64::MAX - count);
    reasons
}

/// A rate, rounded.
#[expect(
    clippy::cast_precision_loss,
    clippy::cast_sign_loss,
    clippy::cast_possible_truncation,
    reason = "rounded"
)]
pub(super) fn per_second(count: u64, seconds: f64) -> u64 {
    (count as f64 / seconds.max(0.001)).round() as u64
}

#[cfg(test)]
mod tests;
