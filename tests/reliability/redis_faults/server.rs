//! Faults of a single server, and of the network path to it.

use std::cell::RefCell;
use std::fs;
use std::thread;
use std::time::{Duration, Instant};

use super::load::Load;
use super::{Failures, Missing, Requirement, Row, Window, run_fault, window};
use crate::report::Measurement;
use crate::support::{Authority, Direction, End, Fault, FaultProxy, Flaw, RedisServer};

const SECOND: Duration = Duration::from_secs(1);

pub fn rows() -> Vec<Row> {
    let row =
        |scenario, repetitions, requirement, run| Row { scenario, repetitions, requirement, run };
    vec![
        row(
            "R1: Redis killed, then restarted with its data",
            "10 s",
            "503 within 100 ms; visitors without a cookie are served; recovered within 2 s; nothing lost",
            killed,
        ),
        row(
            "R2: Redis frozen (SIGSTOP)",
            "20 s",
            "no response above the budget; failures within 5 ms once the circuit breaker is open; recovered within 2 s",
            frozen,
        ),
        row(
            "R3: each piece delayed by 30 to 60 ms in each direction, one after another",
            "5 s",
            "every request is served",
            slow,
        ),
        row(
            "R3: CLIENT PAUSE ALL, 2 s at a time",
            "6 s",
            "no response above the budget; recovered within 2 s",
            paused,
        ),
        row(
            "R4: memory full, noeviction",
            "3 s",
            "reads and destroys are served, changes get 503 store_full; recovered at once",
            full,
        ),
        row(
            "R5: snapshots fail (MISCONF)",
            "3 s",
            "reads are served, changes get 503; recovered within 2 s",
            misconfigured,
        ),
        row(
            "R7: the server becomes a replica (READONLY)",
            "5 s",
            "503, never a miss; recovered within 2 s",
            demoted,
        ),
        row(
            "R10: the password changes, then the password file",
            "5 s",
            "503; recovered without a restart within 2 s; at most 4 connection attempts per second and worker",
            password,
        ),
        row("R11: the ACL denies HSET", "3 s", "changes get 503; recovered at once", forbidden),
        row(
            "R12: the server's certificate expires and connections are closed; restarted with a valid one",
            "4 s",
            "the connection is refused, no plain text is sent; recovered within 2 s",
            certificate,
        ),
        row(
            "R13: the network path is blackholed (established connections transfer nothing more)",
            "once",
            "connections are replaced after at most three rounds of timeouts; recovered within 5 s",
            blackholed,
        ),
        row(
            "R13: no data passes in either direction",
            "5 s",
            "no response above the budget; recovered within 2 s",
            stalled,
        ),
        row(
            "R14: connections reset",
            "50 times in 5 s",
            "recovered within 2 s; no response reaches another client",
            reset,
        ),
        row(
            "R14: replies truncated after 0, 6, 12 and so on to 234 bytes",
            "40 times",
            "recovered within 2 s; no response reaches another client",
            truncated,
        ),
        row(
            "R14: garbage before a reply, an unsolicited reply after one",
            "400 times",
            "recovered within 2 s; no response reaches another client",
            garbage,
        ),
        row(
            "R15: maxclients reached when connections are closed",
            "3 s",
            "503; recovered within 2 s",
            maxclients_reached,
        ),
        row(
            "R15: killed, then slow to load its data (LOADING)",
            "once",
            "503; recovered within 2 s after loading",
            loading,
        ),
        row("R15: an endless script (BUSY), then killed", "4 s", "503; recovered within 2 s", busy),
        row(
            "R16: one session deleted, one replaced by another type, one with a corrupt field; the others go on",
            "3 s",
            "their visitors are anonymous, no session is served in part; served again when restored",
            corrupt,
        ),
        row(
            "R16: FLUSHALL",
            "once",
            "all visitors are anonymous and can start new sessions",
            flushed,
        ),
    ]
}

fn durable() -> RedisServer {
    RedisServer::start(&["--appendonly", "yes", "--appendfsync", "always"])
}

