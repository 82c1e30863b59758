//! What may happen to one server, and on the way to it.

use std::cell::RefCell;
use std::fs;
use std::thread;
use std::time::{Duration, Instant};

use super::load::Load;
use super::{Demand, Failures, Gone, Row, Window, ordeal, window};
use crate::report::Counted;
use crate::support::{Authority, Direction, End, Fault, FaultProxy, Flaw, RedisServer};

const SECOND: Duration = Duration::from_secs(1);

pub fn rows() -> Vec<Row> {
    let row = |done, lasts, demanded, run| Row { done, lasts, demanded, run };
    vec![
        row(
            "R1: Redis killed, and started again with its data",
            "10 s",
            "503 within 100 ms, strangers pass, recovered within 2 s, nothing lost",
            killed,
        ),
        row(
            "R2: Redis frozen (SIGSTOP)",
            "20 s",
            "no answer above the budget; failures within 5 ms once the breaker is open; recovered within 2 s",
            frozen,
        ),
        row(
            "R3: every piece 30 to 60 ms late on its way, each way, one after the other",
            "5 s",
            "all are served",
            slow,
        ),
        row(
            "R3: CLIENT PAUSE ALL, 2 s at a time",
            "6 s",
            "no answer above the budget; recovered within 2 s",
            paused,
        ),
        row(
            "R4: memory full, noeviction",
            "3 s",
            "reads and destroys are served, changes get 503 store_full; recovered at once",
            full,
        ),
        row(
            "R5: saving fails (MISCONF)",
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
            "R10: the password changes, then the file of it",
            "5 s",
            "503; heals without a restart within 2 s; no storm of attempts (at most 4 a second for each worker)",
            password,
        ),
        row(
            "R11: the access list forbids HSET",
            "3 s",
            "changes get 503; recovered at once",
            forbidden,
        ),
        row(
            "R12: the server's certificate expires and connections are ended; started again with a good one",
            "4 s",
            "refused, no plain text; recovered within 2 s",
            certificate,
        ),
        row(
            "R13: the path goes dead without a word (established connections pass nothing more)",
            "once",
            "replaced within three waves of deadlines; recovered within 5 s",
            dead_path,
        ),
        row(
            "R13: nothing passes, either way",
            "5 s",
            "no answer above the budget; recovered within 2 s",
            stalled,
        ),
        row(
            "R14: connections reset",
            "50 times in 5 s",
            "recovered within 2 s; no crossed answer",
            reset,
        ),
        row(
            "R14: replies cut after 0, 6, 12 and so on to 234 bytes",
            "40 times",
            "recovered within 2 s; no crossed answer",
            cut,
        ),
        row(
            "R14: garbage before a reply, an answer to no question after one",
            "400 times",
            "recovered within 2 s; no crossed answer",
            garbage,
        ),
        row(
            "R15: maxclients reached as connections are ended",
            "3 s",
            "503; recovered within 2 s",
            full_of_clients,
        ),
        row(
            "R15: killed, and slow to load its data (LOADING)",
            "once",
            "503; recovered within 2 s of the end of loading",
            loading,
        ),
        row(
            "R15: a script that does not end (BUSY), then killed",
            "4 s",
            "503; recovered within 2 s",
            busy,
        ),
        row(
            "R16: a session deleted, one of another type, one with a spoilt field; the others go on",
            "3 s",
            "their visitors are strangers, never served in part; served again when mended",
            spoilt,
        ),
        row("R16: FLUSHALL", "once", "everybody is a stranger and may begin anew", flushed),
    ]
}

fn durable() -> RedisServer {
    RedisServer::start(&["--appendonly", "yes", "--appendfsync", "always"])
}

fn at(server: &RedisServer) -> String {
    format!("url = \"{}\"", server.url())
}

fn killed() -> Counted {
    let server = durable();
    let demand = Demand { longest: Duration::from_millis(250), ..Demand::default() };
    ordeal(&at(&server), demand, |_| window(|| server.kill(), 10 * SECOND, || server.restart()))
}

fn frozen() -> Counted {
    let server = durable();
    ordeal(&at(&server), Demand::default(), |_| {
        window(|| server.stop(), 20 * SECOND, || server.cont())
    })
}

fn slow() -> Counted {
    let server = durable();
    let proxy = FaultProxy::to(server.address());
    let store = format!("url = \"redis://{}/\"", proxy.address());
    let demand = Demand { failures: Failures::None, ..Demand::default() };
    let (fixed, jitter) = (Duration::from_millis(30), Duration::from_millis(30));
    ordeal(&store, demand, |_| {
        window(|| proxy.set(Fault::Delay { fixed, jitter }), 5 * SECOND, || proxy.set(Fault::None))
    })
}

fn paused() -> Counted {
    let server = durable();
    ordeal(&at(&server), Demand::default(), |_| {
        let began = Instant::now();
        for _ in 0..3 {
            server.command(&["CLIENT", "PAUSE", "2000", "ALL"]).done();
            thread::sleep(2 * SECOND);
        }
        Window { began, ended: Instant::now() }
    })
}

fn full() -> Counted {
    let server = durable();
    // A life begins with a change.
    ordeal(&at(&server), Demand::default(), |_| {
        window(
            || drop(server.command(&["CONFIG", "SET", "maxmemory", "1"]).done()),
            3 * SECOND,
            || drop(server.command(&["CONFIG", "SET", "maxmemory", "0"]).done()),
        )
    })
}

