//! Held cookies: the session cookies of the site itself, kept in the session and given back to the site with each
//! request, so that the browser has our cookie alone.
//!
//! They are kept as a browser keeps them (RFC 6265, section 5.3), and their values are sealed, with the session's id
//! and the cookie's name as associated data, so that nothing in a store opens a session of the site.

mod set_cookie;

use std::sync::Arc;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::{Deserialize, Serialize};

use self::set_cookie::{domain_matches, path_matches};
use super::id::Id;
use super::key_ring::{KeyRing, NONCE_BYTES, Nonce, Sealing, SignedBy};
use crate::secret::Secret;
use crate::time::Timestamp;

pub(crate) use set_cookie::{CookieRequest, Identity, Lifetime, SetCookie};

/// Most cookies of a session.
pub(crate) const MAX_COOKIES: usize = 16;

/// The held cookies of a session.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Held {
    /// The text from which they were parsed, as the store has it.
    text: Box<str>,
    jar: Jar,
}

/// The content of [`Held::text`], which is JSON.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Jar {
    #[serde(rename = "c", default, skip_serializing_if = "Vec::is_empty")]
    cookies: Vec<Kept>,
    /// The values that the latest rotation for a changed value has replaced.
    #[serde(rename = "r", default, skip_serializing_if = "Vec::is_empty")]
    replaced: Vec<Kept>,
    /// The lowest generation whose tokens were current while those values were.
    #[serde(rename = "f", default)]
    replaced_from: u32,
    /// When they were replaced, in milliseconds since the epoch.
    #[serde(rename = "t", default)]
    replaced_at: i64,
}

/// A kept cookie.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Kept {
    #[serde(rename = "n")]
    name: String,
    #[serde(rename = "d")]
    domain: String,
    #[serde(rename = "h")]
    is_host_only: bool,
    #[serde(rename = "p")]
    path: String,
    /// Milliseconds since the epoch; none if it ends with the browser.
    #[serde(rename = "e", default, skip_serializing_if = "Option::is_none")]
    ends_at: Option<i64>,
    /// `base64url(nonce ‖ sealed value)`.
    #[serde(rename = "v")]
    sealed: String,
}

/// The changes that a response makes to the held cookies.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct HeldChange {
    pub(crate) ops: Vec<HeldOp>,
    /// Rotates the token if a value is new or changed.
    pub(crate) may_rotate: bool,
    /// The tokens that may be given the values that are replaced. `None` if the request has created the session.
    pub(crate) replaced_for: Option<ReplacedFor>,
}

/// The tokens that may be given replaced values.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ReplacedFor {
    /// The lowest generation that was valid when the request was opened.
    pub(crate) from: u32,
    /// The latest rotation that the request knows. Values that were replaced after it are those of that rotation, and
    /// stay.
    pub(crate) since: Timestamp,
}

/// A change of held cookies.
#[derive(Clone, Debug)]
pub(crate) enum HeldOp {
    /// Sets or deletes one.
    Set {
        cookie: SetCookie,
        /// Random and new; it seals the value.
        nonce: Nonce,
        /// Whether a changed value rotates the token.
        rotates: bool,
    },
    /// Deletes all (`Clear-Site-Data`).
    Clear,
}

/// The held cookies after a change.
#[derive(Debug, Default)]
pub(crate) struct Holding {
    /// `None` if nothing is left.
    pub(crate) held: Option<Arc<Held>>,
    /// A value is new or changed, so that the token has to be rotated.
    pub(crate) rotates: bool,
    /// A cookie was deleted, and none is left.
    pub(crate) is_emptied: bool,
}

/// The keys of a session's held cookies.
#[derive(Clone, Copy, Debug)]
pub(crate) struct HeldKeys<'a> {
    pub(crate) ring: &'a Arc<KeyRing>,
    pub(crate) id: Id,
}