fn url_of(server: &RedisServer) -> String {
    format!("url = \"{}\"", server.url())
}

fn killed() -> Measurement {
    let server = durable();
    let requirement = Requirement { longest: Duration::from_millis(250), ..Requirement::default() };
    run_fault(&url_of(&server), requirement, |_| {
        window(|| server.kill(), 10 * SECOND, || server.restart())
    })
}

fn frozen() -> Measurement {
    let server = durable();
    run_fault(&url_of(&server), Requirement::default(), |_| {
        window(|| server.stop(), 20 * SECOND, || server.cont())
    })
}

fn slow() -> Measurement {
    let server = durable();
    let proxy = FaultProxy::to(server.address());
    let store = format!("url = \"redis://{}/\"", proxy.address());
    let requirement = Requirement { failures: Failures::None, ..Requirement::default() };
    let (fixed, jitter) = (Duration::from_millis(30), Duration::from_millis(30));
    run_fault(&store, requirement, |_| {
        window(|| proxy.set(Fault::Delay { fixed, jitter }), 5 * SECOND, || proxy.set(Fault::None))
    })
}

fn paused() -> Measurement {
    let server = durable();
    run_fault(&url_of(&server), Requirement::default(), |_| {
        let began = Instant::now();
        for _ in 0..3 {
            server.command(&["CLIENT", "PAUSE", "2000", "ALL"]).done();
            thread::sleep(2 * SECOND);
        }
        Window { began, ended: Instant::now() }
    })
}

fn full() -> Measurement {
    let server = durable();
    // Failures are certain: every life cycle begins with a change.
    run_fault(&url_of(&server), Requirement::default(), |_| {
        window(
            || drop(server.command(&["CONFIG", "SET", "maxmemory", "1"]).done()),
            3 * SECOND,
            || drop(server.command(&["CONFIG", "SET", "maxmemory", "0"]).done()),
        )
    })
}

fn misconfigured() -> Measurement {
    let server = RedisServer::start(&["--enable-protected-configs", "yes"]);
    let here = server.command(&["CONFIG", "GET", "dir"]).list()[1].text();
    let set = |name, value: &str| drop(server.command(&["CONFIG", "SET", name, value]).done());
    run_fault(&url_of(&server), Requirement::default(), |_| {
        window(
            || {
                set("save", "3600 1");
                set("dir", "/proc");
                let _ = server.command(&["BGSAVE"]);
                while server.info("rdb_last_bgsave_status") == "ok" {
                    thread::sleep(Duration::from_millis(20));
                }
            },
            3 * SECOND,
            || {
                set("dir", &here);
                set("save", "");
            },
        )
    })
}

fn demoted() -> Measurement {
    let server = durable();
    run_fault(&url_of(&server), Requirement::default(), |_| {
        window(
            || drop(server.command(&["REPLICAOF", "127.0.0.1", "1"]).done()),
            5 * SECOND,
            || drop(server.command(&["REPLICAOF", "NO", "ONE"]).done()),
        )
    })
}

fn password() -> Measurement {
    let server = RedisServer::with_acl_file();
    let directory = crate::stores::directory();
    let file = directory.path().join("password");
    fs::write(&file, "the first").unwrap();
    server.acl_user("app", "the first", "~* +@all");
    let store = format!(
        "url = \"redis://app@127.0.0.1:{}/\"\npassword = {{ file = \"{}\" }}",
        server.port(),
        file.display()
    );
    let mut attempts = 0;
    let measured = run_fault(&store, Requirement::default(), |_| {
        let mut before = 0;
        let fault = window(
            || {
                server.command(&["ACL", "SETUSER", "app", "resetpass", ">the second"]).done();
                server.command(&["CLIENT", "KILL", "USER", "app"]);
                before = connections(&server);
            },
            5 * SECOND,
            || fs::write(&file, "the second").unwrap(),
        );
        attempts = connections(&server) - before - 1;
        fault
    });
    let text = format!("{}; {attempts} connection attempts during the fault", measured.text);
    Measurement { text, passed: measured.passed && attempts <= 40 }
}

