//! Cloakroom: a sidecar reverse proxy that adds server-side sessions to web sites that have none.
//!
//! This page is the architecture: the life of a request, the layers of modules, and the invariants.
//!
//! # The life of a request
//!
//! A worker accepts a connection ([`server`]) and passes each request to [`proxy::Proxy`], which
//!
//! 1. rejects malformed requests, and finds the route;
//! 2. removes the session cookie, and the headers that clients may not send;
//! 3. opens the session that the cookie names ([`sessions::Opener`]): the key ring verifies the token
//!    before the store is called, and [`session::rotation`] decides whether the token is current. If the
//!    route asks for it, the request first waits for its turn on the session;
//! 4. adds the session's headers, signed if the site verifies them, and forwards the request ([`client`]).
//!
//! While the upstream handles the request, it may call the session API ([`api`]), which has a listener
//! of its own. The request token in the call identifies an entry in the table of requests in flight,
//! and a [`session::patch::Patch`] is applied to the record in the store in one atomic step. If several
//! instances share a store, the call may reach another instance than the one that forwarded the
//! request. That instance handles calls that do not concern the cookie, and forwards the others to the
//! first.
//!
//! When the head of the upstream's response arrives, the request's session is committed
//! ([`sessions`]): the commit waits for running calls, applies a patch from the response headers,
//! records the use, and decides the Set-Cookie. The request's turn on its session, if it has one, ends with
//! the commit. Then the head is cleaned, protected from shared caches and sent to the client, and the body
//! streams.
//!
//! # Layers
//!
//! Imports point down only. Modules of the same layer do not import each other, except along an arrow.
//! `tests/it/tidy.rs` enforces it.
//!
//! ```text
//! 10 main                     arguments to exit code
//! 9  cli → demo               commands; the demo site
//! 8  app                      composition: configuration to running process, reload, shutdown
//! 7  config                   TOML and environment to typed settings
//! 6  proxy · api · admin      the HTTP services
//! 5  sessions → wire          the session of a request; JSON of patches, sessions and problems
//! 4  store → audit            where records are kept: memory, SQLite, files, Redis; cache · the audit trail
//! 3  session · redis          pure: tokens, records, patches, policy, cookies · a Redis client that
//!                             reconnects by itself and knows no session
//! 2  telemetry                trace context, spans and their export
//! 1  server · client          listeners, connections, limits · upstream connections, balancing, health
//! 0  body html log metrics net random secret tasks time turns   vocabulary
//! ```
//!
//! `session` is the pure model of a session; `sessions` applies it to requests and the store.
//!
//! Each module owns the plain settings that it consumes, and [`config`] produces them; there are no
//! global settings. Every worker is a thread with a runtime, upstream pools and, for Redis, a store connection
//! of its own, and accepts on every listener. Workers share the table of requests in flight, the queues of sessions, the health
//! of upstreams, connection limits, metrics, the configuration, the cache and the embedded stores.
//!
//! # Invariants
//!
//! 1. [`session`] does no I/O, never awaits and never reads a clock: `now` is an argument.
//! 2. Whether a session is alive is decided by [`session::policy`] when its record is loaded. The
//!    expiry in a store is garbage collection only.
//! 3. A store error never means "no session": only a successful response without a record does. A
//!    store whose files are damaged or missing returns errors. (With `on_error = "anonymous"`, requests
//!    are served without a session while the store is unavailable, and their cookies are kept.)
//! 4. The session token is in the cookie and in its own type only. Stores, upstreams, the API and logs
//!    see the session id.
//! 5. A write is acknowledged only after it has taken effect in the store, and never restores a
//!    destroyed session.
//! 6. Work that must complete even if the client disconnects runs as a tracked task, because the server
//!    drops the handler of a disconnected client.
//! 7. Public listeners never reach [`api`] or [`admin`].
//! 8. Session headers in a client's request, and the session cookie, held cookies or session headers in an upstream's
//!    response, are never forwarded. Neither is the cookie of the admin page, in either direction.
//! 9. Only [`config`] knows TOML and environment variables; only [`wire`] knows the JSON of patches,
//!    sessions and problems; only [`time`] reads the wall clock.
//! 10. A cached record may show that a token opens its session, and serve its values. All other answers
//!     come from the store: that a token is invalid, that a session has ended, which cookie is set.
//! 11. Every spawned task has an owner and ends at the drain; every wait has a deadline; every queue and
//!     buffer has a bound.

pub(crate) mod admin;
pub(crate) mod api;
pub mod app;
pub(crate) mod audit;
pub mod body;
pub mod cli;
pub mod client;
pub mod config;
pub mod demo;
pub(crate) mod html;
pub(crate) mod log;
pub mod metrics;
pub mod net;
pub mod proxy;
pub mod random;
pub mod redis;
pub(crate) mod secret;
pub mod server;
pub mod session;
pub(crate) mod sessions;
pub mod store;
mod tasks;
pub(crate) mod telemetry;
pub mod time;
pub(crate) mod turns;
pub mod wire;
