//! Cloakroom: a sidecar reverse proxy that gives sessions to web sites that have none.
//!
//! # The life of a request
//!
//! A worker accepts the connection ([`server`]) and hands the request to [`proxy::Proxy`], which
//!
//! 1. refuses what is malformed, and finds the route;
//! 2. takes the session cookie out, and what a client may not send;
//! 3. opens the session that the cookie names ([`sessions::Opener`]): the key ring verifies tokens
//!    before the store is called, and [`session::rotation`] decides what they are worth;
//! 4. adds the session's headers and forwards the request ([`client`]).
//!
//! While the upstream works on it, it may call the session API ([`api`]), which enters from the side:
//! the request token leads to the request's entry in the table of requests in flight, and a
//! [`session::patch::Patch`] is applied to the record in the store in one atomic step. Where the
//! store is shared, calls may come to another instance than the one that forwarded the request: it
//! does what needs no cookie, and passes the rest to that one.
//!
//! When the upstream's response head arrives, [`sessions`] commits it: it waits for running calls,
//! applies changes that were requested by header, records the use, and decides the one Set-Cookie.
//! Then the head is forwarded, cleaned and kept from caches, and the body streams.
//!
//! # The floors
//!
//! Imports point down only; modules on one floor do not know each other, save where `·` orders them
//! from left to right. `tests/it/tidy.rs` enforces it.
//!
//! ```text
//! 10 main                               arguments to exit code
//! 9  cli → demo                         the commands; the demo site
//! 8  app                                composition: Config -> App -> drain
//! 7  config                             TOML -> typed; alone knows TOML, env names and defaults
//! 6  proxy · api · admin                the HTTP services
//! 5  sessions → wire                    policy, cookie and store meet; the JSON of patches and sessions
//! 4  store                              where records live: memory, SQLite, files, Redis, a cache
//! 3  session                            pure: ids and tokens, record and patch, policy, cookie
//! 2  telemetry                          a request's place in a trace; spans, and their way to a collector
//! 1  server · client                    sockets, TLS, accept, drain; the way out
//! 0  body log metrics net random secret tasks time   vocabulary
//! ```
//!
//! Each module owns the plain `Config` that it consumes, and [`config`] produces them, so nothing
//! reaches for a global. Every worker is a thread with a runtime, upstream pools and a store
//! connection of its own, and accepts on every listener; what workers share is small: requests in
//! flight, metrics, configuration, and the embedded stores.
//!
//! # Invariants
//!
//! 1. [`session`] does no I/O, never awaits and never reads a clock: `now` is an argument.
//! 2. Whether a session is alive is decided by [`session::policy`] when it is loaded; a store's
//!    time to live is garbage collection.
//! 3. A store error is never "no session". Only an answer that there is none is, and a store whose
//!    files are damaged or no longer at their place gives no answers.
//! 4. The cookie token exists in the cookie and in its type. Stores, upstreams, the API and logs see
//!    the id.
//! 5. A write takes effect in the store before anyone is told that it did, and never brings back what
//!    was destroyed.
//! 6. Work that must not be lost when the client hangs up runs as a tracked task: the server drops a
//!    handler whose client is gone.
//! 7. The public listener never reaches [`api`] or [`admin`].
//! 8. A client's copies of our request headers, and an upstream's copies of our cookie and of our
//!    response headers, never pass.
//! 9. Only [`config`] knows TOML and the environment; only [`wire`] knows the JSON of patches,
//!    sessions and problems; only [`time`] reads the clock.
//! 10. A cached record may only show that a token opens its session. Every other answer comes from the
//!     store: that a token is not valid, that a session has ended, which cookie is set.
//! 11. Every spawned task has an owner and ends at the drain; every wait has a deadline; every queue
//!     and buffer has a bound.

pub mod admin;
pub mod api;
pub mod app;
pub mod body;
pub mod cli;
pub mod client;
pub mod config;
pub mod demo;
pub mod log;
pub mod metrics;
pub mod net;
pub mod proxy;
pub mod random;
pub mod secret;
pub mod server;
pub mod session;
pub mod sessions;
pub mod store;
mod tasks;
pub mod telemetry;
pub mod time;
pub mod wire;
