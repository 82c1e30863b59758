//! The content of each page. What a visitor may have written goes through [`Text`].

use std::fmt::Write as _;

use super::api::{Device, Error, Expiry, Session};
use super::html::Text;
use crate::time::Timestamp;

/// The visit counter; `before` is the session as the visitor brought it.
pub(super) fn visits(before: &Session, after: &Session, now: Timestamp) -> String {
    let visits = after.number("visits").unwrap_or_default();
    let last = before.text("last_visit").and_then(|text| Timestamp::parse_rfc3339(&text));
    let last = last.map_or_else(
        || "This is your first visit, as far as this session knows.".to_owned(),
        |last| format!("Your last visit was {} ago, at {last}.", span(now.since(last).as_secs())),
    );
    format!(
        "<section><p>Visits in this session</p><p class=big id=visits>{visits}</p>\
         <p id=last-visit>{last}</p>\
         <p><a id=again href='/'>Visit again</a></p>\
         <p class=calls>One change that is atomic, however many tabs you open: <code>PATCH /_session \
         {{\"increment\": {{\"visits\": 1}}, \"values\": {{\"last_visit\": …}}}}</code></p></section>\
         <section><h2>What you see here</h2><p>The site that wrote this page keeps nothing. The proxy \
         in front of it told it where a session API is, and everything on these pages is an HTTP call \
         or two. Delete this site's cookie in your browser, come back, and you begin at one.</p>\
         </section>"
    )
}

/// Logging in and out, and a basket that stays.
pub(super) fn account(session: &Session, ended: bool) -> String {
    let who = match (&session.principal, ended) {
        (Some(name), _) => format!(
            "<section><h2>Logged in</h2><p>You are <strong id=who>{}</strong>. Your cookie has had \
             another value since you logged in; the one before opens nothing any more.</p>\
             <form method=post action='/log-out'><button id=log-out>Log out</button></form>\
             <p class=calls><code>DELETE /_session</code></p></section>",
            Text(name)
        ),
        (None, true) => format!(
            "<section><h2>Logged out</h2><p id=ended>Your session is over and its cookie is deleted.\
             </p></section>{LOG_IN}"
        ),
        (None, false) => LOG_IN.to_owned(),
    };
    let mut items = String::new();
    for item in session.texts("basket") {
        // Writing to a String cannot fail.
        let _ = write!(items, "<li>{}</li>", Text(&item));
    }
    if items.is_empty() {
        items.push_str("<li>Nothing yet</li>");
    }
    format!(
        "{who}<section><h2>Basket</h2><p>What you put in before you log in is there afterwards.</p>\
         <ul id=basket>{items}</ul>\
         <form method=post action='/basket'><label>Thing<input name=item id=item required \
         maxlength=100></label><button id=put>Put in</button></form>\
         <p class=calls><code>POST /_session/values/basket/append</code></p></section>"
    )
}

const LOG_IN: &str = "\
<section><h2>Log in</h2><p>Any name will do; there is no password.</p>\
<form method=post action='/log-in'><label>Name<input name=name id=name required maxlength=60 \
autocomplete=username></label>\
<label class=check><input type=checkbox name=remember id=remember>Remember me for 30 days</label>\
<button id=log-in>Log in</button></form>\
<p class=calls><code>PATCH /_session {\"principal\": …, \"expiry\": …}</code>: who is not remembered \
gets a cookie that ends with the browser.</p></section>";

