//! The `cloakroom` command.

use std::process::ExitCode;

use cloakroom::cli;
use cloakroom::config::Environment;

fn main() -> ExitCode {
    cli::main(std::env::args_os(), &Environment::of_process())
}
