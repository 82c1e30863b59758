//! Addresses of upstreams.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use http::Uri;

use crate::net::scheme::Scheme;

/// Address of an upstream, e.g. `http://127.0.0.1:3000`, `https://app` or `unix:/run/app.sock`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Target {
    /// HTTP over TCP.
    Http {
        /// Whether TLS is used.
        scheme: Scheme,
        /// A name or an IP address, without brackets.
        host: String,
        /// The port, by default that of the scheme.
        port: u16,
    },
    /// HTTP over the Unix socket at this path.
    Unix(PathBuf),
}

/// Error of parsing a [`Target`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidTarget {
    /// The text has none of the valid forms.
    #[error("an upstream is http://HOST:PORT, https://HOST:PORT or unix:PATH")]
    Malformed,
    /// The URL has a path, query or fragment. Requests keep their own.
    #[error("an upstream has no path: http://HOST:PORT")]
    Path,
    /// The URL has a user or password.
    #[error("an upstream has no user or password: http://HOST:PORT")]
    User,
}

impl Target {
    /// Returns the scheme; that of a Unix socket is `http`.
    pub(crate) fn scheme(&self) -> Scheme {
        match self {
            Self::Http { scheme, .. } => *scheme,
            Self::Unix(_) => Scheme::Http,
        }
    }

    /// Returns the Host of requests that have none: host and port, without the scheme's default port; `localhost` for a
    /// Unix socket.
    pub(crate) fn authority(&self) -> String {
        match self {
            Self::Http { scheme, host, port } => {
                let host = if host.contains(':') { format!("[{host}]") } else { host.clone() };
                if *port == scheme.default_port() { host } else { format!("{host}:{port}") }
            }
            Self::Unix(_) => "localhost".to_owned(),
        }
    }
}

impl FromStr for Target {
    type Err = InvalidTarget;

    fn from_str(text: &str) -> Result<Self, InvalidTarget> {
        match text.strip_prefix("unix:") {
            Some("") => return Err(InvalidTarget::Malformed),
            Some(path) => return Ok(Self::Unix(PathBuf::from(path))),
            None => {}
        }
        let uri: Uri = text.parse().or(Err(InvalidTarget::Malformed))?;
        let scheme = match uri.scheme_str() {
            Some("http") => Scheme::Http,
            Some("https") => Scheme::Https,
            _ => return Err(InvalidTarget::Malformed),
        };
        let authority = uri.authority().ok_or(InvalidTarget::Malformed)?;
        if authority.as_str().contains('@') {
            return Err(InvalidTarget::User);
        }
        if uri.query().is_some() || uri.path() != "/" || text.contains('#') {
            return Err(InvalidTarget::Path);
        }
        let host = authority.host().trim_start_matches('[').trim_end_matches(']');
        // The colons of an IPv6 address come before its bracket.
        let port = match authority.as_str().rsplit_once(']').unwrap_or(("", authority.as_str())).1 {
            rest if rest.contains(':') => authority.port_u16().ok_or(InvalidTarget::Malformed)?,
            _ => scheme.default_port(),
        };
        if host.is_empty() || port == 0 {
            return Err(InvalidTarget::Malformed);
        }
        Ok(Self::Http { scheme, host: host.to_owned(), port })
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Http { scheme, .. } => write!(f, "{}://{}", scheme.as_str(), self.authority()),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{InvalidTarget, Target};

    #[test]
    fn targets_round_trip() {
        for (text, written) in [
            ("http://127.0.0.1:3000", "http://127.0.0.1:3000"),
            ("http://app:3000/", "http://app:3000"),
            ("HTTP://my_app", "http://my_app"),
            ("http://[::1]:3000", "http://[::1]:3000"),
            ("http://[::1]", "http://[::1]"),
            ("https://app", "https://app"),
            ("https://app:443/", "https://app"),
            ("https://app:80", "https://app:80"),
            ("http://app:443", "http://app:443"),
            ("unix:/run/app.sock", "unix:/run/app.sock"),
        ] {
            assert_eq!(
                text.parse::<Target>().map(|target| target.to_string()),
                Ok(written.to_owned())
            );
        }
    }

    #[test]
    fn invalid_targets_give_the_reason() {
        for (text, why) in [
            ("http://app/path", InvalidTarget::Path),
            ("http://app?query", InvalidTarget::Path),
            ("http://me@app", InvalidTarget::User),
            ("http://app:0", InvalidTarget::Malformed),
            ("http://app:", InvalidTarget::Malformed),
            ("http://app:99999", InvalidTarget::Malformed),
            ("http://", InvalidTarget::Malformed),
            ("app:3000", InvalidTarget::Malformed),
            ("ftp://app", InvalidTarget::Malformed),
            ("unix:", InvalidTarget::Malformed),
        ] {
            assert_eq!(text.parse::<Target>(), Err(why), "{text}");
        }
    }
}