impl PartialEq for HeldOp {
    /// Compares what they do, without the values, which are secret.
    fn eq(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Clear, Self::Clear) => true,
            (Self::Set { nonce, .. }, Self::Set { nonce: other, .. }) => nonce == other,
            _ => false,
        }
    }
}

impl Eq for HeldOp {}

impl HeldChange {
    /// Returns whether it deletes only, so that it creates no session.
    pub(crate) fn only_removes(&self, now: Timestamp) -> bool {
        self.ops.iter().all(|op| op.removes(now))
    }

    /// Applies the change to the cookies of a session.
    /// Values that were replaced longer than `grace` ago are dropped.
    pub(crate) fn apply(
        &self,
        held: Option<&Held>,
        keys: HeldKeys<'_>,
        grace: Duration,
        now: Timestamp,
    ) -> Holding {
        let mut jar = held.map(|held| held.jar.clone()).unwrap_or_default();
        jar.expire(grace, now);
        let before = jar.cookies.clone();
        let mut changes = Changes::default();
        for op in &self.ops {
            match op {
                HeldOp::Clear => jar.clear(&mut changes),
                HeldOp::Set { cookie, .. } if cookie.deletes(now) => {
                    jar.delete(&cookie.identity, &mut changes);
                }
                HeldOp::Set { cookie, nonce, rotates } => {
                    jar.set(cookie, nonce, *rotates, keys, &mut changes);
                }
            }
        }
        if changes.rotates {
            self.keep_replaced(&mut jar, before, &changes, now);
        }
        let is_empty = jar.cookies.is_empty();
        Holding {
            held: (!is_empty).then(|| Arc::new(Held::new(jar))),
            rotates: self.may_rotate && changes.rotates,
            is_emptied: is_empty && changes.has_deleted,
        }
    }

    /// Keeps the values that the change has replaced, as they were before it.
    fn keep_replaced(&self, jar: &mut Jar, before: Vec<Kept>, changes: &Changes, now: Timestamp) {
        let Some(ReplacedFor { from, since }) = self.replaced_for else {
            (jar.replaced, jar.replaced_at) = (Vec::new(), now.as_millis());
            return;
        };
        // Another request of the same log-in has replaced them already. What this one replaces is of the log-in.
        if !self.may_rotate && jar.replaced_at >= since.as_millis() {
            return;
        }
        let is_replaced =
            |old: &Kept| changes.replaced.contains(&old.identity()) && !jar.cookies.contains(old);
        jar.replaced = before.into_iter().filter(is_replaced).collect();
        (jar.replaced_from, jar.replaced_at) = (from, now.as_millis());
    }
}

impl HeldOp {
    /// Returns whether it sets the same cookie to the same value.
    pub(crate) fn sets_same(&self, other: &SetCookie) -> bool {
        matches!(self, Self::Set { cookie, .. } if cookie.identity == other.identity
            && cookie.value.reveal() == other.value.reveal())
    }

    /// Returns whether it sets a cookie whose changes rotate the token.
    pub(crate) fn rotates_and_sets(&self, now: Timestamp) -> bool {
        matches!(self, Self::Set { cookie, rotates: true, .. } if !cookie.deletes(now))
    }

    fn removes(&self, now: Timestamp) -> bool {
        match self {
            Self::Set { cookie, .. } => cookie.deletes(now),
            Self::Clear => true,
        }
    }
}

/// The effects of operations on a jar.
#[derive(Default)]
struct Changes {
    /// A value that rotates is new or changed.
    rotates: bool,
    /// The cookies whose values were changed and rotate.
    replaced: Vec<Identity>,
    has_deleted: bool,
}

impl Jar {
    /// Returns the values that the rotation at `since` has replaced, for a token of this generation.
    fn replaced_by(&self, generation: u32, since: Timestamp) -> &[Kept] {
        let is_open = generation >= self.replaced_from && self.replaced_at >= since.as_millis();
        if is_open { &self.replaced } else { &[] }
    }

