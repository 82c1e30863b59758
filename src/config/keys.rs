//! Session keys: as text, and as a file next to the data of an embedded store.

use std::fmt;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use zeroize::Zeroizing;

use crate::random;
use crate::secret::Secret;
use crate::session::key_ring::{Key, KeyRing};

/// The source of the key ring.
#[derive(Clone, Debug)]
pub(crate) enum Keys {
    /// From the configuration.
    Given(Arc<KeyRing>),
    /// One key in this file, which is created if it is missing.
    BesideData(PathBuf),
    /// One key that is generated for the life of this process.
    InMemory,
}

/// Why there is no key ring.
#[derive(Debug)]
pub struct KeyError {
    path: PathBuf,
    cause: Cause,
}

#[derive(Debug)]
enum Cause {
    File(io::Error),
    Malformed,
}

impl fmt::Display for KeyError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let path = self.path.display();
        match &self.cause {
            Cause::File(_) => write!(f, "the session key {path} can be neither read nor created"),
            Cause::Malformed => write!(f, "{path} is not a session key; {RIGHT}"),
        }
    }
}

impl std::error::Error for KeyError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match &self.cause {
            Cause::File(error) => Some(error),
            Cause::Malformed => None,
        }
    }
}

/// Describes a session key.
pub(super) const RIGHT: &str = "it is the 43 characters that `cloakroom generate-key` prints";

impl Keys {
    /// Returns whether they are lost with the process.
    pub(crate) fn is_for_this_process(&self) -> bool {
        matches!(self, Self::InMemory)
    }

    /// Returns the key ring, and creates the key if it is missing. Of several processes that do so at once, all
    /// get the same key.
    pub(crate) fn open(&self) -> Result<Arc<KeyRing>, KeyError> {
        match self {
            Self::Given(ring) => Ok(Arc::clone(ring)),
            Self::InMemory => Ok(Arc::new(KeyRing::new(&Zeroizing::new(random::bytes()), &[]))),
            Self::BesideData(path) => {
                let failed = |cause| KeyError { path: path.clone(), cause };
                let text = read_or_create(path).map_err(|error| failed(Cause::File(error)))?;
                let key = parse(&text).ok_or_else(|| failed(Cause::Malformed))?;
                Ok(Arc::new(KeyRing::new(&key, &[])))
            }
        }
    }
}

/// Generates a key as text: 32 random bytes in base64url, 43 characters.
pub fn generate() -> Secret {
    let bytes: Key = Zeroizing::new(random::bytes());
    Secret::new(URL_SAFE_NO_PAD.encode(bytes.as_slice()))
}

/// Decodes a key; `None` for any other text.
pub(super) fn parse(text: &Secret) -> Option<Key> {
    let bytes = Zeroizing::new(URL_SAFE_NO_PAD.decode(text.reveal()).ok()?);
    bytes.as_slice().try_into().ok().map(Zeroizing::new)
}

/// Reads a key as text, and creates it if it is missing.
pub(super) fn read_or_create(path: &Path) -> io::Result<Secret> {
    match read(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            create(path)?;
            read(path)
        }
        read => read,
    }
}

fn read(path: &Path) -> io::Result<Secret> {
    let text = Secret::new(fs::read_to_string(path)?);
    Ok(Secret::new(text.reveal().trim_end().to_owned()))
}

/// Writes a key under a name of its own and links it to `path`: no process reads half a key, and of two processes
/// one links first and the other uses its key.
fn create(path: &Path) -> io::Result<()> {
    let mut draft = path.as_os_str().to_owned();
    draft.push(format!(".{:016x}", u64::from_ne_bytes(random::bytes())));
    let draft = PathBuf::from(draft);
    let made = write(&draft).and_then(|()| match fs::hard_link(&draft, path) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        linked => linked,
    });
    // A draft that cannot be removed does no harm, and the cause was reported.
    let _ = fs::remove_file(&draft);
    made?;
    match path.parent().filter(|directory| !directory.as_os_str().is_empty()) {
        Some(directory) => File::open(directory)?.sync_all(),
        None => Ok(()),
    }
}

fn write(draft: &Path) -> io::Result<()> {
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(draft)?;
    file.write_all(generate().reveal().as_bytes())?;
    file.write_all(b"\n")?;
    file.sync_all()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;
    use std::sync::Barrier;

    use super::*;

    #[test]
    fn a_key_is_43_characters() {
        let text = generate();
        assert_eq!(text.reveal().len(), 43);
        assert!(parse(&text).is_some());
        for wrong in ["", "abc", &format!("{}=", text.reveal()), &"A".repeat(42), &"/".repeat(43)] {
            assert!(parse(&Secret::new(wrong.to_owned())).is_none(), "{wrong}");
        }
    }

    #[test]
    fn starts_at_once_agree_on_one_key() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("session-key");
        let barrier = Barrier::new(8);
        let texts: Vec<String> = std::thread::scope(|scope| {
            let start = || {
                barrier.wait();
                read_or_create(&path).unwrap().reveal().to_owned()
            };
            let starts: Vec<_> = (0..8).map(|_| scope.spawn(start)).collect();
            starts.into_iter().map(|start| start.join().unwrap()).collect()
        });
        assert!(texts.iter().all(|text| *text == texts[0] && text.len() == 43));
        let mode = path.metadata().unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        let names = fs::read_dir(directory.path()).unwrap().count();
        assert_eq!(names, 1, "no draft is left");
    }

    #[test]
    fn a_file_that_holds_no_key_is_left_alone() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("session-key");
        fs::write(&path, "short\n").unwrap();
        let error = Keys::BesideData(path.clone()).open().unwrap_err();
        assert!(error.to_string().contains("generate-key"), "{error}");
        assert_eq!(fs::read_to_string(&path).unwrap(), "short\n");
        let nowhere = Keys::BesideData(directory.path().join("none/session-key"));
        assert!(nowhere.open().is_err());
    }
}
