//! What may happen to a primary and its replicas, and to a cluster.

use std::thread;
use std::time::{Duration, Instant};

use super::load::Load;
use super::{Demand, Failures, Losses, Row, Window, ordeal, window};
use crate::report::Counted;
use crate::support::{Cluster, Sentinels};

const SECOND: Duration = Duration::from_secs(1);

pub fn rows() -> Vec<Row> {
    let row = |done, lasts, demanded, run| Row { done, lasts, demanded, run };
    vec![
        row(
            "R6: failover by the sentinels' command",
            "once",
            "recovered within 3 s; no destroyed session is served",
            by_command,
        ),
        row(
            "R6: the primary killed; sentinels wait for 1 s",
            "once",
            "recovered within 5 s; no destroyed session is served",
            primary_killed,
        ),
        row(
            "R6: the primary frozen, back as the old primary after 8 s",
            "8 s",
            "recovered within 5 s of the freeze; no write goes to the old one",
            primary_frozen,
        ),
        row("R8: the slots of 12 sessions moved, step by step", "once", "0 failures", migrated),
        row(
            "R9: a cluster's primary frozen; node timeout 1.5 s",
            "10 s",
            "its slots recovered within 4.5 s; all other slots served",
            node_frozen,
        ),
        row(
            "R9: a cluster's primary killed",
            "once",
            "its slots recovered within 4.5 s; all other slots served",
            node_killed,
        ),
    ]
}

fn by_sentinels(sentinels: &Sentinels) -> String {
    let addresses = sentinels.addresses().join(",");
    format!("url = \"redis+sentinel://{addresses}/{}\"", Sentinels::SERVICE)
}

fn failover(recovers: Duration) -> Demand {
    Demand { recovers, losses: Losses::Counted, ..Demand::default() }
}

fn by_command() -> Counted {
    let sentinels = Sentinels::start();
    let demand = Demand { failures: Failures::Allowed, ..failover(3 * SECOND) };
    ordeal(&by_sentinels(&sentinels), demand, |_| {
        let began = Instant::now();
        sentinels.failover();
        Window { began, ended: Instant::now() }
    })
}

fn primary_killed() -> Counted {
    let sentinels = Sentinels::start();
    ordeal(&by_sentinels(&sentinels), failover(5 * SECOND), |_| {
        let began = Instant::now();
        sentinels.primary().kill();
        Window { began, ended: Instant::now() }
    })
}

/// Recovery is counted from the freeze.
fn primary_frozen() -> Counted {
    let sentinels = Sentinels::start();
    let store = by_sentinels(&sentinels);
    ordeal(&store, failover(6 * SECOND), |_| {
        let began = Instant::now();
        let frozen = sentinels.primary();
        frozen.stop();
        thread::sleep(8 * SECOND);
        frozen.cont();
        // What it is told before it hears of its successor would be lost.
        thread::sleep(2 * SECOND);
        Window { began, ended: began }
    })
}

fn in_cluster(cluster: &Cluster) -> String {
    format!("url = \"redis+cluster://{}\"", cluster.seeds().join(","))
}

fn slot_of(cluster: &Cluster, id: &str) -> u16 {
    cluster.slot_of(&format!("cloakroom:s:{{{id}}}"))
}

fn migrated() -> Counted {
    let cluster = Cluster::start();
    let demand = Demand { failures: Failures::None, ..Demand::default() };
    ordeal(&in_cluster(&cluster), demand, |load: &Load| {
        let began = Instant::now();
        for id in load.ids.iter().take(12) {
            let slot = slot_of(&cluster, id);
            let owner = cluster.primary_of(slot).unwrap().port();
            let to = cluster.nodes()[..3].iter().find(|node| node.port() != owner).unwrap();
            let migration = cluster.migration(slot, to);
            migration.begin();
            thread::sleep(SECOND / 10);
            while migration.move_keys(1) > 0 {
                thread::sleep(SECOND / 20);
            }
            migration.finish();
            thread::sleep(SECOND / 10);
        }
        Window { began, ended: Instant::now() }
    })
}

fn node_frozen() -> Counted {
    let cluster = Cluster::start();
    without_the_others(&cluster, |cluster| {
        let began = Instant::now();
        cluster.nodes()[0].stop();
        thread::sleep(10 * SECOND);
        cluster.nodes()[0].cont();
        Window { began, ended: began }
    })
}

fn node_killed() -> Counted {
    let cluster = Cluster::start();
    without_the_others(&cluster, |cluster| {
        window(|| cluster.nodes()[0].kill(), Duration::ZERO, || ())
    })
}

/// Whoever's session is on another node may notice nothing.
fn without_the_others(cluster: &Cluster, inject: impl FnOnce(&Cluster) -> Window) -> Counted {
    let demand = failover(4500 * SECOND / 1000);
    let load = Load::begin(&in_cluster(cluster));
    load.settle(10 * SECOND);
    let port = cluster.nodes()[0].port();
    let on_it: Vec<bool> = load
        .ids
        .iter()
        .map(|id| cluster.primary_of(slot_of(cluster, id)).unwrap().port() == port)
        .collect();
    let window = inject(cluster);
    load.settle(15 * SECOND);
    let told = load.end();
    let others = told.samples.iter().filter(|sample| !on_it[sample.visitor]);
    // A life has a session of its own, anywhere.
    let others = others.filter(|sample| sample.asked != "a life");
    let failed = others.clone().filter(|sample| sample.outcome != super::Outcome::Served).count();
    let Counted { text, held } = super::counted(&told, &window, demand);
    Counted {
        text: format!("{text}; of {} requests for other slots {failed} failed", others.count()),
        held: held && failed == 0,
    }
}