    /// Removes cookies that are over, and replaced values that no token may be given any more.
    fn expire(&mut self, grace: Duration, now: Timestamp) {
        self.cookies.retain(|kept| !kept.is_over(now));
        if now > Timestamp::from_millis(self.replaced_at) + grace {
            self.replaced.clear();
        }
    }

    fn clear(&mut self, changes: &mut Changes) {
        changes.has_deleted |= !self.cookies.is_empty();
        changes.replaced.clear();
        *self = Self::default();
    }

    fn delete(&mut self, identity: &Identity, changes: &mut Changes) {
        let before = self.cookies.len();
        self.cookies.retain(|kept| !kept.is(identity));
        self.replaced.retain(|kept| !kept.is(identity));
        changes.replaced.retain(|replaced| replaced != identity);
        changes.has_deleted |= self.cookies.len() < before;
    }

    /// Keeps a cookie, unless there are too many.
    fn set(
        &mut self,
        cookie: &SetCookie,
        nonce: &Nonce,
        rotates: bool,
        keys: HeldKeys<'_>,
        changes: &mut Changes,
    ) {
        let Some(kept) = self.cookies.iter_mut().find(|kept| kept.is(&cookie.identity)) else {
            if self.cookies.len() < MAX_COOKIES {
                self.cookies.push(Kept::new(cookie, nonce, keys));
                changes.rotates |= rotates;
            }
            return;
        };
        let opened = keys.open_with(kept);
        let is_same =
            opened.as_ref().is_some_and(|(value, _)| value.reveal() == cookie.value.reveal());
        if is_same && opened.is_some_and(|(_, sealed_by)| sealed_by == SignedBy::First) {
            kept.set_lifetime(cookie);
            return;
        }
        // A value that an older key sealed is sealed again.
        *kept = Kept::new(cookie, nonce, keys);
        if rotates && !is_same {
            changes.rotates = true;
            changes.replaced.push(cookie.identity.clone());
        }
    }
}

impl Held {
    fn new(jar: Jar) -> Self {
        // These types are always serializable.
        let text = serde_json::to_string(&jar).unwrap_or_default();
        Self { text: text.into(), jar }
    }

    /// Parses the text of [`Held::as_str`].
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let jar = serde_json::from_str(text).ok()?;
        Some(Self { text: text.into(), jar })
    }

    /// Returns the text that a store keeps.
    pub(crate) fn as_str(&self) -> &str {
        &self.text
    }

    /// Returns the names of the cookies, in the order in which they were set first.
    pub(crate) fn names(&self) -> impl Iterator<Item = &str> {
        self.jar.cookies.iter().map(|kept| kept.name.as_str())
    }

    /// Returns whether a cookie outlasts the browser.
    pub(crate) fn lasts(&self) -> bool {
        self.jar.cookies.iter().any(|kept| kept.ends_at.is_some())
    }

    /// Returns the names and values for a request, in the order of RFC 6265, section 5.4.
    pub(crate) fn given_to(
        &self,
        request: CookieRequest<'_>,
        keys: HeldKeys<'_>,
    ) -> Vec<(&str, Secret)> {
        given(&self.jar.cookies, request, keys)
    }

    /// Returns the replaced names and values for a request whose token, of this generation, a rotation at `since` has
    /// replaced. There are none if that was another rotation than the one that replaced them.
    pub(crate) fn replaced_for(
        &self,
        generation: u32,
        since: Timestamp,
        request: CookieRequest<'_>,
        keys: HeldKeys<'_>,
    ) -> Vec<(&str, Secret)> {
        given(self.jar.replaced_by(generation, since), request, keys)
    }

    /// Returns the replaced cookies for the same request as they were set. Each gets a nonce of `nonce`.
    pub(crate) fn to_replaced(
        &self,
        generation: u32,
        since: Timestamp,
        keys: HeldKeys<'_>,
        mut nonce: impl FnMut() -> Nonce,
    ) -> Vec<HeldOp> {
        let set = |kept: &Kept| {
            let cookie = kept.to_set_cookie(keys.open(kept)?);
            Some(HeldOp::Set { cookie, nonce: nonce(), rotates: false })
        };
        self.jar.replaced_by(generation, since).iter().filter_map(set).collect()
    }
}

