//! The frame around the content of every page, and parts that several pages have.

use std::fmt::{self, Write as _};

use http::{Response, StatusCode};
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use serde::Serialize;

use super::guard::Operator;
use super::logins::Right;
use super::problem::{self, PageResult};
use super::response::{self, Format};
use crate::body::Body;
use crate::html::Text;
use crate::secret::Secret;
use crate::time::Timestamp;
use crate::wire::Problem;

/// A page of the navigation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Tab {
    Now,
    Sessions,
    Audit,
}

impl Tab {
    const ALL: [Self; 3] = [Self::Now, Self::Sessions, Self::Audit];

    fn path(self) -> &'static str {
        match self {
            Self::Now => "/",
            Self::Sessions => "/sessions",
            Self::Audit => "/audit",
        }
    }

    fn label(self) -> &'static str {
        match self {
            Self::Now => "Now",
            Self::Sessions => "Sessions",
            Self::Audit => "Audit",
        }
    }
}

/// What a page shows, as JSON and as HTML.
pub(super) trait View {
    fn tab(&self) -> Tab;
    fn title(&self) -> String;
    /// # Errors
    /// It cannot be serialized, which is a bug.
    fn json(&self) -> serde_json::Result<String>;
    /// Returns the content below the title.
    fn html(&self, viewer: &Viewer<'_>) -> String;
}

/// The reader of a page.
#[derive(Clone, Copy, Debug)]
pub(super) struct Viewer<'a> {
    /// `None` on a page that needs no token.
    pub(super) operator: Option<&'a Operator>,
    pub(super) show_values: bool,
}

impl Viewer<'_> {
    pub(super) fn may_change(&self) -> bool {
        self.operator.is_some_and(|operator| operator.right() == Right::Full)
    }

    /// Returns the hidden field that every form has.
    pub(super) fn form_token(&self) -> String {
        match self.operator {
            Some(Operator::LoggedIn(login)) => form_token(&login.form_token),
            Some(Operator::Bearer(_)) | None => String::new(),
        }
    }
}

fn form_token(token: &Secret) -> String {
    format!("<input type=hidden name=form_token value='{}'>", Text(token.reveal()))
}

/// Returns a view in the format that the client accepts.
pub(super) fn render(
    view: &impl View,
    format: Format,
    viewer: &Viewer<'_>,
) -> PageResult<Response<Body>> {
    match format {
        Format::Json => {
            Ok(response::json(view.json().map_err(|_unserializable| problem::internal())?))
        }
        Format::Html => {
            let frame = Frame { tab: Some(view.tab()), title: &view.title(), viewer };
            Ok(response::html(StatusCode::OK, frame.render(&view.html(viewer))))
        }
    }
}

/// Returns a problem in the format that the client accepts.
pub(super) fn refuse(problem: &Problem, format: Format, login: &LogInForm<'_>) -> Response<Body> {
    if format == Format::Json {
        return response::problem(problem);
    }
    let viewer = Viewer { operator: None, show_values: false };
    let content = match problem.status {
        StatusCode::UNAUTHORIZED => login.html(problem),
        _ => format!(
            "<p class='notice alert' role=alert>{} <code>{}</code></p>",
            Sentence(&problem.detail),
            problem.code
        ),
    };
    let title = match problem.status {
        StatusCode::UNAUTHORIZED => "Log in",
        status => status.canonical_reason().unwrap_or("Error"),
    };
    let frame = Frame { tab: None, title, viewer: &viewer };
    let page = response::html(problem.status, frame.render(&content));
    response::with_problem_headers(page, problem)
}

/// The form in which an operator enters a token.
#[derive(Clone, Copy, Debug)]
pub(super) struct LogInForm<'a> {
    pub(super) form_token: &'a Secret,
    /// The path to open after the log-in.
    pub(super) next: &'a str,
}

impl LogInForm<'_> {
    fn html(&self, problem: &Problem) -> String {
        let wrong = if problem.code == problem::token_missing().code {
            String::new()
        } else {
            format!("<p class='notice alert' role=alert>{}</p>", Sentence(&problem.detail))
        };
        format!(
            "{wrong}<form method=post action='/login' class=card>{}<input type=hidden name=next value='{}'>\
             <label>Token<input type=password name=token autocomplete=current-password required \
             autofocus></label><button>Log in</button></form>\
             <p class=soft>It is the one of <code>[admin] token</code> or <code>read_token</code>. If neither is \
             set, an embedded store has one in the file <code>admin-token</code> next to its data, and the memory \
             store in the state directory. A log-in lasts 15 minutes.</p>",
            form_token(self.form_token),
            Text(self.next),
        )
    }
}

