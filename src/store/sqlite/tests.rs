//! The conformance suite over SQLite, and tests of the database file.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;

use tempfile::TempDir;

use super::*;
use crate::session::patch::{Op, Patch};
use crate::session::record::Values;
use crate::store::conformance::{Fresh, json, key, new_id, now, patch, record, runtime, suite};

/// Generous: tests run in parallel on few cores.
const TIMEOUT: Duration = Duration::from_secs(20);

fn directory() -> (TempDir, PathBuf) {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("data").join("sessions.db");
    (directory, path)
}

fn open(path: &Path) -> Sqlite {
    Sqlite::open(path, TIMEOUT, Tasks::new()).expect("opened")
}

fn fresh() -> Fresh {
    let (directory, path) = directory();
    let store = open(&path);
    Fresh::new(store, directory).spoiled_by(spoiler(path))
}

/// Returns a function that corrupts rows in one of several ways.
pub(crate) fn spoiler(path: PathBuf) -> impl Fn(Id, usize) -> std::future::Ready<()> {
    move |id, way| {
        let connection = Connection::open(&path).expect("opened");
        let set = [
            "expiry = 'soon'",
            "created_at = NULL",
            "client_user_agent = 'x', client_address = 'y'",
        ];
        let sql = format!("UPDATE sessions SET {} WHERE id = ?1", set[way % set.len()]);
        assert_eq!(connection.execute(&sql, [id.as_bytes()]).expect("spoilt"), 1);
        std::future::ready(())
    }
}

suite!(fresh);

fn mode(path: &Path) -> u32 {
    fs::metadata(path).expect("there").permissions().mode() & 0o777
}

/// Returns the path of a file that SQLite keeps next to the database.
fn sibling(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}

#[test]
fn acknowledged_changes_survive_reopening() {
    let (_directory, path) = directory();
    let id = new_id();
    let first = record(now(), Values::new());
    runtime().block_on(async {
        let store = open(&path);
        let created = store.create(id, &first, &Policy::default()).await;
        assert_eq!(created.expect("created"), Created::Done);
        let one = Patch::of(Op::Increment(key("n"), 41));
        let changed = patch(&store, id, &one, Want::Values).await;
        let changed = changed.expect("answered").expect("applied").entry;
        drop(store);
        assert!(!sibling(&path, "-wal").exists(), "the log was checkpointed");
        let found = open(&path).load(id, Want::Values).await;
        assert_eq!(found.expect("loaded"), changed);
    });
}

/// The statements of a version before `unproven_at` for a use and a change of a session.
const OLDER_USE: &str = "UPDATE sessions SET ends_at = ?2, generation = ?3, generation_since = ?4, \
     previous_until = ?5, last_seen_at = ?6, cookie_set_at = ?7 WHERE id = ?1";
const OLDER_PUT: &str = "INSERT INTO sessions (id, ended, ends_at, version, generation, generation_since, \
     previous_until, floor, login_at, principal, created_at, last_seen_at, cookie_set_at, expiry, \
     withheld, client_address, client_user_agent, json) \
     SELECT id, 0, ?2, version + 1, generation, generation_since, previous_until, floor, login_at, ?3, \
     created_at, last_seen_at, cookie_set_at, expiry, withheld, client_address, client_user_agent, json \
     FROM sessions WHERE id = ?1 ON CONFLICT (id) DO UPDATE SET (ended, ends_at, version, generation, \
     generation_since, previous_until, floor, login_at, principal, created_at, last_seen_at, \
     cookie_set_at, expiry, withheld, client_address, client_user_agent, json) = \
     (excluded.ended, excluded.ends_at, excluded.version, excluded.generation, \
     excluded.generation_since, excluded.previous_until, excluded.floor, excluded.login_at, \
     excluded.principal, excluded.created_at, excluded.last_seen_at, excluded.cookie_set_at, \
     excluded.expiry, excluded.withheld, excluded.client_address, excluded.client_user_agent, \
     excluded.json)";

