use ratatui::Terminal;
use ratatui::backend::TestBackend;

use super::super::sample::tests::ended;
use super::*;
use crate::observe::{OpRequests, VERDICTS};

/// A second of a device: so many reads and writes of 4 KiB.
fn interval(reads: u64, writes: u64) -> Interval {
    let of = |op, requests| OpRequests {
        op,
        requests,
        sectors: requests * 8,
        verdicts: [0; VERDICTS.len()],
    };
    Interval {
        seconds: 1.0,
        requests: vec![of(Op::Read, reads), of(Op::Write, writes)],
        savings: None,
        histograms: None,
    }
}

/// The screen of two devices, as text without trailing spaces.
fn drawn(width: u16, height: u16, menu: Option<&Menu>) -> String {
    let mut sample = Sample::of(2);
    for at in 0..64 {
        sample.add(&ended("fio", at * at * 16, 80_000 + at * 1000), 65_536);
    }
    sample.add(&ended("dd", 65_528, 9_000_000), 65_536);
    let history: Vec<u64> = (0..100).map(|at| 500 + 400 * (at % 20)).collect();
    let busy = interval(8100, 400);
    let view = View {
        rows: vec![
            Row::new("ublkb0".to_owned(), "auto", Some(&busy)),
            Row::new("ublkb1".to_owned(), "/srv/mine.o", None),
        ],
        selected: 0,
        history: &history,
        interval: Some(&busy),
        server: ServerCounters {
            slow: 3,
            verdict_missing: 120,
            ..ServerCounters::default()
        },
        sample: &sample,
        cgroups: &BTreeMap::from([(45, Some("/system.slice/backup.service".to_owned()))]),
        busiest: Busiest::Requests,
        menu,
        message: "",
    };
    let mut terminal = Terminal::new(TestBackend::new(width, height)).expect("a terminal");
    terminal.draw(|frame| view.draw(frame)).expect("drawn");
    let buffer = terminal.backend().buffer();
    let cells = buffer.content().chunks(usize::from(width));
    let lines = cells.map(|line| line.iter().map(ratatui::buffer::Cell::symbol).collect::<String>());
    lines.map(|line| line.trim_end().to_owned() + "\n").collect()
}

#[test]
fn it_fits_a_small_terminal() {
    assert_eq!(drawn(80, 24, None), include_str!("80x24.txt"));
}

#[test]
fn it_fills_a_large_terminal() {
    assert_eq!(drawn(160, 50, None), include_str!("160x50.txt"));
}

#[test]
fn a_menu_is_on_top_and_a_tiny_terminal_does_no_harm() {
    let menu = Menu {
        names: vec!["passthrough", "lru"],
        at: 1,
    };
    let screen = drawn(80, 24, Some(&menu));
    assert!(
        screen.contains("> lru") && screen.contains("enter swaps"),
        "{screen}"
    );
    for (width, height) in [(1, 1), (10, 3), (40, 10)] {
        drawn(width, height, Some(&menu));
    }
}

#[test]
fn any_request_is_seen_on_the_map() {
    assert_eq!([0, 1, 500, 1000].map(|count| shade(count, 1000)), [0, 1, 2, 4]);
}

#[test]
fn the_most_frequent_reason_is_first() {
    let server = ServerCounters {
        slow: 3,
        verdict_missing: 120,
        ..ServerCounters::default()
    };
    assert_eq!(reasons(&server), [("no verdict", 120), ("advised: slow", 3)]);
}
