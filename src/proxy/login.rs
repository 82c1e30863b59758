//! Routes for those who are logged in: others are sent to the login page.

use http::HeaderValue;
use http::request::Parts;
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};

use super::error::{Accepts, Error};
use crate::session::navigation;
use crate::session::record::Principal;

/// Where those are sent who are not logged in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LoginPage {
    /// What stands before the path that was asked for.
    before: String,
    /// What stands after it; `None` where it is not wanted.
    after: Option<String>,
}

/// What stands for the path that was asked for.
const PATH: &str = "{path}";

impl LoginPage {
    /// Reads a path of the site, or an URL, in which `{path}` may stand for what was asked for; `None`
    /// for another text.
    pub fn parse(text: &str) -> Option<Self> {
        let (before, after) = match text.split_once(PATH) {
            Some((before, after)) => (before, Some(after)),
            None => (text, None),
        };
        let begins = ["/", "https://", "http://"].iter().any(|start| before.starts_with(start));
        let is_plain = |text: &str| {
            text.bytes().all(|byte| byte.is_ascii_graphic() && !b"<>\"\\^`{|}".contains(&byte))
        };
        // `//host` would be another site's.
        let fits = begins && !text.starts_with("//") && is_plain(before);
        (fits && after.is_none_or(is_plain))
            .then(|| Self { before: before.to_owned(), after: after.map(str::to_owned) })
    }

    /// As it was read.
    pub fn text(&self) -> String {
        match &self.after {
            Some(after) => format!("{}{PATH}{after}", self.before),
            None => self.before.clone(),
        }
    }

    /// Whether a request may go on. The login page itself is for everybody, and so are CORS preflights:
    /// browsers send those without cookies.
    ///
    /// # Errors
    /// [`Error::NotLoggedIn`], with a place to log in for pages alone: to a script, the login page would
    /// look like what it asked for.
    pub(super) fn admit(
        &self,
        parts: &Parts,
        principal: Option<&Principal>,
        accepts: Accepts,
    ) -> Result<(), Error> {
        let (own, _query) = self.before.split_once('?').unwrap_or((&self.before, ""));
        if principal.is_some()
            || parts.uri.path() == own
            || navigation::is_preflight(&parts.method, &parts.headers)
        {
            return Ok(());
        }
        let wanted = parts.uri.path_and_query().map_or("/", |path| path.as_str());
        let wants_page = accepts == Accepts::Html && !navigation::is_of_script(&parts.headers);
        let location = wants_page.then(|| self.location(wanted)).transpose()?;
        Err(Error::NotLoggedIn(location))
    }

    /// The path has one leading slash, however many slashes and backslashes it came with: with two it
    /// would be another site's to the browser that is sent back to it.
    fn location(&self, wanted: &str) -> Result<HeaderValue, Error> {
        let location = match &self.after {
            Some(after) => {
                let wanted = wanted.strip_prefix('*').unwrap_or(wanted);
                let wanted = wanted.trim_start_matches(['/', '\\']);
                let wanted = utf8_percent_encode(wanted, NON_ALPHANUMERIC);
                format!("{}%2F{wanted}{after}", self.before)
            }
            None => self.before.clone(),
        };
        HeaderValue::try_from(location).map_err(Error::Header)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_path_that_was_asked_for_is_one_parameter() {
        let page = LoginPage::parse("/login?next={path}&x=1").expect("a page");
        assert_eq!(
            page.location("/a?b=c&d#").expect("a header"),
            "/login?next=%2Fa%3Fb%3Dc%26d%23&x=1"
        );
        for (path, next) in [
            ("//evil.test/a", "evil%2Etest%2Fa"),
            ("/\\a", "a"),
            ("/\\//\\a", "a"),
            ("*", ""),
            ("/*", "%2A"),
        ] {
            let expected = format!("/login?next=%2F{next}&x=1");
            assert_eq!(page.location(path).expect("a header"), expected, "{path}");
        }
        assert_eq!(page.text(), "/login?next={path}&x=1");
        let page = LoginPage::parse("https://sso.example.org/").expect("a page");
        assert_eq!(page.location("/a").expect("a header"), "https://sso.example.org/");
    }

    #[test]
    fn what_is_no_page_is_refused() {
        for text in [
            "",
            "login",
            "//evil.test/",
            "/a b",
            "{path}",
            "/{path}{path}",
            "/\u{e9}",
            "/{x}",
            "ftp://a",
        ] {
            assert_eq!(LoginPage::parse(text), None, "{text}");
        }
    }
}
