//! The content of each page. Text of visitors is escaped by [`Text`].

use std::fmt::Write as _;

use super::api::{Device, Error, Expiry, Session};
use super::code::SITES;
use super::html::languages;
use super::human::{Relative, date, duration, relative};
use crate::html::Text;
use crate::time::Timestamp;

/// The visit counter. `before` is the session when the visitor came, `after` with this visit.
pub(super) fn visits(before: &Session, after: &Session, now: Timestamp) -> String {
    let visits = after.number("visits").unwrap_or_default();
    let last = before.text("last_visit").and_then(|text| Timestamp::parse_rfc3339(&text));
    let last = last.map_or_else(
        || "This is your first visit in this session.".to_owned(),
        |time| format!("Your last visit was {}.", Relative { time, now }),
    );
    format!(
        "<section><p>Visits in this session</p><p class=big id=visits>{visits}</p>\
         <p id=last-visit>{last}</p>\
         <p><a id=again href='/'>Visit again</a></p>\
         <p class=calls>One atomic change, however many tabs you open: <code>PATCH /_session \
         {{\"increment\": {{\"visits\": 1}}, \"values\": {{\"last_visit\": …}}}}</code></p></section>\
         <section><h2>How it works</h2><p>The site that wrote this page stores nothing. The proxy in \
         front of it added the URL of a session API to the request, and everything on these pages is \
         one or two HTTP calls. Delete the cookie in your browser and reload: the counter starts at \
         one again.</p></section>"
    )
}

/// Two counters, one of which loses updates when requests run at the same time.
pub(super) fn parallel(session: &Session) -> String {
    let count = |key| session.number(key).unwrap_or_default();
    format!(
        "<section><p>Your browser sends 20 requests at once, on up to six connections. For each \
         request, the site adds one to two counters in your session.</p>\
         <form method=post action='/parallel' id=burst><button>20 requests at once</button></form>\
         <noscript><p>Without JavaScript, the button sends one request.</p></noscript>\
         <div class=counters>\
         <div><p>Browser: responses</p><p class=big id=answered>0</p></div>\
         <div><p>Session: atomic increment</p><p class=big id=atomic>{}</p></div>\
         <div><p>Session: read, then write</p><p class=big id=overwritten>{}</p></div></div>\
         <p>The atomic counter counts every request. The other one misses requests, because \
         they overwrite each other's result: use <code>increment</code> and <code>append</code>.</p>\
         <form method=post action='/parallel/reset'><button id=reset class=plain>Reset</button></form>\
         <p class=calls><code>PATCH /_session {{\"increment\": {{\"atomic\": 1}}}}</code>; <code>GET \
         /_session</code>, then <code>PATCH /_session {{\"values\": {{\"overwritten\": …}}}}</code></p>\
         </section>",
        count("atomic"),
        count("overwritten"),
    )
}

/// Log-in, log-out and a basket.
pub(super) fn account(session: &Session, ended: bool) -> String {
    let login = match (&session.principal, ended) {
        (Some(name), _) => format!(
            "<section><h2>Logged in</h2><p>You are <strong id=who>{}</strong>. Your cookie got a new \
             value when you logged in; the old value is no longer valid.</p>\
             <form method=post action='/log-out'><button id=log-out>Log out</button></form>\
             <p class=calls><code>DELETE /_session</code></p></section>",
            Text(name)
        ),
        (None, true) => format!(
            "<section><h2>Logged out</h2><p id=ended>Your session and its cookie are deleted.</p>\
             </section>{LOG_IN}"
        ),
        (None, false) => LOG_IN.to_owned(),
    };
    let mut items = String::new();
    for item in session.texts("basket") {
        // Writing to a String cannot fail, here and below.
        let _ = write!(items, "<li>{}</li>", Text(&item));
    }
    if items.is_empty() {
        items.push_str("<li>Nothing yet</li>");
    }
    format!(
        "{login}<section><h2>Basket</h2><p>Items that you add before you log in stay when you do.</p>\
         <ul id=basket>{items}</ul>\
         <form method=post action='/basket'><label>Item<input name=item id=item required \
         maxlength=100></label><button id=put>Add</button></form>\
         <p class=calls><code>POST /_session/values/basket/append</code></p></section>"
    )
}

const LOG_IN: &str = "\
<section><h2>Log in</h2><p>Any name will do; there is no password.</p>\
<form method=post action='/log-in'><label>Name<input name=name id=name required maxlength=60 \
autocomplete=username></label>\
<label class=check><input type=checkbox name=remember id=remember>Remember me for 30 days</label>\
<button id=log-in>Log in</button></form>\
<p class=calls><code>PATCH /_session {\"principal\": …, \"expiry\": …}</code>. If you are not \
remembered, the cookie ends when the browser closes.</p></section>";

