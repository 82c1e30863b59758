//! Where the frames of a WebSocket begin and end (RFC 6455, section 5.2), as bytes pass.
//!
//! Nothing of a frame is read but its length: what goes through is the business of those who speak.

/// The longest head of a frame: two bytes, eight of length, four of the mask.
const LONGEST: usize = 14;

/// One direction of a WebSocket.
#[derive(Clone, Debug)]
pub(super) struct Frames {
    head: [u8; LONGEST],
    /// How much of the head is there.
    known: usize,
    /// How much of the payload is still to come.
    payload: u64,
}

impl Frames {
    pub(super) fn new() -> Self {
        Self { head: [0; LONGEST], known: 0, payload: 0 }
    }

    /// Whether the next byte begins a frame.
    pub(super) fn is_between(&self) -> bool {
        self.known == 0 && self.payload == 0
    }

    /// Takes note of bytes that have passed.
    pub(super) fn pass(&mut self, bytes: &[u8]) {
        let mut rest = bytes;
        while !rest.is_empty() {
            rest = self.pass_some(rest);
        }
    }

    /// How many of these bytes, which come next, end the frame that has begun; all of them where it
    /// does not end in them.
    pub(super) fn left_of_frame(&self, bytes: &[u8]) -> usize {
        let (mut frames, mut rest) = (self.clone(), bytes);
        while !frames.is_between() && !rest.is_empty() {
            rest = frames.pass_some(rest);
        }
        bytes.len() - rest.len()
    }

    /// Goes as far as the end of a head or of a payload.
    fn pass_some<'a>(&mut self, bytes: &'a [u8]) -> &'a [u8] {
        if self.payload > 0 {
            let here = usize::try_from(self.payload).unwrap_or(usize::MAX).min(bytes.len());
            self.payload -= here as u64;
            return bytes.get(here..).unwrap_or_default();
        }
        let Some((&byte, rest)) = bytes.split_first() else { return bytes };
        if let Some(place) = self.head.get_mut(self.known) {
            *place = byte;
        }
        self.known += 1;
        if self.known == self.length_of_head() {
            self.payload = self.length_of_payload();
            self.known = 0;
        }
        rest
    }

    fn length_of_head(&self) -> usize {
        let [_, second, ..] = self.head;
        if self.known < 2 {
            return 2;
        }
        let mask = if second & 0x80 == 0 { 0 } else { 4 };
        match second & 0x7f {
            126 => 4 + mask,
            127 => 10 + mask,
            _ => 2 + mask,
        }
    }

    fn length_of_payload(&self) -> u64 {
        let [_, second, extended @ ..] = self.head;
        let big_endian = |bytes: usize| {
            extended.iter().take(bytes).fold(0, |sum, byte| (sum << 8) | u64::from(*byte))
        };
        match second & 0x7f {
            126 => big_endian(2),
            127 => big_endian(8),
            short => u64::from(short),
        }
    }
}

/// Why we close a WebSocket (RFC 6455, section 7.4.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Reason {
    /// We end: 1001.
    GoingAway,
    /// Its session is over: 1008.
    Policy,
}

impl Reason {
    fn code(self) -> u16 {
        match self {
            Self::GoingAway => 1001,
            Self::Policy => 1008,
        }
    }

    /// The frame that says so to a client.
    pub(super) fn to_client(self) -> [u8; 4] {
        let [high, low] = self.code().to_be_bytes();
        [0x88, 2, high, low]
    }

    /// The frame that says so to an upstream, which takes masked ones alone (section 5.1).
    pub(super) fn to_upstream(self, mask: [u8; 4]) -> [u8; 8] {
        let [high, low] = self.code().to_be_bytes();
        let [a, b, c, d] = mask;
        [0x88, 0x82, a, b, c, d, high ^ a, low ^ b]
    }
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;

    /// A frame with a payload of so many bytes, masked or not.
    fn frame(length: usize, masked: bool) -> Vec<u8> {
        let mask = if masked { 0x80 } else { 0 };
        let mut bytes = vec![0x82];
        match (u8::try_from(length), u16::try_from(length)) {
            (Ok(short), _) if short < 126 => bytes.push(mask + short),
            (_, Ok(medium)) => {
                bytes.push(mask + 126);
                bytes.extend(medium.to_be_bytes());
            }
            (_, Err(_)) => {
                bytes.push(mask + 127);
                bytes.extend((length as u64).to_be_bytes());
            }
        }
        bytes.extend(vec![0xff; if masked { 4 } else { 0 }]);
        bytes.extend(vec![0x88; length]);
        bytes
    }

    proptest! {
        #[test]
        fn frames_end_where_they_end(
            lengths in vec((prop_oneof![0..130_usize, 65_530..65_540_usize], any::<bool>()), 1..5),
            piece in 1..70_000_usize,
        ) {
            let mut frames = Frames::new();
            for (length, masked) in lengths {
                let bytes = frame(length, masked);
                prop_assert!(frames.is_between());
                let mut rest = bytes.as_slice();
                while !rest.is_empty() {
                    let (now, later) = rest.split_at(piece.min(rest.len()));
                    frames.pass(now);
                    prop_assert_eq!(frames.is_between(), later.is_empty());
                    let with_more = [later, &[0x81, 0]].concat();
                    prop_assert_eq!(frames.left_of_frame(&with_more), later.len());
                    rest = later;
                }
            }
        }
    }

    #[test]
    fn a_close_is_a_whole_frame() {
        let mut frames = Frames::new();
        frames.pass(&Reason::Policy.to_client());
        assert!(frames.is_between());
        frames.pass(&Reason::GoingAway.to_upstream([1, 2, 3, 4]));
        assert!(frames.is_between());
        assert_eq!(Reason::Policy.to_client(), [0x88, 2, 0x03, 0xf0]);
        assert_eq!(Reason::Policy.to_upstream([1, 2, 3, 4]), [0x88, 0x82, 1, 2, 3, 4, 2, 0xf2]);
    }
}
