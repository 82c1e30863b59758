//! A configuration file is accepted and can be printed, or is rejected with an error message.
#![no_main]

use std::path::PathBuf;
use std::sync::LazyLock;

use cloakroom::config::{Environment, Overrides, load};
use libfuzzer_sys::fuzz_target;

static FILE: LazyLock<PathBuf> = LazyLock::new(|| {
    std::env::temp_dir().join(format!("cloakroom-fuzz-{}.toml", std::process::id()))
});

fuzz_target!(|data: &[u8]| {
    // The configuration may name files to read; keep it away from devices and /proc.
    if data.contains(&b'/') && data.windows(4).any(|part| part == b"/dev" || part == b"/pro") {
        return;
    }
    std::fs::write(&*FILE, data).unwrap();
    let environment = Environment::from([("STATE_DIRECTORY", "/nonexistent")]);
    let read = |path| load(Some(path), &environment, &Overrides::default());
    match read(FILE.as_path()) {
        Ok(loaded) => {
            // The effective configuration, with its secrets redacted.
            let shown = loaded.to_toml();
            assert!(!shown.is_empty());
        }
        Err(error) => assert!(!error.to_string().is_empty()),
    }
});
