//! The conformance suite over files, and tests of the directory.

use std::fs;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::time::Instant;

use tempfile::TempDir;

use super::*;
use crate::session::patch::{Op, Patch};
use crate::session::record::Values;
use crate::store::conformance::{
    Fresh, create_session, json, key, now, pages, patch, record, runtime, suite,
};

const TIMEOUT: Duration = Duration::from_secs(20);

fn opened(directory: &TempDir) -> Files {
    Files::open(&directory.path().join("sessions"), TIMEOUT).expect("opened")
}

fn fresh() -> Fresh {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("sessions");
    Fresh::new(opened(&directory), directory).spoiled_by(move |id, way| {
        spoil(&path.join(id.to_string()), way);
        std::future::ready(())
    })
}

/// Corrupts a file in one of several ways.
pub(crate) fn spoil(file: &Path, way: usize) {
    let bytes = fs::read(file).expect("read");
    match way % 3 {
        0 => fs::write(file, &bytes[..bytes.len() / 2]).expect("cut"),
        1 => fs::write(file, "").expect("emptied"),
        _ => {
            fs::remove_file(file).expect("removed");
            symlink("elsewhere", file).expect("a link");
        }
    }
}

suite!(fresh);

/// Returns a store with one session, and the session's file.
async fn store_with_session(directory: &TempDir) -> (Files, Id, std::path::PathBuf) {
    let store = opened(directory);
    let first = record(now(), [(key("a"), json("1"))].into_iter().collect::<Values>());
    let id = create_session(&store, &first).await;
    let file = directory.path().join("sessions").join(id.to_string());
    (store, id, file)
}

fn mode(path: &Path) -> u32 {
    fs::symlink_metadata(path).expect("there").permissions().mode() & 0o777
}

#[test]
fn restart_finds_all_sessions_and_principals() {
    let directory = tempfile::tempdir().expect("a directory");
    runtime().block_on(async {
        let (store, id, _) = store_with_session(&directory).await;
        let ada = Principal::new("ada").expect("a principal");
        let mut hers = record(now(), Values::new());
        hers.meta.principal = Some(ada.clone());
        let hers = create_session(&store, &hers).await;
        let before = store.load(id, Want::Values).await.expect("loaded");
        assert!(before.is_some());
        drop(store);
        let store = opened(&directory);
        assert_eq!(store.load(id, Want::Values).await.expect("loaded"), before);
        let listed = pages(&store, Some(&ada), 10).await;
        assert_eq!(listed.iter().map(|(id, _)| *id).collect::<Vec<_>>(), [hers]);
        assert_eq!(pages(&store, None, 10).await.len(), 2);
    });
}

#[test]
fn failed_sweep_reports_what_it_removed() {
    let directory = tempfile::tempdir().expect("a directory");
    runtime().block_on(async {
        let (store, _, file) = store_with_session(&directory).await;
        for _ in 0..2 {
            create_session(&store, &record(now(), Values::new())).await;
        }
        // It cannot be removed as a file.
        fs::remove_file(&file).expect("removed");
        fs::create_dir(&file).expect("a directory");
        let (later, policy) = (now() + Duration::from_hours(24 * 365), Policy::default());
        let swept = store.sweep(later, &policy).await.expect("swept");
        assert_eq!((swept.sessions.values().sum::<u64>(), swept.more), (2, true));
        store.sweep(later, &policy).await.unwrap_err();
    });
}

#[test]
fn files_are_private_and_locked() {
    let directory = tempfile::tempdir().expect("a directory");
    runtime().block_on(async {
        let (store, _, file) = store_with_session(&directory).await;
        assert_eq!(mode(&file), 0o600);
        assert_eq!(mode(&directory.path().join("sessions")), 0o700);
        let again = Files::open(&directory.path().join("sessions"), TIMEOUT);
        assert!(matches!(again, Err(OpenError::InUse(_))), "{again:?}");
        drop(store);
        opened(&directory);
    });
}

#[test]
fn symlinked_or_shared_directory_is_refused() {
    let directory = tempfile::tempdir().expect("a directory");
    let real = directory.path().join("real");
    drop(Files::open(&real, TIMEOUT).expect("opened"));
    let link = directory.path().join("link");
    symlink(&real, &link).expect("a link");
    let opened = Files::open(&link, TIMEOUT);
    assert!(matches!(opened, Err(OpenError::NotDirectory(_))), "{opened:?}");
    fs::set_permissions(&real, fs::Permissions::from_mode(0o770)).expect("opened up");
    let opened = Files::open(&real, TIMEOUT);
    assert!(matches!(opened, Err(OpenError::Shared(_))), "{opened:?}");
}

