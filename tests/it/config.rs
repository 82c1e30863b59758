//! The command line and the configuration, by the binary itself.
//!
//! A file of `tests/config/invalid` begins with the errors of `cloakroom check`, in `#= ` lines; one of
//! `tests/config/valid` with its warnings, and with some lines of the effective configuration, in `#> ` lines.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

fn cloakroom(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_cloakroom"));
    command
        .args(arguments)
        .env_clear()
        .env("STATE_DIRECTORY", "/nowhere/state")
        .env("KEY", "A".repeat(43));
    command
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

/// The rest of the lines that begin with `mark`.
fn marked(file: &str, mark: &str) -> Vec<String> {
    file.lines().filter_map(|line| line.strip_prefix(mark)).map(str::to_owned).collect()
}

/// The files of a directory, with their text.
fn files(directory: &str) -> Vec<(PathBuf, String)> {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/config").join(directory);
    let files: Vec<_> = fs::read_dir(directory)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "toml"))
        .map(|path| (path.clone(), fs::read_to_string(path).unwrap()))
        .collect();
    assert!(!files.is_empty());
    files
}

fn check(path: &Path) -> Output {
    let name = path.file_name().unwrap().to_str().unwrap();
    cloakroom(&["check", name]).current_dir(path.parent().unwrap()).output().unwrap()
}

/// The problems that were reported for a file, without its name.
fn reported(output: &Output, path: &Path) -> Vec<String> {
    let name = path.file_name().unwrap().to_str().unwrap();
    text(&output.stderr).lines().map(|line| line.replacen(&format!("{name}:"), "", 1)).collect()
}

#[test]
fn invalid_files_are_reported_by_place() {
    for (path, file) in files("invalid") {
        let output = check(&path);
        assert_eq!(reported(&output, &path), marked(&file, "#= "), "{}", path.display());
        assert_eq!(output.status.code(), Some(2), "{}", path.display());
        assert_eq!(text(&output.stdout), "");
        assert!(!text(&output.stderr).contains("hunter2"), "{}", path.display());
    }
}

#[test]
fn valid_files_are_shown_as_they_apply() {
    for (path, file) in files("valid") {
        let output = check(&path);
        let shown = text(&output.stdout);
        assert_eq!(reported(&output, &path), marked(&file, "#= "), "{}", path.display());
        assert_eq!(output.status.code(), Some(0), "{}", path.display());
        for line in marked(&file, "#> ") {
            assert!(
                shown.lines().any(|shown| shown == line),
                "{}: {line}\n{shown}",
                path.display()
            );
        }
        assert!(!shown.contains("hunter2"), "{}", path.display());
    }
}

#[test]
fn example_is_valid() {
    let example = Path::new(env!("CARGO_MANIFEST_DIR")).join("config.example.toml");
    let output = check(&example);
    assert_eq!(text(&output.stderr), "");
    assert_eq!(output.status.code(), Some(0));
}

#[test]
fn output_of_check_is_valid() {
    let directory = tempfile::tempdir().unwrap();
    let shown = cloakroom(&["check", "config.example.toml"])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()
        .unwrap()
        .stdout;
    let path = directory.path().join("shown.toml");
    fs::write(&path, &shown).unwrap();
    let output = check(&path);
    assert_eq!(text(&output.stderr), "");
    assert_eq!(text(&output.stdout), text(&shown));
}

#[test]
fn generated_keys_are_accepted() {
    let output = cloakroom(&["generate-key"]).output().unwrap();
    assert_eq!(output.status.code(), Some(0));
    let key = text(&output.stdout);
    assert_eq!(key.trim_end().len(), 43);
    let directory = tempfile::tempdir().unwrap();
    fs::write(directory.path().join("key"), &key).unwrap();
    let path = directory.path().join("redis.toml");
    let file = "store.url = \"redis://db\"\nsession.keys = [{ file = \"key\" }]\n\
                [[route]]\nupstream = \"http://app:3000\"\n";
    fs::write(&path, file).unwrap();
    let output = cloakroom(&["check", path.to_str().unwrap()])
        .env("STATE_DIRECTORY", directory.path())
        .output()
        .unwrap();
    assert_eq!(text(&output.stderr), "");
    assert!(!text(&output.stdout).contains(key.trim_end()));
}

#[test]
fn check_accepts_both_forms_of_file() {
    let example = Path::new(env!("CARGO_MANIFEST_DIR")).join("config.example.toml");
    let example = example.to_str().unwrap();
    let [one, other] = [&["check", example][..], &["check", "--config", example]]
        .map(|arguments| cloakroom(arguments).output().unwrap());
    assert_eq!((one.status.code(), other.status.code()), (Some(0), Some(0)));
    assert_eq!(text(&one.stdout), text(&other.stdout));
}

#[test]
fn wrong_usage_is_exit_code_2() {
    for (arguments, expected) in [
        (&[][..], "--upstream"),
        (&["run"], "--upstream"),
        (&["bogus"], "unrecognized subcommand"),
        (&["check"], "cloakroom check FILE"),
        (&["check", "a.toml", "--config", "b.toml"], "cannot be used with"),
        (&["run", "a.toml", "--config", "b.toml"], "cannot be used with"),
        (&["check", "--config", "/nowhere/config.toml"], "/nowhere/config.toml: cannot be read"),
        (&["run", "/nowhere/config.toml"], "/nowhere/config.toml: cannot be read"),
        (&["check", "/nowhere/config.toml"], "/nowhere/config.toml: cannot be read"),
        (&["run", "--config", "/nowhere/config.toml"], "cannot be read"),
        (&["--upstream", "app"], "--upstream: route.upstream: invalid upstream; expected"),
        (
            &["--upstream", "http://a", "--listen", "80"],
            "--listen: listen.address: invalid address",
        ),
        (&["--upstream", "http://127.0.0.1:8080"], "is this proxy itself (listen.address)"),
        (&["health", "--url", "127.0.0.1"], "--url: an upstream is"),
        (&["health", "--url", "http://a", "--config", "b"], "cannot be used with"),
        (&["demo", "--port", "x"], "invalid value"),
    ] {
        let output = cloakroom(arguments).output().unwrap();
        let stderr = text(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{arguments:?} {stderr}");
        assert!(stderr.contains(expected), "{arguments:?} {stderr}");
        assert_eq!(text(&output.stdout), "", "{arguments:?}");
    }
}

#[test]
fn every_command_has_help() {
    for command in ["run", "check", "schema", "generate-key", "clear-expired", "health", "demo"] {
        let output = cloakroom(&[command, "--help"]).output().unwrap();
        assert_eq!(output.status.code(), Some(0), "{command}");
        assert!(text(&output.stdout).contains("Usage: cloakroom"), "{command}");
    }
    let help = text(&cloakroom(&["--help"]).output().unwrap().stdout);
    assert!(help.contains("Examples:") && help.contains("generate-key"), "{help}");
}