/// All values, and forms that change them.
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
    let ended = if ended { "<p id=ended>The session and its values are deleted.</p>" } else { "" };
    format!(
        "<section>{ended}<h2>The session's values</h2><table id=values><thead><tr><th>Key</th>\
         <th>Value</th><th></th></tr></thead><tbody>{rows}</tbody></table>\
         <p class=calls><code>GET /_session</code> returns them, <code>DELETE \
         /_session/values/KEY</code> removes one and returns it.</p></section>\
         <section><h2>Set a value</h2><form method=post action='/values/set'>\
         <label>Key<input name=key id=key required maxlength=60></label>\
         <label>Value, JSON or plain text<input name=value id=value maxlength=1000></label>\
         <button id=set>Set</button></form>\
         <p class=calls><code>PUT /_session/values/KEY</code></p></section>\
         <section><h2>End the session</h2><form method=post action='/flush'><button id=flush>End it\
         </button></form><p class=calls><code>DELETE /_session</code></p></section>"
    )
}

/// The form for a message that is shown once.
pub(super) const MESSAGE: &str = "\
<section><h2>Leave a message for the next page</h2><p>The session keeps it until a page shows it. \
It is shown once: reload that page, and it is gone.</p>\
<form method=post action='/message'><label>Message<input name=text id=text required maxlength=200>\
</label><button id=say>Leave it</button></form>\
<p class=calls><code>PUT /_session/values/flash</code> before the redirect, <code>DELETE \
/_session/values/flash</code> on the page that follows.</p></section>";

/// The session's lifetime, and forms that change it.
pub(super) fn lifetime(session: &Session, expiry: &Expiry, now: Timestamp) -> String {
    let own = expiry.own.as_ref().map_or("none: the policy applies", |own| own.get());
    let age = expiry.expires_in.map_or_else(
        || "–".to_owned(),
        |seconds| format!("{} ({seconds} seconds)", duration(seconds)),
    );
    let close = match expiry.expires_at_browser_close {
        Some(true) => "yes",
        Some(false) => "no",
        None => "–",
    };
    let time = |text: &Option<String>| {
        text.as_deref().map_or_else(|| "–".to_owned(), |text| relative(text, now))
    };
    format!(
        "<section><h2>Now</h2><dl><dt>Expires without a visit in</dt><dd id=age>{age}</dd>\
         <dt>Expires at</dt><dd id=date>{date}</dd>\
         <dt>Cookie ends with the browser</dt><dd id=browser-close>{close}</dd>\
         <dt>Lifetime of its own</dt><dd><code id=own>{own}</code></dd>\
         <dt>Created</dt><dd>{created}</dd><dt>Last seen</dt><dd>{seen}</dd></dl>\
         <p class=calls><code>GET /_session/expiry</code>, which does not extend the session.</p>\
         </section>{LIFETIMES}",
        own = Text(own),
        date = expiry.expires_at.as_deref().map_or_else(|| "–".to_owned(), absolute),
        created = time(&session.created_at),
        seen = time(&session.last_seen_at),
    )
}

/// Formats a time of the session API to the minute; text that is not a time stays as it is.
fn absolute(text: &str) -> String {
    match Timestamp::parse_rfc3339(text) {
        Some(time) => format!("<time datetime='{time}'>{}</time>", date(time)),
        None => Text(text).to_string(),
    }
}

const LIFETIMES: &str = "\
<section><h2>Change it</h2>\
<form method=post action='/lifetime'><label>Seconds without a visit<input name=idle id=idle \
type=number min=1 value=3600 required></label><button id=set-idle>Set</button></form>\
<form method=post action='/lifetime'><label>Until a date and time, UTC<input name=at id=at \
type=datetime-local required></label><button id=set-at>Set</button></form>\
<form method=post action='/lifetime'><button id=set-browser-close name=browser_close value=true>\
Until the browser closes</button>\
<button id=set-policy class=plain name=policy value=true>Back to the policy</button></form>\
<p class=calls><code>PUT /_session/expiry {\"idle\": …}, {\"at\": …}, {\"browser_close\": true}, \
null</code></p></section>";

/// The result of the check of the test cookie.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum TestCookie {
    NotChecked,
    Returned,
    Missing,
}