#[test]
fn symlinked_session_file_is_not_followed() {
    let directory = tempfile::tempdir().expect("a directory");
    runtime().block_on(async {
        let (store, id, file) = store_with_session(&directory).await;
        let elsewhere = directory.path().join("elsewhere");
        fs::rename(&file, &elsewhere).expect("moved");
        symlink(&elsewhere, &file).expect("a link");
        let before = fs::read(&elsewhere).expect("read");
        let found = store.load(id, Want::Values).await;
        assert!(matches!(found, Err(Error::Corrupt(_))), "{found:?}");
        let set = Patch::of(Op::Set(key("a"), json("2")));
        let changed = patch(&store, id, &set, Want::Meta).await;
        assert!(matches!(changed, Err(Error::Corrupt(_))), "{changed:?}");
        // Nor is one followed at the path of an unfinished file.
        let (store_of_other, other) = (&store, record(now(), Values::new()));
        let id = crate::store::conformance::new_id();
        let unfinished = directory.path().join("sessions").join(format!("{id}.new"));
        symlink(&elsewhere, unfinished).expect("a link");
        let created = store_of_other.create(id, &other, &Policy::default()).await;
        assert!(created.is_err(), "{created:?}");
        assert_eq!(fs::read(&elsewhere).expect("read"), before);
    });
}

#[test]
fn incomplete_file_is_corrupt_not_missing() {
    let directory = tempfile::tempdir().expect("a directory");
    runtime().block_on(async {
        let (store, id, file) = store_with_session(&directory).await;
        let whole = fs::read(&file).expect("read");
        for length in 0..whole.len() {
            fs::write(&file, &whole[..length]).expect("cut");
            let found = store.load(id, Want::Values).await;
            assert!(matches!(found, Err(Error::Corrupt(_))), "{length}: {found:?}");
        }
        for at in 0..whole.len() {
            let mut corrupted = whole.clone();
            corrupted[at] ^= 1;
            fs::write(&file, &corrupted).expect("corrupted");
            let found = store.load(id, Want::Values).await;
            assert!(matches!(found, Err(Error::Corrupt(_))), "{at}: {found:?}");
        }
        // A start logs the corrupt file and leaves it in place.
        drop(store);
        let store = opened(&directory);
        assert!(matches!(store.load(id, Want::Meta).await, Err(Error::Corrupt(_))));
        assert!(pages(&store, None, 10).await.is_empty());
        fs::write(&file, &whole).expect("mended");
        assert!(store.load(id, Want::Meta).await.expect("loaded").is_some());
    });
}

#[test]
fn crash_before_rename_keeps_the_old_record() {
    let directory = tempfile::tempdir().expect("a directory");
    runtime().block_on(async {
        let (store, id, file) = store_with_session(&directory).await;
        let before = store.load(id, Want::Values).await.expect("loaded");
        drop(store);
        let unfinished = file.with_extension("new");
        fs::write(&unfinished, "cloakroom session 1\nhalf").expect("written");
        let store = opened(&directory);
        assert!(!unfinished.exists());
        assert_eq!(store.load(id, Want::Values).await.expect("loaded"), before);
    });
}

#[test]
fn missing_directory_is_unavailable_not_empty() {
    let directory = tempfile::tempdir().expect("a directory");
    runtime().block_on(async {
        let (store, id, _) = store_with_session(&directory).await;
        let path = directory.path().join("sessions");
        fs::rename(&path, directory.path().join("away")).expect("moved");
        for answer in [store.load(id, Want::Meta).await.map(drop), store.ping().await] {
            assert!(matches!(answer, Err(Error::Unavailable(_))), "{answer:?}");
        }
        fs::rename(directory.path().join("away"), &path).expect("moved back");
        assert!(store.load(id, Want::Meta).await.expect("loaded").is_some());
    });
}

#[test]
fn five_thousand_sessions_are_listed_and_swept() {
    let directory = tempfile::tempdir().expect("a directory");
    runtime().block_on(async {
        let store = Arc::new(opened(&directory));
        let begin = now();
        let mut making = tokio::task::JoinSet::new();
        for _ in 0..16 {
            let store = Arc::clone(&store);
            making.spawn(async move {
                for _ in 0..5_000 / 16 {
                    create_session(&*store, &record(begin, Values::new())).await;
                }
            });
        }
        making.join_all().await;
        let count = 5_000 / 16 * 16;
        assert_eq!(pages(&*store, None, 500).await.len(), count);
        let start = Instant::now();
        let later = begin + Duration::from_hours(24 * 400);
        assert_eq!(store.expired(later).await.expect("counted"), count as u64);
        while store.sweep(later, &Policy::default()).await.expect("swept").more {}
        assert!(pages(&*store, None, 500).await.is_empty(), "{:?}", start.elapsed());
        let left = fs::read_dir(directory.path().join("sessions")).expect("read").count();
        assert_eq!(left, 1, "the lock");
    });
}
