//! House rules that a test can keep: floors, circles, file heads, words, and which module knows what.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use syn::visit::{self, Visit};

/// The floors of `src/lib.rs`, top down. Of two modules on one floor, an earlier one may import a
/// later one only if the floor is `Ordered`.
const FLOORS: &[(Order, &[&str])] = &[
    (Order::Alone, &["main"]),
    (Order::Ordered, &["cli", "demo"]),
    (Order::Alone, &["app"]),
    (Order::Alone, &["config"]),
    (Order::Strangers, &["proxy", "api", "admin"]),
    (Order::Ordered, &["sessions", "wire"]),
    (Order::Ordered, &["store", "audit"]),
    (Order::Strangers, &["session", "redis"]),
    (Order::Alone, &["telemetry"]),
    (Order::Strangers, &["server", "client"]),
    (
        Order::Ordered,
        &["body", "html", "metrics", "net", "log", "tasks", "turns", "secret", "random", "time"],
    ),
];

#[derive(PartialEq)]
enum Order {
    Alone,
    Ordered,
    Strangers,
}

/// A path of modules, e.g. `["store", "redis"]`; the root is empty.
type Module = Vec<String>;

/// A file of `src`, as far as it is shipped: without what only tests compile.
struct Source {
    path: PathBuf,
    module: Module,
    syntax: syn::File,
    children: Vec<String>,
    /// Names that this file's `pub use` passes on, and the path of each.
    reexports: BTreeMap<String, Module>,
}

impl Source {
    /// The top-level module, e.g. `store`; `main` and `lib` for those two files.
    fn room(&self) -> &str {
        self.module
            .first()
            .map_or_else(|| self.path.file_stem().unwrap().to_str().unwrap(), String::as_str)
    }
}

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

fn files(under: &str, extension: &str) -> Vec<(PathBuf, String)> {
    let mut files = Vec::new();
    let mut folders = vec![root().join(under)];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|found| found == extension) {
                let text = fs::read_to_string(&path).unwrap();
                files.push((path, text));
            }
        }
    }
    files.sort();
    files
}

fn rust_files(under: &str) -> Vec<(PathBuf, String)> {
    let files = files(under, "rs");
    assert!(files.len() > 5, "there are files under {under}");
    files
}

/// Reads the shipped files of `src`, from `lib.rs` and `main.rs` down their `mod` declarations.
fn shipped() -> Vec<Source> {
    let mut sources = Vec::new();
    for name in ["lib.rs", "main.rs"] {
        read(root().join("src").join(name), Vec::new(), &mut sources);
    }
    assert!(sources.len() > 100, "src has more files than {}", sources.len());
    sources
}

fn read(path: PathBuf, module: Module, sources: &mut Vec<Source>) {
    let mut syntax = syn::parse_file(&fs::read_to_string(&path).unwrap()).unwrap();
    syntax.items.retain(|item| !attributes(item).iter().any(only_for_tests));
    let folder = match path.file_stem().unwrap().to_str().unwrap() {
        "lib" | "main" | "mod" => path.parent().unwrap().to_owned(),
        stem => path.parent().unwrap().join(stem),
    };
    let declared = syntax.items.iter().filter_map(|item| match item {
        syn::Item::Mod(child) => Some(child.ident.to_string()),
        _ => None,
    });
    let children: Vec<String> = declared.collect();
    let mut reexports = BTreeMap::new();
    for item in &syntax.items {
        match item {
            syn::Item::Mod(child) if child.content.is_none() => {
                let name = child.ident.to_string();
                let beside = folder.join(format!("{name}.rs"));
                let inside = folder.join(&name).join("mod.rs");
                let path = if beside.exists() { beside } else { inside };
                read(path, [module.clone(), vec![name]].concat(), sources);
            }
            syn::Item::Use(item) if !matches!(item.vis, syn::Visibility::Inherited) => {
                for (leaf, path) in leaves(&item.tree) {
                    if let Some(path) = absolute(&path, &module, &children) {
                        reexports.insert(leaf, path);
                    }
                }
            }
            _ => {}
        }
    }
    sources.push(Source { path, module, syntax, children, reexports });
}

fn attributes(item: &syn::Item) -> &[syn::Attribute] {
    match item {
        syn::Item::Const(item) => &item.attrs,
        syn::Item::Enum(item) => &item.attrs,
        syn::Item::Fn(item) => &item.attrs,
        syn::Item::Impl(item) => &item.attrs,
        syn::Item::Macro(item) => &item.attrs,
        syn::Item::Mod(item) => &item.attrs,
        syn::Item::Static(item) => &item.attrs,
        syn::Item::Struct(item) => &item.attrs,
        syn::Item::Trait(item) => &item.attrs,
        syn::Item::Type(item) => &item.attrs,
        syn::Item::Use(item) => &item.attrs,
        _ => &[],
    }
}