#[test]
fn older_file_is_read_and_written() {
    let (directory, path) = directory();
    fs::create_dir(path.parent().expect("a directory")).expect("made");
    let id = new_id();
    let now = now();
    let older = Connection::open(&path).expect("opened");
    older.execute_batch(schema::SCHEMA).expect("made");
    older.pragma_update(None, "application_id", 0x436c_6b72).expect("ours");
    older.pragma_update(None, "user_version", 1).expect("of the first format");
    let values = "INSERT INTO sessions (id, ended, ends_at, version, generation, generation_since, floor, \
                  created_at, last_seen_at, cookie_set_at, withheld, json) \
                  VALUES (?1, 0, ?2, 7, 1, ?3, 1, ?3, ?3, ?3, 0, '{\"n\":1}')";
    let ends_at = now + Duration::from_hours(24);
    older.execute(values, (id.as_bytes(), ends_at.as_millis(), now.as_millis())).expect("written");
    let mut expected = record(now, [(key("n"), json("1"))].into_iter().collect::<Values>());
    runtime().block_on(async {
        // While the older version has it open, as in a restart of one instance after the other.
        let store = open(&path);
        let found = store.load(id, Want::Values).await.expect("loaded");
        assert_eq!(found, Some(Entry::Live(expected.clone())));
        patch(&store, id, &Patch::of(Op::Increment(key("n"), 1)), Want::Meta)
            .await
            .expect("answered")
            .expect("applied");
        let json: String = older
            .query_row("SELECT json FROM sessions WHERE id = ?1", [id.as_bytes()], |row| row.get(0))
            .expect("read");
        assert_eq!(json, "{\"n\":2}");
        expected.meta.unproven = true;
        assert_eq!(
            open(&path).create(new_id(), &expected, &POLICY()).await.expect("created"),
            Created::Done
        );
    });
    drop(directory);
}

const POLICY: fn() -> Policy =
    || Policy { unproven_timeout: Some(Duration::from_hours(1)), ..Policy::default() };

#[test]
fn use_by_an_older_version_proves_a_session() {
    let (_directory, path) = directory();
    let store = open(&path);
    let now = now();
    let mut one = record(now, Values::new());
    one.meta.unproven = true;
    let (used, kept, logged_in) = (new_id(), new_id(), new_id());
    let policy = POLICY();
    let unproven = async |id| match store.load(id, Want::Meta).await.expect("loaded") {
        Some(Entry::Live(record)) => record.meta.unproven,
        other => panic!("no session: {other:?}"),
    };
    runtime().block_on(async {
        for id in [used, kept, logged_in] {
            assert_eq!(store.create(id, &one, &policy).await.expect("created"), Created::Done);
            assert!(unproven(id).await);
        }
        let older = Connection::open(&path).expect("opened");
        let (later, since) = ((now + Duration::from_mins(2)).as_millis(), now.as_millis());
        let end = (now + Duration::from_hours(24)).as_millis();
        let uses = (used.as_bytes(), end, 1, since, None::<i64>, later, since);
        assert_eq!(older.execute(OLDER_USE, uses).expect("used"), 1);
        let puts = (kept.as_bytes(), end, None::<&str>);
        assert_eq!(older.execute(OLDER_PUT, puts).expect("changed"), 1);
        let puts = (logged_in.as_bytes(), end, Some("ada"));
        assert_eq!(older.execute(OLDER_PUT, puts).expect("changed"), 1);
        assert!(!unproven(used).await, "it was touched");
        assert!(unproven(kept).await, "it was changed by a back office");
        assert!(!unproven(logged_in).await);
    });
}

#[test]
fn only_the_owner_reads_the_files() {
    let (_directory, path) = directory();
    let store = open(&path);
    let id = new_id();
    runtime().block_on(async {
        let first = record(now(), Values::new());
        store.create(id, &first, &Policy::default()).await.expect("created");
    });
    assert_eq!(mode(path.parent().expect("a directory")), 0o700);
    for suffix in ["", "-wal", "-shm"] {
        assert_eq!(mode(&sibling(&path, suffix)), 0o600, "{suffix}");
    }
}

