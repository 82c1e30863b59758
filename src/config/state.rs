//! The state directory: the place of databases and generated keys with relative paths.

use std::fs::DirBuilder;
use std::io;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};

use super::environment::Environment;

/// Returns the state directory, which need not exist: the first of systemd's `$STATE_DIRECTORY`, else
/// `$XDG_STATE_HOME/cloakroom`, else `~/.local/state/cloakroom`; `None` if none of them is an absolute path.
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

/// Creates it and its missing parents for the owner only. An existing one stays as it is.
pub(super) fn create(directory: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(directory)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn takes_the_first_that_is_set() {
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
    fn is_created_for_its_owner_only() {
        let parent = tempfile::tempdir().unwrap();
        let state = parent.path().join("a/cloakroom");
        create(&state).unwrap();
        create(&state).unwrap();
        assert_eq!(state.metadata().unwrap().permissions().mode() & 0o777, 0o700);
    }
}
