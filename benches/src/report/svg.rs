//! Two plots, written by hand: latencies by percentile, ratios by pair.

use std::fmt::Write as _;

use crate::stats::{Bars, Interval};

const WIDTH: f64 = 720.0;
const HEIGHT: f64 = 400.0;
/// Around the plot, for labels.
const MARGIN: f64 = 64.0;
/// Of series, in turn; told apart by everybody, on white (Okabe and Ito).
const COLOURS: [&str; 4] = ["#0072b2", "#d55e00", "#009e73", "#cc79a7"];
/// The plot ends at so many nines: 99.999 %.
const NINES_MAX: f64 = 5.0;

/// Each series is percentiles and microseconds; both axes are logarithmic, that of percentiles in nines.
pub(crate) fn latencies(series: &[(String, Vec<(f64, f64)>)]) -> String {
    let points = || {
        series
            .iter()
            .flat_map(|(_, points)| points)
            .map(|(_, us)| us.max(1.0))
    };
    let low = points().fold(f64::INFINITY, f64::min).min(1e9);
    let high = points().fold(1.0, f64::max);
    let decades = (
        low.log10().floor(),
        high.log10().ceil().max(low.log10().floor() + 1.0),
    );
    let x = |nines: f64| MARGIN + nines / NINES_MAX * (WIDTH - 2.0 * MARGIN);
    let y = |us: f64| vertical((us.max(1.0).log10() - decades.0) / (decades.1 - decades.0));
    let mut svg = begin("latency by percentile");
    for (nines, label) in [
        (0.0, "0"),
        (1.0, "90"),
        (2.0, "99"),
        (3.0, "99.9"),
        (4.0, "99.99"),
        (5.0, "99.999 %"),
    ] {
        line(
            &mut svg,
            (x(nines), y(10_f64.powf(decades.0))),
            (x(nines), y(10_f64.powf(decades.1))),
            "#ddd",
        );
        text(&mut svg, (x(nines), HEIGHT - MARGIN + 18.0), "middle", label);
    }
    for decade in decades.0 as i32..=decades.1 as i32 {
        let us = 10_f64.powi(decade);
        line(&mut svg, (x(0.0), y(us)), (x(NINES_MAX), y(us)), "#ddd");
        text(&mut svg, (MARGIN - 6.0, y(us) + 4.0), "end", &duration(us));
    }
    for ((name, points), (number, colour)) in series.iter().zip(COLOURS.iter().cycle().enumerate()) {
        let points: Vec<(f64, f64)> = points
            .iter()
            .map(|&(percentile, us)| (x(nines(percentile)), y(us)))
            .collect();
        polyline(&mut svg, &points, colour);
        let row = MARGIN + 16.0 * number as f64 + 12.0;
        line(
            &mut svg,
            (x(0.0) + 10.0, row - 4.0),
            (x(0.0) + 30.0, row - 4.0),
            colour,
        );
        text(&mut svg, (x(0.0) + 36.0, row), "start", name);
    }
    svg + "</svg>\n"
}

/// A point for each pair's ratio, hollow if it does not count; the median's interval as a band, the bars as dashes.
pub(crate) fn ratios(title: &str, points: &[(f64, bool)], interval: Option<Interval>, bars: Bars) -> String {
    let finite = points
        .iter()
        .map(|(ratio, _)| *ratio)
        .filter(|ratio| ratio.is_finite());
    let top = interval.map(|interval| interval.high);
    let named = [top, bars.floor, bars.aim].into_iter().flatten();
    let high = finite.chain(named).fold(0.0, f64::max).max(1e-9) * 1.1;
    let y = |ratio: f64| vertical((ratio / high).clamp(0.0, 1.0));
    let step = (WIDTH - 2.0 * MARGIN) / (points.len() as f64 + 1.0);
    let (left, right) = (MARGIN, WIDTH - MARGIN);
    let mut svg = begin(title);
    for tick in 0..=4 {
        let ratio = high * f64::from(tick) / 4.0;
        line(&mut svg, (left, y(ratio)), (right, y(ratio)), "#ddd");
        text(
            &mut svg,
            (left - 6.0, y(ratio) + 4.0),
            "end",
            &format!("{ratio:.2}"),
        );
    }
    if let Some(interval) = interval {
        let (top, bottom) = (y(interval.high), y(interval.low));
        let _ = writeln!(
            svg,
            r#"<rect x="{left:.1}" y="{top:.1}" width="{:.1}" height="{:.1}" fill="{}" opacity="0.15"/>"#,
            right - left,
            (bottom - top).max(0.5),
            COLOURS[0]
        );
        line(
            &mut svg,
            (left, y(interval.median)),
            (right, y(interval.median)),
            COLOURS[0],
        );
    }
    for (name, bar) in [("floor", bars.floor), ("aim", bars.aim)] {
        if let Some(bar) = bar {
            line(&mut svg, (left, y(bar)), (right, y(bar)), COLOURS[1]);
            text(&mut svg, (right + 6.0, y(bar) + 4.0), "start", name);
        }
    }
    for (number, &(ratio, counts)) in points.iter().enumerate() {
        let x = left + step * (number as f64 + 1.0);
        text(
            &mut svg,
            (x, HEIGHT - MARGIN + 18.0),
            "middle",
            &format!("{}", number + 1),
        );
        if ratio.is_finite() {
            let fill = if counts { COLOURS[0] } else { "white" };
            let _ = writeln!(
                svg,
                r#"<circle cx="{x:.1}" cy="{:.1}" r="5" fill="{fill}" stroke="{}"/>"#,
                y(ratio),
                COLOURS[0]
            );
        }
    }
    svg + "</svg>\n"
}