fn misconfigured() -> Counted {
    let server = RedisServer::start(&["--enable-protected-configs", "yes"]);
    let here = server.command(&["CONFIG", "GET", "dir"]).list()[1].text();
    let set = |name, value: &str| drop(server.command(&["CONFIG", "SET", name, value]).done());
    ordeal(&at(&server), Demand::default(), |_| {
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

fn demoted() -> Counted {
    let server = durable();
    ordeal(&at(&server), Demand::default(), |_| {
        window(
            || drop(server.command(&["REPLICAOF", "127.0.0.1", "1"]).done()),
            5 * SECOND,
            || drop(server.command(&["REPLICAOF", "NO", "ONE"]).done()),
        )
    })
}

fn password() -> Counted {
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
    let counted = ordeal(&store, Demand::default(), |_| {
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
    let text = format!("{}; {attempts} connections tried meanwhile", counted.text);
    Counted { text, held: counted.held && attempts <= 40 }
}

/// How many connections a server has taken, with the one that asks.
fn connections(server: &RedisServer) -> i64 {
    let info = server.command(&["INFO", "stats"]).text();
    let line = info.lines().find_map(|line| line.strip_prefix("total_connections_received:"));
    line.unwrap().trim().parse().unwrap()
}

fn forbidden() -> Counted {
    let server = RedisServer::with_acl_file();
    server.acl_user("app", "hunter2", "~* +@all");
    let store = format!("url = \"redis://app:hunter2@127.0.0.1:{}/\"", server.port());
    ordeal(&store, Demand::default(), |_| {
        window(
            || drop(server.command(&["ACL", "SETUSER", "app", "-hset"]).done()),
            3 * SECOND,
            || drop(server.command(&["ACL", "SETUSER", "app", "+hset"]).done()),
        )
    })
}

fn certificate() -> Counted {
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
    let show = |identity: &crate::support::Identity| {
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
    ordeal(&store, Demand::default(), |_| {
        // Started again it shows the certificate that it was started with first.
        window(
            || show(&expired),
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

fn dead_path() -> Counted {
    let server = durable();
    let proxy = FaultProxy::to(server.address());
    let demand = Demand { recovers: 5 * SECOND, ..Demand::default() };
    ordeal(&through(&proxy), demand, |_| {
        let began = Instant::now();
        proxy.blackhole();
        Window { began, ended: Instant::now() }
    })
}

fn stalled() -> Counted {
    let server = durable();
    let proxy = FaultProxy::to(server.address());
    ordeal(&through(&proxy), Demand::default(), |_| {
        window(|| proxy.set(Fault::Stall(Direction::Both)), 5 * SECOND, || proxy.set(Fault::None))
    })
}

fn reset() -> Counted {
    let server = durable();
    let proxy = FaultProxy::to(server.address());
    ordeal(&through(&proxy), Demand::default(), |_| {
        let began = Instant::now();
        for _ in 0..50 {
            proxy.end(End::Reset);
            thread::sleep(SECOND / 10);
        }
        Window { began, ended: Instant::now() }
    })
}

fn cut() -> Counted {
    let server = durable();
    let proxy = FaultProxy::to(server.address());
    ordeal(&through(&proxy), Demand::default(), |_| {
        let began = Instant::now();
        for bytes in (0..240).step_by(6) {
            // Each hits a connection, if only one that is being made: none waits behind another.
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

fn garbage() -> Counted {
    let server = durable();
    let proxy = FaultProxy::to(server.address());
    ordeal(&through(&proxy), Demand::default(), |_| {
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

fn full_of_clients() -> Counted {
    let server = durable();
    ordeal(&at(&server), Demand::default(), |_| {
        // Another takes all the room that there is.
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

fn loading() -> Counted {
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
    ordeal(&at(&server), Demand { recovers: 4 * SECOND, ..Demand::default() }, |_| {
        for number in 0..500 {
            server.command(&["SET", &format!("filler:{number}"), &"x".repeat(2000)]).done();
        }
        window(|| server.kill(), SECOND, || server.restart())
    })
}

fn busy() -> Counted {
    let server = durable();
    ordeal(&at(&server), Demand::default(), |_| {
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

/// What cannot be read counts as gone: no value is shown, and nothing fails.
fn spoilt() -> Counted {
    let server = durable();
    let demand = Demand { failures: Failures::None, gone: Gone::Allowed, ..Demand::default() };
    ordeal(&at(&server), demand, |load: &Load| {
        let key = |at: usize| format!("cloakroom:s:{{{}}}", load.ids[at]);
        let (deleted, typed, spoilt) = (key(0), key(1), key(2));
        let kept = |key: &str| format!("kept:{key}");
        let since = server.command(&["HGET", &spoilt, "gs"]).text();
        window(
            || {
                server.command(&["RENAME", &deleted, &kept(&deleted)]).done();
                server.command(&["RENAME", &typed, &kept(&typed)]).done();
                server.command(&["LPUSH", &typed, "no session"]).done();
                server.command(&["HSET", &spoilt, "gs", "yesterday"]).done();
            },
            3 * SECOND,
            || {
                server.command(&["RENAME", &kept(&deleted), &deleted]).done();
                server.command(&["RENAME", &kept(&typed), &typed]).done();
                server.command(&["HSET", &spoilt, "gs", &since]).done();
            },
        )
    })
}

fn flushed() -> Counted {
    let server = durable();
    let demand = Demand {
        failures: Failures::None,
        gone: Gone::Allowed,
        losses: super::Losses::Counted,
        ..Demand::default()
    };
    ordeal(&at(&server), demand, |_| {
        window(|| drop(server.command(&["FLUSHALL"]).done()), SECOND, || ())
    })
}
