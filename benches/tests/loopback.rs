//! The program itself, on servers of its own. Nothing is said about speed.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "all of it is tests")]

use std::{fs, process::Command};

use serde_json::Value;

fn kvbench(arguments: &[&str]) {
    let output = Command::new(env!("CARGO_BIN_EXE_kvbench"))
        .args(arguments)
        .output()
        .unwrap();
    let (out, err) = (
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr),
    );
    assert!(output.status.success(), "{out}\n{err}");
}

#[test]
fn a_run_of_echoes_is_reported_whole() {
    let dir = tempfile::tempdir().unwrap();
    let (json, svg) = (dir.path().join("run.json"), dir.path().join("run.svg"));
    kvbench(&[
        "run",
        "--target",
        "echo",
        "--workload",
        "f",
        "--rate",
        "200",
        "--secs",
        "1",
        "--nodes",
        "2",
        "--records",
        "100",
        "--warm-up",
        "100",
        "--settle-secs",
        "0",
        "--idle-secs",
        "0.1",
        "--json",
        json.to_str().unwrap(),
        "--svg",
        svg.to_str().unwrap(),
    ]);
    let report: Value = serde_json::from_str(&fs::read_to_string(json).unwrap()).unwrap();
    assert_eq!(
        (&report["command"], &report["target"]),
        (&"run".into(), &"echo".into())
    );
    assert_eq!(report["plan"]["value_bytes"], 1024);
    let figures = &report["figures"];
    assert_eq!(
        (&figures["operations"], &figures["failed"]),
        (&200.into(), &0.into()),
        "{figures}"
    );
    assert_eq!(figures["pace"]["rate"], 200.0);
    assert_eq!(figures["slip"]["samples"], 200);
    let samples = |kind: &str| figures[kind]["samples"].as_u64().unwrap();
    assert_eq!(samples("reads") + samples("writes"), samples("latency"));
    let at = |path: &str| figures.pointer(path).and_then(Value::as_f64).unwrap();
    assert!(0.0 < at("/latency/p50_us") && at("/latency/p50_us") <= at("/latency/p999_us"));
    assert!(at("/latency/p999_us") <= at("/latency/max_us"));
    assert!(at("/server_us_per_operation") > 0.0 && at("/cores/client") > 0.0);
    assert_eq!(
        figures["memory"].as_array().unwrap().len(),
        2,
        "one entry a server"
    );
    assert!(at("/memory/0/pss_bytes") > 0.0);
    assert!(fs::read_to_string(svg).unwrap().ends_with("</svg>\n"));
}

#[test]
fn a_pair_is_compared_in_all_metrics_of_the_same_runs() {
    let dir = tempfile::tempdir().unwrap();
    let (json, svg) = (dir.path().join("pair.json"), dir.path().join("pair.svg"));
    let line = "pair --a echo --b echo-stream --metric put-per-cpu,cpu-per-put --pairs 2 --secs 0.5 --nodes 1 --closed 8 --floor 0 \
                --idle-floor 100 --records 100 --warm-up 100 --settle-secs 0 --idle-secs 0.5 --foreign-max 1024";
    let files = ["--json", json.to_str().unwrap(), "--svg", svg.to_str().unwrap()];
    kvbench(&line.split_whitespace().chain(files).collect::<Vec<_>>());
    let report: Value = serde_json::from_str(&fs::read_to_string(json).unwrap()).unwrap();
    let outcome = &report["outcome"];
    let pairs = outcome["pairs"].as_array().unwrap();
    assert_eq!(pairs.len(), 2);
    for pair in pairs {
        let ratio = |metric: usize| pair["compared"][metric]["ratio"].as_f64().unwrap();
        // One is the other's inverse, of the very same runs.
        assert!((ratio(0) * ratio(1) - 1.0).abs() < 1e-9, "{pair}");
    }
    let judged: Vec<&str> = outcome["judged"]
        .as_array()
        .unwrap()
        .iter()
        .map(|judged| judged["name"].as_str().unwrap())
        .collect();
    assert_eq!(judged, ["put-per-cpu", "cpu-per-put", "idle"]);
    assert_eq!(report["a"]["idle_parts"].as_array().unwrap().len(), 5);
    assert_eq!(report["a"]["warm_up"]["operations"], 100);
    assert!(
        fs::read_to_string(svg)
            .unwrap()
            .contains("put-per-cpu of echo / echo-stream")
    );
}
