//! Random bytes from the operating system.

/// Returns `N` cryptographically secure random bytes.
///
/// # Panics
/// Panics if the operating system has no random number generator: no token is safe without one.
pub fn bytes<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes).expect("the operating system provides random bytes");
    bytes
}
