//! The headline table as pictures: bars for each subject, a panel for each thing that was measured.

use anyhow::{Result, anyhow};
use plotters::coord::Shift;
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};

use super::results::{Cell, Results};
use bench_guest::compared::result::Block;
use bench_guest::compared::result::headline;

/// The pictures' names and captions.
pub(super) const PICTURES: [(&str, &str); 2] = [
    (
        "compared-4k",
        "Random reads of 4 KiB: IOPS, instructions added, server, system calls",
    ),
    (
        "compared-64k",
        "Random reads of 64 KiB: IOPS, instructions added, server, system calls",
    ),
];

/// A column of bars.
struct Panel {
    title: &'static str,
    unit: &'static str,
    value: fn(&Cell) -> Option<f64>,
    /// Decimal places.
    digits: usize,
}

const PANELS: [Panel; 4] = [
    Panel {
        title: "IOPS",
        unit: "thousands, more is better",
        value: |cell| Some(cell.iops.median / 1e3),
        digits: 1,
    },
    Panel {
        title: "Instructions added",
        unit: "per I/O, over the raw device",
        value: |cell| cell.added,
        digits: 0,
    },
    Panel {
        title: "Server",
        unit: "per cent of the CPU",
        value: |cell| Some(cell.server * 100.0),
        digits: 0,
    },
    Panel {
        title: "System calls",
        unit: "of the server, per I/O",
        value: |cell| cell.calls,
        digits: 2,
    },
];

const NAMES_WIDTH: i32 = 190;
const PANEL_WIDTH: i32 = 200;
/// Room at the right of a panel for the number after its longest bar.
const NUMBER_WIDTH: i32 = 58;
const ROW: i32 = 23;
const HEAD: i32 = 62;
const FOOT: i32 = 40;

const PAPER: RGBColor = RGBColor(255, 255, 255);
const INK: RGBColor = RGBColor(36, 41, 47);
const PALE_INK: RGBColor = RGBColor(101, 109, 118);
const LINE: RGBColor = RGBColor(216, 222, 228);
const OURS: RGBColor = RGBColor(31, 122, 224);
const PEER: RGBColor = RGBColor(154, 164, 175);
const RAW: RGBColor = RGBColor(201, 138, 27);

/// Colours for a dark theme. The picture has its own background, because the page's may be light or dark.
const DARK: &str = "<style>@media (prefers-color-scheme: dark) {\
    [fill=\"#FFFFFF\"]{fill:#0D1117} [fill=\"#24292F\"]{fill:#E6EDF3} [fill=\"#656D76\"]{fill:#9198A1} \
    [stroke=\"#D8DEE4\"]{stroke:#3D444D}}</style>\n";

type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;

/// Each picture's name, and the picture.
pub(super) fn pictures(results: &Results) -> Result<Vec<(&'static str, String)>> {
    PICTURES
        .iter()
        .zip(Block::ALL)
        .map(|((name, _), block)| Ok((*name, picture(results, block)?)))
        .collect()
}

fn picture(results: &Results, block: Block) -> Result<String> {
    let rows: Vec<(&str, Cell)> = results
        .subjects()
        .filter_map(|subject| Some((subject, results.cell(subject, headline(block))?)))
        .collect();
    let height = HEAD + FOOT + ROW * i32::try_from(rows.len())?;
    let width = NAMES_WIDTH + PANEL_WIDTH * i32::try_from(PANELS.len())?;
    let mut svg = String::new();
    {
        let size = (u32::try_from(width)?, u32::try_from(height)?);
        let area = SVGBackend::with_string(&mut svg, size).into_drawing_area();
        draw(&area, &rows, block).map_err(|error| anyhow!("cannot draw: {error}"))?;
    }
    // The rules go right after the opening tag.
    let begin = svg
        .find("<svg")
        .and_then(|tag| Some(tag + svg[tag..].find('>')? + 1));
    let begin = begin.ok_or_else(|| anyhow!("plotters drew no svg"))?;
    svg.insert_str(begin, DARK);
    Ok(svg)
}

type Drawn<'a> = Result<(), DrawingAreaErrorKind<<SVGBackend<'a> as DrawingBackend>::ErrorType>>;

