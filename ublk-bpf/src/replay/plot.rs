//! Miss-ratio curves as a picture: a panel for each trace and block size, a line for each policy.

use std::collections::BTreeMap;
use std::path::Path;

use plotters::coord::Shift;
use plotters::prelude::*;

use super::{Row, word};

/// The results cannot be drawn.
#[derive(Debug, thiserror::Error)]
#[error("cannot draw the results: {0}")]
pub struct PlotError(String);

const WIDTH: u32 = 900;
const PANEL_HEIGHT: u32 = 360;

const PAPER: RGBColor = RGBColor(255, 255, 255);
const INK: RGBColor = RGBColor(36, 41, 47);
const GRID: RGBColor = RGBColor(216, 222, 228);
/// Of the lines of reference.
const REFERENCE: RGBColor = RGBColor(154, 164, 175);
const LINES: [RGBColor; 6] = [
    RGBColor(31, 122, 224),
    RGBColor(201, 74, 58),
    RGBColor(46, 145, 88),
    RGBColor(201, 138, 27),
    RGBColor(130, 80, 190),
    RGBColor(20, 150, 160),
];

/// The rows of one panel, by line: name, and per cent of the working set with the miss ratio there.
type Curves = BTreeMap<String, Vec<(f64, f64)>>;

/// Draws the rows as SVG.
///
/// # Errors
/// If there is nothing to draw.
pub fn plot(rows: &[Row]) -> Result<String, PlotError> {
    let mut panels: BTreeMap<(&Path, u64), Curves> = BTreeMap::new();
    for row in rows {
        let lines = panels.entry((&row.trace, row.block)).or_default();
        lines.entry(name(row)).or_default().push(point(row));
    }
    let height = PANEL_HEIGHT * u32::try_from(panels.len()).unwrap_or(1);
    let mut svg = String::new();
    draw(&mut svg, (WIDTH, height), &panels).map_err(|error| PlotError(error.to_string()))?;
    Ok(svg)
}

fn name(row: &Row) -> String {
    match row.eviction {
        Some(eviction) => format!("{}, {}", row.policy, word(eviction)),
        None => row.policy.clone(),
    }
}

#[expect(clippy::cast_precision_loss, reason = "numbers of blocks")]
fn point(row: &Row) -> (f64, f64) {
    let percent = row.slots as f64 * 100.0 / (row.working_set as f64).max(1.0);
    (percent, 100.0 * (1.0 - row.counts.block_hit_ratio()))
}

type DrawingError<'a> = DrawingAreaErrorKind<<SVGBackend<'a> as DrawingBackend>::ErrorType>;

fn draw<'a>(
    svg: &'a mut String,
    size: (u32, u32),
    panels: &BTreeMap<(&Path, u64), Curves>,
) -> Result<(), DrawingError<'a>> {
    let root = SVGBackend::with_string(svg, size).into_drawing_area();
    root.fill(&PAPER)?;
    let areas = root.split_evenly((panels.len(), 1));
    for (area, ((trace, block), lines)) in areas.iter().zip(panels) {
        let trace = trace.file_name().unwrap_or_default().to_string_lossy();
        let title = format!("{trace}, blocks of {} KiB", block >> 10);
        draw_panel(area, &title, lines)?;
    }
    root.present()
}

fn draw_panel<'a>(
    area: &DrawingArea<SVGBackend<'a>, Shift>,
    title: &str,
    lines: &Curves,
) -> Result<(), DrawingError<'a>> {
    let sizes = || lines.values().flatten().map(|&(size, _)| size);
    let least = sizes().fold(100.0, f64::min).max(0.001);
    let most = sizes().fold(0.0, f64::max).max(least * 1.01);
    let mut chart = ChartBuilder::on(area)
        .caption(title, ("sans-serif", 17).into_font().color(&INK))
        .margin(12)
        .x_label_area_size(38)
        .y_label_area_size(48)
        .build_cartesian_2d((least..most).log_scale(), 0.0..100.0)?;
    chart
        .configure_mesh()
        .light_line_style(PAPER)
        .bold_line_style(GRID)
        .axis_style(GRID)
        .label_style(("sans-serif", 13).into_font().color(&INK))
        .x_desc("cache, % of the blocks read")
        .y_desc("reads that miss, %")
        .draw()?;
    let mut colours = LINES.iter().cycle();
    for (name, points) in lines {
        let is_reference = !name.contains(',');
        let colour = match is_reference {
            true => REFERENCE,
            false => *colours.next().unwrap_or(&INK),
        };
        let mut points = points.clone();
        points.sort_by(|a, b| a.0.total_cmp(&b.0));
        let style = colour.stroke_width(2);
        let dash = if name == "LRU" { (6, 4) } else { (2, 3) };
        let label = if is_reference {
            chart.draw_series(DashedLineSeries::new(points, dash.0, dash.1, style))?
        } else {
            chart.draw_series(LineSeries::new(points, style))?
        };
        label
            .label(name)
            .legend(move |(x, y)| PathElement::new([(x, y), (x + 16, y)], style));
    }
    chart
        .configure_series_labels()
        .position(SeriesLabelPosition::UpperRight)
        .background_style(PAPER.mix(0.8))
        .border_style(GRID)
        .label_font(("sans-serif", 13).into_font().color(&INK))
        .draw()
}
