//! The JSON of sessions.

use serde::{Serialize, Serializer};

use super::values::ValuesObject;
use crate::session::id::Id;
use crate::session::patch::Replicated;
use crate::session::policy::Policy;
use crate::session::record::{Client, Expiry, Meta, Values};
use crate::time::Timestamp;

/// A session at a moment, from which its JSON is written.
#[derive(Clone, Copy, Debug)]
pub(crate) struct View<'a> {
    /// The session; `None` for a visitor without one.
    pub(crate) session: Option<(Id, &'a Meta)>,
    pub(crate) policy: &'a Policy,
    pub(crate) now: Timestamp,
}

/// A session object. The order of its members is part of the contract.
#[derive(Debug, Serialize)]
pub(crate) struct SessionObject<'a> {
    id: Option<String>,
    version: Option<u64>,
    principal: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    values: Option<ValuesObject<'a>>,
    created_at: Option<String>,
    last_seen_at: Option<String>,
    #[serde(flatten)]
    expiry: ExpiryObject,
    #[serde(skip_serializing_if = "Option::is_none")]
    client: Option<ClientObject<'a>>,
    /// The names of the held cookies.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    held_cookies: Vec<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    new: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    current: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    replicated: Option<Replicated>,
    #[serde(skip_serializing_if = "Option::is_none")]
    next_id: Option<String>,
}

/// A session with what its values take, without the values.
#[derive(Debug, Serialize)]
pub(crate) struct SummaryObject<'a> {
    #[serde(flatten)]
    session: SessionObject<'a>,
    /// The size of values and held cookies; `None` if they cannot be read.
    bytes: Option<usize>,
    /// The names of the values.
    keys: Option<&'a [String]>,
}

/// The lifetime of a session.
#[derive(Debug, Serialize)]
pub(crate) struct ExpiryObject {
    expires_at: Option<String>,
    expires_in: Option<u64>,
    expires_at_browser_close: Option<bool>,
    expiry: Option<OwnExpiry>,
}

/// The lifetime that an upstream has given a session, in the form in which it does so.
#[derive(Debug, Serialize)]
#[serde(untagged)]
enum OwnExpiry {
    Idle {
        idle: u64,
    },
    At {
        at: String,
    },
    BrowserClose {
        browser_close: bool,
        #[serde(skip_serializing_if = "Option::is_none")]
        idle: Option<u64>,
    },
}

#[derive(Debug, Serialize)]
struct ClientObject<'a> {
    address: Option<String>,
    user_agent: &'a str,
}

/// A number of destroyed sessions.
#[derive(Debug, Serialize)]
pub(crate) struct DestroyedObject {
    pub(crate) destroyed: u64,
    pub(crate) replicated: Replicated,
}

/// A number of sessions that an operator has ended.
#[derive(Debug, Serialize)]
pub(crate) struct EndedObject {
    pub(crate) ended: u64,
    pub(crate) replicated: Replicated,
}

impl<'a> View<'a> {
    /// Returns the session object with the size of its values and their names.
    pub(crate) fn summary(
        &self,
        bytes: Option<usize>,
        keys: Option<&'a [String]>,
    ) -> SummaryObject<'a> {
        SummaryObject { session: self.object(), bytes, keys }
    }

    /// Returns the session object with its values.
    pub(crate) fn session(&self, values: &'a Values, is_new: bool) -> SessionObject<'a> {
        let values = Some(ValuesObject(values));
        SessionObject { values, new: Some(is_new), ..self.object() }
    }

    /// Returns the session object without values, for a list. `current` says whether it is the
    /// caller's own session, if the caller has one.
    pub(crate) fn listed(&self, current: Option<bool>) -> SessionObject<'a> {
        SessionObject { current, ..self.object() }
    }

    pub(crate) fn expiry(&self) -> ExpiryObject {
        let Some((_, meta)) = self.session else {
            return ExpiryObject {
                expires_at: None,
                expires_in: None,
                expires_at_browser_close: None,
                expiry: None,
            };
        };
        let expires_at = self.policy.expires_at(meta);
        ExpiryObject {
            expires_at: Some(expires_at.to_string()),
            expires_in: Some(expires_at.since(self.now).as_secs()),
            expires_at_browser_close: Some(self.policy.expires_at_browser_close(meta)),
            expiry: meta.expiry.map(OwnExpiry::from),
        }
    }

    fn object(&self) -> SessionObject<'a> {
        let meta = self.session.map(|(_, meta)| meta);
        SessionObject {
            id: self.session.map(|(id, meta)| meta.public_id(id).to_string()),
            version: meta.map(|meta| meta.version),
            principal: meta.and_then(|meta| Some(meta.principal.as_ref()?.as_str())),
            values: None,
            created_at: meta.map(|meta| meta.created_at.to_string()),
            last_seen_at: meta.map(|meta| meta.last_seen_at.to_string()),
            expiry: self.expiry(),
            client: meta.and_then(|meta| meta.client.as_deref()).map(ClientObject::from),
            held_cookies: meta
                .and_then(|meta| meta.held.as_ref())
                .map(|held| held.names().collect())
                .unwrap_or_default(),
            new: None,
            current: None,
            replicated: None,
            next_id: None,
        }
    }
}

