//! Certificates and keys in files of PEM (RFC 7468), as TLS takes them.

use std::path::{Path, PathBuf};

use rustls::RootCertStore;
use rustls::pki_types::pem::{self, PemObject as _};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};

/// A certificate and its key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// The certificate, and after it what leads to its authority.
    pub certificate: PathBuf,
    /// Its key.
    pub key: PathBuf,
}

/// What is wrong with a file of certificates or keys.
#[derive(Debug, thiserror::Error)]
pub enum PemError {
    /// It cannot be read, or is no PEM.
    #[error("{} cannot be read as PEM", path.display())]
    Unreadable {
        /// Which.
        path: PathBuf,
        /// Why not.
        source: pem::Error,
    },
    /// What is wanted is not in it.
    #[error("{} holds no certificate", .0.display())]
    Empty(PathBuf),
    /// What it holds is no certificate that can be trusted.
    #[error("{} holds what is no certificate", path.display())]
    Invalid {
        /// Which.
        path: PathBuf,
        /// What is wrong.
        source: rustls::Error,
    },
}

/// The certificates of a file, in its order: at least one.
pub(crate) fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, PemError> {
    let unreadable = |source| PemError::Unreadable { path: path.to_owned(), source };
    let found = CertificateDer::pem_file_iter(path).map_err(unreadable)?;
    let found = found.collect::<Result<Vec<_>, _>>().map_err(unreadable)?;
    if found.is_empty() { Err(PemError::Empty(path.to_owned())) } else { Ok(found) }
}

/// The key of a file.
pub(crate) fn key(path: &Path) -> Result<PrivateKeyDer<'static>, PemError> {
    PrivateKeyDer::from_pem_file(path)
        .map_err(|source| PemError::Unreadable { path: path.to_owned(), source })
}

/// The authorities of a file.
pub(crate) fn authorities(path: &Path) -> Result<RootCertStore, PemError> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates(path)? {
        roots
            .add(certificate)
            .map_err(|source| PemError::Invalid { path: path.to_owned(), source })?;
    }
    Ok(roots)
}