struct Frame<'a> {
    tab: Option<Tab>,
    title: &'a str,
    viewer: &'a Viewer<'a>,
}

impl Frame<'_> {
    fn render(&self, content: &str) -> String {
        format!(
            "<!doctype html>\n<html lang=en>\n<head>\n<meta charset=utf-8>\n\
             <meta name=viewport content='width=device-width,initial-scale=1'>\n\
             <title>{title} – Cloakroom</title>\n<link rel=stylesheet href='/admin.css'>\n</head>\n<body>\n\
             <a class=skip href='#content'>Skip to content</a>\n\
             <header><strong>Cloakroom</strong>{nav}{log_out}</header>\n\
             <main id=content tabindex=-1>\n<h1>{title}</h1>\n{content}\n</main>\n</body>\n</html>\n",
            title = Text(self.title),
            nav = self.navigation(),
            log_out = self.log_out(),
        )
    }

    fn navigation(&self) -> String {
        let mut items = String::new();
        for tab in Tab::ALL {
            let current = if self.tab == Some(tab) { " aria-current=page" } else { "" };
            // Writing to a String cannot fail, here and in the other pages.
            let _ = write!(items, "<li><a href='{}'{current}>{}</a></li>", tab.path(), tab.label());
        }
        format!("<nav aria-label=Pages><ul>{items}</ul></nav>")
    }

    fn log_out(&self) -> String {
        let Some(operator @ Operator::LoggedIn(login)) = self.viewer.operator else {
            return String::new();
        };
        let right = match operator.right() {
            Right::Read => "read only, until",
            Right::Full => "logged in until",
        };
        format!(
            "<form method=post action='/logout'>{}<span>{right} {}</span><button class=plain>Log out</button></form>",
            self.viewer.form_token(),
            Clock(login.until),
        )
    }
}

/// Returns rows, each of labels and HTML, as a table. On a narrow screen each row becomes a block, which would take the
/// roles from its cells if they were not written.
pub(super) fn table<const N: usize>(rows: &[[(&'static str, String); N]]) -> String {
    let mut head = String::new();
    for (label, _) in rows.iter().take(1).flatten() {
        let _ = write!(head, "<th scope=col role=columnheader>{label}</th>");
    }
    let mut body = String::new();
    for row in rows {
        body.push_str("<tr role=row>");
        for (label, html) in row {
            let _ = write!(body, "<td role=cell data-label='{label}'><div>{html}</div></td>");
        }
        body.push_str("</tr>\n");
    }
    format!(
        "<table role=table><thead role=rowgroup><tr role=row>{head}</tr></thead>\n\
         <tbody role=rowgroup>{body}</tbody></table>"
    )
}

/// A text as a sentence: with a capital letter and a full stop.
pub(super) struct Sentence<'a>(pub(super) &'a str);

impl fmt::Display for Sentence<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut rest = self.0.chars();
        if let Some(first) = rest.next() {
            write!(f, "{}{}.", Text(&first.to_uppercase().to_string()), Text(rest.as_str()))?;
        }
        Ok(())
    }
}

/// A time in JSON.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Rfc3339(pub(super) Timestamp);

impl Serialize for Rfc3339 {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&self.0.to_string())
    }
}

/// A time for people: date and time of day, in UTC.
pub(super) struct Time(pub(super) Timestamp);

impl fmt::Display for Time {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = self.0.to_string();
        let (date, time) = text.split_once('T').unwrap_or((&text, ""));
        let time = time.get(..8).unwrap_or(time);
        write!(f, "<time datetime='{text}'>{date} {time}</time>")
    }
}

/// A time of day, in UTC.
struct Clock(Timestamp);

impl fmt::Display for Clock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = self.0.to_string();
        let time = text.split_once('T').and_then(|(_, time)| time.get(..5)).unwrap_or_default();
        write!(f, "<time datetime='{text}'>{time}\u{a0}UTC</time>")
    }
}

/// A part of a query.
pub(super) struct Encoded<'a>(pub(super) &'a str);

impl fmt::Display for Encoded<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&utf8_percent_encode(self.0, NON_ALPHANUMERIC), f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_are_escaped() {
        assert_eq!(Sentence("<a> b").to_string(), "&lt;a> b.".replace('>', "&gt;"));
        assert_eq!(Encoded("a b&c'é").to_string(), "a%20b%26c%27%C3%A9");
        let time = Timestamp::from_millis(1_000);
        let expected = "<time datetime='1970-01-01T00:00:01.000Z'>1970-01-01 00:00:01</time>";
        assert_eq!(Time(time).to_string(), expected);
    }
}
