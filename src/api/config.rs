//! What the session API is told.

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};

use crate::secret::Secret;
use crate::server::Address;

/// What the session API is told.
#[derive(Clone, Debug)]
pub struct Config {
    /// Where upstreams and back offices reach it.
    pub address: Address,
    /// What upstreams are told: absolute, with the prefix, without a trailing slash. Where nobody
    /// gave one it is [`url_at`] the address; for port 0 that is to be asked again once it is bound.
    pub url: String,
    /// The path of the session of a request; that of any session is this and an `s`. It begins with
    /// a slash, has one segment or more, and no slash at its end.
    pub prefix: String,
    /// Opens any session by its id; without one there is no such access.
    pub service_token: Option<Secret>,
}

impl Config {
    /// The prefix where nobody gave one.
    pub const DEFAULT_PREFIX: &str = "/_session";
}

/// The URL of the API at `address`; `None` for a wildcard address, which nobody can dial. For a Unix
/// socket it is `http+unix://` and the percent-encoded path.
pub fn url_at(address: &Address, prefix: &str) -> Option<String> {
    match address {
        Address::Tcp(address) if address.ip().is_unspecified() => None,
        Address::Tcp(address) => Some(format!("http://{address}{prefix}")),
        Address::Unix(path) => {
            let path = path.to_string_lossy();
            Some(format!("http+unix://{}{prefix}", utf8_percent_encode(&path, NOT_UNRESERVED)))
        }
    }
}

/// All but the unreserved characters (RFC 3986, section 2.3).
const NOT_UNRESERVED: &AsciiSet =
    &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

#[cfg(test)]
mod tests {
    use super::url_at;

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
            assert_eq!(url_at(&address, "/_session").as_deref(), url, "{address}");
        }
    }
}