fn only_for_tests(attribute: &syn::Attribute) -> bool {
    attribute.path().is_ident("cfg")
        && attribute.parse_args::<syn::Path>().is_ok_and(|path| path.is_ident("test"))
}

/// Lists the names that a `use` brings in, each with its whole path.
fn leaves(tree: &syn::UseTree) -> Vec<(String, Module)> {
    match tree {
        syn::UseTree::Path(path) => {
            let first = path.ident.to_string();
            let prefixed = |(leaf, rest): (String, Module)| {
                let leaf = if leaf == "self" { first.clone() } else { leaf };
                (leaf, [vec![first.clone()], rest].concat())
            };
            leaves(&path.tree).into_iter().map(prefixed).collect()
        }
        // `{self}` is the module before it.
        syn::UseTree::Name(name) if name.ident == "self" => vec![("self".into(), Vec::new())],
        syn::UseTree::Name(name) => vec![(name.ident.to_string(), vec![name.ident.to_string()])],
        syn::UseTree::Rename(name) => {
            vec![(name.rename.to_string(), vec![name.ident.to_string()])]
        }
        syn::UseTree::Glob(_) => vec![("*".into(), Vec::new())],
        syn::UseTree::Group(group) => group.items.iter().flat_map(leaves).collect(),
    }
}

/// Resolves a path as a module reads it; `None` if it leads out of the crate or begins with a name
/// that a `use` brought in.
fn absolute(path: &[String], module: &[String], children: &[String]) -> Option<Module> {
    let (first, rest) = path.split_first()?;
    let mut place = match first.as_str() {
        "crate" | "cloakroom" => Vec::new(),
        "self" => module.to_vec(),
        "super" => module[..module.len() - 1].to_vec(),
        child if children.contains(first) => [module, &[child.to_owned()]].concat(),
        _ => return None,
    };
    for step in rest {
        match step.as_str() {
            "super" => drop(place.pop()),
            name => place.push(name.to_owned()),
        }
    }
    Some(place)
}

/// Collects every path of a file, in `use` and in code, as it is written.
#[derive(Default)]
struct Paths {
    used: Vec<Module>,
    /// Those of `pub use`: what a file passes on, its importers use.
    passed_on: Vec<Module>,
    /// Names that a `use` brings in from this crate, e.g. a module that is named as another crate is.
    ours: BTreeSet<String>,
}

impl<'syntax> Visit<'syntax> for Paths {
    fn visit_item_use(&mut self, item: &'syntax syn::ItemUse) {
        let leaves = leaves(&item.tree);
        let ours = leaves.iter().filter(|(_, path)| path[0] == "crate");
        self.ours.extend(ours.map(|(name, _)| name.clone()));
        let paths = leaves.into_iter().map(|(_, path)| path);
        match item.vis {
            syn::Visibility::Inherited => self.used.extend(paths),
            _ => self.passed_on.extend(paths),
        }
    }

    fn visit_path(&mut self, path: &'syntax syn::Path) {
        if path.segments.len() > 1 {
            self.used.push(path.segments.iter().map(|segment| segment.ident.to_string()).collect());
        }
        visit::visit_path(self, path);
    }

    /// What a macro is given need not be Rust, so it is read as a list of tokens.
    fn visit_macro(&mut self, item: &'syntax syn::Macro) {
        let tokens = item.tokens.to_string().replace(" :: ", "::");
        let paths = tokens.split(|c: char| !(c.is_alphanumeric() || c == '_' || c == ':'));
        let paths = paths.filter(|path| path.contains("::"));
        self.used.extend(paths.map(|path| path.split("::").map(str::to_owned).collect()));
        visit::visit_macro(self, item);
    }

    fn visit_item(&mut self, item: &'syntax syn::Item) {
        if !attributes(item).iter().any(only_for_tests) {
            visit::visit_item(self, item);
        }
    }
}

fn paths(source: &Source) -> Paths {
    let mut paths = Paths::default();
    paths.visit_file(&source.syntax);
    paths
}

/// Lists what a file imports of the crate, each with its whole path.
fn imports(source: &Source) -> Vec<Module> {
    let long = |path: &&Module| path.len() > 1;
    let paths = paths(source).used;
    paths
        .iter()
        .filter(long)
        .filter_map(|path| absolute(path, &source.module, &source.children))
        .collect()
}

/// Finds the module that defines what a path names, through any `pub use` on the way.
fn definition<'a>(
    path: &[String],
    modules: &BTreeMap<&'a [String], &Source>,
) -> Option<&'a [String]> {
    let length = (1..=path.len()).rev().find(|length| modules.contains_key(&path[..*length]))?;
    let (module, source) = modules.get_key_value(&path[..length])?;
    match path.get(length).and_then(|name| source.reexports.get(name)) {
        Some(onward) if onward != path => definition(onward, modules),
        _ => Some(module),
    }
}

