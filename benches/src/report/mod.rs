//! What is told: a table on standard output, everything in JSON, plots in SVG.

pub(crate) mod svg;

use std::{collections::BTreeSet, fmt::Write as _, fs, path::Path};

use anyhow::{Context as _, Result};
use comfy_table::{Cell, CellAlignment, Table, presets};
use serde::Serialize;
use serde_json::{Value, json};

use crate::{
    bed::{Figures, say},
    cli,
    commands::{Compared, Judged, Outcome, Round},
    measure::machine::Machine,
    servers::Kind,
    stats::{Better, Interval, Verdict, median},
};

/// Of the JSON; grows when a field changes its meaning.
const FORMAT: u32 = 2;

/// As in JSON and on the command line.
pub(crate) fn name(value: impl Serialize) -> String {
    let value = serde_json::to_value(value).unwrap_or_default();
    value.as_str().unwrap_or("?").to_owned()
}

/// One run.
pub(crate) fn run_table(target: Kind, guarantee: &str, figures: &Value) -> String {
    let mut table = table(["figure", "value"]);
    let number = |path: &str, digits: usize| {
        let value = figures.pointer(path).and_then(Value::as_f64);
        value.map(|value| format!("{value:.digits$}"))
    };
    let rows = [
        ("operations", number("/operations", 0)),
        ("operations / s", number("/operations_per_s", 0)),
        ("failed", number("/failed", 0)),
        ("reads that found nothing", number("/missing", 0)),
        (
            "server CPU, us / operation",
            number("/server_us_per_operation", 1),
        ),
        ("operations / server CPU-s", number("/operations_per_cpu_s", 0)),
        ("idle CPU of the servers, processors", number("/idle_cores", 3)),
        (
            "kvbench's own CPU, us / operation",
            number("/client_us_per_operation", 1),
        ),
        ("latency, mean, us", number("/latency/mean_us", 0)),
        ("latency, p50, us", number("/latency/p50_us", 0)),
        ("latency, p99, us", number("/latency/p99_us", 0)),
        (p999_label(figures), number("/latency/p999_us", 0)),
        ("latency, max, us", number("/latency/max_us", 0)),
        ("sent late, p99, us", number("/slip/p99_us", 0)),
        ("operations per message", number("/operations_per_message", 1)),
        ("values per read", number("/siblings_per_read", 4)),
        (
            "memory of all servers, PSS, MiB",
            Some(format!("{:.0}", mebibytes(figures))),
        ),
        ("others' CPU, processors", number("/cores/foreign", 2)),
        ("interrupts, processors", number("/cores/interrupts", 2)),
        ("stolen by the hypervisor, processors", number("/cores/steal", 2)),
        ("load average", number("/load_average", 2)),
    ];
    for (what, value) in rows {
        if let Some(value) = value {
            table.add_row([Cell::new(what), right(value)]);
        }
    }
    let mut text = format!("{target}: {guarantee}\n{table}");
    if let Some(reason) = figures["void"].as_str() {
        let _ = write!(text, "\nVOID: {reason}");
    }
    for (failure, count) in figures["failures"].as_object().into_iter().flatten() {
        let _ = write!(text, "\n{count} x {failure}");
    }
    text
}

/// All steps of `best`.
pub(crate) fn steps_table(target: Kind, guarantee: &str, steps: &[(u32, Figures)], best: usize) -> String {
    let mut table = table([
        "at a time",
        "ops/CPU-s",
        "us/op",
        "ops/s",
        "p50 us",
        "p99 us",
        "others' CPU",
        "",
    ]);
    for (index, (tasks, figures)) in steps.iter().enumerate() {
        let latency = figures.latency.as_ref();
        let note = match &figures.void {
            Some(reason) => format!("void: {reason}"),
            None if index == best => "best".to_owned(),
            None => String::new(),
        };
        table.add_row([
            right(tasks.to_string()),
            right(format!("{:.0}", figures.operations_per_cpu_s)),
            right(format!("{:.1}", figures.server_us_per_operation)),
            right(format!("{:.0}", figures.operations_per_s)),
            right(latency.map_or(String::new(), |latency| format!("{:.0}", latency.p50_us))),
            right(latency.map_or(String::new(), |latency| format!("{:.0}", latency.p99_us))),
            right(format!("{:.2}", figures.cores.foreign)),
            Cell::new(note),
        ]);
    }
    format!("{target}: {guarantee}\n{table}")
}

