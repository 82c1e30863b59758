//! What the session API is told.

use std::net::IpAddr;

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};

use crate::client::{self, Target};
use crate::net::scheme::Scheme;
use crate::secret::Secret;
use crate::server::{Address, TlsConfig};
use crate::session::peer::Instance;

/// What the session API is told.
#[derive(Clone, Debug)]
pub struct Config {
    /// Where upstreams and back offices reach it.
    pub address: Address,
    /// Where it has TLS, how.
    pub tls: Option<Tls>,
    /// What upstreams are told: absolute, with the prefix, without a trailing slash. Where nobody
    /// gave one it is [`url_at`] the address; for port 0 that is to be asked again once it is bound.
    pub url: String,
    /// Where other instances reach it; where nobody said so, see [`instance_of`].
    pub instance_url: Option<Target>,
    /// Names that it answers to over TCP, besides IP addresses, `localhost` and the hosts of `url` and
    /// `instance_url`.
    pub hosts: Vec<String>,
    /// The path of the session of a request; that of any session is this and an `s`. It begins with
    /// a slash, has one segment or more, and no slash at its end.
    pub prefix: String,
    /// Opens any session by its id; without one there is no such access.
    pub service_token: Option<Secret>,
}

/// TLS of the session API.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tls {
    /// Who it is, and whose clients it takes.
    pub listener: TlsConfig,
    /// How it speaks to other instances, which have TLS as it does.
    pub instances: client::TlsConfig,
}

impl Config {
    /// What the API speaks.
    pub fn scheme(&self) -> Scheme {
        if self.tls.is_some() { Scheme::Https } else { Scheme::Http }
    }

    /// The prefix where nobody gave one.
    pub const DEFAULT_PREFIX: &str = "/_session";
}

/// The URL of the API at `address`; `None` for a wildcard address, which nobody can dial. For a Unix
/// socket it is `http+unix://` and the percent-encoded path.
pub fn url_at(address: &Address, scheme: Scheme, prefix: &str) -> Option<String> {
    match address {
        Address::Tcp(address) if address.ip().is_unspecified() => None,
        Address::Tcp(address) => Some(format!("{}://{address}{prefix}", scheme.as_str())),
        Address::Unix(path) => {
            let path = path.to_string_lossy();
            Some(format!("http+unix://{}{prefix}", utf8_percent_encode(&path, NOT_UNRESERVED)))
        }
    }
}

/// Where other instances, which come from other hosts, reach the API that upstreams reach at `url`: `None`
/// where that says another scheme than the API's own, and so leads elsewhere.
pub fn instance_of(url: &str, scheme: Scheme) -> Option<Target> {
    let (said, rest) = url.split_once("://")?;
    let (authority, _prefix) = rest.split_once('/')?;
    let target = format!("{said}://{authority}").parse().ok()?;
    (said == scheme.as_str() && can_be_dialled(&target)).then_some(target)
}

/// Whether a request token can name this place, and another host dial it.
pub fn can_be_dialled(target: &Target) -> bool {
    match target {
        Target::Http { host, .. } => {
            let is_wildcard = host.parse().is_ok_and(|ip: IpAddr| ip.is_unspecified());
            !is_wildcard && target.authority().len() <= Instance::MAX_AUTHORITY
        }
        Target::Unix(_) => false,
    }
}

/// All but the unreserved characters (RFC 3986, section 2.3).
const NOT_UNRESERVED: &AsciiSet =
    &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

#[cfg(test)]
mod tests {
    use super::{instance_of, url_at};
    use crate::net::scheme::Scheme;

    #[test]
    fn upstreams_are_told_where_the_api_listens() {
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
    fn other_instances_dial_where_upstreams_do() {
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
