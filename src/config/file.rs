//! The file's sections and keys. `config.example.toml` explains them at length.

use ipnet::IpNet;

use super::field::{Field, List, Named, Perhaps, Several, Table, Tables, section};
use super::secret::Source;
use super::value::{Mode, PrincipalHeader, Ratio, Size, Timeout, Upstreams};
use crate::client::UpstreamProtocol;
use crate::log::Format;
use crate::proxy::config::{Session as RouteSession, Tunnels};
use crate::server::Address;
use crate::session::cookie::SameSite;
use crate::session::policy::{AtMax, Create, OnReplay, Touch};
use crate::store::config::OnError;
use crate::telemetry::Collector;
use tracing::level_filters::LevelFilter;

section! {
    /// The file as a whole.
    File {
        /// What clients reach.
        listen: Tables<Listen>,
        /// What a client's connection may take.
        limits: Table<Limits>,
        /// What upstreams and back offices reach.
        api: Table<Api>,
        /// What operators reach.
        admin: Table<Admin>,
        /// How sessions live.
        session: Table<Session>,
        /// How the cookie is called and set.
        cookie: Table<Cookie>,
        /// Where records live.
        store: Table<Store>,
        /// What is told, and how.
        log: Table<Log>,
        /// Where spans of requests go.
        telemetry: Table<Telemetry>,
        /// Which requests go where.
        route: Tables<Route>,
    }
}

section! {
    /// `[[listen]]`
    Listen {
        /// An IP address and a port, or a Unix socket.
        address: Field<Address>,
        /// Certificates and keys.
        tls: Several<Identity>,
        /// Sends clients to the https listener.
        redirect_to_https: Field<bool>,
        /// HTTP/2 in the clear too, of clients that know.
        h2c: Field<bool>,
        /// Trusted proxies begin with a PROXY header.
        proxy_protocol: Field<bool>,
        /// The mode of a Unix socket's file.
        socket_mode: Field<Mode>,
    }
}

section! {
    /// Who a listener is, to clients with TLS.
    Identity {
        /// The certificate, and what leads to its authority.
        certificate: Field<String>,
        /// Its key.
        key: Field<String>,
    }
}

section! {
    /// TLS to an upstream, or to another instance.
    ClientTls {
        /// Whose signature on its certificate counts.
        ca: Field<String>,
        /// The name that it must have.
        name: Field<String>,
        /// Whether it is checked.
        verify: Field<bool>,
        /// What it knows us by.
        certificate: Field<String>,
        /// Its key.
        key: Field<String>,
    }
}

section! {
    /// `[limits]`
    Limits {
        /// Whose forwarding headers are believed.
        trusted_proxies: List<IpNet>,
        /// Further headers that only they may send.
        strip_request_headers: List<String>,
        /// Headers that clients may send although they look as a proxy's.
        keep_request_headers: List<String>,
        /// Open connections.
        connections: Field<usize>,
        /// Open connections from one address.
        connections_per_address: Field<usize>,
        /// New sessions in a minute from one client address.
        new_sessions_per_address: Field<usize>,
        /// For a head, from its first byte.
        header_timeout: Field<Timeout>,
        /// Bytes of a head.
        header_bytes: Field<Size>,
        /// Fields of a head.
        headers: Field<usize>,
        /// Between two pieces of a body.
        body_idle_timeout: Field<Timeout>,
        /// Of a connection, between requests.
        idle_timeout: Field<Timeout>,
        /// Before the end, for those who look whether we are ready.
        predrain: Field<Timeout>,
        /// For requests in flight at the end.
        drain_timeout: Field<Timeout>,
    }
}

section! {
    /// `[api]`
    Api {
        /// Where it listens.
        address: Field<Address>,
        /// Certificates and keys.
        tls: Several<Identity>,
        /// Whose signature a client's certificate must have.
        client_ca: Field<String>,
        /// How other instances are spoken to.
        instance_tls: Perhaps<ClientTls>,
        /// What upstreams are told.
        url: Field<String>,
        /// Where other instances reach this one.
        instance_url: Field<String>,
        /// Further names that it answers to.
        hosts: List<String>,
        /// Where its paths begin.
        prefix: Field<String>,
        /// Opens any session by its id.
        service_token: Field<Source>,
        /// How long a request token outlives its request.
        request_token_linger: Field<Timeout>,
    }
}

section! {
    /// `[admin]`
    Admin {
        /// Where it listens.
        address: Field<Address>,
        /// Further names that it answers to.
        hosts: List<String>,
    }
}

