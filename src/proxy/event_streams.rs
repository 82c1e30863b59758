//! Event streams: responses without an end of their own. Like WebSockets, they end with their session.

use std::time::Duration;

use http::header::CONTENT_TYPE;
use http::{HeaderMap, Response};
use tokio::time::sleep;
use tracing::debug;

use crate::body::{Body, End, Interrupt};
use crate::sessions::{SessionStatus, WatchedSession};
use crate::tasks::Tasks;

/// Interval between checks of the session of an event stream.
const CHECK_INTERVAL: Duration = Duration::from_secs(1);

/// Media types of responses that do not end by themselves: server-sent events (WHATWG HTML, section
/// 9.2), and parts that replace each other.
const MEDIA_TYPES: [&str; 2] = ["text/event-stream", "multipart/x-mixed-replace"];

/// Returns whether a response's head announces an event stream.
pub(super) fn is_event_stream(headers: &HeaderMap) -> bool {
    let value = headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let media_type = value.split(';').next().unwrap_or_default().trim();
    MEDIA_TYPES.iter().any(|known| media_type.eq_ignore_ascii_case(known))
}

/// Ends the body of a response within two seconds after the end of its session.
pub(super) fn follow(
    response: Response<Body>,
    watched: WatchedSession,
    tasks: &Tasks,
) -> Response<Body> {
    response.map(|body| {
        let (body, interrupt) = body.interruptible();
        tasks.run(watch(interrupt, watched)).detach();
        body
    })
}

/// Runs until the stream or its session ends. The drain deadline bounds the stream.
async fn watch(mut stream: Interrupt, watched: WatchedSession) {
    loop {
        tokio::select! {
            () = stream.body_ended() => return,
            () = sleep(CHECK_INTERVAL) => {}
        }
        // The client sends nothing after the request, so the stream does not extend the session.
        if watched.check(false).await == SessionStatus::Ended {
            debug!(reason = End::Interrupted.reason().as_str(), "event stream closed");
            return stream.interrupt();
        }
    }
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    #[test]
    fn recognizes_event_streams_by_media_type() {
        for (value, expected) in [
            ("text/event-stream", true),
            ("Text/Event-Stream ; charset=utf-8", true),
            ("multipart/x-mixed-replace;boundary=x", true),
            ("text/event-streams", false),
            ("application/json", false),
            ("", false),
        ] {
            let headers = HeaderMap::from_iter([(CONTENT_TYPE, HeaderValue::from_static(value))]);
            assert_eq!(is_event_stream(&headers), expected, "{value}");
        }
        assert!(!is_event_stream(&HeaderMap::new()));
    }
}