fn place_of(module: &str) -> (usize, usize) {
    let found = FLOORS.iter().enumerate().find_map(|(floor, (_, modules))| {
        Some((floor, modules.iter().position(|known| *known == module)?))
    });
    found.unwrap_or_else(|| panic!("{module} has no floor"))
}

#[test]
fn imports_point_down() {
    let sources = shipped();
    // A name of the crate that is no module's is a macro's.
    let rooms: BTreeSet<&str> = sources.iter().map(Source::room).collect();
    for source in sources.iter().filter(|source| source.room() != "lib") {
        let room = source.room();
        let (floor, place) = place_of(room);
        let imports = imports(source);
        let imports = imports.iter().filter_map(|path| path.first());
        for import in imports.filter(|import| *import != room && rooms.contains(import.as_str())) {
            let (below, later) = place_of(import);
            let ordered = FLOORS[floor].0 == Order::Ordered && below == floor && later > place;
            assert!(below > floor || ordered, "{} imports {import}", source.path.display());
        }
    }
}

/// A file may use what its own `mod.rs` defines, and that may use the file: a folder is one unit.
/// Between any other files, imports form no circle.
#[test]
fn files_import_in_no_circle() {
    let sources = shipped();
    let modules: BTreeMap<&[String], &Source> =
        sources.iter().map(|source| (&source.module[..], source)).collect();
    let mut arrows: BTreeMap<&[String], BTreeSet<&[String]>> = BTreeMap::new();
    for (module, source) in &modules {
        let imported = imports(source);
        let files = imported.iter().filter_map(|path| definition(path, &modules));
        let others = files.filter(|file| !module.starts_with(file));
        arrows.insert(module, others.collect());
    }
    for start in arrows.keys() {
        let mut reached = BTreeSet::new();
        let mut next = vec![*start];
        while let Some(module) = next.pop() {
            next.extend(arrows[module].iter().filter(|module| reached.insert(**module)));
        }
        let circle: Vec<_> = reached.iter().map(|module| module.join("::")).collect();
        assert!(
            !reached.contains(start),
            "{} is in a circle; it reaches {circle:?}",
            start.join("::")
        );
    }
}

/// Words that no engineer of the field writes, so that they do not come back.
const ODD_WORDS: &[&str] = &["anew", "beneath", "nobody", "somebody", "told", "whoever", "whom"];

/// "told" and its like make a reader stop; the plain word is always there.
#[test]
fn no_odd_words() {
    let code = rust_files("src").into_iter().chain(files("src", "lua"));
    // Scripts of an earlier release, kept as they were.
    let code = code.filter(|(path, _)| !path.to_str().unwrap().contains("/older/"));
    let prose = files("docs", "md").into_iter().chain(
        ["README.md", "CONTRIBUTING.md", "SECURITY.md", "config.example.toml"].map(|name| {
            let path = root().join(name);
            let text = fs::read_to_string(&path).unwrap();
            (path, text)
        }),
    );
    let mut found = Vec::new();
    for (path, text) in code.chain(prose) {
        for (number, line) in text.lines().enumerate() {
            let words = line.split(|c: char| !c.is_alphanumeric()).map(str::to_lowercase);
            for word in words.filter(|word| ODD_WORDS.contains(&word.as_str())) {
                found.push(format!("{}:{}: {word}", path.display(), number + 1));
            }
        }
    }
    assert!(found.is_empty(), "{found:#?}");
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
    let sources = shipped();
    let only = |name: &[&str], allowed: &[&str]| {
        let mut knows = sources.iter().filter(|source| {
            let Paths { used, passed_on, ours } = paths(source);
            let foreign = used.iter().chain(&passed_on).filter(|path| !ours.contains(&path[0]));
            // An empty step leads each path, so that a name can be asked for as a crate's.
            let mut paths = foreign.map(|path| [&[String::new()], &path[..]].concat());
            !allowed.contains(&source.room())
                && paths.any(|path| path.windows(name.len()).any(|part| part == name))
        });
        if let Some(source) = knows.next() {
            panic!("{} uses {}", source.path.display(), name.join("::"));
        }
    };
    only(&["SystemTime", "now"], &["time"]);
    only(&["env", "var"], &["config"]);
    only(&["env", "vars"], &["config"]);
    only(&["tokio", "spawn"], &["tasks"]);
    only(&["", "toml"], &["config"]);
    only(&["", "rusqlite"], &["store"]);
    only(&["", "redis"], &["redis", "store"]);
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
