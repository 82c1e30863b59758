//! Instances that share a store: how a request token names the one that made it, and what vouches
//! for a call that one passes to another.

use std::time::Duration;

use aws_lc_rs::digest::{SHA256, digest};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;

use super::key_ring::{KeyRing, Purpose, TAG_BYTES};
use crate::secret::Secret;
use crate::time::Timestamp;

/// A process that forwards requests, as its request tokens name it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Instance {
    /// Drawn at its start, so that one that was started anew is another.
    pub number: u64,
    /// Host and port at which others reach its session API; empty where none can.
    pub authority: String,
}

impl Instance {
    /// Bytes of an authority, at most: a request token has to stay a header's size.
    pub const MAX_AUTHORITY: usize = 255;
}

/// A call of the session API that one instance passes to another.
#[derive(Clone, Copy, Debug)]
pub struct PassedCall<'a> {
    /// The request token, as the call has it.
    pub token: &'a [u8],
    /// The method.
    pub method: &'a str,
    /// The path, and the query where there is one.
    pub target: &'a str,
    /// The body.
    pub body: &'a [u8],
}

/// What vouches for one passed call: when it was passed, and a tag over it all.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Voucher {
    passed_at: [u8; 8],
    tag: [u8; TAG_BYTES],
}

/// How far the clocks of two instances may be apart, and how long a voucher is good.
const ALLOWANCE: Duration = Duration::from_mins(1);

impl PassedCall<'_> {
    /// Vouches for the call.
    pub fn sign(&self, ring: &KeyRing, now: Timestamp) -> Voucher {
        let passed_at = now.as_millis().to_be_bytes();
        let digest = digest(&SHA256, self.body);
        let tag = ring.tag(Purpose::Peer, &self.parts(digest.as_ref(), &passed_at));
        Voucher { passed_at, tag }
    }

    /// Reads what vouches for this call and no other, at this time and at no other.
    pub fn verify(&self, ring: &KeyRing, text: &[u8], now: Timestamp) -> Option<Voucher> {
        let bytes = URL_SAFE_NO_PAD.decode(text).ok()?;
        let (passed_at, tag) = bytes.split_first_chunk::<8>()?;
        let tag: [u8; TAG_BYTES] = tag.try_into().ok()?;
        let digest = digest(&SHA256, self.body);
        ring.verify(Purpose::Peer, &self.parts(digest.as_ref(), passed_at), &tag)?;
        let at = Timestamp::from_millis(i64::from_be_bytes(*passed_at));
        let is_fresh = now <= at + ALLOWANCE && at <= now + ALLOWANCE;
        is_fresh.then_some(Voucher { passed_at: *passed_at, tag })
    }

    /// Neither token, method nor target has a zero byte, so no two calls have the same parts.
    fn parts<'a>(&'a self, digest: &'a [u8], passed_at: &'a [u8]) -> [&'a [u8]; 8] {
        let (method, target) = (self.method.as_bytes(), self.target.as_bytes());
        [self.token, &[0], method, &[0], target, &[0], digest, passed_at]
    }
}

impl Voucher {
    /// As the call carries it.
    pub fn text(&self) -> Secret {
        Secret::new(URL_SAFE_NO_PAD.encode([self.passed_at.as_slice(), &self.tag].concat()))
    }

    /// What the answer to the call carries: proof that an instance with the same keys took it.
    pub fn receipt(&self, ring: &KeyRing) -> Secret {
        Secret::new(URL_SAFE_NO_PAD.encode(ring.tag(Purpose::Peer, &self.received())))
    }

    /// Whether this is the receipt for the call.
    pub fn is_received(&self, ring: &KeyRing, receipt: &[u8]) -> bool {
        let tag = URL_SAFE_NO_PAD.decode(receipt).ok();
        tag.and_then(|tag| ring.verify(Purpose::Peer, &self.received(), &tag)).is_some()
    }

    fn received(&self) -> [&[u8]; 3] {
        [b"received\0", &self.passed_at, &self.tag]
    }
}

impl std::fmt::Debug for Voucher {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Voucher(..)")
    }
}

#[cfg(test)]
mod tests {
    use zeroize::Zeroizing;

    use super::*;
    use crate::session::tests::at;

    const CALL: PassedCall<'_> = PassedCall {
        token: b"dG9rZW4",
        method: "PATCH",
        target: "/_session?x",
        body: b"{\"rotate\": true}",
    };

    fn ring(first: u8, older: &[u8]) -> KeyRing {
        let key = |byte| Zeroizing::new([byte; 32]);
        KeyRing::new(&key(first), &older.iter().copied().map(key).collect::<Vec<_>>())
    }

    fn check(ring: &KeyRing, call: PassedCall<'_>, now: Timestamp) -> bool {
        let voucher = CALL.sign(&self::ring(1, &[]), at(1000)).text();
        call.verify(ring, voucher.reveal().as_bytes(), now).is_some()
    }

    #[test]
    fn a_voucher_is_for_one_call() {
        let ring = ring(1, &[]);
        assert!(check(&ring, CALL, at(1000)));
        for other in [
            PassedCall { token: b"dG9rZW5", ..CALL },
            PassedCall { method: "PUT", ..CALL },
            PassedCall { target: "/_session", ..CALL },
            PassedCall { body: b"{}", ..CALL },
            PassedCall { token: b"dG9rZW4\0PATCH", method: "/_session?x", target: "", ..CALL },
        ] {
            assert!(!check(&ring, other, at(1000)), "{other:?}");
        }
        for forged in ["", "x", "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA", "\u{fe}"] {
            assert!(CALL.verify(&ring, forged.as_bytes(), at(0)).is_none(), "{forged}");
        }
    }

    #[test]
    fn clocks_may_be_a_minute_apart() {
        let ring = ring(1, &[]);
        for (now, expected) in [(939, false), (940, true), (1060, true), (1061, false)] {
            assert_eq!(check(&ring, CALL, at(now)), expected, "{now}");
        }
    }

    #[test]
    fn any_key_of_the_ring_vouches() {
        assert!(check(&ring(2, &[1]), CALL, at(1000)));
        assert!(!check(&ring(2, &[]), CALL, at(1000)));
    }

    #[test]
    fn a_receipt_is_for_one_call_and_needs_a_key() {
        let (ours, theirs) = (ring(1, &[]), ring(2, &[1]));
        let voucher = CALL.sign(&ours, at(1000));
        let other = PassedCall { body: b"", ..CALL }.sign(&ours, at(1000));
        assert!(voucher.is_received(&ours, voucher.receipt(&ours).reveal().as_bytes()));
        assert!(voucher.is_received(&theirs, voucher.receipt(&ours).reveal().as_bytes()));
        for wrong in [other.receipt(&ours), voucher.receipt(&theirs), voucher.text()] {
            assert!(!voucher.is_received(&ours, wrong.reveal().as_bytes()));
        }
        assert!(!voucher.is_received(&ours, b""));
    }
}