/// All values, and how to change them.
pub(super) fn values(session: &Session, ended: bool) -> String {
    let mut rows = String::new();
    for (key, json) in &session.values {
        let _ = write!(
            rows,
            "<tr><td><code>{key}</code></td><td class=json>{json}</td><td>\
             <form method=post action='/values/remove'><input type=hidden name=key value=\"{key}\">\
             <button class=plain aria-label=\"Remove {key}\">Remove</button></form></td></tr>",
            key = Text(key),
            json = Text(json.get()),
        );
    }
    if rows.is_empty() {
        rows.push_str("<tr><td colspan=3>There are none.</td></tr>");
    }
    let ended = if ended { "<p id=ended>The session is over, its values with it.</p>" } else { "" };
    format!(
        "<section>{ended}<h2>What the session holds</h2><table id=values><thead><tr><th>Key</th>\
         <th>Value</th><th></th></tr></thead><tbody>{rows}</tbody></table>\
         <p class=calls><code>GET /_session</code> shows them, <code>DELETE \
         /_session/values/KEY</code> removes one and says what it was.</p></section>\
         <section><h2>Set a value</h2><form method=post action='/values/set'>\
         <label>Key<input name=key id=key required maxlength=60></label>\
         <label>Value, JSON or plain text<input name=value id=value maxlength=1000></label>\
         <button id=set>Set</button></form>\
         <p class=calls><code>PUT /_session/values/KEY</code></p></section>\
         <section><h2>End the session</h2><form method=post action='/flush'><button id=flush>End it\
         </button></form><p class=calls><code>DELETE /_session</code></p></section>"
    )
}

/// A message that is shown once.
pub(super) const MESSAGE: &str = "\
<section><h2>Say something to the next page</h2><p>It is kept in the session until a page shows it, \
and it is shown once: load this page again and it is gone.</p>\
<form method=post action='/message'><label>Message<input name=text id=text required maxlength=200>\
</label><button id=say>Say it</button></form>\
<p class=calls><code>PUT /_session/values/flash</code> before the redirect, <code>DELETE \
/_session/values/flash</code> on the page that follows.</p></section>";

/// How long the session lives.
pub(super) fn lifetime(session: &Session, expiry: &Expiry) -> String {
    let own = expiry.own.as_ref().map_or("none: the policy's", |own| own.get());
    let age = expiry
        .expires_in
        .map_or_else(|| "–".to_owned(), |seconds| format!("{} ({seconds} seconds)", span(seconds)));
    let close = match expiry.expires_at_browser_close {
        Some(true) => "yes",
        Some(false) => "no",
        None => "–",
    };
    let text = |text: &Option<String>| Text(text.as_deref().unwrap_or("–")).to_string();
    format!(
        "<section><h2>As it is</h2><dl><dt>Ends, if you stay away, in</dt><dd id=age>{age}</dd>\
         <dt>That is at</dt><dd id=date>{date}</dd>\
         <dt>Cookie ends with the browser</dt><dd id=browser-close>{close}</dd>\
         <dt>Lifetime of its own</dt><dd><code id=own>{own}</code></dd>\
         <dt>Began at</dt><dd>{began}</dd><dt>Last seen at</dt><dd>{seen}</dd></dl>\
         <p class=calls><code>GET /_session/expiry</code>: asking prolongs nothing.</p></section>\
         {LIFETIMES}",
        own = Text(own),
        date = text(&expiry.expires_at),
        began = text(&session.created_at),
        seen = text(&session.last_seen_at),
    )
}

const LIFETIMES: &str = "\
<section><h2>Another lifetime</h2>\
<form method=post action='/lifetime'><label>Seconds without a visit<input name=idle id=idle \
type=number min=1 value=3600 required></label><button id=set-idle>Set</button></form>\
<form method=post action='/lifetime'><label>Until a date and time, UTC<input name=at id=at \
type=datetime-local required></label><button id=set-at>Set</button></form>\
<form method=post action='/lifetime'><button id=set-browser-close name=browser_close value=true>\
Until the browser closes</button>\
<button id=set-policy class=plain name=policy value=true>Back to the policy</button></form>\
<p class=calls><code>PUT /_session/expiry {\"idle\": …}, {\"at\": …}, {\"browser_close\": true}, \
null</code></p></section>";

/// What the check of the test cookie found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum TestCookie {
    NotAsked,
    CameBack,
    Lost,
}