fn draw<'a>(area: &Area<'a>, rows: &[(&str, Cell)], block: Block) -> Drawn<'a> {
    area.fill(&PAPER)?;
    let title = format!("random read {block}");
    text(area, &title, (14, 24), (19, INK, HPos::Left))?;
    text(area, "one queue, depth 128", (14, 42), (14, PALE_INK, HPos::Left))?;
    for (row, (name, _)) in (0..).zip(rows) {
        let ink = if name.starts_with("ublk-bpf") { OURS } else { INK };
        text(area, name, (NAMES_WIDTH - 8, middle(row)), (16, ink, HPos::Right))?;
    }
    for (column, panel) in (0..).zip(&PANELS) {
        draw_panel(area, panel, NAMES_WIDTH + column * PANEL_WIDTH, rows)?;
    }
    draw_legend(
        area,
        HEAD + ROW * i32::try_from(rows.len()).unwrap_or(0) + FOOT / 2,
    )?;
    area.present()
}

fn draw_legend<'a>(area: &Area<'a>, y: i32) -> Drawn<'a> {
    let kinds = [(RAW, "raw device"), (PEER, "peer"), (OURS, "ublk-bpf")];
    for (column, (colour, words)) in (0..).zip(kinds) {
        let x = NAMES_WIDTH + column * PANEL_WIDTH / 2;
        area.draw(&Rectangle::new([(x, y - 5), (x + 10, y + 5)], colour.filled()))?;
        text(area, words, (x + 16, y), (14, PALE_INK, HPos::Left))?;
    }
    Ok(())
}

/// Where a row's middle is.
fn middle(row: i32) -> i32 {
    HEAD + ROW * row + ROW / 2
}

fn draw_panel<'a>(area: &Area<'a>, panel: &Panel, left: i32, rows: &[(&str, Cell)]) -> Drawn<'a> {
    text(area, panel.title, (left, 24), (16, INK, HPos::Left))?;
    text(area, panel.unit, (left, 42), (14, PALE_INK, HPos::Left))?;
    let foot = HEAD + ROW * i32::try_from(rows.len()).unwrap_or(0);
    area.draw(&PathElement::new(vec![(left, HEAD), (left, foot)], LINE))?;
    let most = rows
        .iter()
        .filter_map(|(_, cell)| (panel.value)(cell))
        .fold(f64::MIN_POSITIVE, f64::max);
    for (row, (name, cell)) in (0..).zip(rows) {
        let y = middle(row);
        let Some(value) = (panel.value)(cell) else {
            text(area, "raw", (left + 6, y), (14, PALE_INK, HPos::Left))?;
            continue;
        };
        let end = left + length(value / most);
        let bar = Rectangle::new([(left + 1, y - 7), (end, y + 7)], colour(name, cell).filled());
        area.draw(&bar)?;
        let number = format!("{value:.*}", panel.digits);
        text(area, &number, (end + 5, y), (14, INK, HPos::Left))?;
    }
    Ok(())
}

/// A bar's, in pixels.
#[expect(clippy::cast_possible_truncation, reason = "a part of a panel's width")]
fn length(share: f64) -> i32 {
    (f64::from(PANEL_WIDTH - NUMBER_WIDTH) * share.clamp(0.0, 1.0)).round() as i32
}

fn colour(name: &str, cell: &Cell) -> RGBColor {
    match cell.added {
        None => RAW,
        Some(_) if name.starts_with("ublk-bpf") => OURS,
        Some(_) => PEER,
    }
}

fn text<'a>(
    area: &Area<'a>,
    words: &str,
    place: (i32, i32),
    (size, ink, side): (i32, RGBColor, HPos),
) -> Drawn<'a> {
    let style = ("system-ui, sans-serif", size)
        .into_font()
        .color(&ink)
        .pos(Pos::new(side, VPos::Center));
    area.draw(&Text::new(words.to_owned(), place, style))
}

#[cfg(test)]
mod tests {
    use super::super::results::tests::results;
    use super::*;

    #[test]
    fn a_picture_has_every_subject_and_can_be_dark() {
        let pictures = pictures(&results()).expect("drawn");
        let svg = &pictures[0].1;
        for word in [
            "dm-linear",
            "ublk-bpf-brd",
            "Instructions added",
            "prefers-color-scheme",
        ] {
            assert!(svg.contains(word), "{word} is missing");
        }
        // The rules for the dark find what they are for.
        for colour in [
            "fill=\"#FFFFFF\"",
            "fill=\"#24292F\"",
            "fill=\"#656D76\"",
            "stroke=\"#D8DEE4\"",
        ] {
            assert!(svg.matches(colour).count() > 1, "{colour} is not drawn");
        }
        assert!(svg.trim_end().ends_with("</svg>"));
    }

    #[test]
    fn bars_stay_in_their_panel() {
        assert_eq!((length(0.0), length(1.0)), (0, PANEL_WIDTH - NUMBER_WIDTH));
        assert_eq!(length(-0.5), 0, "cheaper than the raw device");
    }
}
