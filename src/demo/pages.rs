//! The demo's pages: plain HTML, no script.

use std::fmt::Write;

use super::api::{Device, Error, Expiry, Session};

const STYLE: &str = "\
body{font:1rem/1.5 system-ui,sans-serif;color:#222;max-width:46rem;margin:0 auto;padding:1rem}\
nav a{margin-right:1rem}h1{font-size:1.6rem;margin:.8rem 0}h2{font-size:1.1rem;margin:1.6rem 0 .4rem}\
.big{font-size:2.4rem;font-weight:600}.flash{background:#e7f4e4;border-left:4px solid #4a8b3c;padding:.5rem .8rem}\
.bad{background:#fbe9e7;border-left:4px solid #b3402c;padding:.5rem .8rem}\
table{border-collapse:collapse;width:100%}td,th{text-align:left;padding:.25rem .6rem .25rem 0;border-bottom:1px solid #ddd;vertical-align:top;overflow-wrap:anywhere}\
form{display:inline-block;margin:.2rem .8rem .2rem 0}input{font:inherit;padding:.2rem .4rem}button{font:inherit;padding:.2rem .8rem}\
footer{margin-top:2rem;border-top:1px solid #ddd;color:#555;font-size:.9rem}code{overflow-wrap:anywhere}";

/// The first page.
pub(super) fn home(session: &Session, last_visit: Option<&str>, flash: Option<&str>) -> String {
    let mut body = told(flash);
    let visits = session.number("visits").unwrap_or(0);
    let _ = write!(
        body,
        "<p>Visits in this session: <span class=\"big\" id=\"visits\">{visits}</span></p>\
         <p>Your last visit: <span id=\"last-visit\">{}</span></p>",
        last_visit.map_or_else(|| "this is your first".to_owned(), escape),
    );
    body.push_str("<h2>Who you are</h2>");
    match &session.principal {
        Some(name) => {
            let _ = write!(
                body,
                "<p>Logged in as <strong id=\"principal\">{}</strong></p>{}",
                escape(name),
                button("/logout", "Log out", ""),
            );
        }
        None => body.push_str(
            "<p id=\"principal\">Nobody yet</p><form method=\"post\" action=\"/login\">\
             <label>Name <input name=\"name\" autocomplete=\"username\"></label> <button id=\"login\">Log in</button></form>",
        ),
    }
    body.push_str("<h2>What is in the session</h2><table><tr><th>Key<th>Value<th>");
    for (key, value) in &session.values {
        let hidden = format!("<input type=\"hidden\" name=\"key\" value=\"{}\">", escape(key));
        let _ = write!(
            body,
            "<tr><td>{}<td><code>{}</code><td>{}",
            escape(key),
            escape(value.get()),
            button("/pop", "Remove", &hidden),
        );
    }
    body.push_str(
        "</table><form method=\"post\" action=\"/set\"><label>Key <input name=\"key\"></label> \
         <label>Value <input name=\"value\"></label> <button id=\"set\">Set</button></form>",
    );
    body.push_str("<h2>The session itself</h2>");
    body.push_str(&button("/rotate", "New token", ""));
    body.push_str(&button("/flush", "Flush", ""));
    page("A site with sessions", &body, Some(session))
}

/// How long the session lives.
pub(super) fn expiry(session: &Session, expiry: &Expiry, flash: Option<&str>) -> String {
    let mut body = told(flash);
    let _ = write!(
        body,
        "<table><tr><th>Ends, if you do not come back<td id=\"date\">{}\
         <tr><th>That is in<td><span id=\"age\">{}</span> seconds\
         <tr><th>Its cookie ends with the browser<td id=\"browser-close\">{}\
         <tr><th>A lifetime of its own<td><code id=\"own\">{}</code></table><h2>Give it another</h2>",
        expiry.expires_at.as_deref().map_or_else(|| "there is no session yet".to_owned(), escape),
        expiry.expires_in.unwrap_or(0),
        if expiry.expires_at_browser_close == Some(true) { "yes" } else { "no" },
        expiry.own.as_ref().map_or_else(|| "no".to_owned(), |own| escape(own.get())),
    );
    let kind = |kind: &str| format!("<input type=\"hidden\" name=\"kind\" value=\"{kind}\">");
    body.push_str(&button(
        "/expiry",
        "Remember me so long",
        &format!(
            "{}<label>Seconds <input name=\"seconds\" value=\"3600\" size=\"8\"></label> ",
            kind("idle")
        ),
    ));
    body.push_str(&button(
        "/expiry",
        "End then",
        &format!(
            "{}<label>Date, UTC <input type=\"datetime-local\" name=\"date\"></label> ",
            kind("at")
        ),
    ));
    body.push_str(&button("/expiry", "End with the browser", &kind("browser_close")));
    body.push_str(&button("/expiry", "As everybody's", &kind("policy")));
    page("How long it lives", &body, Some(session))
}

