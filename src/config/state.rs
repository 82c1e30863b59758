//! The state directory: where databases and keys lie whose paths are relative.

use std::fs::DirBuilder;
use std::io;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};

use super::environment::Environment;

/// The state directory, which need not be there: the first of systemd's `$STATE_DIRECTORY`, else
/// `$XDG_STATE_HOME/cloakroom`, else `~/.local/state/cloakroom`. `None` where none of them is set to
/// an absolute path.
pub(super) fn directory(environment: &Environment) -> Option<PathBuf> {
    let absolute = |path: &Path| path.is_absolute().then(|| path.to_owned());
    let variable = |name| environment.raw(name).map(Path::new);
    let of_systemd = || {
        let list = environment.text("STATE_DIRECTORY")?.ok()?;
        absolute(Path::new(list.split(':').next()?))
    };
    of_systemd()
        .or_else(|| Some(absolute(variable("XDG_STATE_HOME")?)?.join("cloakroom")))
        .or_else(|| Some(absolute(variable("HOME")?)?.join(".local/state/cloakroom")))
}

/// Makes it, and what is missing above it, for its owner alone. One that is there stays as it is.
pub(super) fn make(directory: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(directory)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn the_first_that_is_set_is_taken() {
        let home = ("HOME", "/home/me");
        for (variables, expected) in [
            ([("STATE_DIRECTORY", "/var/lib/a:/var/lib/b"), home], Some("/var/lib/a")),
            ([("XDG_STATE_HOME", "/state"), home], Some("/state/cloakroom")),
            ([("XDG_STATE_HOME", ""), home], Some("/home/me/.local/state/cloakroom")),
            ([("XDG_STATE_HOME", "state"), home], Some("/home/me/.local/state/cloakroom")),
            ([("STATE_DIRECTORY", "relative"), ("HOME", "")], None),
        ] {
            let found = directory(&Environment::from(variables));
            assert_eq!(found.as_deref(), expected.map(Path::new), "{variables:?}");
        }
        assert_eq!(directory(&Environment::default()), None);
    }

    #[test]
    fn it_is_made_for_its_owner_alone() {
        let parent = tempfile::tempdir().unwrap();
        let state = parent.path().join("a/cloakroom");
        make(&state).unwrap();
        make(&state).unwrap();
        assert_eq!(state.metadata().unwrap().permissions().mode() & 0o777, 0o700);
    }
}
