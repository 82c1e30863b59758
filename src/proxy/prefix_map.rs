//! A map that is looked up by all prefixes of a sequence, such as those of a path.

use std::collections::HashMap;
use std::iter::successors;

/// A map whose keys are sequences of segments. The cost of a lookup does not depend on the number of keys.
#[derive(Clone, Debug)]
pub(super) struct PrefixMap<V> {
    /// The value of the key that ends here.
    value: Option<V>,
    next: HashMap<Vec<u8>, Self>,
}

impl<V> Default for PrefixMap<V> {
    fn default() -> Self {
        Self { value: None, next: HashMap::new() }
    }
}

impl<V> PrefixMap<V> {
    /// Returns the place of a key's value.
    pub(super) fn entry<'k>(&mut self, key: impl Iterator<Item = &'k [u8]>) -> &mut Option<V> {
        let mut end = self;
        for segment in key {
            end = end.next.entry(segment.to_vec()).or_default();
        }
        &mut end.value
    }

    /// Returns the values of all keys that are prefixes of a sequence, the shortest first. The empty key is
    /// a prefix of every sequence.
    pub(super) fn prefixes<'s>(
        &self,
        mut sequence: impl Iterator<Item = &'s [u8]>,
    ) -> impl Iterator<Item = &V> {
        let steps = successors(Some(self), move |step| step.next.get(sequence.next()?));
        steps.filter_map(|step| step.value.as_ref())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_every_prefix_from_the_shortest() {
        let mut map = PrefixMap::default();
        for key in ["", "a", "a b c", "a x"] {
            *map.entry(key.split_terminator(' ').map(str::as_bytes)) = Some(key);
        }
        for (sequence, expected) in [
            ("", vec![""]),
            ("a", vec!["", "a"]),
            ("a b", vec!["", "a"]),
            ("a b c d", vec!["", "a", "a b c"]),
            ("b a", vec![""]),
        ] {
            let segments = sequence.split_terminator(' ').map(str::as_bytes);
            let found: Vec<&str> = map.prefixes(segments).copied().collect();
            assert_eq!(found, expected, "{sequence}");
        }
    }
}
