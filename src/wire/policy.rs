//! The JSON of the policy, as upstreams read it.

use serde::{Serialize, Serializer};

use crate::session::cookie::{Attributes, SameSite};
use crate::session::policy::{ExchangeMode, HeaderExchange, Policy};

/// A policy object. Its members are named after keys of the configuration; times are in seconds.
#[derive(Debug, Serialize)]
pub(crate) struct PolicyObject<'a> {
    idle_timeout: u64,
    absolute_timeout: Option<u64>,
    expire_at_browser_close: bool,
    cookie: CookieObject<'a>,
    max_bytes: usize,
    max_values: usize,
    header_exchange: Option<ExchangeSwitch>,
    header_exchange_max_bytes: Option<usize>,
}

#[derive(Debug, Serialize)]
struct CookieObject<'a> {
    name: &'a str,
    path: &'a str,
    domain: Option<&'a str>,
    secure: bool,
    http_only: bool,
    same_site: SameSite,
    partitioned: bool,
}

/// Header exchange, in the words of the configuration.
#[derive(Clone, Copy, Debug)]
enum ExchangeSwitch {
    Off,
    On,
    Partial,
}

impl<'a> PolicyObject<'a> {
    /// Creates the object of a request whose route is not known.
    pub(crate) fn new(policy: &Policy, cookie: &'a Attributes) -> Self {
        Self {
            idle_timeout: policy.idle_timeout.as_secs(),
            absolute_timeout: policy.absolute_timeout.map(|timeout| timeout.as_secs()),
            expire_at_browser_close: policy.expire_at_browser_close,
            cookie: CookieObject {
                name: &cookie.name,
                path: &cookie.path,
                domain: cookie.domain.as_deref(),
                secure: cookie.secure,
                http_only: cookie.http_only,
                same_site: cookie.same_site,
                partitioned: cookie.partitioned,
            },
            max_bytes: policy.max_bytes,
            max_values: policy.max_values,
            header_exchange: None,
            header_exchange_max_bytes: None,
        }
    }

    /// Adds the header exchange of the request's route.
    #[must_use]
    pub(crate) fn with_header_exchange(self, exchange: Option<HeaderExchange>) -> Self {
        let switch = match exchange.map(|exchange| exchange.mode) {
            None => ExchangeSwitch::Off,
            Some(ExchangeMode::Whole) => ExchangeSwitch::On,
            Some(ExchangeMode::Partial) => ExchangeSwitch::Partial,
        };
        let max_bytes = exchange.map(|exchange| exchange.max_bytes);
        Self { header_exchange: Some(switch), header_exchange_max_bytes: max_bytes, ..self }
    }
}

impl Serialize for ExchangeSwitch {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Off => serializer.serialize_bool(false),
            Self::On => serializer.serialize_bool(true),
            Self::Partial => serializer.serialize_str("partial"),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn text(object: &PolicyObject<'_>) -> String {
        serde_json::to_string(object).expect("serializable")
    }

    #[test]
    fn policy_object_is_the_contract() {
        let cookie = Attributes::default();
        let policy =
            Policy { absolute_timeout: Some(Duration::from_millis(1500)), ..Policy::default() };
        assert_eq!(
            text(&PolicyObject::new(&policy, &cookie)),
            "{\"idle_timeout\":1209600,\"absolute_timeout\":1,\"expire_at_browser_close\":false,\
             \"cookie\":{\"name\":\"__Host-id\",\"path\":\"/\",\"domain\":null,\"secure\":true,\
             \"http_only\":true,\"same_site\":\"Lax\",\"partitioned\":false},\
             \"max_bytes\":1048576,\"max_values\":1024,\
             \"header_exchange\":null,\"header_exchange_max_bytes\":null}"
        );
        for (mode, expected) in [
            (None, "\"header_exchange\":false,\"header_exchange_max_bytes\":null}"),
            (
                Some(ExchangeMode::Whole),
                "\"header_exchange\":true,\"header_exchange_max_bytes\":64}",
            ),
            (
                Some(ExchangeMode::Partial),
                "\"header_exchange\":\"partial\",\"header_exchange_max_bytes\":64}",
            ),
        ] {
            let exchange = mode.map(|mode| HeaderExchange { mode, max_bytes: 64 });
            let object = PolicyObject::new(&policy, &cookie).with_header_exchange(exchange);
            assert!(text(&object).ends_with(expected), "{mode:?}: {object:?}");
        }
    }
}
