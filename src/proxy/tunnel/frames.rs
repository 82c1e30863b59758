//! Frame boundaries of a WebSocket (RFC 6455, section 5.2), and close frames.
//!
//! Only the lengths of frames are parsed; payloads pass unread.

/// Longest frame header: two bytes, eight of extended length, four of the masking key.
const MAX_HEADER: usize = 14;

/// The frame boundaries of one direction of a WebSocket, tracked as its bytes pass.
#[derive(Clone, Debug)]
pub(super) struct FrameTracker {
    header: [u8; MAX_HEADER],
    /// Number of header bytes received.
    received: usize,
    /// Number of payload bytes still to come.
    payload: u64,
}

impl FrameTracker {
    pub(super) fn new() -> Self {
        Self { header: [0; MAX_HEADER], received: 0, payload: 0 }
    }

    /// Returns whether the next byte begins a frame.
    pub(super) fn is_at_boundary(&self) -> bool {
        self.received == 0 && self.payload == 0
    }

    /// Advances by bytes that have passed.
    pub(super) fn advance(&mut self, bytes: &[u8]) {
        let mut rest = bytes;
        while !rest.is_empty() {
            rest = self.advance_part(rest);
        }
    }

    /// Returns how many of the next bytes belong to the current frame.
    pub(super) fn rest_of_frame(&self, bytes: &[u8]) -> usize {
        let (mut frames, mut rest) = (self.clone(), bytes);
        while !frames.is_at_boundary() && !rest.is_empty() {
            rest = frames.advance_part(rest);
        }
        bytes.len() - rest.len()
    }

    /// Advances by one header byte, or up to the end of the payload. Returns the remaining bytes.
    fn advance_part<'a>(&mut self, bytes: &'a [u8]) -> &'a [u8] {
        if self.payload > 0 {
            let passed = usize::try_from(self.payload).unwrap_or(usize::MAX).min(bytes.len());
            self.payload -= passed as u64;
            return bytes.get(passed..).unwrap_or_default();
        }
        let Some((&byte, rest)) = bytes.split_first() else { return bytes };
        if let Some(place) = self.header.get_mut(self.received) {
            *place = byte;
        }
        self.received += 1;
        if self.received == self.header_length() {
            self.payload = self.payload_length();
            self.received = 0;
        }
        rest
    }

    fn header_length(&self) -> usize {
        let [_, second, ..] = self.header;
        if self.received < 2 {
            return 2;
        }
        // The high bit of the second byte says that a masking key follows; 126 and 127 announce an
        // extended length of two or eight bytes.
        let mask = if second & 0x80 == 0 { 0 } else { 4 };
        match second & 0x7f {
            126 => 4 + mask,
            127 => 10 + mask,
            _ => 2 + mask,
        }
    }

    fn payload_length(&self) -> u64 {
        let [_, second, extended @ ..] = self.header;
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

/// The reason for closing a WebSocket (RFC 6455, section 7.4.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum CloseReason {
    /// The proxy shuts down, or the tunnel is idle: 1001.
    GoingAway,
    /// The session has ended: 1008.
    Policy,
}

impl CloseReason {
    fn code(self) -> u16 {
        match self {
            Self::GoingAway => 1001,
            Self::Policy => 1008,
        }
    }

    /// Returns the close frame for a client.
    pub(super) fn to_client(self) -> [u8; 4] {
        let [high, low] = self.code().to_be_bytes();
        [0x88, 2, high, low]
    }

    /// Returns the close frame for an upstream, which accepts only masked frames (section 5.1).
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

    /// Returns a frame with a payload of `length` bytes.
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
        fn tracks_frames_of_any_length(
            lengths in vec((prop_oneof![0..130_usize, 65_530..65_540_usize], any::<bool>()), 1..5),
            piece in 1..70_000_usize,
        ) {
            let mut frames = FrameTracker::new();
            for (length, masked) in lengths {
                let bytes = frame(length, masked);
                prop_assert!(frames.is_at_boundary());
                let mut rest = bytes.as_slice();
                while !rest.is_empty() {
                    let (now, later) = rest.split_at(piece.min(rest.len()));
                    frames.advance(now);
                    prop_assert_eq!(frames.is_at_boundary(), later.is_empty());
                    let with_more = [later, &[0x81, 0]].concat();
                    prop_assert_eq!(frames.rest_of_frame(&with_more), later.len());
                    rest = later;
                }
            }
        }
    }

    #[test]
    fn close_frames_are_complete() {
        let mut frames = FrameTracker::new();
        frames.advance(&CloseReason::Policy.to_client());
        assert!(frames.is_at_boundary());
        frames.advance(&CloseReason::GoingAway.to_upstream([1, 2, 3, 4]));
        assert!(frames.is_at_boundary());
        assert_eq!(CloseReason::Policy.to_client(), [0x88, 2, 0x03, 0xf0]);
        assert_eq!(
            CloseReason::Policy.to_upstream([1, 2, 3, 4]),
            [0x88, 0x82, 1, 2, 3, 4, 2, 0xf2]
        );
    }
}
