//! Completions and man pages, made from the declarations of the arguments.

use std::io::{self, Write};

use clap::CommandFactory as _;
use clap_complete::Shell;
use clap_mangen::Man;

use super::Failure;
use super::arguments::Arguments;

/// Writes the completions for a shell.
pub(super) fn completions(shell: Shell, output: &mut impl Write) -> io::Result<()> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Arguments::command(), "cloakroom", &mut script);
    output.write_all(&script)
}

/// Prints the man page of a command, or of the program.
pub(super) fn page(of: Option<&str>) -> Result<(), Failure> {
    let mut program = Arguments::command();
    // Gives the commands their full names.
    program.build();
    let command = match of {
        None => program,
        Some(name) => program
            .find_subcommand(name)
            .cloned()
            .ok_or_else(|| Failure::Usage(format!("unknown command {name}; see cloakroom help")))?,
    };
    let name = command.get_bin_name().unwrap_or("cloakroom").replace(' ', "-");
    let mut page = Vec::new();
    Man::new(command.bin_name(name.clone()).display_name(name))
        .render(&mut page)
        .map_err(Failure::other)?;
    io::stdout().write_all(&page).map_err(Failure::other)
}
