//! Where an upstream is.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use http::Uri;

use crate::net::scheme::Scheme;

/// Where an upstream is, as `http://127.0.0.1:3000`, `https://app` or `unix:/run/app.sock`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Target {
    /// HTTP over TCP.
    Http {
        /// In the clear or with TLS.
        scheme: Scheme,
        /// A name or an IP address, without brackets.
        host: String,
        /// The port; the scheme's usual one where none was given.
        port: u16,
    },
    /// HTTP over the Unix socket at this path.
    Unix(PathBuf),
}

/// Text that is no [`Target`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidTarget {
    /// It is of neither form.
    #[error("an upstream is http://HOST:PORT, https://HOST:PORT or unix:PATH")]
    Malformed,
    /// It has a path or a query, which would have to be joined with each request's.
    #[error("an upstream has no path: http://HOST:PORT")]
    Path,
    /// It has a user or a password.
    #[error("an upstream has no user or password: http://HOST:PORT")]
    User,
}

impl Target {
    /// What URLs of it begin with.
    pub fn scheme(&self) -> Scheme {
        match self {
            Self::Http { scheme, .. } => *scheme,
            Self::Unix(_) => Scheme::Http,
        }
    }

    /// What a request without a Host says: host and port, without the usual port; `localhost` for a socket.
    pub fn authority(&self) -> String {
        match self {
            Self::Http { scheme, host, port } => {
                let host = if host.contains(':') { format!("[{host}]") } else { host.clone() };
                if *port == scheme.usual_port() { host } else { format!("{host}:{port}") }
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
        let port = match authority.as_str().rsplit_once(']').unwrap_or(("", authority.as_str())).1 {
            rest if rest.contains(':') => authority.port_u16().ok_or(InvalidTarget::Malformed)?,
            _ => scheme.usual_port(),
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
    fn targets_are_written_as_they_are_read() {
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
    fn what_is_no_target_says_why() {
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
