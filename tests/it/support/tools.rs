//! Programs that some tests need in addition to Rust.

/// Returns from the test if a program is not installed, so that `cargo test` runs with Rust alone.
/// `tests/run` installs the programs and sets `TESTS_NEED_TOOLS`: then a missing one is a failure.
///
/// The body uses nothing but the standard library, since unit tests of `src` include this file too.
macro_rules! needs {
    ($($program:literal),+) => {$({
        #[expect(clippy::disallowed_methods, reason = "tests know their environment")]
        let (path, required) = (std::env::var_os("PATH"), std::env::var_os("TESTS_NEED_TOOLS"));
        let directories = path.unwrap_or_default();
        if !std::env::split_paths(&directories).any(|directory| directory.join($program).exists()) {
            assert!(required.is_none(), concat!($program, " is not installed"));
            eprintln!(concat!("needs ", $program, ": run tests/run"));
            return;
        }
    })+};
}

pub(crate) use needs;
