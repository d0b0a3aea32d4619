//! The picture of a run: how latencies are distributed above, certificates over time below. SVG
//! with plain text, so no fonts are needed.

use std::path::Path;

use plotters::coord::Shift;
use plotters::prelude::*;

use crate::exit::Exit;
use crate::report::{Report, Section};

const SIZE: (u32, u32) = (1000, 900);
/// Told apart by lightness as well as by hue.
const COLOURS: [RGBColor; 6] = [
    RGBColor(0x1f, 0x4e, 0x9c),
    RGBColor(0xd9, 0x5f, 0x02),
    RGBColor(0x1b, 0x9e, 0x77),
    RGBColor(0x99, 0x2d, 0x7a),
    RGBColor(0x66, 0x66, 0x66),
    RGBColor(0xb8, 0x8a, 0x00),
];

type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;
type Drawn = Result<(), Box<dyn std::error::Error>>;

/// Draws a report.
pub fn write(path: &Path, report: &Report) -> Result<(), Exit> {
    let mut svg = String::new();
    draw(&mut svg, report)
        .map_err(|error| Exit::missing(format!("cannot draw {}: {error}", path.display())))?;
    std::fs::write(path, svg).map_err(|error| Exit::missing(format!("{}: {error}", path.display())))
}

fn draw(svg: &mut String, report: &Report) -> Drawn {
    let whole = SVGBackend::with_string(svg, SIZE).into_drawing_area();
    whole.fill(&WHITE)?;
    let title = if report.label.is_empty() {
        &report.address
    } else {
        &report.label
    };
    let (above, below) = whole
        .titled(&format!("{title}, {}", report.started), ("sans-serif", 18))?
        .split_vertically(430);
    latencies(&above, &report.sections)?;
    rates(&below, &report.sections)?;
    whole.present()?;
    Ok(())
}

fn colour(place: usize) -> RGBColor {
    COLOURS[place % COLOURS.len()]
}

fn name(section: &Section) -> String {
    match (&section.mode[..], section.offered_rate) {
        ("open", Some(rate)) => format!("open loop at {rate:.0}/s"),
        _ => section.step.clone(),
    }
}

/// Across: 50 %, 90 %, 99 % … at equal distances. Up: milliseconds, logarithmic.
fn latencies(area: &Area<'_>, sections: &[Section]) -> Drawn {
    let all = || sections.iter().flat_map(|section| &section.distribution);
    let nines = |quantile: f64| -(1.0 - quantile).max(1e-9).log10();
    let least = all()
        .map(|(_, millis)| *millis)
        .fold(f64::INFINITY, f64::min)
        .clamp(0.01, 1e5);
    let most = all()
        .map(|(_, millis)| *millis)
        .fold(least * 10.0, f64::max);
    let furthest = all()
        .map(|(quantile, _)| nines(*quantile))
        .fold(2.0, f64::max);
    let mut chart = ChartBuilder::on(area)
        .caption(
            "Latency of calls that gave a certificate, ms",
            ("sans-serif", 16),
        )
        .margin(12)
        .x_label_area_size(40)
        .y_label_area_size(60)
        .build_cartesian_2d(0.0..furthest, (least * 0.8..most * 1.2).log_scale())?;
    chart
        .configure_mesh()
        .x_desc("share of calls that took at most so long")
        .x_labels(8)
        .x_label_formatter(&|nines| {
            format!("{:.4}", 100.0 * (1.0 - 10_f64.powf(-nines)))
                .trim_end_matches('0')
                .trim_end_matches('.')
                .to_owned()
                + " %"
        })
        .y_label_formatter(&|millis| format!("{millis}"))
        .light_line_style(TRANSPARENT)
        .draw()?;
    for (place, section) in sections.iter().enumerate() {
        let points = section
            .distribution
            .iter()
            .map(|(quantile, millis)| (nines(*quantile), *millis));
        let style = colour(place).stroke_width(2);
        chart
            .draw_series(LineSeries::new(points, style))?
            .label(name(section))
            .legend(move |(x, y)| PathElement::new([(x, y), (x + 18, y)], style));
    }
    chart
        .configure_series_labels()
        .position(SeriesLabelPosition::UpperLeft)
        .background_style(WHITE.mix(0.8))
        .border_style(BLACK)
        .draw()?;
    Ok(())
}

/// A line a section; those of one step stand one after the other, steps too.
fn rates(area: &Area<'_>, sections: &[Section]) -> Drawn {
    let seconds: f64 = sections.iter().map(|section| section.seconds).sum();
    let points = |section: &Section| -> Vec<(f64, f64)> {
        let whole = (section.seconds * 10.0).ceil() as usize;
        // The mean of a second around each point: single ticks hold few calls.
        let arrived: Vec<u64> = section
            .series
            .iter()
            .take(whole)
            .map(|point| point.arrived)
            .collect();
        let mean = |tick: usize| {
            let around = &arrived[tick.saturating_sub(5)..(tick + 5).min(arrived.len())];
            around.iter().sum::<u64>() as f64 * 10.0 / around.len() as f64
        };
        (0..arrived.len())
            .map(|tick| (tick as f64 / 10.0, mean(tick)))
            .collect()
    };
    let most = sections
        .iter()
        .flat_map(points)
        .map(|(_, rate)| rate)
        .fold(10.0, f64::max);
    let mut chart = ChartBuilder::on(area)
        .caption("Certificates a second", ("sans-serif", 16))
        .margin(12)
        .x_label_area_size(40)
        .y_label_area_size(60)
        .build_cartesian_2d(0.0..seconds.max(0.1), 0.0..most * 1.15)?;
    chart
        .configure_mesh()
        .x_desc("seconds, warm-ups left out")
        .light_line_style(TRANSPARENT)
        .draw()?;
    let mut begin = 0.0;
    for (place, section) in sections.iter().enumerate() {
        let style = colour(place).stroke_width(2);
        chart.draw_series(LineSeries::new(
            points(section)
                .into_iter()
                .map(|(at, rate)| (begin + at, rate)),
            style,
        ))?;
        begin += section.seconds;
    }
    Ok(())
}
