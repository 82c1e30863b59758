//! Routes that require a principal: other clients are redirected to the login page.

use http::HeaderValue;
use http::request::Parts;
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};

use super::error::{Accepts, Error};
use crate::session::navigation;

/// The login page of a route.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct LoginPage {
    /// The part before the requested path.
    before: String,
    /// The part after it; `None` if there is no placeholder.
    after: Option<String>,
}

/// The placeholder for the requested path.
const PLACEHOLDER: &str = "{path}";

impl LoginPage {
    /// Parses a path of the site, or an absolute URL, with an optional placeholder `{path}` for the
    /// requested path and query. Returns `None` if the text is invalid.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let (before, after) = match text.split_once(PLACEHOLDER) {
            Some((before, after)) => (before, Some(after)),
            None => (text, None),
        };
        let begins = ["/", "https://", "http://"].iter().any(|start| before.starts_with(start));
        let is_plain = |text: &str| {
            text.bytes().all(|byte| byte.is_ascii_graphic() && !b"<>\"\\^`{|}".contains(&byte))
        };
        // A browser would resolve `//host` to another site.
        let fits = begins && !text.starts_with("//") && is_plain(before);
        (fits && after.is_none_or(is_plain))
            .then(|| Self { before: before.to_owned(), after: after.map(str::to_owned) })
    }

    /// Returns the error for a request without a principal; `None` if it needs none. The login page itself is open to
    /// all, and so are CORS preflights, which browsers send without cookies.
    ///
    /// It is [`Error::NotLoggedIn`], with the login page only if the client requested a page: a script would mistake
    /// the login page for the requested resource.
    pub(super) fn refusal(&self, parts: &Parts, accepts: Accepts) -> Option<Error> {
        let (login_path, _query) = self.before.split_once('?').unwrap_or((&self.before, ""));
        if parts.uri.path() == login_path || navigation::is_preflight(&parts.method, &parts.headers)
        {
            return None;
        }
        // The fragment is never sent to servers, so it is lost on the way back.
        let wanted = parts.uri.path_and_query().map_or("/", |path| path.as_str());
        let wants_page = accepts == Accepts::Html && !navigation::is_of_script(&parts.headers);
        let location = wants_page.then(|| self.location(wanted)).transpose();
        Some(location.map_or_else(|error| error, Error::NotLoggedIn))
    }

    /// Returns the URL to redirect to. Leading slashes and backslashes of the requested path are reduced
    /// to one slash: with two, a browser that is sent back there would go to another site.
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
    fn encodes_the_path_as_one_parameter() {
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
        let page = LoginPage::parse("https://sso.example.org/").expect("a page");
        assert_eq!(page.location("/a").expect("a header"), "https://sso.example.org/");
    }

    #[test]
    fn rejects_invalid_pages() {
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