/// Returns the number of connections that a server has accepted, including the one of this query.
fn connections(server: &RedisServer) -> i64 {
    let info = server.command(&["INFO", "stats"]).text();
    let line = info.lines().find_map(|line| line.strip_prefix("total_connections_received:"));
    line.unwrap().trim().parse().unwrap()
}

fn forbidden() -> Measurement {
    let server = RedisServer::with_acl_file();
    server.acl_user("app", "hunter2", "~* +@all");
    let store = format!("url = \"redis://app:hunter2@127.0.0.1:{}/\"", server.port());
    run_fault(&store, Requirement::default(), |_| {
        window(
            || drop(server.command(&["ACL", "SETUSER", "app", "-hset"]).done()),
            3 * SECOND,
            || drop(server.command(&["ACL", "SETUSER", "app", "+hset"]).done()),
        )
    })
}

fn certificate() -> Measurement {
    let authority = Authority::new();
    let (good, expired) = (authority.server(Flaw::None), authority.server(Flaw::Expired));
    let client = authority.client(Flaw::None);
    let server =
        RedisServer::tls(&authority, &good, &["--appendonly", "yes", "--appendfsync", "always"]);
    let store = format!(
        "url = \"rediss://127.0.0.1:{}/\"\ntls = {{ ca = \"{}\", certificate = \"{}\", key = \"{}\" }}",
        server.port(),
        authority.certificate().display(),
        client.certificate.display(),
        client.key.display()
    );
    let present = |identity: &crate::support::Identity| {
        let (certificate, key) = (identity.certificate.display(), identity.key.display());
        server
            .command(&[
                "CONFIG",
                "SET",
                "tls-cert-file",
                &certificate.to_string(),
                "tls-key-file",
                &key.to_string(),
            ])
            .done();
        let _ = server.command(&["CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes"]);
    };
    run_fault(&store, Requirement::default(), |_| {
        // After a restart it presents the certificate from its command line.
        window(
            || present(&expired),
            4 * SECOND,
            || {
                server.kill();
                server.restart();
            },
        )
    })
}

fn through(proxy: &FaultProxy) -> String {
    format!("url = \"redis://{}/\"", proxy.address())
}

fn blackholed() -> Measurement {
    let server = durable();
    let proxy = FaultProxy::to(server.address());
    let requirement = Requirement { recovers: 5 * SECOND, ..Requirement::default() };
    run_fault(&through(&proxy), requirement, |_| {
        let began = Instant::now();
        proxy.blackhole();
        Window { began, ended: Instant::now() }
    })
}

fn stalled() -> Measurement {
    let server = durable();
    let proxy = FaultProxy::to(server.address());
    run_fault(&through(&proxy), Requirement::default(), |_| {
        window(|| proxy.set(Fault::Stall(Direction::Both)), 5 * SECOND, || proxy.set(Fault::None))
    })
}

fn reset() -> Measurement {
    let server = durable();
    let proxy = FaultProxy::to(server.address());
    run_fault(&through(&proxy), Requirement::default(), |_| {
        let began = Instant::now();
        for _ in 0..50 {
            proxy.end(End::Reset);
            thread::sleep(SECOND / 10);
        }
        Window { began, ended: Instant::now() }
    })
}

fn truncated() -> Measurement {
    let server = durable();
    let proxy = FaultProxy::to(server.address());
    run_fault(&through(&proxy), Requirement::default(), |_| {
        let began = Instant::now();
        for bytes in (0..240).step_by(6) {
            // Wait until the fault has hit a connection, so that no two faults are pending.
            let accepted = proxy.accepted();
            proxy.end_after(bytes, if bytes % 4 == 0 { End::Reset } else { End::Close });
            let patience = Instant::now() + 3 * SECOND;
            while proxy.accepted() == accepted && Instant::now() < patience {
                thread::sleep(SECOND / 100);
            }
            thread::sleep(SECOND / 20);
        }
        Window { began, ended: Instant::now() }
    })
}

