//! `X-Session-Proof`: the MAC of a request's session headers, by which a site verifies that they come from
//! this proxy.
//!
//! docs/reference/headers.md specifies it, with test vectors.

use aws_lc_rs::hmac;
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use http::{HeaderMap, HeaderName, HeaderValue};

use super::error::Error;
use super::names;
use crate::secret::Secret;
use crate::time::Timestamp;

/// The key that signs proofs.
#[derive(Debug)]
pub(super) struct ProofKey(hmac::Key);

/// The signed headers, in the order in which they are signed.
const SIGNED: [HeaderName; 9] = [
    names::X_SESSION_URL,
    names::X_SESSION_TOKEN,
    names::X_SESSION_ID,
    names::X_SESSION_NEXT_ID,
    names::X_SESSION_PRINCIPAL,
    names::X_SESSION_VERSION,
    names::X_SESSION_DATA,
    names::X_SESSION_DATA_OMITTED,
    names::X_SESSION_ERROR,
];

impl ProofKey {
    /// Creates the key from `[api] client_secret`, whose bytes are used as they are.
    pub(super) fn new(secret: &Secret) -> Self {
        Self(hmac::Key::new(hmac::HMAC_SHA256, secret.reveal().as_bytes()))
    }

    /// Returns the proof of a request head that has its session headers.
    pub(super) fn sign(&self, headers: &HeaderMap, now: Timestamp) -> Result<HeaderValue, Error> {
        let seconds = now.as_millis().div_euclid(1000).to_string();
        let mut mac = hmac::Context::with_key(&self.0);
        mac.update(b"cloakroom-proof-v1\n");
        mac.update(seconds.as_bytes());
        for name in &SIGNED {
            if let Some(value) = headers.get(name) {
                for part in [&b"\n"[..], name.as_str().as_bytes(), b":", value.as_bytes()] {
                    mac.update(part);
                }
            }
        }
        let mac = URL_SAFE_NO_PAD.encode(mac.sign());
        let proof = HeaderValue::try_from(format!("v1 t={seconds} m={mac}"));
        let mut proof = proof.map_err(Error::Header)?;
        proof.set_sensitive(true);
        Ok(proof)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use serde::Deserialize;

    use super::*;

    /// A test vector of the documentation.
    #[derive(Deserialize)]
    struct Vector {
        secret: String,
        t: i64,
        headers: BTreeMap<String, String>,
        proof: String,
    }

    #[test]
    fn published_vectors_are_right() {
        let page = include_str!("../../docs/reference/headers.md");
        let block = page.split("```json\n").nth(1).and_then(|rest| rest.split("```").next());
        let vectors: Vec<Vector> = serde_json::from_str(block.expect("a block")).expect("vectors");
        assert!(vectors.len() > 3);
        for Vector { secret, t, headers, proof } in vectors {
            let header = |(name, value): (String, String)| {
                (name.parse::<HeaderName>().expect("a name"), value.parse().expect("a value"))
            };
            let headers: HeaderMap = headers.into_iter().map(header).collect();
            let now = Timestamp::from_millis(t * 1000 + 999);
            let signed = ProofKey::new(&Secret::new(secret)).sign(&headers, now).expect("a proof");
            assert_eq!(signed, proof, "{headers:?}");
        }
    }
}
