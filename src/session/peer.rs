//! Instances that share a store: how a request token identifies the one that issued it, and the signature of a call
//! that one forwards to another.

use std::time::Duration;

use aws_lc_rs::digest::{SHA256, digest};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;

use super::key_ring::{KeyRing, Purpose, TAG_BYTES};
use crate::secret::Secret;
use crate::time::Timestamp;

/// A process that forwards requests, as its request tokens identify it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Instance {
    /// Random at each start, so that a restarted process is another instance.
    pub(crate) number: u64,
    /// Host and port of its session API for other instances; empty if they cannot reach it.
    pub(crate) authority: String,
}

impl Instance {
    /// Most bytes of an authority: the request token has to fit a header.
    pub(crate) const MAX_AUTHORITY: usize = 255;
}

/// The parts of a call that one instance forwards to another, as they are signed.
#[derive(Clone, Copy, Debug)]
pub(crate) struct PeerCall<'a> {
    /// The request token, as text.
    pub(crate) token: &'a [u8],
    pub(crate) method: &'a str,
    pub(crate) target: &'a str,
    pub(crate) body: &'a [u8],
}

/// The signature of one forwarded call: a time, and a tag over the call and the time.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct PeerSignature {
    signed_at: [u8; 8],
    tag: [u8; TAG_BYTES],
}

/// The largest difference between the clocks of two instances, and the lifetime of a signature.
const ALLOWANCE: Duration = Duration::from_mins(1);

impl PeerCall<'_> {
    pub(crate) fn sign(&self, ring: &KeyRing, now: Timestamp) -> PeerSignature {
        let signed_at = now.as_millis().to_be_bytes();
        let digest = digest(&SHA256, self.body);
        let tag = ring.tag(Purpose::Peer, &self.parts(digest.as_ref(), &signed_at));
        PeerSignature { signed_at, tag }
    }

    /// Parses and verifies a signature of this call. It is valid for a minute.
    pub(crate) fn verify(
        &self,
        ring: &KeyRing,
        text: &[u8],
        now: Timestamp,
    ) -> Option<PeerSignature> {
        let bytes = URL_SAFE_NO_PAD.decode(text).ok()?;
        let (signed_at, tag) = bytes.split_first_chunk::<8>()?;
        let tag: [u8; TAG_BYTES] = tag.try_into().ok()?;
        let digest = digest(&SHA256, self.body);
        ring.verify(Purpose::Peer, &self.parts(digest.as_ref(), signed_at), &tag)?;
        let at = Timestamp::from_millis(i64::from_be_bytes(*signed_at));
        let is_fresh = now <= at + ALLOWANCE && at <= now + ALLOWANCE;
        is_fresh.then_some(PeerSignature { signed_at: *signed_at, tag })
    }

    /// Separates the parts by zero bytes, which neither token, method nor target has: no two calls have the same parts.
    fn parts<'a>(&'a self, digest: &'a [u8], signed_at: &'a [u8]) -> [&'a [u8]; 8] {
        let (method, target) = (self.method.as_bytes(), self.target.as_bytes());
        [self.token, &[0], method, &[0], target, &[0], digest, signed_at]
    }
}

impl PeerSignature {
    /// Returns the value of the call's header.
    pub(crate) fn text(&self) -> Secret {
        Secret::new(URL_SAFE_NO_PAD.encode([self.signed_at.as_slice(), &self.tag].concat()))
    }

    /// Returns the value of the response's header: proof that an instance with the same keys handled the call.
    pub(crate) fn sign_response(&self, ring: &KeyRing) -> Secret {
        Secret::new(URL_SAFE_NO_PAD.encode(ring.tag(Purpose::Peer, &self.response_parts())))
    }

    /// Returns whether this is the header of the response to the call.
    pub(crate) fn verify_response(&self, ring: &KeyRing, header: &[u8]) -> bool {
        let tag = URL_SAFE_NO_PAD.decode(header).ok();
        tag.and_then(|tag| ring.verify(Purpose::Peer, &self.response_parts(), &tag)).is_some()
    }

    fn response_parts(&self) -> [&[u8]; 3] {
        [b"received\0", &self.signed_at, &self.tag]
    }
}

impl std::fmt::Debug for PeerSignature {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("PeerSignature(..)")
    }
}

#[cfg(test)]
mod tests {
    use zeroize::Zeroizing;

    use super::*;
    use crate::session::tests::at;

    const CALL: PeerCall<'_> = PeerCall {
        token: b"dG9rZW4",
        method: "PATCH",
        target: "/_session?x",
        body: b"{\"rotate\": true}",
    };

    fn ring(first: u8, older: &[u8]) -> KeyRing {
        let key = |byte| Zeroizing::new([byte; 32]);
        KeyRing::new(&key(first), &older.iter().copied().map(key).collect::<Vec<_>>())
    }

    fn check(ring: &KeyRing, call: PeerCall<'_>, now: Timestamp) -> bool {
        let signature = CALL.sign(&self::ring(1, &[]), at(1000)).text();
        call.verify(ring, signature.reveal().as_bytes(), now).is_some()
    }

    #[test]
    fn signature_is_valid_for_one_call() {
        let ring = ring(1, &[]);
        assert!(check(&ring, CALL, at(1000)));
        for other in [
            PeerCall { token: b"dG9rZW5", ..CALL },
            PeerCall { method: "PUT", ..CALL },
            PeerCall { target: "/_session", ..CALL },
            PeerCall { body: b"{}", ..CALL },
            PeerCall { token: b"dG9rZW4\0PATCH", method: "/_session?x", target: "", ..CALL },
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
    fn any_key_of_the_ring_verifies() {
        assert!(check(&ring(2, &[1]), CALL, at(1000)));
        assert!(!check(&ring(2, &[]), CALL, at(1000)));
    }

    #[test]
    fn response_signature_is_valid_for_one_call_and_key() {
        let (ours, theirs) = (ring(1, &[]), ring(2, &[1]));
        let signature = CALL.sign(&ours, at(1000));
        let other = PeerCall { body: b"", ..CALL }.sign(&ours, at(1000));
        assert!(
            signature.verify_response(&ours, signature.sign_response(&ours).reveal().as_bytes())
        );
        assert!(
            signature.verify_response(&theirs, signature.sign_response(&ours).reveal().as_bytes())
        );
        for wrong in
            [other.sign_response(&ours), signature.sign_response(&theirs), signature.text()]
        {
            assert!(!signature.verify_response(&ours, wrong.reveal().as_bytes()));
        }
        assert!(!signature.verify_response(&ours, b""));
    }
}
