//! Integration tests: a real proxy on real sockets, an upstream without sessions of its own, and clients
//! that handle cookies like browsers.
#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::disallowed_methods,
    clippy::format_push_string,
    clippy::format_collect,
    clippy::needless_pass_by_value,
    clippy::too_many_lines,
    clippy::unused_async,
    unreachable_pub,
    reason = "a test fails by panicking, knows its environment, and reads better than it runs"
)]
#![expect(
    dead_code,
    unused_imports,
    reason = "tests/reliability shares the kit, and needs more of it"
)]

mod activation;
mod admin;
mod admin_in_browser;
mod admin_page;
mod api;
mod api_tls;
mod audit;
mod backup;
mod behind_a_proxy;
mod broken_answers;
mod browser;
mod caches;
mod cluster;
mod concurrency;
mod config;
mod cookies;
mod demo;
mod docs;
mod drain;
mod durable_destroy;
mod early_answers;
mod embedded;
mod end_to_end;
mod examples;
mod failover;
mod fault_proxy;
mod fixation;
mod framing;
mod framing_h2;
mod framing_responses;
mod front;
mod guide;
mod header_exchange;
mod held_cookies;
mod held_in_browser;
mod idle_streams;
mod instances;
mod limits;
mod log_lines;
mod login;
mod memory_store;
mod metrics;
mod next_id;
mod one_at_a_time;
mod patches;
mod policy;
mod principals;
mod proof;
mod proxy_headers;
mod proxy_protocol;
mod proxy_streams;
mod redis;
mod redis_kit;
mod reference;
mod reload;
mod request_id;
mod rolling_restart;
mod rotation;
mod routes;
mod sealed;
mod sessions_command;
mod site_command;
mod startup;
mod support;
mod telemetry;
mod tidy;
mod tls;
mod transparency;
mod tunnels;
mod two_instances;
mod unproven;
mod upgrade;
mod upstream_faults;
mod upstream_h2;
mod upstreams;
mod warnings;
