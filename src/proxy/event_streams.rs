//! Event streams: responses that last as long as their client listens, and end with their session as WebSockets do.

use std::time::Duration;

use http::header::CONTENT_TYPE;
use http::{HeaderMap, Response};
use tokio::time::sleep;
use tracing::debug;

use crate::body::{Body, Interrupt};
use crate::sessions::{SessionStatus, Sessions, WatchedSession};
use crate::tasks::Tasks;

/// How often the session of an event stream is checked.
const LOOK: Duration = Duration::from_secs(1);

/// Media types of responses that do not end by themselves: server-sent events (WHATWG HTML, section 9.2), and parts
/// that replace each other.
const MEDIA_TYPES: [&str; 2] = ["text/event-stream", "multipart/x-mixed-replace"];

/// Returns whether a response's head announces an event stream.
pub(super) fn is_one(headers: &HeaderMap) -> bool {
    let value = headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let media_type = value.split(';').next().unwrap_or_default().trim();
    MEDIA_TYPES.iter().any(|known| media_type.eq_ignore_ascii_case(known))
}

/// Ends the response's body within two seconds of the end of its session.
pub(super) fn follow(
    response: Response<Body>,
    watched: WatchedSession,
    sessions: &Sessions,
    tasks: &Tasks,
) -> Response<Body> {
    response.map(|body| {
        let (body, interrupt) = body.interruptible();
        tasks.run(watch(interrupt, watched, sessions.clone())).detach();
        body
    })
}

/// Runs until the stream or its session is over; the drain bounds the stream.
async fn watch(mut stream: Interrupt, watched: WatchedSession, sessions: Sessions) {
    loop {
        tokio::select! {
            () = stream.over() => return,
            () = sleep(LOOK) => {}
        }
        // Its client sends nothing that could count as use.
        if sessions.check(watched, false).await == SessionStatus::Ended {
            debug!("event stream aborted: its session is over");
            return stream.end();
        }
    }
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    #[test]
    fn event_streams_are_known_by_type() {
        for (value, expected) in [
            ("text/event-stream", true),
            ("Text/Event-Stream ; charset=utf-8", true),
            ("multipart/x-mixed-replace;boundary=x", true),
            ("text/event-streams", false),
            ("application/json", false),
            ("", false),
        ] {
            let headers = HeaderMap::from_iter([(CONTENT_TYPE, HeaderValue::from_static(value))]);
            assert_eq!(is_one(&headers), expected, "{value}");
        }
        assert!(!is_one(&HeaderMap::new()));
    }
}