/// The test cookie, and a form that rotates the session cookie.
pub(super) fn cookie(test: TestCookie) -> String {
    let result = match test {
        TestCookie::NotChecked => "",
        TestCookie::Returned => {
            "<p class=notice role=status id=test-cookie>The cookie came back: cookies work.</p>"
        }
        TestCookie::Missing => {
            "<p class='notice alert' role=status id=test-cookie>The cookie did not come back: this \
             browser does not accept cookies from this site.</p>"
        }
    };
    format!(
        "{result}<section><h2>Do cookies work?</h2><p>Sets a cookie, redirects to this page, and \
         checks that the browser sent the cookie.</p><form method=post action='/cookie/test'>\
         <button id=test>Try</button></form><p class=calls><code>PUT</code>, then <code>GET</code> \
         and <code>DELETE /_session/test-cookie</code></p></section>\
         <section><h2>A new value</h2><p>The session keeps its id and its values. The cookie gets a \
         new value, and copies of the old one are no longer valid.</p>\
         <form method=post action='/cookie/rotate'><button id=rotate>Rotate</button></form>\
         <p class=calls><code>POST /_session/rotate</code></p></section>"
    )
}

/// The sessions of the visitor.
pub(super) fn devices(session: &Session, devices: &[Device], now: Timestamp) -> String {
    let Some(name) = &session.principal else {
        return "<section><p id=not-logged-in><a href='/account'>Log in</a> first, here and in another \
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
            "<tr><td>{this}{agent}<br><span class=calls>from {address}, created {since}, \
             last seen {seen}</span></td><td><form method=post action='/devices/log-out'>\
             <input type=hidden name=id value=\"{id}\">\
             <button class=plain>Log out</button></form></td></tr>",
            agent = Text(agent),
            address = Text(address),
            since = relative(&device.created_at, now),
            seen = relative(&device.last_seen_at, now),
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

/// The page that makes no call; `count` is `None` if the values did not fit the header.
pub(super) fn exchange(count: Option<i64>) -> String {
    let count = count.map_or_else(|| "too many values for a header".to_owned(), |n| n.to_string());
    format!(
        "<section><p>Visits to this page</p><p class=big id=count>{count}</p>\
         <p><a id=again href='/exchange'>Visit again</a></p>\
         <form method=post action='/exchange'><button id=restart class=plain>Start again</button>\
         </form><p class=calls>The site made no call. The request had <code>X-Session-Data: {{…}}\
         </code>. The response has <code>X-Session-Patch: {{\"increment\": {{\"exchange_visits\": 1}}}}\
         </code>, which the proxy applied and removed. The route has <code>header_exchange</code>.\
         </p></section>"
    )
}

/// The way to the visitor's own site.
pub(super) fn own_site() -> String {
    format!(
        "<section><h2>1. Start the proxy</h2><p>If your site listens on port 3000:</p>\
         <pre><code>cargo build --release\ntarget/release/cloakroom --upstream \
         http://127.0.0.1:3000</code></pre><p>Open <code>http://localhost:8080</code>. Sessions are \
         stored in SQLite. If the port is taken, add <code>--listen 127.0.0.1:8888</code>.</p></section>\
         <section><h2>2. Call the session API from your site</h2><p>Append a path to \
         <code>X-Session-Url</code> and send <code>X-Session-Token</code>. These are complete sites \
         with a visit counter, log-in and log-out; the first line of each starts it.</p>{}</section>\
         <section><h2>3. Before it is public</h2><ul><li>Serve HTTPS: with <code>[[listen]] tls</code>, \
         or behind a server that does.</li><li>Copy what you need from \
         <code>config.example.toml</code>, and check it: <code>cloakroom check FILE</code>.</li>\
         <li>Let your site listen on the loopback only, so that every request passes through the proxy.</li>\
         </ul></section>",
        languages(&SITES)
    )
}

/// The content of an error page.
pub(super) fn error(error: &Error) -> String {
    let detail = match error {
        Error::Refused(problem) => format!(
            "<p><code id=code>{} {}</code>: {}.</p>",
            problem.status,
            Text(&problem.code),
            Text(problem.detail.trim_end_matches('.')),
        ),
        Error::NotThroughProxy => {
            "<p>The request had no <code>X-Session-Url</code> and no <code>X-Session-Token</code>. \
             Open the address of the proxy instead.</p>"
                .to_owned()
        }
        Error::Unreachable(cause) => format!("<p>{}.</p>", Text(&cause.to_string())),
        Error::Unreadable(cause) => format!("<p>{}.</p>", Text(&cause.to_string())),
    };
    let summary = match error {
        Error::Refused(_) => "The session API refused the call.".to_owned(),
        other => format!("{other}."),
    };
    format!(
        "<div class='notice alert' role=alert><p>{}</p>{detail}</div><p><a href='/'>To the first \
         page</a></p>",
        Text(&summary)
    )
}
