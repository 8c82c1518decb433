//! What the scripted worlds share.

use dynamo_core::coordinator::ReadRepair;
use dynamo_sim::knobs::{Durability, Mix};
use dynamo_sim::nemesis::{Class, Plan};
use dynamo_sim::network::Quality;
use dynamo_sim::{Knobs, Options, Report, run};

/// Many deletes, so that tombstones come and go.
pub(crate) const DELETES: Mix = Mix {
    cart: 0,
    register: 2,
    delete: 4,
    blind: 0,
    read: 1,
    expiring: 0,
};

/// Five nodes in three zones, N = 3, R = W = 2, a quick network, every kind of client.
pub(crate) fn cluster(seed: u64) -> Knobs {
    Knobs {
        nodes: 5,
        zones: 3,
        n: 3,
        r: 2,
        w: 2,
        strict: false,
        partitions: 8,
        durability: Durability::Every,
        read_repair: ReadRepair::Async,
        clients: 6,
        keys: 12,
        hot: 200,
        mix: Mix {
            cart: 3,
            register: 2,
            delete: 1,
            blind: 0,
            read: 1,
            expiring: 0,
        },
        think_ms: 40,
        timeout_ms: 1000,
        call_timeout_ms: 300,
        quality: Quality {
            loss: 0,
            repeat: 0,
            delay_min_us: 300,
            delay_mean_us: 1000,
        },
        safety_ms: 10_000,
        hints_max: 10_000,
        exchange_interval_ms: 1000,
        grace_ms: 2500,
        sync_us: 500,
        classes: vec![Class::Kill, Class::Pause],
        ..Knobs::plain(seed)
    }
}

pub(crate) fn holds(knobs: &Knobs, plan: &Plan) -> Report {
    let report = run(knobs, plan, Options::default());
    assert_eq!(report.violations, [], "seed {}", knobs.seed);
    assert!(report.stats.acked > 100, "little was written: {:?}", report.stats);
    assert!(report.stats.quiet_after_ms <= 60_000, "{:?}", report.stats);
    report
}
