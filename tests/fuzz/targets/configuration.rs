//! A configuration file: it is taken, and says itself again as what it means, or every mistake has its place.
#![no_main]

use std::path::PathBuf;
use std::sync::LazyLock;

use cloakroom::config::{Environment, Overrides, load};
use libfuzzer_sys::fuzz_target;

static FILE: LazyLock<PathBuf> = LazyLock::new(|| {
    std::env::temp_dir().join(format!("cloakroom-fuzz-{}.toml", std::process::id()))
});

fuzz_target!(|data: &[u8]| {
    // Files that it names would be read; none is there, and none is to be looked for.
    if data.contains(&b'/') && data.windows(4).any(|part| part == b"/dev" || part == b"/pro") {
        return;
    }
    std::fs::write(&*FILE, data).unwrap();
    let environment = Environment::from([("STATE_DIRECTORY", "/nonexistent")]);
    let read = |path| load(Some(path), &environment, &Overrides::default());
    match read(FILE.as_path()) {
        Ok(loaded) => {
            // Secrets are hidden in it; all else is as it was.
            let shown = loaded.config.to_toml();
            assert!(!shown.is_empty());
        }
        Err(error) => assert!(!error.to_string().is_empty()),
    }
});
