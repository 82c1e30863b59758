//! A system clock of a program's own, by Debian's faketime.

use std::process::Command;

/// A clock that starts at another time than the machine's, and runs as fast.
pub struct FakeClock {
    library: String,
    begins_at: String,
}

impl FakeClock {
    /// Starts each program at this time of day in UTC, e.g. "2026-11-28 03:24:50".
    pub fn at(time: &str) -> Self {
        // The wrapper knows where this machine keeps its library.
        let found = Command::new("faketime").args(["-f", "+0", "printenv", "LD_PRELOAD"]).output();
        let library = String::from_utf8(found.expect("these tests need faketime").stdout).unwrap();
        Self { library: library.trim().to_owned(), begins_at: format!("@{time}") }
    }

    /// What a program needs in its environment. Its timers go by the machine's clock.
    pub fn environment(&self) -> [(&'static str, &str); 4] {
        [
            ("LD_PRELOAD", &self.library),
            ("FAKETIME", &self.begins_at),
            ("FAKETIME_DONT_FAKE_MONOTONIC", "1"),
            ("TZ", "UTC"),
        ]
    }
}
