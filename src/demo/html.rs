//! The frame around the content of every page.

use std::fmt::Write as _;

use http::{HeaderMap, HeaderName, HeaderValue};

use super::api::Session;
use super::code::Code;
use super::page::Page;
use crate::html::Text;

/// The parts of a page that do not depend on which page it is.
#[derive(Debug, Default)]
pub(super) struct Frame<'a> {
    /// The page in the navigation; `None` for an error.
    pub(super) page: Option<Page>,
    pub(super) title: &'a str,
    /// The message that the previous request left in the session.
    pub(super) flash: Option<String>,
    /// The proxy's reason why the request has no session although it had a cookie.
    pub(super) session_error: Option<&'a str>,
    /// The visitor's session; `None` if it is not known.
    pub(super) session: Option<&'a Session>,
    /// The headers of the request; `None` leaves their list out.
    pub(super) received: Option<&'a HeaderMap>,
}

impl Frame<'_> {
    /// Returns the whole page; `content` is HTML.
    pub(super) fn render(&self, content: &str) -> String {
        format!(
            "<!doctype html>\n<html lang=en>\n<head>\n<meta charset=utf-8>\n\
             <meta name=viewport content='width=device-width,initial-scale=1'>\n\
             <title>{title} – Cloakroom</title>\n\
             <link rel=icon href='/favicon.svg' type='image/svg+xml'>\n\
             <link rel=stylesheet href='/demo.css'>\n<script src='/demo.js' defer></script>\n\
             </head>\n<body>\n<a class=skip href='#content'>Skip to content</a>\n\
             <header><strong>Cloakroom</strong> <span>demo: a site without sessions of its own</span>\n\
             {nav}\n</header>\n<main id=content>\n<h1>{title}</h1>\n{notices}\n{content}\n{code}{received}\
             </main>\n<footer>{footer}</footer>\n</body>\n</html>\n",
            title = Text(self.title),
            nav = self.navigation(),
            notices = self.notices(),
            code = self
                .page
                .and_then(Code::behind)
                .map_or_else(String::new, |code| code_of_page(&code)),
            received = self.received.map_or_else(String::new, received),
            footer = self.footer(),
        )
    }

    fn notices(&self) -> String {
        let mut notices = String::new();
        // Writing to a String cannot fail, here and below.
        if let Some(flash) = &self.flash {
            let _ = write!(notices, "<p class=notice role=status id=flash>{}</p>", Text(flash));
        }
        if let Some(error) = self.session_error {
            let _ = write!(
                notices,
                "<p class='notice alert' role=status id=session-error>The browser sent a cookie, but \
                 the proxy found no session for it: <code>{}</code>.</p>",
                Text(error)
            );
        }
        notices
    }

    fn navigation(&self) -> String {
        let mut items = String::new();
        for page in Page::ALL {
            let current = if self.page == Some(page) { " aria-current=page" } else { "" };
            let (path, label) = (page.path(), page.label());
            let _ = write!(items, "<li><a href='{path}'{current}>{label}</a></li>");
        }
        format!("<nav aria-label=Pages><ul>{items}</ul></nav>")
    }

    fn footer(&self) -> String {
        let Some(session) = self.session else { return String::new() };
        let Some(id) = &session.id else {
            return "<p id=session>No session: nothing has been written for you yet, so there is no \
                    cookie.</p>"
                .to_owned();
        };
        let principal = match &session.principal {
            Some(name) => format!("logged in as <strong id=principal>{}</strong>", Text(name)),
            None => "not logged in".to_owned(),
        };
        let version = session.version.map_or_else(|| "–".to_owned(), |version| version.to_string());
        format!(
            "<p id=session>Session <code id=session-id>{}</code>, {principal}, version \
             <code id=version>{version}</code>. The id does not open the session; only the cookie \
             does, and this site never sees the cookie.</p>",
            Text(id)
        )
    }
}

fn code_of_page(code: &Code) -> String {
    format!(
        "<section id=code><h2>The code behind this page</h2>{}<p class=calls><code>session</code> \
         is a helper of about eight lines; the complete sites under <a href='/own-site'>Your own \
         site</a> have it.</p></section>\n",
        languages(code)
    )
}

/// Returns the same code in three languages, one of them open at a time.
pub(super) fn languages(code: &Code) -> String {
    let mut blocks = String::new();
    for (name, class, open, text) in [
        ("PHP", "php", " open", code.php),
        ("Python", "python", "", code.python),
        ("Node", "node", "", code.node),
    ] {
        let _ = write!(
            blocks,
            "<details name=code{open}><summary>{name}</summary><pre><code class={class}>{}</code></pre>\
             </details>",
            Text(text)
        );
    }
    blocks
}

/// Lists the headers of the request, those of the proxy first.
fn received(headers: &HeaderMap) -> String {
    let mut lines: Vec<_> = headers.iter().collect();
    lines.sort_by_key(|(name, _)| (!name.as_str().starts_with("x-session"), name.as_str()));
    let mut rows = String::new();
    for (name, value) in lines {
        let _ = write!(
            rows,
            "<tr><td><code>{name}</code></td><td class=json>{}</td></tr>",
            Text(&shown(name, value))
        );
    }
    format!(
        "<section id=received><h2>What the site received</h2><details open><summary>The request's headers\
         </summary><table><tbody>{rows}</tbody></table></details><p class=calls>The proxy added the \
         <code>x-session-…</code> headers and removed the session cookie. A client cannot send these \
         headers: the proxy removes its copies.</p></section>\n"
    )
}

fn shown(name: &HeaderName, value: &HeaderValue) -> String {
    let text = String::from_utf8_lossy(value.as_bytes());
    // The token gives access to the session while the request runs. Pages are copied and logged.
    if name == "x-session-token" {
        return format!("{}…", text.chars().take(6).collect::<String>());
    }
    text.into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn received_headers_hide_the_token() {
        let headers = [("accept", "*/*"), ("x-session-token", "abcdefghijkl")];
        let headers = headers
            .map(|(name, value)| (HeaderName::from_static(name), HeaderValue::from_static(value)));
        let html = received(&HeaderMap::from_iter(headers));
        assert!(html.contains("abcdef…") && !html.contains("abcdefg"), "{html}");
        assert!(html.find("x-session-token") < html.find("accept"), "{html}");
    }
}
