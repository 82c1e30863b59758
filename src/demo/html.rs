//! What every page of the demo has: the frame around its content, the look, and the escaping of
//! whatever a visitor may have written.

use std::fmt::{self, Write as _};

use super::api::Session;

/// The pages, as the navigation lists them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Page {
    Visits,
    Account,
    Values,
    Message,
    Lifetime,
    Cookie,
    Devices,
    Exchange,
}

impl Page {
    const ALL: [Self; 8] = [
        Self::Visits,
        Self::Account,
        Self::Values,
        Self::Message,
        Self::Lifetime,
        Self::Cookie,
        Self::Devices,
        Self::Exchange,
    ];

    /// The page at a path.
    pub(super) fn at(path: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|page| page.path() == path)
    }

    pub(super) fn path(self) -> &'static str {
        self.names().0
    }

    pub(super) fn title(self) -> &'static str {
        self.names().2
    }

    /// Path, name in the navigation, title.
    fn names(self) -> (&'static str, &'static str, &'static str) {
        match self {
            Self::Visits => ("/", "Visits", "Visits"),
            Self::Account => ("/account", "Account", "Account and basket"),
            Self::Values => ("/values", "Values", "Values"),
            Self::Message => ("/message", "Message", "A message for the next page"),
            Self::Lifetime => ("/lifetime", "Lifetime", "Lifetime"),
            Self::Cookie => ("/cookie", "Cookie", "The cookie"),
            Self::Devices => ("/devices", "Devices", "Your devices"),
            Self::Exchange => ("/exchange", "Headers only", "By headers only"),
        }
    }
}

const STYLE: &str = "\
:root{color-scheme:light dark;--ink:#1c2430;--soft:#5a6675;--paper:#f6f7f9;--card:#fff;--line:#d9dee5;--key:#0b5cad;--warn:#a4310f}
@media (prefers-color-scheme:dark){:root{--ink:#e6eaf0;--soft:#9aa6b5;--paper:#14181e;--card:#1c222b;--line:#323b48;--key:#7db8f5;--warn:#f29b7d}}
*{box-sizing:border-box}
body{margin:0;background:var(--paper);color:var(--ink);font:1rem/1.55 system-ui,sans-serif}
header,main,footer{max-width:48rem;margin:0 auto;padding:0 1rem}
header{padding-top:1.5rem}
header strong{font-size:1.15rem}header span{color:var(--soft)}
nav ul{display:flex;flex-wrap:wrap;gap:.25rem;list-style:none;margin:.75rem 0 0;padding:0}
nav a{display:block;padding:.3rem .7rem;border-radius:.4rem;text-decoration:none}
nav a[aria-current]{background:var(--key);color:var(--card)}
a{color:var(--key)}
h1{font-size:1.6rem;line-height:1.2;margin:1.75rem 0 .5rem}
h2{font-size:1.1rem;margin:0 0 .5rem}
section,.told{background:var(--card);border:1px solid var(--line);border-radius:.6rem;padding:1rem 1.25rem;margin:1rem 0}
section>:last-child{margin-bottom:0}section p:first-child,.told p:first-child{margin-top:0}.told p:last-child{margin-bottom:0}
.told{border-left:.3rem solid var(--key)}.alert{border-left-color:var(--warn)}
.big{font-size:2.25rem;font-weight:650;line-height:1.1;margin:.25rem 0}
.calls{color:var(--soft);font-size:.85rem}
code,td.json{font-family:ui-monospace,monospace;font-size:.88em;overflow-wrap:anywhere}
form{display:flex;flex-wrap:wrap;gap:.6rem;align-items:end;margin:.75rem 0}td form{margin:0;justify-content:end}
label{display:grid;gap:.15rem;font-size:.9rem;color:var(--soft)}label.check{display:flex;gap:.4rem;align-items:center;padding:.5rem 0}
input,button{font:inherit;padding:.4rem .7rem;border:1px solid var(--line);border-radius:.4rem;background:var(--paper);color:var(--ink)}
input{max-width:100%}
button{background:var(--key);border-color:var(--key);color:var(--card);cursor:pointer;white-space:nowrap}
button.plain{background:none;color:var(--key)}
:focus-visible{outline:.15rem solid var(--key);outline-offset:.15rem}
table{width:100%;border-collapse:collapse}th,td{text-align:left;padding:.4rem .5rem .4rem 0;border-bottom:1px solid var(--line);vertical-align:middle}
th{font-size:.85rem;color:var(--soft)}
dl{display:grid;grid-template-columns:max-content 1fr;gap:.25rem 1rem}dt{color:var(--soft)}dd{margin:0;overflow-wrap:anywhere}
footer{padding-top:.5rem;padding-bottom:2rem;color:var(--soft);font-size:.85rem}
.skip{position:absolute;left:-99rem}.skip:focus{left:1rem;top:.5rem}";

/// Text inside HTML, in an element or in a quoted attribute.
#[derive(Clone, Copy, Debug)]
pub(super) struct Text<'a>(pub(super) &'a str);

impl fmt::Display for Text<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for character in self.0.chars() {
            match character {
                '&' => f.write_str("&amp;")?,
                '<' => f.write_str("&lt;")?,
                '>' => f.write_str("&gt;")?,
                '"' => f.write_str("&quot;")?,
                '\'' => f.write_str("&#39;")?,
                other => f.write_char(other)?,
            }
        }
        Ok(())
    }
}