/// All pairs, and what they come to.
pub(crate) fn pair_table(names: &[String; 2], guarantees: &[String; 2], outcome: &Outcome) -> String {
    let metrics = outcome.pairs.first().map_or(&[][..], |pair| &pair.compared);
    let mut heads = vec!["pair".to_owned()];
    for Compared { metric, .. } in metrics {
        let (what, unit) = (name(metric), metric.unit());
        heads.extend(names.iter().map(|name| format!("{name} {what}, {unit}")));
        heads.push(format!("{what} ratio"));
    }
    heads.extend(["others' CPU", "stolen", "load"].map(str::to_owned));
    let mut table = table(heads);
    for (number, pair) in outcome.pairs.iter().enumerate() {
        let mut cells = vec![right((number + 1).to_string())];
        for compared in &pair.compared {
            cells.extend([compared.a, compared.b].map(|value| right(significant(value))));
            cells.push(right(format!("{:.3}", compared.ratio)));
        }
        let both = |of: fn(&Figures) -> f64| right(format!("{:.2} {:.2}", of(&pair.a), of(&pair.b)));
        cells.push(both(|figures| figures.cores.foreign));
        cells.push(both(|figures| figures.cores.steal));
        cells.push(both(|figures| figures.load_average));
        table.add_row(cells);
    }
    let mut text = format!(
        "{}: {}\n{}: {}\n{table}\n",
        names[0], guarantees[0], names[1], guarantees[1]
    );
    for (number, pair) in outcome.pairs.iter().enumerate() {
        if let Some(reason) = &pair.dropped {
            let _ = writeln!(text, "pair {} is dropped: {reason}", number + 1);
        }
    }
    if let Some(pair) = outcome.pairs.first() {
        let _ = writeln!(
            text,
            "load: {} and {}; idle processors: {:.4} and {:.4}",
            pair.a.pace, pair.b.pace, pair.a.idle_cores, pair.b.idle_cores
        );
    }
    let few = |figures: &Figures| {
        figures
            .latency
            .as_ref()
            .is_none_or(|latency| !latency.p999_counts)
    };
    if metrics
        .iter()
        .any(|compared| compared.metric == cli::Metric::P999)
        && outcome.pairs.iter().any(|pair| few(&pair.a) || few(&pair.b))
    {
        text.push_str("a 99.9th percentile of fewer than 100,000 samples says little: raise --secs\n");
    }
    text + &verdicts(&outcome.judged)
}

/// Figures of all rounds, and the bars made of them.
pub(crate) fn rounds_table(note: &str, rounds: &[Round], judged: &[Judged]) -> String {
    let numbers = (1..=rounds.len()).map(|number| format!("round {number}"));
    let mut table = table(["figure", "median"].map(str::to_owned).into_iter().chain(numbers));
    let names: BTreeSet<&String> = rounds.iter().flat_map(|round| round.figures.keys()).collect();
    for name in names {
        let counting = rounds.iter().filter(|round| round.dropped.is_none());
        let values: Vec<f64> = counting.filter_map(|round| round.get(name)).collect();
        let told = |value: Option<f64>| right(value.map_or("-".to_owned(), significant));
        let each = rounds.iter().map(|round| told(round.get(name)));
        let cells = [Cell::new(name), told(median(&values))];
        table.add_row(cells.into_iter().chain(each));
    }
    let mut text = format!("{note}\n{table}\n");
    for (number, round) in rounds.iter().enumerate() {
        if let Some(reason) = &round.dropped {
            let _ = writeln!(text, "round {} is dropped: {reason}", number + 1);
        }
    }
    text + &verdicts(judged)
}

/// As many digits as say something.
fn significant(value: f64) -> String {
    match value.abs() {
        magnitude if magnitude >= 100.0 => format!("{value:.0}"),
        magnitude if magnitude >= 10.0 => format!("{value:.1}"),
        magnitude if magnitude >= 1.0 => format!("{value:.2}"),
        _ => format!("{value:.4}"),
    }
}

fn verdicts(judged: &[Judged]) -> String {
    let lines = judged.iter().map(|bar| {
        let bars = (bar.bars.floor, bar.bars.aim);
        let line = verdict(&bar.name, bar.ratio, bar.better, bars, bar.verdict);
        if bar.what.is_empty() {
            line
        } else {
            format!("{line}\n  {}", bar.what)
        }
    });
    lines.collect::<Vec<_>>().join("\n")
}