#[test]
fn foreign_file_is_refused_and_unchanged() {
    let (directory, _) = directory();
    let path = directory.path().join("other.db");
    let other = Connection::open(&path).expect("opened");
    other.execute_batch("CREATE TABLE t (x)").expect("made");
    drop(other);
    let text = directory.path().join("text");
    fs::write(&text, "no database at all, and longer than a header is".repeat(9)).expect("written");
    for path in [path, text] {
        let before = fs::read(&path).expect("read");
        let refused = Sqlite::open(&path, TIMEOUT, Tasks::new()).expect_err("refused");
        assert!(matches!(refused, OpenError::Foreign { .. }), "{refused:?}");
        assert!(refused.to_string().contains("not a session store"));
        assert_eq!(fs::read(&path).expect("read"), before);
    }
}

#[test]
fn newer_format_is_refused() {
    let (_directory, path) = directory();
    drop(open(&path));
    let connection = Connection::open(&path).expect("opened");
    connection.pragma_update(None, "user_version", 2).expect("written");
    drop(connection);
    let refused = Sqlite::open(&path, TIMEOUT, Tasks::new()).expect_err("refused");
    assert!(matches!(refused, OpenError::Newer { version: 2, .. }));
}

#[test]
fn stores_on_one_file_see_each_others_changes() {
    let (_directory, path) = directory();
    let (one, other) = (open(&path), open(&path));
    runtime().block_on(async {
        let id = new_id();
        let first = record(now(), Values::new());
        one.create(id, &first, &Policy::default()).await.expect("created");
        let add = Patch::of(Op::Increment(key("n"), 1));
        for _ in 0..20 {
            let both = tokio::join!(
                patch(&one, id, &add, Want::Meta),
                patch(&other, id, &add, Want::Meta),
            );
            both.0.expect("answered").expect("applied");
            both.1.expect("answered").expect("applied");
        }
        let found = other.load(id, Want::Values).await.expect("loaded");
        let Some(Entry::Live(found)) = found else {
            panic!("no session");
        };
        let sum = found.values.get(&key("n")).map(ToString::to_string);
        assert_eq!(sum.as_deref(), Some("40"));
    });
}

#[test]
fn full_disk_is_reported_and_changes_nothing() {
    let (_directory, path) = directory();
    let store = open(&path);
    runtime().block_on(async {
        let id = new_id();
        let first = record(now(), Values::new());
        let policy = Policy::default();
        store.create(id, &first, &policy).await.expect("created");
        let limit = |pages: i64| {
            store.write(Need::Room, move |connection: &Connection| {
                connection
                    .pragma_query_value(None, "page_count", |row| row.get(0))
                    .and_then(|count: i64| {
                        connection.pragma_update_and_check(
                            None,
                            "max_page_count",
                            count + pages,
                            |_| Ok(()),
                        )
                    })
                    .map_err(Fault::from)
            })
        };
        limit(2).await.expect("limited");
        let long = json(&format!("\"{}\"", "x".repeat(100_000)));
        let set = Patch::of(Op::Set(key("long"), long));
        let small = Patch::of(Op::Set(key("small"), json("1")));
        let (full, _) = tokio::join!(
            patch(&store, id, &set, Want::Meta),
            patch(&store, id, &small, Want::Meta)
        );
        assert!(matches!(full, Err(Error::Full(_))), "{full:?}");
        limit(1000).await.expect("limited");
        patch(&store, id, &set, Want::Meta).await.expect("answered").expect("applied");
    });
}

#[test]
fn locked_file_rejects_writes_but_not_reads() {
    let (_directory, path) = directory();
    let store = Sqlite::open(&path, Duration::from_millis(400), Tasks::new()).expect("opened");
    let other = Connection::open(&path).expect("opened");
    runtime().block_on(async {
        let id = new_id();
        let first = record(now(), Values::new());
        let policy = Policy::default();
        other.execute_batch("BEGIN IMMEDIATE").expect("begun");
        let refused = store.create(id, &first, &policy).await;
        assert!(matches!(refused, Err(Error::Unavailable(_))), "{refused:?}");
        assert_eq!(store.load(id, Want::Meta).await.expect("loaded"), None);
        other.execute_batch("ROLLBACK").expect("rolled back");
        let created = store.create(id, &first, &policy).await;
        assert_eq!(created.expect("created"), Created::Done);
    });
}

