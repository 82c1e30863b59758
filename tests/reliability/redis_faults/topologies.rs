//! Faults of a primary with replicas and sentinels, and of a cluster.

use std::thread;
use std::time::{Duration, Instant};

use super::load::Load;
use super::{Failures, Losses, Requirement, Row, Window, run_fault, window};
use crate::report::Measurement;
use crate::support::{Cluster, Sentinels};

const SECOND: Duration = Duration::from_secs(1);

pub fn rows() -> Vec<Row> {
    let row =
        |scenario, repetitions, requirement, run| Row { scenario, repetitions, requirement, run };
    vec![
        row(
            "R6: failover by command to the sentinels",
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
            "R6: the primary frozen (SIGSTOP), resumed as the old primary after 8 s",
            "8 s",
            "recovered within 5 s of the freeze; no write goes to the old primary",
            primary_frozen,
        ),
        row("R8: the slots of 12 sessions moved, step by step", "once", "0 failures", migrated),
        row(
            "R9: a cluster's primary frozen; node timeout 1.5 s",
            "10 s",
            "its slots are served again within 4.5 s, all other slots always",
            node_frozen,
        ),
        row(
            "R9: a cluster's primary killed",
            "once",
            "its slots are served again within 4.5 s, all other slots always",
            node_killed,
        ),
    ]
}

fn sentinel_url(sentinels: &Sentinels) -> String {
    let addresses = sentinels.addresses().join(",");
    format!("url = \"redis+sentinel://{addresses}/{}\"", Sentinels::SERVICE)
}

fn failover(recovers: Duration) -> Requirement {
    Requirement { recovers, losses: Losses::Allowed, ..Requirement::default() }
}

fn by_command() -> Measurement {
    let sentinels = Sentinels::start();
    let requirement = Requirement { failures: Failures::Allowed, ..failover(3 * SECOND) };
    run_fault(&sentinel_url(&sentinels), requirement, |_| {
        let began = Instant::now();
        sentinels.failover();
        Window { began, ended: Instant::now() }
    })
}

fn primary_killed() -> Measurement {
    let sentinels = Sentinels::start();
    run_fault(&sentinel_url(&sentinels), failover(5 * SECOND), |_| {
        let began = Instant::now();
        sentinels.primary().kill();
        Window { began, ended: Instant::now() }
    })
}

/// Measures recovery from the time of the freeze.
fn primary_frozen() -> Measurement {
    let sentinels = Sentinels::start();
    let store = sentinel_url(&sentinels);
    run_fault(&store, failover(6 * SECOND), |_| {
        let began = Instant::now();
        let frozen = sentinels.primary();
        frozen.stop();
        thread::sleep(8 * SECOND);
        frozen.cont();
        // Writes that it accepts before it learns of its successor would be lost.
        thread::sleep(2 * SECOND);
        Window { began, ended: began }
    })
}

fn cluster_url(cluster: &Cluster) -> String {
    format!("url = \"redis+cluster://{}\"", cluster.seeds().join(","))
}

fn slot_of(cluster: &Cluster, id: &str) -> u16 {
    cluster.slot_of(&format!("cloakroom:s:{{{id}}}"))
}

fn migrated() -> Measurement {
    let cluster = Cluster::start();
    let requirement = Requirement { failures: Failures::None, ..Requirement::default() };
    run_fault(&cluster_url(&cluster), requirement, |load: &Load| {
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

fn node_frozen() -> Measurement {
    let cluster = Cluster::start();
    other_slots_are_served(&cluster, |cluster| {
        let began = Instant::now();
        cluster.nodes()[0].stop();
        thread::sleep(10 * SECOND);
        cluster.nodes()[0].cont();
        Window { began, ended: began }
    })
}

fn node_killed() -> Measurement {
    let cluster = Cluster::start();
    other_slots_are_served(&cluster, |cluster| {
        window(|| cluster.nodes()[0].kill(), Duration::ZERO, || ())
    })
}

/// Runs a fault of the first node; requests for sessions on other nodes must not fail.
fn other_slots_are_served(
    cluster: &Cluster,
    inject: impl FnOnce(&Cluster) -> Window,
) -> Measurement {
    let requirement = failover(4500 * SECOND / 1000);
    let load = Load::start(&cluster_url(cluster));
    load.settle(10 * SECOND);
    let port = cluster.nodes()[0].port();
    let on_it: Vec<bool> = load
        .ids
        .iter()
        .map(|id| cluster.primary_of(slot_of(cluster, id)).unwrap().port() == port)
        .collect();
    let window = inject(cluster);
    load.settle(15 * SECOND);
    let result = load.stop();
    let others = result.samples.iter().filter(|sample| !on_it[sample.visitor]);
    // A life cycle uses another session, on any node.
    let others = others.filter(|sample| sample.request != "a life cycle");
    let failed = others.clone().filter(|sample| sample.outcome != super::Outcome::Served).count();
    let Measurement { text, passed } = super::measurement(&result, &window, requirement);
    Measurement {
        text: format!("{text}; of {} requests for other slots {failed} failed", others.count()),
        passed: passed && failed == 0,
    }
}