/// Whether the test cookie came back.
pub(super) fn test_cookie(session: &Session, worked: bool) -> String {
    let body = if worked {
        "<p class=\"flash\" id=\"test-cookie\">The test cookie came back: your browser keeps cookies.</p>"
    } else {
        "<p class=\"bad\" id=\"test-cookie\">The test cookie did not come back: your browser does not keep cookies, \
         or not for this address. Open the site as http://localhost, or behind TLS.</p>"
    };
    let again = "<p><a href=\"/test-cookie\">Try again</a></p>";
    page("Does your browser keep cookies?", &format!("{body}{again}"), Some(session))
}

/// The sessions of this principal.
pub(super) fn devices(session: &Session, devices: &[Device], flash: Option<&str>) -> String {
    let mut body = told(flash);
    if session.principal.is_none() {
        body.push_str("<p>Log in on the first page to see where else you are logged in.</p>");
        return page("Your devices", &body, Some(session));
    }
    body.push_str("<table><tr><th>Since<th>Last seen<th>Browser<th>");
    for device in devices {
        let hidden =
            format!("<input type=\"hidden\" name=\"id\" value=\"{}\">", escape(&device.id));
        let (agent, address) = device.client.as_ref().map_or(("unknown", ""), |client| {
            (client.user_agent.as_str(), client.address.as_deref().unwrap_or_default())
        });
        let _ = write!(
            body,
            "<tr class=\"device\"><td>{}<td>{}<td>{} {}<td>{}",
            escape(&device.created_at),
            escape(&device.last_seen_at),
            escape(agent),
            escape(address),
            if device.current {
                "this one".to_owned()
            } else {
                button("/devices/logout", "Log out", &hidden)
            },
        );
    }
    body.push_str("</table><p></p>");
    body.push_str(&button("/devices/logout-others", "Log out all others", ""));
    page("Your devices", &body, Some(session))
}

/// The page that works by header exchange.
pub(super) fn exchange(visits: i64, data: &str) -> String {
    let body = format!(
        "<p>Visits of this page: <span class=\"big\" id=\"exchange-visits\">{visits}</span></p>\
         <p>This page makes no call. The proxy told it the session in <code>X-Session-Data</code>:</p>\
         <p><code id=\"data\">{}</code></p>\
         <p>and it answered with <code>X-Session-Patch: {{\"increment\":{{\"exchange_visits\":1}}}}</code>.</p>",
        escape(data),
    );
    page("Header exchange", &body, None)
}

pub(super) fn not_found() -> String {
    page("There is no such page", "<p><a href=\"/\">To the first page</a></p>", None)
}

/// What went wrong, for whoever tries the demo.
pub(super) fn failed(error: &Error) -> String {
    let code = match error {
        Error::Refused(problem) => format!("{} {}", problem.status, problem.code),
        _ => String::new(),
    };
    let text = escape(error.to_string());
    page(
        "That did not work",
        &format!("<p class=\"bad\">{text} <code>{}</code></p>", escape(&code)),
        None,
    )
}

fn told(flash: Option<&str>) -> String {
    flash.map_or_else(String::new, |text| {
        format!("<p class=\"flash\" id=\"flash\" role=\"status\">{}</p>", escape(text))
    })
}

/// A form of one button, with what goes along.
fn button(action: &str, text: &str, fields: &str) -> String {
    format!("<form method=\"post\" action=\"{action}\">{fields}<button>{text}</button></form>")
}

fn page(title: &str, body: &str, session: Option<&Session>) -> String {
    let footer = session.map_or_else(String::new, |session| {
        let shown = |text: &Option<String>| text.as_deref().map_or_else(|| "none".to_owned(), escape);
        format!(
            "<footer><p>Session <code id=\"session\">{}</code>, version {}, begun {}, last seen {}</p></footer>",
            shown(&session.id),
            session.version.map_or_else(|| "none".to_owned(), |version| version.to_string()),
            shown(&session.created_at),
            shown(&session.last_seen_at),
        )
    });
    format!(
        "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"><title>{title}</title>\
         <meta name=\"viewport\" content=\"width=device-width\"><style>{STYLE}</style></head><body>\
         <nav><a href=\"/\">Home</a><a href=\"/expiry\">Lifetime</a><a href=\"/devices\">Your devices</a>\
         <a href=\"/test-cookie\">Test cookie</a><a href=\"/exchange\">Header exchange</a></nav>\
         <main><h1>{title}</h1>{body}</main>{footer}</body></html>\n"
    )
}

fn escape(text: impl AsRef<str>) -> String {
    let mut out = String::new();
    for character in text.as_ref().chars() {
        match character {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            other => out.push(other),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::escape;

    #[test]
    fn what_visitors_write_is_text() {
        assert_eq!(escape("<b id='x'>\"&"), "&lt;b id=&#39;x&#39;&gt;&quot;&amp;");
    }
}
