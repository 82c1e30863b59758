//! Settings of the session API, and the URLs at which it is reached.

use std::net::IpAddr;

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};

use crate::client::{self, Target};
use crate::net::scheme::Scheme;
use crate::secret::Secret;
use crate::server::{Address, TlsConfig};
use crate::session::peer::Instance;

/// Settings of the session API.
#[derive(Clone, Debug)]
pub(crate) struct Config {
    /// The address of its listener.
    pub(crate) address: Address,
    /// TLS of its listener, if it has TLS.
    pub(crate) tls: Option<Tls>,
    /// The URL that upstreams receive: absolute, with the prefix, without a trailing slash. By default it is
    /// [`url_at`] the address; with port 0, it has to be computed again once the listener is bound.
    pub(crate) url: String,
    /// The URL for other instances; by default that of [`instance_of`].
    pub(crate) instance_url: Option<Target>,
    /// Host names at which it is served over TCP, besides IP addresses, `localhost` and the hosts of `url` and
    /// `instance_url`.
    pub(crate) hosts: Vec<String>,
    /// The path of the session of a request; with an `s` appended, that of any session. It begins with a slash, has
    /// one segment or more, and does not end with a slash.
    pub(crate) prefix: String,
    /// The token for access to any session; without one there is no such access.
    pub(crate) service_token: Option<Secret>,
}

/// TLS of the session API.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Tls {
    /// Certificates of the listener, and the authorities of its clients.
    pub(crate) listener: TlsConfig,
    /// TLS of connections to other instances, which have TLS as this one does.
    pub(crate) instances: client::TlsConfig,
}

impl Config {
    /// Returns the scheme of the API's URL.
    pub(crate) fn scheme(&self) -> Scheme {
        if self.tls.is_some() { Scheme::Https } else { Scheme::Http }
    }

    pub(crate) const DEFAULT_PREFIX: &str = "/_session";
}

/// Returns the URL of the API at `address`; `None` for a wildcard address, which cannot be dialled. For a Unix socket it
/// is `http+unix://` and the percent-encoded path.
pub(crate) fn url_at(address: &Address, scheme: Scheme, prefix: &str) -> Option<String> {
    match address {
        Address::Tcp(address) if address.ip().is_unspecified() => None,
        Address::Tcp(address) => Some(format!("{}://{address}{prefix}", scheme.as_str())),
        Address::Unix(path) => {
            let path = path.to_string_lossy();
            Some(format!("http+unix://{}{prefix}", utf8_percent_encode(&path, NOT_UNRESERVED)))
        }
    }
}

/// Returns where other instances, on other hosts, reach the API that upstreams reach at `url`. `None` if the URL has
/// another scheme than the API, since it then leads to a proxy.
pub(crate) fn instance_of(url: &str, scheme: Scheme) -> Option<Target> {
    let (its_scheme, rest) = url.split_once("://")?;
    let (authority, _prefix) = rest.split_once('/')?;
    let target = format!("{its_scheme}://{authority}").parse().ok()?;
    (its_scheme == scheme.as_str() && can_be_dialled(&target)).then_some(target)
}

/// Returns whether a request token has room for this target, and another host can dial it.
pub(crate) fn can_be_dialled(target: &Target) -> bool {
    match target {
        Target::Http { host, .. } => {
            let is_wildcard = host.parse().is_ok_and(|ip: IpAddr| ip.is_unspecified());
            !is_wildcard && target.authority().len() <= Instance::MAX_AUTHORITY
        }
        Target::Unix(_) => false,
    }
}

/// All characters except the unreserved ones (RFC 3986, section 2.3).
const NOT_UNRESERVED: &AsciiSet =
    &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

#[cfg(test)]
mod tests {
    use super::{instance_of, url_at};
    use crate::net::scheme::Scheme;

    #[test]
    fn url_is_that_of_the_listener() {
        for (address, url) in [
            ("127.0.0.1:8081", Some("http://127.0.0.1:8081/_session")),
            ("[::1]:80", Some("http://[::1]:80/_session")),
            ("0.0.0.0:8081", None),
            ("[::]:8081", None),
            (
                "unix:/run/cloak room/api-1.sock",
                Some("http+unix://%2Frun%2Fcloak%20room%2Fapi-1.sock/_session"),
            ),
        ] {
            let address = address.parse().unwrap();
            assert_eq!(url_at(&address, Scheme::Http, "/_session").as_deref(), url, "{address}");
            let https = url.map(|url| url.replace("http://", "https://"));
            assert_eq!(url_at(&address, Scheme::Https, "/_session"), https, "{address}");
        }
    }

    #[test]
    fn instances_dial_the_url_of_upstreams() {
        for (url, target) in [
            ("http://127.0.0.1:8081/_session", Some("http://127.0.0.1:8081")),
            ("http://api/site/_session", Some("http://api")),
            ("http://[::1]:80/_session", Some("http://[::1]")),
            ("http://0.0.0.0:8081/_session", None),
            ("https://api/_session", None),
            ("http+unix://%2Frun%2Fapi.sock/_session", None),
        ] {
            let expected = target.map(|target| target.parse().unwrap());
            assert_eq!(instance_of(url, Scheme::Http), expected, "{url}");
        }
        let long = format!("http://{}/_session", "a".repeat(256));
        assert_eq!(instance_of(&long, Scheme::Http), None);
        let secured = instance_of("https://api/_session", Scheme::Https);
        assert_eq!(secured, Some("https://api".parse().unwrap()));
        assert_eq!(instance_of("http://api/_session", Scheme::Https), None);
    }
}
