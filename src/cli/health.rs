//! The `health` command.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use http::uri::PathAndQuery;
use http::{Request, StatusCode};

use super::{Failure, print, runtime};
use crate::body::Body;
use crate::client::{self, Pool, ServerTrust, Target, Tls, TlsConfig};
use crate::config::{self, Environment};
use crate::net::scheme::Scheme;
use crate::server::{Address, Tasks};

/// Shorter than the default timeout of health checks in container engines.
const DEADLINE: Duration = Duration::from_secs(5);

/// Maximum size of the response body, in bytes.
const MAX_BODY: usize = 64 * 1024;

/// Requests `/ready` from the admin listener at `url`, or else at the configured address.
pub(super) fn health(
    path: Option<&Path>,
    url: Option<String>,
    store: bool,
    environment: &Environment,
) -> Result<(), Failure> {
    if let Some(url) = url {
        let target = url.strip_suffix("/ready").unwrap_or(&url).parse();
        let target = target.map_err(|error| Failure::Usage(format!("--url: {error}")))?;
        return request_ready(&target, None, store);
    }
    let admin = config::load_without_site(path, environment)?.config.admin;
    if admin.tls.is_none() {
        return request_ready(&target_of(&admin.address, Scheme::Http), None, store);
    }
    // The certificate is for the names of operators, rather than for the address that is dialled here. Nothing secret
    // is sent.
    let trust = TlsConfig { trust: ServerTrust::Insecure, ..TlsConfig::default() };
    let tls = Tls::open(&trust).map_err(Failure::other)?;
    request_ready(&target_of(&admin.address, Scheme::Https), Some(Arc::new(tls)), store)
}

/// Returns the target for a listener on this machine: loopback if it listens on all addresses.
pub(super) fn target_of(address: &Address, scheme: Scheme) -> Target {
    match address {
        Address::Unix(path) => Target::Unix(path.clone()),
        Address::Tcp(address) => {
            let host = match address.ip() {
                ip if !ip.is_unspecified() => ip.to_string(),
                ip if ip.is_ipv4() => "127.0.0.1".to_owned(),
                _ => "::1".to_owned(),
            };
            Target::Http { scheme, host, port: address.port() }
        }
    }
}

/// Requests `/ready`, or `/ready?store`. Any status other than 200 is a failure.
fn request_ready(target: &Target, tls: Option<Arc<Tls>>, store: bool) -> Result<(), Failure> {
    let path = PathAndQuery::from_static(if store { "/ready?store" } else { "/ready" });
    let mut request = Request::new(Body::empty());
    *request.uri_mut() = path.into();
    let response = runtime()?
        .block_on(async {
            let config = client::Config { max_idle: 0, tls, ..client::Config::default() };
            let pool = Pool::new(target.clone(), config);
            pool.fetch(request, &Tasks::new(), MAX_BODY, DEADLINE).await
        })
        .map_err(Failure::other)?;
    let text = String::from_utf8_lossy(response.body()).trim().to_owned();
    if response.status() == StatusCode::OK { print(&text) } else { Err(Failure::other(text)) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn targets_of_listeners_can_be_dialled() {
        for (address, target) in [
            ("127.0.0.1:8082", "http://127.0.0.1:8082"),
            ("10.0.0.7:1", "http://10.0.0.7:1"),
            ("0.0.0.0:8082", "http://127.0.0.1:8082"),
            ("[::]:8082", "http://[::1]:8082"),
            ("unix:/run/admin.sock", "unix:/run/admin.sock"),
        ] {
            assert_eq!(
                target_of(&address.parse().unwrap(), Scheme::Http).to_string(),
                target,
                "{address}"
            );
        }
    }
}
