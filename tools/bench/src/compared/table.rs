//! The results as text for a terminal.

use bench_guest::compared::result::{Case, is_headline};

use super::results::{Cell, Results, calls};

/// One table for each case; of a whole matrix only those that the page begins with.
pub(super) fn text(results: &Results) -> String {
    let all = results.cases();
    let whole = all.len() > 2 && results.kinds.len() > FEW;
    let mut text = String::new();
    for case in all.iter().filter(|case| !whole || is_headline(**case)) {
        text.push_str(&table(results, *case));
    }
    text
}

/// Up to this many subjects, all cases are shown.
const FEW: usize = 5;

fn table(results: &Results, case: Case) -> String {
    let mut text = format!(
        "\n{case}\n{:<22}{:>10}{:>9}{:>13}{:>9}{:>9}{:>12}\n",
        "device", "IOPS", "spread", "instr./I/O", "added", "server", "calls/I/O"
    );
    for subject in results.subjects() {
        let cell = results.cell(subject, case);
        text.push_str(&format!(
            "{subject:<22}{}\n",
            cell.map_or_else(missing, |cell| line(&cell))
        ));
    }
    text.push('\n');
    text
}

fn missing() -> String {
    format!("{:>10}", "-")
}

fn line(cell: &Cell) -> String {
    let spread = format!("{:.1} %", cell.iops.spread * 100.0);
    let added = cell
        .added
        .map_or_else(|| "-".to_owned(), |added| format!("{added:.0}"));
    let server = format!("{:.0} %", cell.server * 100.0);
    format!(
        "{:>10.0}{spread:>9}{:>13.0}{added:>9}{server:>9}{:>12}",
        cell.iops.median,
        cell.instructions,
        calls(cell, 3)
    )
}

#[cfg(test)]
mod tests {
    use super::super::results::tests::results;
    use super::*;

    #[test]
    fn a_line_has_what_was_found() {
        let text = text(&results());
        let words = |name: &str| {
            let line = text.lines().find(|line| line.starts_with(name)).expect("a line");
            line.split_whitespace().collect::<Vec<_>>().join(" ")
        };
        assert_eq!(
            words("ublk-bpf-brd"),
            "ublk-bpf-brd 100000 2.0 % 10000 5000 25 % 0.250"
        );
        assert_eq!(words("brd"), "brd 200000 2.0 % 5000 - 0 % 0.250");
    }
}