fn garbage() -> Measurement {
    let server = durable();
    let proxy = FaultProxy::to(server.address());
    run_fault(&through(&proxy), Requirement::default(), |_| {
        let began = Instant::now();
        for round in 0..400 {
            match round % 4 {
                0 => proxy.garbage(b"\x00\xff\x17garbage\r\n"),
                1 => proxy.garbage(b"?7\r\n"),
                2 => proxy.extra_reply(b"+OK\r\n"),
                _ => proxy.extra_reply(b"$3\r\nabc\r\n"),
            }
            thread::sleep(SECOND / 50);
        }
        Window { began, ended: Instant::now() }
    })
}

fn maxclients_reached() -> Measurement {
    let server = durable();
    run_fault(&url_of(&server), Requirement::default(), |_| {
        // This connection takes the only slot.
        let other = RefCell::new(server.connect().unwrap());
        let command = |words: &[&str]| drop(other.borrow_mut().command(words).unwrap().done());
        window(
            || {
                command(&["CONFIG", "SET", "maxclients", "1"]);
                command(&["CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes"]);
            },
            3 * SECOND,
            || command(&["CONFIG", "SET", "maxclients", "10000"]),
        )
    })
}

fn loading() -> Measurement {
    let server = RedisServer::start(&[
        "--appendonly",
        "yes",
        "--aof-use-rdb-preamble",
        "no",
        "--key-load-delay",
        "3000",
        "--loading-process-events-interval-bytes",
        "1024",
    ]);
    run_fault(
        &url_of(&server),
        Requirement { recovers: 4 * SECOND, ..Requirement::default() },
        |_| {
            for number in 0..500 {
                server.command(&["SET", &format!("filler:{number}"), &"x".repeat(2000)]).done();
            }
            window(|| server.kill(), SECOND, || server.restart())
        },
    )
}

fn busy() -> Measurement {
    let server = durable();
    run_fault(&url_of(&server), Requirement::default(), |_| {
        let mut one = server.connect().unwrap();
        window(
            || {
                server.command(&["CONFIG", "SET", "busy-reply-threshold", "100"]).done();
                one.send(&["EVAL", "while true do end", "0"]).unwrap();
            },
            4 * SECOND,
            || drop(server.command(&["SCRIPT", "KILL"]).done()),
        )
    })
}

/// An unreadable session counts as missing: none of its values is served, and no request fails.
fn corrupt() -> Measurement {
    let server = durable();
    let requirement = Requirement {
        failures: Failures::None,
        missing: Missing::Allowed,
        ..Requirement::default()
    };
    run_fault(&url_of(&server), requirement, |load: &Load| {
        let key = |at: usize| format!("cloakroom:s:{{{}}}", load.ids[at]);
        let (deleted, typed, corrupt) = (key(0), key(1), key(2));
        let backup = |key: &str| format!("backup:{key}");
        let since = server.command(&["HGET", &corrupt, "gs"]).text();
        window(
            || {
                server.command(&["RENAME", &deleted, &backup(&deleted)]).done();
                server.command(&["RENAME", &typed, &backup(&typed)]).done();
                server.command(&["LPUSH", &typed, "no session"]).done();
                server.command(&["HSET", &corrupt, "gs", "yesterday"]).done();
            },
            3 * SECOND,
            || {
                server.command(&["RENAME", &backup(&deleted), &deleted]).done();
                server.command(&["RENAME", &backup(&typed), &typed]).done();
                server.command(&["HSET", &corrupt, "gs", &since]).done();
            },
        )
    })
}

fn flushed() -> Measurement {
    let server = durable();
    let requirement = Requirement {
        failures: Failures::None,
        missing: Missing::Allowed,
        losses: super::Losses::Allowed,
        ..Requirement::default()
    };
    run_fault(&url_of(&server), requirement, |_| {
        window(|| drop(server.command(&["FLUSHALL"]).done()), SECOND, || ())
    })
}
