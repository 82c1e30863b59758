//! Merging of a new configuration into the running one: some settings require a restart.

use crate::config::{Config, Listen, Role};
use crate::{admin, api, log};

/// Returns the new configuration with the running values of settings that require a restart, and the
/// names of those that differ.
pub(super) fn merge(running: &Config, wanted: Config) -> (Config, Vec<&'static str>) {
    let fixed: [(&'static str, bool); 14] = [
        ("listen", same_listeners(&running.listen, &wanted.listen)),
        ("limits", running.limits == wanted.limits),
        ("api.address", running.api.address == wanted.api.address),
        ("api.tls", running.api.tls.is_some() == wanted.api.tls.is_some()),
        ("api.url", running.api.url == wanted.api.url),
        ("api.instance_url", running.api.instance_url == wanted.api.instance_url),
        ("api.prefix", running.api.prefix == wanted.api.prefix),
        ("admin.address", running.admin.address == wanted.admin.address),
        ("admin.tls", running.admin.tls.is_some() == wanted.admin.tls.is_some()),
        ("admin.hosts", running.admin.hosts == wanted.admin.hosts),
        ("store", running.store == wanted.store),
        ("log.format", running.log.format == wanted.log.format),
        ("audit", running.audit == wanted.audit),
        ("telemetry", running.telemetry == wanted.telemetry),
    ];
    let kept = fixed.into_iter().filter_map(|(name, same)| (!same).then_some(name)).collect();
    // Certificates can be replaced without a restart, addresses cannot.
    let listen = if same_listeners(&running.listen, &wanted.listen) {
        wanted.listen
    } else {
        running.listen.clone()
    };
    let (service_token, hosts) = (wanted.api.service_token, wanted.api.hosts);
    let tls = match (&running.api.tls, wanted.api.tls) {
        (Some(_), Some(wanted)) => Some(wanted),
        (running, _) => running.clone(),
    };
    let admin_tls = match (&running.admin.tls, wanted.admin.tls) {
        (Some(_), Some(wanted)) => Some(wanted),
        (running, _) => running.clone(),
    };
    let config = Config {
        listen,
        limits: running.limits.clone(),
        api: api::config::Config { tls, hosts, service_token, ..running.api.clone() },
        admin: admin::config::Config {
            address: running.admin.address.clone(),
            hosts: running.admin.hosts.clone(),
            tls: admin_tls,
            ..wanted.admin
        },
        store: running.store.clone(),
        log: log::Config { format: running.log.format, ..wanted.log },
        audit: running.audit.clone(),
        telemetry: running.telemetry.clone(),
        state_directory: running.state_directory.clone(),
        ..wanted
    };
    (config, kept)
}

/// Returns whether two lists of listeners differ at most in their certificates.
fn same_listeners(running: &[Listen], wanted: &[Listen]) -> bool {
    let same = |(one, other): (&Listen, &Listen)| {
        one.address == other.address
            && one.socket_mode == other.socket_mode
            && one.proxy_protocol == other.proxy_protocol
            && match (&one.role, &other.role) {
                (Role::Tls(_), Role::Tls(_)) => true,
                (one, other) => one == other,
            }
    };
    running.len() == wanted.len() && running.iter().zip(wanted).all(same)
}
