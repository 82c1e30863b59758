//! Paths of the pages, and their methods.

use http::Method;

use crate::session::id::PublicId;

/// A page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Route {
    Now,
    Stylesheet,
    LogIn,
    LogOut,
    Sessions,
    Session(PublicId),
    Values(PublicId),
    End(PublicId),
    /// Ends the sessions of a principal.
    EndAll,
    Audit,
}

/// A path that is none of ours.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Unknown {
    Path,
    /// It is a path of a session, with an id that no session has.
    Id,
}

impl Route {
    /// Finds the page at a path.
    pub(super) fn find(path: &str) -> Result<Self, Unknown> {
        match path {
            "/" => return Ok(Self::Now),
            "/admin.css" => return Ok(Self::Stylesheet),
            "/login" => return Ok(Self::LogIn),
            "/logout" => return Ok(Self::LogOut),
            "/sessions" => return Ok(Self::Sessions),
            "/sessions/end" => return Ok(Self::EndAll),
            "/audit" => return Ok(Self::Audit),
            _ => {}
        }
        let rest = path.strip_prefix("/sessions/").ok_or(Unknown::Path)?;
        let (id, rest) = rest.split_once('/').map_or((rest, None), |(id, rest)| (id, Some(rest)));
        let route = match rest {
            None => Self::Session,
            Some("values") => Self::Values,
            Some("end") => Self::End,
            Some(_) => return Err(Unknown::Path),
        };
        PublicId::parse(id).map(route).ok_or(Unknown::Id)
    }

    /// Returns the methods, for `Allow` (RFC 9110, section 10.2.1).
    pub(super) fn allow(self) -> &'static str {
        match self {
            Self::Now | Self::Stylesheet | Self::Sessions | Self::Session(_) | Self::Audit => {
                "GET, HEAD"
            }
            Self::LogIn | Self::LogOut | Self::Values(_) => "POST",
            Self::End(_) | Self::EndAll => "GET, HEAD, POST",
        }
    }

    pub(super) fn allows(self, method: &Method) -> bool {
        self.allow().split(", ").any(|allowed| allowed == method.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_of_sessions_have_valid_ids() {
        let id = PublicId::parse("AAAAAAAAAAAAAAAAAAAAAA").expect("an id");
        for (path, route) in [
            ("/", Ok(Route::Now)),
            ("/sessions", Ok(Route::Sessions)),
            ("/sessions/end", Ok(Route::EndAll)),
            ("/audit", Ok(Route::Audit)),
            ("/sessions/AAAAAAAAAAAAAAAAAAAAAA", Ok(Route::Session(id))),
            ("/sessions/AAAAAAAAAAAAAAAAAAAAAA/end", Ok(Route::End(id))),
            ("/sessions/AAAAAAAAAAAAAAAAAAAAAA/values", Ok(Route::Values(id))),
            ("/sessions/AAAAAAAAAAAAAAAAAAAAAA/other", Err(Unknown::Path)),
            ("/sessions/AAAAAAAAAAAAAAAAAAAAAA/", Err(Unknown::Path)),
            ("/sessions/a", Err(Unknown::Id)),
            ("/sessions/", Err(Unknown::Id)),
            ("/Sessions", Err(Unknown::Path)),
            ("//", Err(Unknown::Path)),
        ] {
            assert_eq!(Route::find(path), route, "{path}");
        }
    }
}
