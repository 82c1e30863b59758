//! The `sessions` commands: the admin pages on the command line.

mod admin;
mod text;

use std::io::{self, Write as _};
use std::path::PathBuf;
use std::time::Duration;

use clap::{ArgGroup, Subcommand};
use serde_json::Value;
use tokio::time::{Instant, sleep_until};

use self::admin::{Admin, Query};
use super::signals::TerminateSignals;
use super::{Failure, print, runtime};
use crate::config::Environment;
use crate::metrics::Samples;

/// The interval of `watch`.
const WATCH: Duration = Duration::from_secs(1);

#[derive(Debug, clap::Args)]
pub(super) struct SessionsCommand {
    #[command(subcommand)]
    action: Action,
    /// Configuration file; without it, only defaults and environment variables apply
    #[arg(long, global = true, value_name = "FILE")]
    config: Option<PathBuf>,
    #[arg(
        long,
        global = true,
        value_name = "URL",
        help = "URL of the admin listener, e.g. http://127.0.0.1:8082 or unix:/run/admin.sock [default: that of the configuration]"
    )]
    url: Option<String>,
}

// Ids and names may begin with a hyphen.
#[derive(Debug, Subcommand)]
enum Action {
    /// List sessions, newest first
    List {
        /// Of this principal only
        #[arg(long, value_name = "NAME", allow_hyphen_values = true)]
        principal: Option<String>,
        /// Whose id is this, or begins with it
        #[arg(long, value_name = "ID", allow_hyphen_values = true)]
        id: Option<String>,
        /// Whose client has this address; needs `session.record_client`
        #[arg(long, value_name = "ADDRESS")]
        address: Option<String>,
        /// Most sessions to list, up to 500
        #[arg(long, value_name = "COUNT", default_value = "50")]
        limit: u16,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Show a session without its values, and its events
    Show {
        #[arg(allow_hyphen_values = true)]
        id: String,
        /// Show its values too; this is recorded in the audit trail
        #[arg(long)]
        values: bool,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// End a session, or all sessions of a principal
    #[command(group(ArgGroup::new("which").required(true).args(["id", "principal"])))]
    End {
        #[arg(allow_hyphen_values = true)]
        id: Option<String>,
        /// All sessions of this principal
        #[arg(long, value_name = "NAME", allow_hyphen_values = true)]
        principal: Option<String>,
        /// But not this one
        #[arg(long, value_name = "ID", requires = "principal", allow_hyphen_values = true)]
        except: Option<String>,
    },
    /// Show the state of the instance: store, requests, upstreams, counters of sessions
    Stats {
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Print a line a second: requests, errors, latencies, sessions
    Watch,
}

/// Runs a command.
pub(super) fn run(command: SessionsCommand, environment: &Environment) -> Result<(), Failure> {
    let SessionsCommand { action, config, url } = command;
    let admin = Admin::find(config.as_deref(), url.as_deref(), environment)?;
    runtime()?.block_on(action.run(&admin))
}

impl Action {
    async fn run(self, admin: &Admin) -> Result<(), Failure> {
        match self {
            Self::List { principal, id, address, limit, json } => {
                let limit = limit.to_string();
                let query = Query::new()
                    .with("principal", principal.as_deref())
                    .with("id", id.as_deref())
                    .with("address", address.as_deref())
                    .with("limit", Some(&limit));
                let page = admin.get(&query.of("/sessions")).await?;
                output(json, &page, text::list)
            }
            Self::Show { id, values, json } => {
                let path = Query::path_of(&id);
                let mut shown = admin.get(&path).await?;
                if values {
                    let with_values = admin.post(&format!("{path}/values"), Query::new()).await?;
                    merge(&mut shown, &with_values);
                }
                output(json, &shown, text::session)
            }
            Self::End { id: Some(id), .. } => {
                end(admin, &format!("{}/end", Query::path_of(&id)), Query::new()).await
            }
            Self::End { id: None, principal, except } => {
                let form = Query::new()
                    .with("principal", principal.as_deref())
                    .with("except", except.as_deref());
                end(admin, "/sessions/end", form).await
            }
            Self::Stats { json } => output(json, &admin.get("/").await?, text::stats),
            Self::Watch => watch(admin).await,
        }
    }
}

async fn end(admin: &Admin, path: &str, form: Query) -> Result<(), Failure> {
    let ended = admin.post(path, form).await?;
    print(&text::ended(&ended))
}

/// Adds the values to the session that is shown.
fn merge(shown: &mut Value, with_values: &Value) {
    if let Some(session) = shown.get_mut("session").and_then(Value::as_object_mut) {
        let values = with_values.get("values").cloned().unwrap_or_default();
        session.insert("values".to_owned(), values);
    }
}

fn output(json: bool, value: &Value, text: fn(&Value) -> String) -> Result<(), Failure> {
    if json { print(&value.to_string()) } else { print(text(value).trim_end()) }
}

async fn watch_once(admin: &Admin) -> Result<(Value, Samples), Failure> {
    Ok((admin.get("/").await?, Samples::parse(&admin.metrics().await?)))
}

/// Prints a line a second until SIGINT or SIGTERM. An instance that does not respond is reported, and asked again.
async fn watch(admin: &Admin) -> Result<(), Failure> {
    let mut signals = TerminateSignals::new().map_err(Failure::other)?;
    let mut watched = text::Watch::default();
    let mut next = Instant::now();
    loop {
        let line = match watch_once(admin).await {
            Ok((state, metrics)) => watched.line(&state, metrics),
            Err(Failure::Other(error)) => format!("no answer: {error}"),
            Err(failure) => return Err(failure),
        };
        // The reader may have ended, such as `head`.
        if writeln!(io::stdout(), "{line}").is_err() {
            return Ok(());
        }
        next = (next + WATCH).max(Instant::now());
        tokio::select! {
            () = signals.received() => return Ok(()),
            () = sleep_until(next) => {}
        }
    }
}
