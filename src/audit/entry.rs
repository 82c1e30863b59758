//! One entry of the audit trail.

use std::net::IpAddr;
use std::sync::Arc;

use serde::Serialize;

use crate::metrics::{EndReason, Event};
use crate::session::id::PublicId;
use crate::session::record::Principal;
use crate::telemetry::TraceId;
use crate::time::Timestamp;

/// What has caused an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum By {
    /// A request of the session, or a call for it.
    Request,
    /// Another session of the principal.
    OtherSession,
    /// A call with the service token.
    Service,
    /// The admin page or the command line.
    Operator,
    /// A token that was replaced long ago.
    Replay,
    /// The store, which is full.
    Store,
}

impl By {
    /// Returns the text that lines have.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Request => "request",
            Self::OtherSession => "other_session",
            Self::Service => "service",
            Self::Operator => "operator",
            Self::Replay => "replay",
            Self::Store => "store",
        }
    }

    pub(super) fn ends_as(self) -> EndReason {
        match self {
            Self::Request => EndReason::Logout,
            Self::OtherSession => EndReason::DestroyedElsewhere,
            Self::Service | Self::Operator => EndReason::DestroyedByService,
            Self::Replay => EndReason::Replayed,
            Self::Store => EndReason::Evicted,
        }
    }
}

/// The request that an event comes from, as far as it is known.
#[derive(Clone, Debug, Default)]
pub(crate) struct Source {
    pub(crate) route: Option<Arc<str>>,
    /// The client's address, if the policy records it.
    pub(crate) client: Option<IpAddr>,
    pub(crate) trace: Option<TraceId>,
}

/// One entry.
#[derive(Clone, Debug)]
pub(crate) struct Entry {
    /// Set when it is recorded.
    pub(crate) time: Timestamp,
    pub(crate) event: Event,
    pub(crate) by: By,
    pub(crate) session: Option<PublicId>,
    pub(crate) principal: Option<Principal>,
    pub(crate) source: Source,
}

impl Entry {
    pub(crate) fn new(event: Event, by: By) -> Self {
        Self {
            time: Timestamp::from_millis(0),
            event,
            by,
            session: None,
            principal: None,
            source: Source::default(),
        }
    }

    /// Adds the session, and the principal that it has or had.
    #[must_use]
    pub(crate) fn of(self, session: PublicId, principal: Option<&Principal>) -> Self {
        Self { session: Some(session), principal: principal.cloned(), ..self }
    }

    #[must_use]
    pub(crate) fn from(self, source: Source) -> Self {
        Self { source, ..self }
    }

    /// Returns the line of an instance, as one JSON object.
    pub(super) fn to_json(&self, instance: &str) -> String {
        // Texts and numbers are always valid JSON.
        serde_json::to_string(&self.line(instance)).unwrap_or_default()
    }

    /// Returns the line of an instance; without the instance, if its name is empty.
    pub(crate) fn line<'a>(&'a self, instance: &'a str) -> Line<'a> {
        Line {
            time: self.time.to_string(),
            event: self.event.as_str(),
            by: self.by.as_str(),
            session: self.session.map(|session| session.to_string()),
            principal: self.principal.as_ref().map(Principal::as_str),
            route: self.source.route.as_deref(),
            client: self.source.client,
            trace: self.source.trace.as_ref().map(ToString::to_string),
            instance,
        }
    }
}

/// An entry as JSON.
#[derive(Debug, Serialize)]
pub(crate) struct Line<'a> {
    time: String,
    event: &'static str,
    by: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    session: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    principal: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    route: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    client: Option<IpAddr>,
    #[serde(skip_serializing_if = "Option::is_none")]
    trace: Option<String>,
    #[serde(skip_serializing_if = "str::is_empty")]
    instance: &'a str,
}