/// Whether cookies work, and a new value for this one.
pub(super) fn cookie(tested: TestCookie) -> String {
    let verdict = match tested {
        TestCookie::NotAsked => "",
        TestCookie::CameBack => {
            "<p class=told role=status id=test-cookie>The cookie came back: cookies work.</p>"
        }
        TestCookie::Lost => {
            "<p class='told alert' role=status id=test-cookie>The cookie did not come back: this \
             browser keeps no cookies of this site.</p>"
        }
    };
    format!(
        "{verdict}<section><h2>Do cookies work?</h2><p>Sets one, sends you here again, and looks \
         whether it came along.</p><form method=post action='/cookie/test'><button id=test>Try\
         </button></form><p class=calls><code>PUT</code>, then <code>GET</code> and <code>DELETE \
         /_session/test-cookie</code></p></section>\
         <section><h2>A new value</h2><p>The session stays, with its id and its values; the cookie \
         gets another value, and no copy of the old one opens it.</p>\
         <form method=post action='/cookie/rotate'><button id=rotate>Rotate</button></form>\
         <p class=calls><code>POST /_session/rotate</code></p></section>"
    )
}

/// The sessions of the visitor.
pub(super) fn devices(session: &Session, devices: &[Device]) -> String {
    let Some(name) = &session.principal else {
        return "<section><p id=nobody><a href='/account'>Log in</a> first, here and in another \
                browser.</p></section>"
            .to_owned();
    };
    let mut rows = String::new();
    for device in devices {
        let client = device.client.as_ref();
        let agent = client.map_or("unknown", |client| client.user_agent.as_str());
        let address = client.and_then(|client| client.address.as_deref()).unwrap_or("–");
        let this = if device.current { "<strong>This one</strong><br>" } else { "" };
        let _ = write!(
            rows,
            "<tr><td>{this}{agent}<br><span class=calls>from {address}, since {since}, last seen \
             {seen}</span></td><td><form method=post action='/devices/log-out'>\
             <input type=hidden name=id value=\"{id}\">\
             <button class=plain>Log out</button></form></td></tr>",
            agent = Text(agent),
            address = Text(address),
            since = Text(&device.created_at),
            seen = Text(&device.last_seen_at),
            id = Text(&device.id),
        );
    }
    format!(
        "<section><h2>Where {} is logged in</h2><table id=devices><tbody>{rows}</tbody></table>\
         <form method=post action='/devices/log-others-out'><button id=log-others-out>Log out \
         everywhere else</button></form>\
         <p class=calls><code>GET /_session/principal/sessions</code>, <code>DELETE</code> on it or \
         on one of them</p></section>",
        Text(name)
    )
}

/// The page that makes no call; `count` is `None` where the values did not fit the header.
pub(super) fn exchange(count: Option<i64>) -> String {
    let count = count.map_or_else(|| "too many values for a header".to_owned(), |n| n.to_string());
    format!(
        "<section><p>Visits to this page</p><p class=big id=count>{count}</p>\
         <p><a id=again href='/exchange'>Visit again</a></p>\
         <form method=post action='/exchange'><button id=restart class=plain>Begin anew</button>\
         </form><p class=calls>No call was made: the request had <code>X-Session-Data: {{…}}</code>, \
         and the response has <code>X-Session-Patch: {{\"increment\": {{\"exchange_visits\": 1}}}}\
         </code>, which the proxy applied and took out.</p></section>"
    )
}

/// What went wrong.
pub(super) fn trouble(error: &Error) -> String {
    let what = match error {
        Error::Refused(problem) => format!(
            "<p>It answered <code id=code>{} {}</code>: {}.</p>",
            problem.status,
            Text(&problem.code),
            Text(problem.detail.trim_end_matches('.')),
        ),
        Error::NotThroughProxy => {
            "<p>It brought no <code>X-Session-Url</code> and no <code>X-Session-Token</code>. Open \
             the address of the proxy instead.</p>"
                .to_owned()
        }
        Error::Unreached(cause) => format!("<p>{}.</p>", Text(&cause.to_string())),
        Error::Unreadable(cause) => format!("<p>{}.</p>", Text(&cause.to_string())),
    };
    let summary = match error {
        Error::Refused(_) => "The session API did not do it.".to_owned(),
        other => format!("{other}."),
    };
    format!(
        "<div class='told alert' role=alert><p>{}</p>{what}</div><p><a href='/'>To the first page\
         </a></p>",
        Text(&summary)
    )
}

/// Whole seconds, as people say them.
fn span(seconds: u64) -> String {
    humantime::format_duration(std::time::Duration::from_secs(seconds)).to_string()
}
