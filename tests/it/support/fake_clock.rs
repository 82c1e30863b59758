//! A system clock for one program, by libfaketime.

use std::process::Command;

/// A clock that starts at another time than the machine's, and runs at the same speed.
pub struct FakeClock {
    library: String,
    start_time: String,
}

impl FakeClock {
    /// Creates a clock that starts each program at this time in UTC, e.g. "2026-11-28 03:24:50".
    pub fn at(time: &str) -> Self {
        // The path of the library depends on the machine's architecture; the wrapper finds it.
        let found = Command::new("faketime").args(["-f", "+0", "printenv", "LD_PRELOAD"]).output();
        let library = String::from_utf8(found.expect("these tests need faketime").stdout).unwrap();
        Self { library: library.trim().to_owned(), start_time: format!("@{time}") }
    }

    /// Returns the environment variables for a program. Its timers use the machine's clock.
    pub fn environment(&self) -> [(&'static str, &str); 4] {
        [
            ("LD_PRELOAD", &self.library),
            ("FAKETIME", &self.start_time),
            ("FAKETIME_DONT_FAKE_MONOTONIC", "1"),
            ("TZ", "UTC"),
        ]
    }
}
