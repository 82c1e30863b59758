//! The export of spans.

use super::super::file::Telemetry;
use super::super::value::Ratio;
use super::context::Context;
use super::listeners::{Own, reaches};
use super::{headers, tls};
use crate::client::TlsConfig;
use crate::net::scheme::Scheme;
use crate::telemetry::Config;

/// Builds the export of spans; `None` without a collector.
pub(super) fn telemetry(
    telemetry: &mut Telemetry,
    own: &[Own],
    context: &mut Context<'_>,
) -> Option<Config> {
    let Some(collector) = telemetry.otlp_url.clone() else {
        if !context.is_set("telemetry.otlp_url") {
            let keys = ["tls", "service_name", "sample_ratio", "otlp_headers"];
            let keys = keys.map(|key| format!("telemetry.{key}"));
            let message = "has no effect without a collector; set telemetry.otlp_url too";
            context.refuse(&keys.each_ref().map(String::as_str), message);
        }
        return None;
    };
    if let Some(ours) = own.iter().find(|own| reaches(&collector.target, &own.address)) {
        let message = format!("is this proxy itself ({}); expected the collector's URL", ours.key);
        context.error("telemetry.otlp_url", message);
    }
    let key = "telemetry.tls";
    let tls = match (&mut telemetry.tls, collector.target.scheme()) {
        (None, _) => TlsConfig::default(),
        (Some(tls), Scheme::Https) => tls::client(key, tls, context),
        (Some(_), Scheme::Http) => {
            context.error(key, "the collector has no TLS; remove it, or use https://");
            TlsConfig::default()
        }
    };
    Some(Config {
        collector,
        tls,
        headers: headers::secrets(
            "telemetry.otlp_headers",
            &mut telemetry.otlp_headers,
            None,
            context,
        ),
        service_name: telemetry.service_name.get_or_insert_with(|| "cloakroom".into()).0.clone(),
        sample_ratio: telemetry.sample_ratio.get_or_insert(Ratio(1.0)).0,
    })
}
