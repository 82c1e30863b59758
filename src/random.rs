//! Random bytes from the operating system.

/// `N` bytes that nobody can guess.
///
/// # Panics
/// Where the operating system has no generator: nothing here is safe without one.
pub fn bytes<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes).expect("the operating system gives random bytes");
    bytes
}