section! {
    /// `[session]`
    Session {
        /// The key ring: the first signs, all verify.
        keys: List<Source>,
        /// A session ends this long after its last use.
        idle_timeout: Field<Timeout>,
        /// A session ends this long after its creation.
        absolute_timeout: Field<Timeout>,
        /// A session whose cookie never came back ends this long after its creation.
        unproven_timeout: Field<Timeout>,
        /// How old a generation grows.
        rotate_every: Field<Timeout>,
        /// How long the generation before stays valid.
        rotation_grace: Field<Timeout>,
        /// What a really old token does.
        on_replay: Field<OnReplay>,
        /// Cookies end with the browser.
        expire_at_browser_close: Field<bool>,
        /// When a visitor gets a session.
        create: Field<Create>,
        /// What prolongs a session.
        touch: Field<Touch>,
        /// Use is counted once in this time.
        touch_interval: Field<Timeout>,
        /// The largest session.
        max_bytes: Field<Size>,
        /// The most values in a session.
        max_values: Field<usize>,
        /// The most sessions of a principal.
        max_per_principal: Field<usize>,
        /// What a log-in does where there are as many.
        at_max_per_principal: Field<AtMax>,
        /// Keep client address and user agent.
        record_client: Field<bool>,
    }
}

section! {
    /// `[cookie]`
    Cookie {
        /// Its name.
        name: Field<String>,
        /// The path that it is sent to.
        path: Field<String>,
        /// The domain, where subdomains get it too.
        domain: Field<String>,
        /// Over TLS only, and to localhost.
        secure: Field<bool>,
        /// Not for scripts.
        http_only: Field<bool>,
        /// What requests from other sites carry it.
        same_site: Field<SameSite>,
        /// A jar of its own for each embedding site.
        partitioned: Field<bool>,
    }
}

section! {
    /// `[store]`
    Store {
        /// Which store, and where.
        url: Field<String>,
        /// The password of a shared store.
        password: Field<Source>,
        /// The password of its sentinels.
        sentinel_password: Field<Source>,
        /// Certificates of a shared store.
        tls: Table<StoreTls>,
        /// Whether a destroy waits for a replica.
        durable_destroy: Field<bool>,
        /// That sessions in cookies cannot be ended from elsewhere.
        accept_no_revocation: Field<bool>,
        /// What our keys in a shared store begin with.
        key_prefix: Field<String>,
        /// For one answer.
        timeout: Field<Timeout>,
        /// What becomes of requests while it is away.
        on_error: Field<OnError>,
        /// Hot sessions are kept in the process.
        cache: Perhaps<StoreCache>,
    }
}

section! {
    /// `[store.cache]`
    StoreCache {
        /// How much of them.
        max_bytes: Field<Size>,
    }
}

section! {
    /// `[store.tls]`
    StoreTls {
        /// Whose signature on the server's certificate counts.
        ca: Field<String>,
        /// What the server knows us by.
        certificate: Field<String>,
        /// Its key.
        key: Field<String>,
    }
}

section! {
    /// `[log]`
    Log {
        /// How a line looks.
        format: Field<Format>,
        /// What is told of everything but access.
        level: Field<LevelFilter>,
        /// Whether each request is told.
        access: Field<bool>,
    }
}

section! {
    /// `[telemetry]`
    Telemetry {
        /// The collector.
        otlp_url: Field<Collector>,
        /// What each export is given on its way.
        otlp_headers: Named<Source>,
        /// Whom we believe that it is the collector, and who we are.
        tls: Perhaps<ClientTls>,
        /// What spans say that they are from.
        service_name: Field<String>,
        /// How many of the traces that begin here.
        sample_ratio: Field<Ratio>,
    }
}

section! {
    /// `[[route]]`
    Route {
        /// A host, or a star and a host.
        host: Field<String>,
        /// Where paths begin.
        path: Field<String>,
        /// Where requests go.
        upstream: Field<Upstreams>,
        /// What is spoken to it.
        upstream_protocol: Field<UpstreamProtocol>,
        /// Whom we believe that it is the upstream, and who we are.
        upstream_tls: Perhaps<ClientTls>,
        /// What upstreams are asked to learn how they are.
        health_path: Field<String>,
        /// How often.
        health_interval: Field<Timeout>,
        /// What sessions are to it.
        session: Field<RouteSession>,
        /// Values go and come in headers.
        header_exchange: Field<bool>,
        /// The most bytes of values in a header.
        header_exchange_max_bytes: Field<Size>,
        /// A second header for the principal.
        principal_header: Field<PrincipalHeader>,
        /// Sends visitors without a principal elsewhere.
        require_principal: Field<String>,
        /// What each request is given on its way.
        request_headers: Named<Source>,
        /// What becomes of requests while the store is away.
        on_error: Field<OnError>,
        /// Requests at a time.
        upstream_requests: Field<usize>,
        /// The largest body of a request.
        max_body: Field<Size>,
        /// Minimum rate of a request's body, in bytes per second.
        min_body_rate: Field<Size>,
        /// For a connection to the upstream.
        connect_timeout: Field<Timeout>,
        /// From the request's end to the response's head.
        response_timeout: Field<Timeout>,
        /// How long nothing may come in either direction while a response's body is on its way.
        stream_idle_timeout: Field<Timeout>,
        /// What ends a WebSocket or an event stream.
        tunnels: Field<Tunnels>,
        /// How long one lasts on which nothing comes.
        tunnel_idle_timeout: Field<Timeout>,
        /// How long a connection to the upstream is kept.
        upstream_idle_timeout: Field<Timeout>,
    }
}