fn given<'a>(
    cookies: &'a [Kept],
    request: CookieRequest<'_>,
    keys: HeldKeys<'_>,
) -> Vec<(&'a str, Secret)> {
    let mut found: Vec<&Kept> = cookies.iter().filter(|kept| kept.is_for(request)).collect();
    // Longer paths first; the order of creation is kept among equals.
    found.sort_by_key(|kept| std::cmp::Reverse(kept.path.len()));
    found.into_iter().filter_map(|kept| Some((kept.name.as_str(), keys.open(kept)?))).collect()
}

impl Kept {
    fn new(cookie: &SetCookie, nonce: &Nonce, keys: HeldKeys<'_>) -> Self {
        let Identity { name, domain, path } = cookie.identity.clone();
        let mut kept = Self {
            sealed: keys.seal(&name, nonce, &cookie.value),
            name,
            domain,
            is_host_only: cookie.is_host_only,
            path,
            ends_at: None,
        };
        kept.set_lifetime(cookie);
        kept
    }

    fn set_lifetime(&mut self, cookie: &SetCookie) {
        self.ends_at = match cookie.lifetime {
            Lifetime::Browser => None,
            Lifetime::Until(end) => Some(end.as_millis()),
        };
    }

    fn to_set_cookie(&self, value: Secret) -> SetCookie {
        let (identity, is_host_only) = (self.identity(), self.is_host_only);
        let lifetime = self.lifetime();
        SetCookie { identity, is_host_only, value, lifetime, is_http_only: true, same_site: None }
    }

    fn lifetime(&self) -> Lifetime {
        match self.ends_at {
            None => Lifetime::Browser,
            Some(millis) => Lifetime::Until(Timestamp::from_millis(millis)),
        }
    }

    fn is_over(&self, now: Timestamp) -> bool {
        self.lifetime().is_over(now)
    }

    fn identity(&self) -> Identity {
        let Self { name, domain, path, .. } = self.clone();
        Identity { name, domain, path }
    }

    fn is(&self, identity: &Identity) -> bool {
        self.name == identity.name && self.domain == identity.domain && self.path == identity.path
    }

    fn is_for(&self, request: CookieRequest<'_>) -> bool {
        let is_for_host = if self.is_host_only {
            request.host == self.domain
        } else {
            domain_matches(request.host, &self.domain)
        };
        is_for_host && path_matches(request.path, &self.path) && !self.is_over(request.now)
    }
}

impl HeldKeys<'_> {
    fn seal(&self, name: &str, nonce: &Nonce, value: &Secret) -> String {
        let data = self.associated(name);
        let sealed = self.ring.seal(Sealing::Held, nonce, &data, value.reveal().into());
        URL_SAFE_NO_PAD.encode([nonce.as_slice(), &sealed].concat())
    }

    fn open(&self, kept: &Kept) -> Option<Secret> {
        self.open_with(kept).map(|(value, _)| value)
    }

    /// Opens a value, and returns the key that sealed it; `None` if the ring no longer has that key.
    fn open_with(&self, kept: &Kept) -> Option<(Secret, SignedBy)> {
        let bytes = URL_SAFE_NO_PAD.decode(&kept.sealed).ok()?;
        let (nonce, sealed) = bytes.split_first_chunk::<NONCE_BYTES>()?;
        let data = self.associated(&kept.name);
        let (value, sealed_by) = self.ring.open(Sealing::Held, nonce, &data, sealed)?;
        Some((Secret::new(String::from_utf8(value).ok()?), sealed_by))
    }

    fn associated(&self, name: &str) -> Vec<u8> {
        [self.id.as_bytes(), name.as_bytes()].concat()
    }
}
