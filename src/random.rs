//! Random bytes for ids, keys and nonces.

use rand::Rng as _;

/// Returns `N` cryptographically secure random bytes.
///
/// They come from a generator of the thread (`ChaCha`, seeded by the operating system and reseeded as it is
/// used), because a call of the system for each would cost more than the rest of a request's own work.
///
/// # Panics
/// Panics if the operating system has no random number generator: no token is safe without one.
pub fn bytes<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    rand::rng().fill_bytes(&mut bytes);
    bytes
}