#[test]
fn foreign_row_is_corrupt_not_missing() {
    let (_directory, path) = directory();
    let store = open(&path);
    runtime().block_on(async {
        let id = new_id();
        let first = record(now(), Values::new());
        let policy = Policy::default();
        store.create(id, &first, &policy).await.expect("created");
        let other = Connection::open(&path).expect("opened");
        other.execute("UPDATE sessions SET expiry = 'soon', json = '{'", []).expect("spoilt");
        let found = store.load(id, Want::Meta).await;
        assert!(matches!(found, Err(Error::Corrupt(_))), "{found:?}");
        let one = Patch::of(Op::Increment(key("n"), 1));
        let changed = patch(&store, id, &one, Want::Meta).await;
        assert!(matches!(changed, Err(Error::Corrupt(_))), "{changed:?}");
    });
}

/// Loads sessions in one turn of the event loop.
async fn load_all(store: &Sqlite, ids: &[Id]) -> Vec<Result<Option<Entry>, Error>> {
    let tasks = ids.iter().map(|id| store.load(*id, Want::Values));
    futures_util::future::join_all(tasks).await
}

#[test]
fn loads_of_one_turn_have_their_own_answers() {
    let (_directory, path) = directory();
    let store = open(&path);
    runtime().block_on(async {
        // More than fit in one batch.
        let mut ids = Vec::new();
        for n in 0..100 {
            let id = new_id();
            let values = [(key("n"), json(&n.to_string()))].into_iter().collect::<Values>();
            let one = record(now(), values);
            store.create(id, &one, &Policy::default()).await.expect("created");
            ids.extend([id, new_id()]);
        }
        for (n, answer) in load_all(&store, &ids).await.into_iter().enumerate() {
            let found = answer.expect("loaded").and_then(Entry::into_live);
            let value =
                found.and_then(|found| found.values.get(&key("n")).map(ToString::to_string));
            let expected = (n % 2 == 0).then(|| (n / 2).to_string());
            assert_eq!(value, expected, "{n}");
        }
    });
}

#[test]
fn loads_see_what_was_acknowledged_before_them() {
    let (_directory, path) = directory();
    let (one, other) = (open(&path), open(&path));
    runtime().block_on(async {
        let id = new_id();
        let first = record(now(), Values::new());
        one.create(id, &first, &Policy::default()).await.expect("created");
        let add = Patch::of(Op::Increment(key("n"), 1));
        for n in 1..=20 {
            patch(&one, id, &add, Want::Meta).await.expect("answered").expect("applied");
            for answer in load_all(&other, &[id, id, id]).await {
                let found = answer.expect("loaded").and_then(Entry::into_live).expect("a session");
                assert_eq!(found.values.get(&key("n")), Some(&json(&n.to_string())));
            }
        }
    });
}

#[test]
fn load_follows_one_whose_runtime_has_ended() {
    let (_directory, path) = directory();
    let store = open(&path);
    for _ in 0..3 {
        let abandoned = runtime();
        abandoned.block_on(async {
            let mut load = store.load(new_id(), Want::Meta);
            assert!(futures_util::poll!(&mut load).is_pending());
        });
        drop(abandoned);
        let found = runtime().block_on(store.load(new_id(), Want::Meta));
        assert_eq!(found.expect("loaded"), None);
    }
}

#[test]
fn replaced_file_fails_all_loads_of_a_batch() {
    let (_directory, path) = directory();
    let store = open(&path);
    runtime().block_on(async {
        let (id, corrupt) = (new_id(), new_id());
        let first = record(now(), Values::new());
        for id in [id, corrupt] {
            store.create(id, &first, &Policy::default()).await.expect("created");
        }
        spoiler(path.clone())(corrupt, 0).await;
        fs::rename(&path, path.with_extension("moved")).expect("renamed");
        fs::write(&path, "").expect("replaced");
        // A corrupt record would count as missing.
        for answer in load_all(&store, &[id, corrupt, new_id()]).await {
            assert!(matches!(answer, Err(Error::Unavailable(_))), "{answer:?}");
        }
    });
}
