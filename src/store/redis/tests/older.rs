//! Instances of an older version on the same server, which has no unproven sessions: its scripts, unchanged.

use redis::Arg;

use super::*;
use crate::session::patch::{Op, Proof, Use};

const PRELUDE: &str = include_str!("older/prelude.lua");
const PATCH: &str = include_str!("older/patch.lua");
const USE: &str = include_str!("older/use.lua");

/// Index of `unproven_timeout` in the arguments.
const UNPROVEN_TIMEOUT: usize = 6;

/// Runs a script of the older version on a session.
async fn older(store: &Redis, id: Id, script: &str, arguments: &[Vec<u8>]) -> Value {
    let key = store.key(id);
    let mut command = cmd("EVAL");
    command.arg(format!("{PRELUDE}{script}")).arg(1).arg(&key).arg(arguments);
    store.servers.ask(&key, &command, store.deadline()).await.expect("run")
}

/// Returns the arguments of a command that the older version has too.
fn known(command: &Cmd) -> Vec<Vec<u8>> {
    let arguments = command.args_iter().map(|argument| match argument {
        Arg::Simple(bytes) => bytes.to_vec(),
        _ => panic!("a cursor"),
    });
    let mut arguments: Vec<_> = arguments.collect();
    arguments.remove(UNPROVEN_TIMEOUT);
    arguments
}

pub(super) async fn older_use(store: &Redis, id: Id, used: Use) {
    let mut command = Cmd::new();
    calls::use_arguments(&mut command, used, &POLICY, None);
    let mut arguments = known(&command);
    arguments.pop();
    older(store, id, USE, &arguments).await;
}

pub(super) async fn older_patch(
    store: &Redis,
    id: Id,
    patch: &Patch,
    at: Timestamp,
    touches: bool,
) {
    let change = Change {
        patch,
        condition: None,
        authority: Authority::Service(0),
        policy: &POLICY,
        now: at,
        touches,
        tombstone: Tombstone::None,
        held_keys: None,
        known: None,
    };
    let mut command = Cmd::new();
    calls::patch_arguments(&mut command, change, Want::Values, None, &Computed::of(change));
    let mut arguments = known(&command);
    let names = [Common::NAMES, arguments::Patch::NAMES].concat();
    let place = |of: &str| names.iter().position(|name| *name == of).expect(of);
    // One that comes before them has gone already.
    for name in ["held_emptied", "held_rotates", "held", "held_tag", "logs_out"] {
        arguments.remove(place(name) - 1);
    }
    older(store, id, PATCH, &arguments).await;
}

async fn unproven(store: &Redis, id: Id) -> bool {
    let hmget = store.load(id, Want::Meta).await.expect("loaded");
    let hgetall = store.load(id, Want::Values).await.expect("loaded");
    match (hmget, hgetall) {
        (Some(Entry::Live(one)), Some(Entry::Live(other))) => {
            assert_eq!(one.meta, other.meta);
            one.meta.unproven
        }
        other => panic!("no session: {other:?}"),
    }
}

#[test]
fn use_by_an_older_version_proves_a_session() {
    needs!("redis-server");
    let server = RedisServer::start(&[]);
    let store = store_on(&server);
    let policy = Policy { unproven_timeout: Some(Duration::from_mins(10)), ..POLICY };
    let (begin, set) = (now(), Patch::of(Op::Set(key("a"), json("1"))));
    let mut one = record(begin, Values::new());
    one.meta.unproven = true;
    runtime().block_on(async {
        let mut ids = Vec::new();
        for _ in 0..5 {
            let id = new_id();
            assert_eq!(store.create(id, &one, &policy).await.expect("created"), Created::Done);
            assert!(unproven(&store, id).await);
            ids.push(id);
        }
        let [touched, promoted, changed, cleared, kept] = ids[..] else { panic!("five") };
        let later = begin + Duration::from_mins(2);
        older_use(&store, touched, touch(later)).await;
        let next = Use { generation: 2, touches: false, ..touch(later) };
        older_use(&store, promoted, next).await;
        older_patch(&store, changed, &set, later, true).await;
        older_patch(&store, cleared, &Patch::of(Op::Clear), later, false).await;
        older_patch(&store, kept, &set, later, false).await;
        assert!(!unproven(&store, touched).await);
        assert!(!unproven(&store, changed).await);
        assert!(!unproven(&store, promoted).await);
        // Neither was used, but the older version removes the field of the first with all values.
        assert!(!unproven(&store, cleared).await);
        assert!(unproven(&store, kept).await);
        // Proven sessions outlive the time-out of unproven ones.
        let end = begin + Duration::from_mins(11);
        for (id, lives) in
            [(touched, true), (promoted, true), (changed, true), (cleared, true), (kept, false)]
        {
            let used = store.record_use(id, touch(end), &policy).await.expect("used");
            let Some(Entry::Live(record)) = used else { panic!("no session") };
            assert_eq!(policy.is_alive(&record.meta, end), lives);
            assert_eq!(record.meta.last_seen_at == end, lives);
        }
    });
}

#[test]
fn older_version_changes_an_unproven_session() {
    needs!("redis-server");
    let server = RedisServer::start(&[]);
    let store = store_on(&server);
    let policy = Policy { unproven_timeout: Some(Duration::from_mins(10)), ..POLICY };
    let begin = now();
    let mut one = record(begin, [(key("a"), json("1"))].into_iter().collect::<Values>());
    one.meta.unproven = true;
    runtime().block_on(async {
        let id = new_id();
        assert_eq!(store.create(id, &one, &policy).await.expect("created"), Created::Done);
        older_patch(&store, id, &Patch::of(Op::Increment(key("a"), 1)), begin, true).await;
        // The last use is in the same millisecond, so the session is still unproven until this version proves it.
        assert!(unproven(&store, id).await);
        let proves = Use { proves: Proof::Session, touches: false, ..touch(begin) };
        store.record_use(id, proves, &policy).await.expect("used");
        assert!(!unproven(&store, id).await);
        let values = store.load(id, Want::Values).await.expect("loaded");
        let Some(Entry::Live(found)) = values else { panic!("no session") };
        assert_eq!(found.values.get(&key("a")), Some(&json("2")));
        assert_eq!(found.meta.last_seen_at, one.meta.last_seen_at, "proving is no use");
    });
}
