//! `docs/reference/configuration.md` is what `cloakroom schema` says, as tables.
//!
//! To write it after a change: `UPDATE_REFERENCE=1 cargo test --test it reference`.

use std::fmt::Write as _;
use std::fs;
use std::path::Path;
use std::process::Command;

use serde_json::Value;

const HEAD: &str = "\
# Configuration reference

Generated from `cloakroom schema`, which prints the same as a JSON Schema for editors.
`cloakroom check FILE` prints the effective configuration. All keys with their defaults, as a file to start
from: [config.example.toml](../../config.example.toml).

- Every key that is not a table can be set by an environment variable, `CLOAKROOM_<SECTION>_<KEY>`: `idle_timeout`
  in `[session]` is `CLOAKROOM_SESSION_IDLE_TIMEOUT`. The elements of a list are separated by commas.
  `CLOAKROOM_UPSTREAM` is short for `CLOAKROOM_ROUTE_UPSTREAM`. Variables override the file; arguments override both.
  Variables that begin with `CLOAKROOM_CLIENT_` are settings of clients, and ignored.
- Durations are \"500ms\", \"30s\", \"15m\", \"14d\"; sizes are \"3KiB\", \"1MiB\" or a number of bytes.
- A secret is `{ file = \"…\" }` or `{ env = \"NAME\" }`. A plain string works too, with a warning.
- Relative paths start at the directory of the file; those of stores at the state directory (systemd's
  `$STATE_DIRECTORY`, `$XDG_STATE_HOME/cloakroom` or `~/.local/state/cloakroom`).
- Sections in double brackets may be repeated.
";

fn schema() -> Value {
    let output = Command::new(env!("CARGO_BIN_EXE_cloakroom")).arg("schema").output().unwrap();
    serde_json::from_slice(&output.stdout).unwrap()
}

/// The alternative that is not null.
fn non_null(schema: &Value) -> &Value {
    match schema["anyOf"].as_array().map(Vec::as_slice) {
        Some([one, null]) if null["type"] == "null" => one,
        _ => schema,
    }
}

/// The declared keys of a table, and whether it is an array of tables.
fn keys(schema: &Value) -> Option<(&serde_json::Map<String, Value>, bool)> {
    let one = non_null(schema)["properties"].as_object().map(|keys| (keys, false));
    one.or_else(|| Some((non_null(schema)["items"]["properties"].as_object()?, true)))
}

fn one_line(schema: &Value) -> String {
    schema["description"].as_str().unwrap_or_default().replace('\n', " ")
}

/// The type of a key: its title, its words, or its JSON type.
fn kind(schema: &Value) -> String {
    if let Some(title) = schema["title"].as_str() {
        return title.to_owned();
    }
    let alternatives = schema["oneOf"].as_array().or_else(|| schema["enum"].as_array());
    if let Some(words) = alternatives {
        let word = |word: &Value| word["const"].as_str().or(word.as_str()).map(str::to_owned);
        let words = words.iter().filter_map(word).map(|word| format!("`\"{word}\"`"));
        return words.collect::<Vec<_>>().join(", ");
    }
    if let Some(several) = schema["anyOf"].as_array() {
        let mut kinds: Vec<String> = Vec::new();
        for kind in several.iter().filter(|one| one["type"] != "null").map(kind) {
            if !kinds.contains(&kind) {
                kinds.push(kind);
            }
        }
        return kinds.join(" or ");
    }
    let json = schema["type"].as_str().or_else(|| schema["type"][0].as_str()).unwrap_or_default();
    match json {
        "array" => format!("list of {}", kind(&schema["items"])),
        "object" if schema["additionalProperties"].is_object() => {
            format!("table of {}", kind(&schema["additionalProperties"]))
        }
        "object" => "table".to_owned(),
        other => other.to_owned(),
    }
}

fn range(schema: &Value) -> String {
    let bound = |bound: &Value| bound.as_str().map_or_else(|| bound.to_string(), str::to_owned);
    let (min, max) = match schema["x-range"].as_array().map(Vec::as_slice) {
        Some([min, max]) => (min, max),
        _ => (&schema["minimum"], &schema["maximum"]),
    };
    if min.is_null() || schema["title"].is_null() {
        return String::new();
    }
    format!(" {} to {}", bound(min), bound(max))
}

fn table(page: &mut String, schema: &Value, name: &str) {
    let Some((keys, is_array)) = keys(schema) else { return };
    let (open, close) = if is_array { ("[[", "]]") } else { ("[", "]") };
    writeln!(page, "\n## `{open}{name}{close}`\n\n{}\n", one_line(schema)).unwrap();
    writeln!(page, "| Key | Type | Default | Meaning |\n|---|---|---|---|").unwrap();
    for (key, schema) in keys {
        let inner = non_null(schema);
        let default = match &schema["default"] {
            Value::Null => "unset".to_owned(),
            default => format!("`{default}`"),
        };
        let kind = format!("{}{}", kind(inner), range(schema));
        let kind = kind.replace('|', "\\|");
        let meaning = one_line(if schema["description"].is_null() { inner } else { schema });
        writeln!(page, "| `{key}` | {kind} | {default} | {meaning} |").unwrap();
    }
    for (key, schema) in keys {
        table(page, schema, &format!("{name}.{key}"));
    }
}

#[test]
fn configuration_reference_is_current() {
    let schema = schema();
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let example = fs::read_to_string(root.join("config.example.toml")).unwrap();
    let mut page = HEAD.to_owned();
    // In the order of the example, in which people read them.
    for line in example.lines().filter(|line| line.starts_with('[')) {
        let name = line.trim_start_matches('[').split(']').next().unwrap();
        table(&mut page, &schema["properties"][name], name);
    }
    for section in schema["properties"].as_object().unwrap().keys() {
        assert!(page.contains(&format!("[{section}]")), "{section} is missing in the example");
    }
    let path = root.join("docs/reference/configuration.md");
    if std::env::var_os("UPDATE_REFERENCE").is_some() {
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, &page).unwrap();
    }
    let current = fs::read_to_string(&path).unwrap_or_default();
    assert!(current == page, "outdated; run UPDATE_REFERENCE=1 cargo test --test it reference");
}
