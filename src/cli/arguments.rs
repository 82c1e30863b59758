//! The arguments of the command line, and their help.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use clap::{Args, Parser, Subcommand};
use clap_complete::Shell;

use super::sessions::SessionsCommand;
use crate::config::Overrides;

/// A reverse proxy that adds server-side sessions to a web site. The site reads and writes the sessions
/// of its visitors over HTTP.
///
/// Without a command, it runs with the defaults and needs only the URL of the site.
#[derive(Debug, Parser)]
#[command(name = "cloakroom", version, args_conflicts_with_subcommands = true, after_help = EXAMPLES)]
pub(super) struct Arguments {
    #[command(subcommand)]
    pub(super) command: Option<Command>,
    #[command(flatten)]
    pub(super) overrides: OverrideArguments,
}

const EXAMPLES: &str = "\
Examples:
  cloakroom --upstream http://127.0.0.1:3000     serve that site at http://127.0.0.1:8080
  cloakroom run --upstream http://127.0.0.1:3000 -- php -S 127.0.0.1:3000
                                                 start the site, too, and stop with it
  cloakroom run /etc/cloakroom.toml              run with a configuration file
  cloakroom check /etc/cloakroom.toml            validate a configuration file
  cloakroom generate-key > session-key           generate a key for instances that share a store
  cloakroom health                               check whether the local instance is ready

Every configuration key can also be set by an environment variable, e.g.
CLOAKROOM_SESSION_IDLE_TIMEOUT=1h. CLOAKROOM_UPSTREAM is the URL of the site.

Exit codes: 0 success, 1 failure, 2 invalid usage or configuration.";

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Run the proxy; SIGTERM or SIGINT shuts it down gracefully, SIGHUP reloads the configuration
    Run {
        #[command(flatten)]
        file: FileArgument,
        #[command(flatten)]
        overrides: OverrideArguments,
        /// For development: start the site with this command, wait until it listens at the upstream, and
        /// stop with it. The upstream is that of --upstream, or the only one in FILE
        #[arg(last = true, value_name = "COMMAND")]
        site: Vec<OsString>,
    },
    /// Validate a configuration and print the effective settings
    ///
    /// Reads key files and certificates too, and changes nothing. Secrets are redacted. Environment
    /// variables apply as they do for `run`.
    Check {
        #[command(flatten)]
        file: FileArgument,
    },
    /// Print the JSON Schema of the configuration, for editors
    Schema,
    /// Print a configuration file with every key, its default and its meaning
    ExampleConfig,
    /// Print completions for a shell
    ///
    /// E.g. `cloakroom completions bash > /usr/share/bash-completion/completions/cloakroom`.
    Completions {
        #[arg(value_name = "SHELL")]
        shell: Shell,
    },
    /// Print a man page, e.g. for `man -l -`
    Man {
        /// The command, e.g. `sessions list`; without one, the page of `cloakroom`
        #[arg(value_name = "COMMAND")]
        of: Vec<String>,
    },
    /// Print a new session key, or secret
    ///
    /// Instances that share a store need the same keys: keep them in files that only the instances can
    /// read, and list them as session.keys. To change the key, put a new one first and keep the old ones:
    /// existing sessions stay valid. The output also serves as a client secret or service token.
    GenerateKey,
    /// Remove expired sessions from the store
    ///
    /// A running proxy does this by itself. The command is for a store that no running proxy uses.
    ClearExpired {
        #[command(flatten)]
        file: FileArgument,
    },
    /// List, show and end the sessions of a running proxy
    ///
    /// Asks its admin listener, with the token of the configuration, `admin.token`.
    Sessions(SessionsCommand),
    /// Check whether a running proxy is ready: exit code 0 or 1
    ///
    /// For container health checks. Requests /ready from the admin listener.
    Health {
        #[command(flatten)]
        file: FileArgument,
        #[arg(
            long,
            value_name = "URL",
            conflicts_with_all = ["file", "config"],
            help = "URL of the admin listener, e.g. http://127.0.0.1:8082 or unix:/run/admin.sock"
        )]
        url: Option<String>,
        /// Also check whether the store can be read and written
        #[arg(long)]
        store: bool,
    },
    /// Run a demo site (shopping cart, login) behind the proxy
    Demo {
        #[arg(
            long,
            value_name = "PORT",
            help = "Port of the demo on the loopback interface [default: 8080, or a free port]"
        )]
        port: Option<u16>,
    },
}

#[derive(Debug, Args)]
pub(super) struct FileArgument {
    /// Configuration file; without it, only defaults and environment variables apply
    #[arg(value_name = "FILE", conflicts_with = "config")]
    file: Option<PathBuf>,
    /// Same as FILE
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
}

impl FileArgument {
    pub(super) fn path(&self) -> Option<&Path> {
        self.file.as_deref().or(self.config.as_deref())
    }
}

#[derive(Debug, Args)]
pub(super) struct OverrideArguments {
    #[arg(
        long,
        value_name = "URL",
        help = "URL of the site, e.g. http://127.0.0.1:3000 or unix:/run/app.sock"
    )]
    upstream: Option<String>,
    #[arg(
        long,
        value_name = "ADDRESS",
        help = "Address to listen on, e.g. 0.0.0.0:8080 or unix:/run/public.sock [default: 127.0.0.1:8080]"
    )]
    listen: Option<String>,
}

impl From<OverrideArguments> for Overrides {
    fn from(arguments: OverrideArguments) -> Self {
        Self { upstream: arguments.upstream, listen: arguments.listen }
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn arguments_are_consistent() {
        Arguments::command().debug_assert();
    }

    /// One id of 64 begins with a hyphen.
    #[test]
    fn ids_may_begin_with_a_hyphen() {
        let id = "-KXTxY6rT0mCk1o3dVqLhA";
        for arguments in [
            &["show", id][..],
            &["show", id, "--values"],
            &["end", id],
            &["end", "--principal", "-ada", "--except", id],
            &["list", "--principal", "-ada", "--id", id, "--json"],
        ] {
            let arguments = ["cloakroom", "sessions"].iter().chain(arguments);
            let parsed = Arguments::try_parse_from(arguments).map_err(|error| error.to_string());
            assert!(format!("{parsed:?}").contains(&format!("\"{id}\"")), "{parsed:?}");
        }
        let unknown = Arguments::try_parse_from(["cloakroom", "sessions", "list", "--ids"]);
        assert!(unknown.is_err());
    }
}
