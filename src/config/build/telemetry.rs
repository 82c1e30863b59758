//! Where spans go, and which.

use super::super::file;
use super::super::problem::Origin;
use super::super::value::Ratio;
use super::context::Context;
use super::listeners::reaches;
use super::{headers, tls};
use crate::client::TlsConfig;
use crate::net::scheme::Scheme;
use crate::server::Address;
use crate::telemetry::Config;

/// What spans are from, where nobody says.
const SERVICE_NAME: &str = "cloakroom";

/// Where spans go; nowhere without a collector. `own` is where this process listens.
pub(super) fn telemetry(
    table: &file::Telemetry,
    own: &[(Origin, Address)],
    context: &mut Context<'_>,
) -> Option<Config> {
    let Some((collector, origin)) = table.otlp_url.found() else {
        refuse_the_rest(table, context);
        return None;
    };
    if let Some((ours, _)) = own.iter().find(|(_, address)| reaches(&collector.target, address)) {
        let message = format!("is this proxy itself ({}); write where the collector is", ours.key);
        context.error(origin, message);
    }
    let tls = match (table.tls.found(), collector.target.scheme()) {
        (None, _) => TlsConfig::default(),
        (Some((tls, origin)), Scheme::Https) => tls::client(tls, origin, context),
        (Some((_, origin)), Scheme::Http) => {
            context.error(origin, "the collector has no TLS; leave it out, or write https://");
            TlsConfig::default()
        }
    };
    Some(Config {
        collector: collector.clone(),
        tls,
        headers: headers::secrets(&table.otlp_headers, None, context),
        service_name: table.service_name.or(SERVICE_NAME.to_owned()),
        sample_ratio: table.sample_ratio.or(Ratio(1.0)).0,
    })
}

fn refuse_the_rest(table: &file::Telemetry, context: &mut Context<'_>) {
    let set = [
        table.tls.found().map(|(_, origin)| origin),
        table.service_name.found().map(|(_, origin)| origin),
        table.sample_ratio.found().map(|(_, origin)| origin),
    ];
    let headers = table.otlp_headers.values().iter().map(|(_, _, origin)| origin);
    for origin in set.into_iter().flatten().chain(headers) {
        context.error(origin, "there is no collector; set telemetry.otlp_url too, or leave it out");
    }
}
