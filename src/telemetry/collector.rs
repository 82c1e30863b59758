//! The address of a collector.

use std::fmt;
use std::str::FromStr;

use http::Uri;
use http::uri::PathAndQuery;

use crate::client::{InvalidTarget, Target};

/// The base URL of a collector, e.g. `http://127.0.0.1:4318` or `https://host/prefix`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Collector {
    pub(crate) target: Target,
    /// The path without a trailing slash.
    prefix: String,
}

impl Collector {
    /// Returns the path for traces (OTLP 1, "OTLP/HTTP Request").
    pub(super) fn traces(&self) -> PathAndQuery {
        let path = format!("{}/v1/traces", self.prefix);
        path.try_into().unwrap_or_else(|_| PathAndQuery::from_static("/v1/traces"))
    }
}

impl FromStr for Collector {
    type Err = InvalidTarget;

    fn from_str(text: &str) -> Result<Self, InvalidTarget> {
        let uri: Uri = text.parse().or(Err(InvalidTarget::Malformed))?;
        let (Some(scheme), Some(authority)) = (uri.scheme_str(), uri.authority()) else {
            return Err(InvalidTarget::Malformed);
        };
        if uri.query().is_some() || text.contains('#') {
            return Err(InvalidTarget::Malformed);
        }
        let target = format!("{scheme}://{authority}").parse()?;
        Ok(Self { target, prefix: uri.path().trim_end_matches('/').to_owned() })
    }
}

impl fmt::Display for Collector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}", self.target, self.prefix)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn collector_is_a_base_url() {
        for (text, written, path) in [
            ("http://127.0.0.1:4318", "http://127.0.0.1:4318", "/v1/traces"),
            ("http://127.0.0.1:4318/", "http://127.0.0.1:4318", "/v1/traces"),
            ("https://host/otlp/", "https://host/otlp", "/otlp/v1/traces"),
        ] {
            let collector: Collector = text.parse().unwrap();
            assert_eq!(
                (collector.to_string().as_str(), collector.traces().as_str()),
                (written, path)
            );
        }
        for text in [
            "",
            "127.0.0.1:4318",
            "grpc://host",
            "http://u:p@host",
            "http://host?a",
            "http://host/#",
        ] {
            assert!(text.parse::<Collector>().is_err(), "{text}");
        }
    }
}
