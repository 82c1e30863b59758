//! The labels whose values are known in advance.

use super::label::label;

label! {
    /// The outcome of a request on a public listener.
    pub(crate) Outcome as "outcome" {
        /// The upstream's response was passed on.
        Forwarded = "forwarded",
        /// The client was redirected to the TLS listener.
        Redirected = "redirected",
        /// The client's request was malformed or not allowed.
        ClientError = "client_error",
        /// The upstream failed, timed out or sent an invalid response.
        UpstreamError = "upstream_error",
        /// The session store failed.
        StoreError = "store_error",
        /// An error of Cloakroom itself.
        InternalError = "internal_error",
    }
}

label! {
    /// The class of a response's status code (RFC 9110, section 15).
    pub(crate) StatusClass as "code" {
        Informational = "1xx",
        Successful = "2xx",
        Redirection = "3xx",
        ClientError = "4xx",
        ServerError = "5xx",
    }
}

impl StatusClass {
    pub(super) fn of(status: u16) -> Self {
        match status {
            0..200 => Self::Informational,
            200..300 => Self::Successful,
            300..400 => Self::Redirection,
            400..500 => Self::ClientError,
            500.. => Self::ServerError,
        }
    }
}

label! {
    /// The end of a response to a client.
    pub(crate) ResponseEnd as "end" {
        /// Its body was sent to its end.
        Complete = "complete",
        /// The upstream's connection broke, or the body was malformed or too large.
        Broken = "broken",
        /// The upstream sent nothing for too long.
        Idle = "idle",
        /// Its session ended.
        SessionEnded = "session_ended",
        /// The client read nothing of it for too long.
        Stalled = "stalled",
        /// The drain's deadline passed.
        Drained = "drained",
        /// The client closed the connection or reset the stream.
        Dropped = "dropped",
    }
}

label! {
    /// An event of a session or a session cookie.
    pub Event as "event" {
        /// A session was created.
        Created = "created",
        /// A principal has logged in.
        LoggedIn = "logged_in",
        /// A principal has logged out, and the session goes on.
        LoggedOut = "logged_out",
        /// A token was rotated because the upstream asked for it.
        Rotated = "rotated",
        /// A log-in joined the session that a parallel log-in had just created.
        Joined = "joined",
        /// The new token of a periodic rotation was sent.
        RenewalIssued = "renewal_issued",
        /// A session was destroyed by a request.
        Destroyed = "destroyed",
        /// A session was found expired and removed.
        Expired = "expired",
        /// A record in the store is corrupt.
        Unreadable = "unreadable",
        /// A token of a generation that was replaced long ago was presented.
        Replayed = "replayed",
        /// A token that another response has just replaced was presented.
        Stale = "stale",
        /// A request had the cookies of two sessions.
        AmbiguousCookie = "ambiguous_cookie",
        /// A cross-site request whose browser withheld the cookie (`SameSite`).
        CookieWithheld = "cookie_withheld",
        /// A session cookie had no valid signature.
        InvalidCookie = "invalid_cookie",
        /// The full memory store evicted a session that no browser had come back with.
        Evicted = "evicted",
        /// A session was not created because its client's address had reached its limit.
        TooManyNewSessions = "too_many_new_sessions",
        /// A request did not get its turn on its session.
        SessionBusy = "session_busy",
        /// A patch by response header was dropped.
        PatchDropped = "patch_dropped",
        /// A held cookie that a response set or deleted was dropped: its request had no session to keep it in.
        HeldCookieDropped = "held_cookie_dropped",
        /// A held cookie was removed from a request or a response on a route without sessions.
        HeldCookieRemoved = "held_cookie_removed",
        /// A wrong service token or admin token was presented.
        WrongToken = "wrong_token",
        /// An operator has looked at the values of a session.
        ValuesShown = "values_shown",
    }
}

label! {
    /// The reason why a session has ended.
    pub(crate) EndReason as "reason" {
        /// The site has destroyed it, as at a log-out.
        Logout = "logout",
        /// A call with the service token, or an operator, has destroyed it.
        DestroyedByService = "destroyed_by_service",
        /// Another session of its principal has destroyed it.
        DestroyedElsewhere = "destroyed_elsewhere",
        /// It was not used for its idle timeout.
        IdleTimeout = "idle_timeout",
        /// It has reached the absolute timeout.
        AbsoluteTimeout = "absolute_timeout",
        /// No browser has come back with it in time.
        UnprovenTimeout = "unproven_timeout",
        /// The date that the site has set has come.
        ExpiredByDate = "expired_by_date",
        /// The store was full.
        Evicted = "evicted",
        /// A token that was replaced long ago was presented.
        Replayed = "replayed",
    }
}

label! {
    /// An operation of the session store.
    pub(crate) StoreOperation as "operation" {
        Load = "load",
        Create = "create",
        Patch = "patch",
        RecordUse = "use",
        Remove = "remove",
        List = "list",
        Sweep = "sweep",
        /// The comparison of session keys between instances.
        Keys = "keys",
        Ping = "ping",
        Probe = "probe",
    }
}

label! {
    /// A direction of access to the session store.
    pub(crate) StoreAccess as "operation" {
        Read = "read",
        Write = "write",
    }
}

label! {
    /// The outcome of a reload.
    pub(super) ReloadOutcome as "outcome" {
        Success = "success",
        Failure = "failure",
    }
}

label! {
    /// The outcome of a recorded span.
    pub(crate) SpanOutcome as "outcome" {
        /// The collector accepted it.
        Exported = "exported",
        /// The queue was full.
        Dropped = "dropped",
        /// The collector rejected it, or did not respond in time.
        Failed = "failed",
    }
}