impl SessionObject<'_> {
    /// Adds whether a replica has the change that the object is the result of.
    #[must_use]
    pub(crate) fn with_replicated(self, replicated: Replicated) -> Self {
        Self { replicated: Some(replicated), ..self }
    }

    /// Adds the id that the session of a visitor without one would get.
    #[must_use]
    pub(crate) fn with_next_id(self, next_id: Option<Id>) -> Self {
        Self { next_id: next_id.map(|id| id.to_string()), ..self }
    }
}

impl From<Expiry> for OwnExpiry {
    fn from(expiry: Expiry) -> Self {
        match expiry {
            Expiry::Idle(idle) => Self::Idle { idle: idle.as_secs() },
            Expiry::At(at) => Self::At { at: at.to_string() },
            Expiry::BrowserClose(idle) => {
                Self::BrowserClose { browser_close: true, idle: idle.map(|idle| idle.as_secs()) }
            }
        }
    }
}

impl<'a> From<&'a Client> for ClientObject<'a> {
    fn from(Client { address, user_agent }: &'a Client) -> Self {
        Self { address: address.map(|address| address.to_string()), user_agent }
    }
}

impl Serialize for Replicated {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::NotAsked => serializer.serialize_none(),
            Self::Yes => serializer.serialize_bool(true),
            Self::No => serializer.serialize_bool(false),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::session::json::Json;
    use crate::session::record::{Key, Principal};
    use crate::session::tests::{at, meta};

    fn text(object: &impl Serialize) -> String {
        serde_json::to_string(object).expect("serializable")
    }

    #[test]
    fn session_object_is_the_contract() {
        let policy = Policy::default();
        let id = Id::from_bytes([0; 16]);
        let meta = meta(at(1_795_172_400));
        let view = View { session: Some((id, &meta)), policy: &policy, now: at(1_795_172_400) };
        let values = [(Key::new("visits").expect("a key"), Json::integer(4))].into();
        assert_eq!(
            text(&view.session(&values, false)),
            "{\"id\":\"AAAAAAAAAAAAAAAAAAAAAA\",\"version\":100,\"principal\":null,\"values\":{\"visits\":4},\
             \"created_at\":\"2026-11-20T11:00:00.000Z\",\"last_seen_at\":\"2026-11-20T11:00:00.000Z\",\
             \"expires_at\":\"2026-12-04T11:00:00.000Z\",\"expires_in\":1209600,\
             \"expires_at_browser_close\":false,\"expiry\":null,\"new\":false}"
        );
        let none = View { session: None, ..view };
        assert_eq!(
            text(&none.session(&Values::new(), false).with_replicated(Replicated::No)),
            "{\"id\":null,\"version\":null,\"principal\":null,\"values\":{},\"created_at\":null,\
             \"last_seen_at\":null,\"expires_at\":null,\"expires_in\":null,\
             \"expires_at_browser_close\":null,\"expiry\":null,\"new\":false,\"replicated\":false}"
        );
        assert!(
            text(&none.session(&Values::new(), false).with_next_id(Some(id)))
                .ends_with(",\"new\":false,\"next_id\":\"AAAAAAAAAAAAAAAAAAAAAA\"}")
        );
    }

    #[test]
    fn listed_session_has_its_client() {
        let policy = Policy::default();
        let id = Id::from_bytes([0; 16]);
        let address = Some("192.0.2.1".parse().expect("an address"));
        let meta = Meta {
            principal: Principal::new("\"ada\""),
            client: Some(Box::new(Client { address, user_agent: "x".into() })),
            ..meta(at(0))
        };
        let view = View { session: Some((id, &meta)), policy: &policy, now: at(0) };
        assert_eq!(
            text(&view.listed(Some(true))),
            "{\"id\":\"AAAAAAAAAAAAAAAAAAAAAA\",\"version\":100,\"principal\":\"\\\"ada\\\"\",\
             \"created_at\":\"1970-01-01T00:00:00.000Z\",\"last_seen_at\":\"1970-01-01T00:00:00.000Z\",\
             \"expires_at\":\"1970-01-15T00:00:00.000Z\",\"expires_in\":1209600,\
             \"expires_at_browser_close\":false,\"expiry\":null,\
             \"client\":{\"address\":\"192.0.2.1\",\"user_agent\":\"x\"},\"current\":true}"
        );
    }

    #[test]
    fn own_expiry_has_the_form_of_a_patch() {
        let hour = std::time::Duration::from_hours(1);
        for (expiry, expected) in [
            (Expiry::Idle(hour), "{\"idle\":3600}"),
            (Expiry::At(at(60)), "{\"at\":\"1970-01-01T00:01:00.000Z\"}"),
            (Expiry::BrowserClose(None), "{\"browser_close\":true}"),
            (Expiry::BrowserClose(Some(hour)), "{\"browser_close\":true,\"idle\":3600}"),
        ] {
            assert_eq!(text(&OwnExpiry::from(expiry)), expected);
        }
    }

    #[test]
    fn destroyed_object_says_whether_a_replica_has_it() {
        for (replicated, expected) in [
            (Replicated::NotAsked, "{\"destroyed\":2,\"replicated\":null}"),
            (Replicated::Yes, "{\"destroyed\":2,\"replicated\":true}"),
            (Replicated::No, "{\"destroyed\":2,\"replicated\":false}"),
        ] {
            assert_eq!(text(&DestroyedObject { destroyed: 2, replicated }), expected);
        }
    }
}