/// What a page shows beside its content.
#[derive(Debug, Default)]
pub(super) struct Frame<'a> {
    /// Which it is; `None` for an error.
    pub(super) page: Option<Page>,
    pub(super) title: &'a str,
    /// What the request before this one had to say.
    pub(super) flash: Option<String>,
    /// The proxy's reason why there is no session although a cookie came.
    pub(super) session_error: Option<&'a str>,
    /// Whose page it is; `None` where that is not known.
    pub(super) session: Option<&'a Session>,
}

impl Frame<'_> {
    /// The whole page; `content` is HTML.
    pub(super) fn around(&self, content: &str) -> String {
        let mut told = String::new();
        if let Some(flash) = &self.flash {
            told = format!("<p class=told role=status id=flash>{}</p>", Text(flash));
        }
        if let Some(error) = self.session_error {
            // Writing to a String cannot fail.
            let _ = write!(
                told,
                "<p class='told alert' role=status id=session-error>The proxy says that there is no \
                 session, although the browser brought a cookie: <code>{}</code>.</p>",
                Text(error)
            );
        }
        format!(
            "<!doctype html>\n<html lang=en>\n<head>\n<meta charset=utf-8>\n\
             <meta name=viewport content='width=device-width,initial-scale=1'>\n\
             <title>{title} – Cloakroom</title>\n<link rel=icon href='data:,'>\n\
             <style>{STYLE}</style>\n</head>\n<body>\n<a class=skip href='#content'>To the content</a>\n\
             <header><strong>Cloakroom</strong> <span>demo: a site without sessions of its own</span>\n{nav}\n\
             </header>\n<main id=content>\n<h1>{title}</h1>\n{told}\n{content}\n</main>\n\
             <footer>{footer}</footer>\n</body>\n</html>\n",
            title = Text(self.title),
            nav = self.navigation(),
            footer = self.footer(),
        )
    }

    fn navigation(&self) -> String {
        let mut items = String::new();
        for page in Page::ALL {
            let (path, label, _) = page.names();
            let current = if self.page == Some(page) { " aria-current=page" } else { "" };
            let _ = write!(items, "<li><a href='{path}'{current}>{label}</a></li>");
        }
        format!("<nav aria-label=Pages><ul>{items}</ul></nav>")
    }

    fn footer(&self) -> String {
        let Some(session) = self.session else { return String::new() };
        let Some(id) = &session.id else {
            return "<p id=session>No session: nothing was written for you yet, so there is no \
                    cookie.</p>"
                .to_owned();
        };
        let principal = match &session.principal {
            Some(name) => format!("logged in as <strong id=principal>{}</strong>", Text(name)),
            None => "logged in as nobody".to_owned(),
        };
        let version = session.version.map_or_else(|| "–".to_owned(), |version| version.to_string());
        format!(
            "<p id=session>Session <code id=session-id>{}</code>, {principal}, version \
             <code id=version>{version}</code>. The id opens nothing; the cookie does, and this \
             site never sees it.</p>",
            Text(id)
        )
    }
}

#[cfg(test)]
mod tests {
    use super::Text;

    #[test]
    fn what_a_visitor_writes_stays_text() {
        let text = Text("<b title=\"a\" id='b'>&").to_string();
        assert_eq!(text, "&lt;b title=&quot;a&quot; id=&#39;b&#39;&gt;&amp;");
    }
}
