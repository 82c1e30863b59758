//! Completions and man pages, made from the declarations of the arguments.

use std::io::{self, Write};

use clap::{Command, CommandFactory as _};
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

/// Prints the man page of a command, e.g. `sessions list`, or of the program if there are no words.
pub(super) fn page(words: &[String]) -> Result<(), Failure> {
    // `help` repeats the help of the others.
    let mut program = without_help(Arguments::command());
    // Gives the commands their full names.
    program.build();
    let mut command = &program;
    for word in words {
        command = command.find_subcommand(word).ok_or_else(|| unknown(words))?;
    }
    let name = command.get_bin_name().unwrap_or("cloakroom").replace(' ', "-");
    let command = command.clone().bin_name(name.clone()).display_name(name);
    let mut page = Vec::new();
    Man::new(command).render(&mut page).map_err(Failure::other)?;
    io::stdout().write_all(&page).map_err(Failure::other)
}

/// Removes the command `help` on all levels.
fn without_help(command: Command) -> Command {
    command.disable_help_subcommand(true).mut_subcommands(without_help)
}

fn unknown(words: &[String]) -> Failure {
    Failure::Usage(format!("unknown command {}; see cloakroom help", words.join(" ")))
}
