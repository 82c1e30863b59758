//! The `cloakroom` command.

use std::process::ExitCode;

use cloakroom::cli;
use cloakroom::config::Environment;
use mimalloc::MiMalloc;

#[global_allocator]
static ALLOCATOR: MiMalloc = MiMalloc;

fn main() -> ExitCode {
    cli::main(std::env::args_os(), &Environment::of_process())
}
