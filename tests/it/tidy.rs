//! The house rules that a test can keep: floors, file heads, and who knows what.

use std::fs;
use std::path::{Path, PathBuf};

/// The floors of `src/lib.rs`, top down. Of two modules on one floor, an earlier one may import a
/// later one only where this is `Ordered`.
const FLOORS: &[(Order, &[&str])] = &[
    (Order::Alone, &["main"]),
    (Order::Ordered, &["cli", "demo"]),
    (Order::Alone, &["app"]),
    (Order::Alone, &["config"]),
    (Order::Strangers, &["proxy", "api", "admin"]),
    (Order::Ordered, &["sessions", "wire"]),
    (Order::Alone, &["store"]),
    (Order::Alone, &["session"]),
    (Order::Alone, &["telemetry"]),
    (Order::Strangers, &["server", "client"]),
    (Order::Ordered, &["body", "metrics", "net", "log", "tasks", "secret", "random", "time"]),
];

#[derive(PartialEq)]
enum Order {
    Alone,
    Ordered,
    Strangers,
}

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

fn rust_files(under: &str) -> Vec<(PathBuf, String)> {
    let mut files = Vec::new();
    let mut folders = vec![root().join(under)];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let text = fs::read_to_string(&path).unwrap();
                files.push((path, text));
            }
        }
    }
    assert!(files.len() > 5, "there are files under {under}");
    files
}

/// The top-level module that a file of `src` belongs to.
fn module_of(path: &Path) -> String {
    let inside = path.strip_prefix(root().join("src")).unwrap();
    let first = inside.components().next().unwrap().as_os_str().to_string_lossy();
    first.trim_end_matches(".rs").to_owned()
}

fn place_of(module: &str) -> (usize, usize) {
    let found = FLOORS.iter().enumerate().find_map(|(floor, (_, modules))| {
        Some((floor, modules.iter().position(|known| *known == module)?))
    });
    found.unwrap_or_else(|| panic!("{module} has no floor"))
}

/// What a file imports of the crate: `crate::NAME`, save in what only tests see.
fn imports(text: &str) -> impl Iterator<Item = &str> {
    let shipped = text.split("#[cfg(test)]").next().unwrap();
    shipped.split("crate::").skip(1).filter_map(|rest| {
        let name = rest.split(|c: char| !c.is_ascii_lowercase()).next().unwrap();
        (!name.is_empty()).then_some(name)
    })
}

#[test]
fn imports_point_down_only() {
    for (path, text) in rust_files("src") {
        let module = module_of(&path);
        if module == "lib" {
            continue;
        }
        let (floor, place) = place_of(&module);
        for import in imports(&text).filter(|import| *import != module) {
            let (below, beside) = place_of(import);
            let ordered = FLOORS[floor].0 == Order::Ordered && below == floor && beside > place;
            assert!(below > floor || ordered, "{} imports {import}", path.display());
        }
    }
}

#[test]
fn every_file_says_what_it_is() {
    for under in ["src", "tests"] {
        for (path, text) in rust_files(under) {
            assert!(text.starts_with("//!"), "{} has no head", path.display());
        }
    }
}

#[test]
fn nothing_is_left_behind() {
    for under in ["src", "tests"] {
        for (path, text) in rust_files(under).iter().filter(|(path, _)| !path.ends_with("tidy.rs"))
        {
            for word in
                ["todo!(", "unimplemented!(", "FIXME", "#[ignore", "#[should_panic", "dbg!("]
            {
                assert!(!text.contains(word), "{} has {word}", path.display());
            }
        }
    }
}

#[test]
fn one_module_alone_knows() {
    let only = |word: &str, allowed: &[&str]| {
        for (path, text) in rust_files("src") {
            let shipped = text.split("#[cfg(test)]").next().unwrap();
            let module = module_of(&path);
            assert!(
                !shipped.contains(word) || allowed.contains(&module.as_str()),
                "{} has {word}",
                path.display()
            );
        }
    };
    only("SystemTime::now", &["time"]);
    only("toml::", &["config"]);
    only("env::var", &["config"]);
    only("rusqlite", &["store"]);
    only("redis::", &["store", "app"]);
    only("tokio::spawn", &["tasks"]);
}

/// Versions below these have faults that a stranger could use (RUSTSEC).
#[test]
fn no_dependency_is_older_than_its_last_known_fault() {
    let lock = fs::read_to_string(root().join("Cargo.lock")).unwrap();
    for (name, floor) in [
        ("hyper", [1, 11, 0]),
        ("h2", [0, 4, 16]),
        ("bytes", [1, 11, 1]),
        ("rustls", [0, 23, 18]),
        ("rustls-webpki", [0, 103, 13]),
        ("time", [0, 3, 47]),
        ("tracing-subscriber", [0, 3, 20]),
    ] {
        let entry = format!("name = \"{name}\"\nversion = \"");
        let versions: Vec<Vec<u32>> = lock
            .split(&entry)
            .skip(1)
            .map(|after| {
                let version = after.split('"').next().unwrap();
                version.split('.').map(|part| part.parse().unwrap()).collect()
            })
            .collect();
        assert!(!versions.is_empty(), "{name} is not there any more");
        assert!(versions.iter().all(|version| version[..] >= floor[..]), "{name} {versions:?}");
    }
}

#[test]
fn what_is_read_was_merged() {
    for name in ["README.md", "CHANGELOG.md", "config.example.toml", "tests/run"] {
        let text = fs::read_to_string(root().join(name)).unwrap();
        let marks = ["<<<<<<< ", ">>>>>>> ", "======="];
        let left = text.lines().find(|line| marks.iter().any(|mark| line.starts_with(mark)));
        assert_eq!(left, None, "{name}");
    }
}