/// 90 % is one nine, 99 % two.
fn nines(percentile: f64) -> f64 {
    let rest = 1.0 - percentile / 100.0;
    if rest <= 0.0 {
        NINES_MAX
    } else {
        (-rest.log10()).clamp(0.0, NINES_MAX)
    }
}

fn duration(us: f64) -> String {
    match us {
        us if us < 1e3 => format!("{us} us"),
        us if us < 1e6 => format!("{} ms", us / 1e3),
        us => format!("{} s", us / 1e6),
    }
}

fn vertical(share: f64) -> f64 {
    HEIGHT - MARGIN - share * (HEIGHT - 2.0 * MARGIN)
}

fn begin(title: &str) -> String {
    let mut svg = format!(
        r#"<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" font-family="sans-serif" font-size="12">
<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>
"#
    );
    text(&mut svg, (WIDTH / 2.0, MARGIN / 2.0), "middle", title);
    svg
}

fn line(svg: &mut String, from: (f64, f64), to: (f64, f64), colour: &str) {
    polyline(svg, &[from, to], colour);
}

fn polyline(svg: &mut String, points: &[(f64, f64)], colour: &str) {
    let mut list = String::new();
    for (x, y) in points {
        let _ = write!(list, "{x:.1},{y:.1} ");
    }
    let _ = writeln!(
        svg,
        r#"<polyline points="{}" fill="none" stroke="{colour}"/>"#,
        list.trim_end()
    );
}

fn text(svg: &mut String, (x, y): (f64, f64), anchor: &str, text: &str) {
    let text = text.replace('&', "&amp;").replace('<', "&lt;");
    let _ = writeln!(
        svg,
        r#"<text x="{x:.1}" y="{y:.1}" text-anchor="{anchor}">{text}</text>"#
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nines_are_the_axis_of_percentiles() {
        for (percentile, expected) in [(0.0, 0.0), (90.0, 1.0), (99.9, 3.0), (100.0, NINES_MAX)] {
            assert!((nines(percentile) - expected).abs() < 1e-9, "{percentile}");
        }
    }

    #[test]
    fn a_higher_latency_is_higher_up() {
        let series = [("a<b".to_owned(), vec![(0.0, 100.0), (99.0, 1000.0)])];
        let svg = latencies(&series);
        // 100 us is the lowest line of the plot, 1 ms the highest; 99 % is two fifths from the left.
        assert!(
            svg.contains(r##"points="64.0,336.0 300.8,64.0" fill="none" stroke="#0072b2""##),
            "{svg}"
        );
        assert!(
            svg.contains("a&lt;b") && svg.contains(">100 us<") && svg.contains(">1 ms<"),
            "{svg}"
        );
    }

    #[test]
    fn nothing_can_be_plotted_too() {
        for svg in [latencies(&[]), ratios("nothing", &[], None, Bars::default())] {
            assert!(
                svg.ends_with("</svg>\n") && !svg.contains("NaN") && !svg.contains("inf"),
                "{svg}"
            );
        }
    }
}