fn verdict(
    what: &str,
    ratio: Option<Interval>,
    better: Better,
    (floor, aim): (Option<f64>, Option<f64>),
    verdict: Verdict,
) -> String {
    let Some(Interval { low, median, high }) = ratio else {
        return format!("{what}: no figure");
    };
    let sign = match better {
        Better::Higher => ">=",
        Better::Lower => "<=",
    };
    let bar =
        |name: &str, bar: Option<f64>| bar.map_or(String::new(), |bar| format!(", {name} {sign} {bar}"));
    let verdict = match verdict {
        Verdict::Aim => ": aim reached",
        Verdict::Floor => ": floor reached",
        Verdict::Miss => ": MISSED",
        Verdict::None => "",
    };
    format!(
        "{what}: {median:.3} (95 %: {low:.3} to {high:.3}){}{}{verdict}",
        bar("floor", floor),
        bar("aim", aim)
    )
}

/// Writes a report with what it was measured on and when.
pub(crate) fn write_json(path: Option<&Path>, command: &str, report: Value) -> Result<()> {
    write(path, || {
        let report = complete(command, report);
        serde_json::to_string_pretty(&report).map_or_else(|error| error.to_string(), |text| text + "\n")
    })
}

fn complete(command: &str, report: Value) -> Value {
    let mut whole = json!({
        "format": FORMAT,
        "kvbench": env!("CARGO_PKG_VERSION"),
        "command": command,
        "machine": Machine::describe(),
    });
    if let (Some(whole), Value::Object(report)) = (whole.as_object_mut(), report) {
        whole.extend(report);
    }
    whole
}

/// Writes a file if one was asked for.
pub(crate) fn write(path: Option<&Path>, text: impl FnOnce() -> String) -> Result<()> {
    let Some(path) = path else { return Ok(()) };
    fs::write(path, text()).with_context(|| format!("cannot write {}", path.display()))?;
    say(&format!("wrote {}", path.display()));
    Ok(())
}

fn p999_label(figures: &Value) -> &'static str {
    match figures.pointer("/latency/p999_counts").and_then(Value::as_bool) {
        Some(false) => "latency, p99.9 (too few samples), us",
        _ => "latency, p99.9, us",
    }
}

fn mebibytes(figures: &Value) -> f64 {
    let memory = figures["memory"].as_array().into_iter().flatten();
    let bytes: f64 = memory.filter_map(|memory| memory["pss_bytes"].as_f64()).sum();
    bytes / f64::from(1 << 20)
}

fn table<T: Into<Cell>>(heads: impl IntoIterator<Item = T>) -> Table {
    let mut table = Table::new();
    table
        .load_style(presets::NOTHING)
        .set_header(heads.into_iter().map(Into::into).collect::<Vec<Cell>>());
    table
}

fn right(text: String) -> Cell {
    Cell::new(text).set_alignment(CellAlignment::Right)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_verdict_is_told_with_its_bars() {
        let interval = Some(Interval {
            low: 2.9,
            median: 4.0,
            high: 5.25,
        });
        let told = verdict(
            "put-per-cpu",
            interval,
            Better::Higher,
            (Some(3.0), Some(10.0)),
            Verdict::Miss,
        );
        assert_eq!(
            told,
            "put-per-cpu: 4.000 (95 %: 2.900 to 5.250), floor >= 3, aim >= 10: MISSED"
        );
        assert_eq!(
            verdict("x", None, Better::Lower, (None, None), Verdict::None),
            "x: no figure"
        );
    }

    #[test]
    fn figures_keep_the_digits_that_say_something() {
        let told = [12_345.6, 12.345, 1.234_5, 0.012_34, f64::NAN].map(significant);
        assert_eq!(told, ["12346", "12.3", "1.23", "0.0123", "NaN"]);
    }

    #[test]
    fn a_table_of_rounds_names_what_was_dropped() {
        let mut rounds = [1.0, 3.0, 80.0].map(|value| {
            let mut round = Round::default();
            round.set("us", value);
            round
        });
        rounds[2].dropped = Some("too loud".to_owned());
        let told = rounds_table("a note", &rounds, &[]);
        assert!(
            told.starts_with("a note\n") && told.contains("round 3 is dropped: too loud"),
            "{told}"
        );
        let row: Vec<&str> = told
            .lines()
            .find(|line| line.trim_start().starts_with("us"))
            .unwrap()
            .split_whitespace()
            .collect();
        assert_eq!(row, ["us", "2.00", "1.00", "3.00", "80.0"]);
    }

    #[test]
    fn a_report_says_what_it_was_measured_on() {
        let report = complete("run", json!({ "target": Kind::EchoStream }));
        assert_eq!(report["format"], FORMAT);
        assert_eq!(report["target"], "echo-stream");
        assert!(report["machine"]["processors"].as_u64() > Some(0), "{report}");
    }

    #[test]
    fn names_are_those_of_the_command_line() {
        assert_eq!(name(cli::Metric::PutPerCpu), "put-per-cpu");
        assert_eq!(name(crate::system::Route::Owner), "owner");
    }
}
