//! Certificates and keys in PEM files (RFC 7468).

use std::path::{Path, PathBuf};
use std::time::Duration;

use rustls::client::verify_server_cert_signed_by_trust_anchor;
use rustls::pki_types::pem::{self, PemObject as _};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::{CertificateError, RootCertStore};

/// Files of a certificate and its key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// The certificate, followed by its intermediates.
    pub(crate) certificate: PathBuf,
    pub(crate) key: PathBuf,
}

/// Error of reading a PEM file.
#[derive(Debug, thiserror::Error)]
pub enum PemError {
    /// The file cannot be read, or is not PEM.
    #[error("{} cannot be read as PEM", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: pem::Error,
    },
    /// The file has no certificate.
    #[error("{} contains no certificate", .0.display())]
    Empty(PathBuf),
    /// A certificate in the file is not usable as an authority.
    #[error("{} contains an invalid certificate", path.display())]
    Invalid {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: rustls::Error,
    },
}

/// Reads the certificates of a file, at least one, in their order.
pub(crate) fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, PemError> {
    let unreadable = |source| PemError::Unreadable { path: path.to_owned(), source };
    let found = CertificateDer::pem_file_iter(path).map_err(unreadable)?;
    let found = found.collect::<Result<Vec<_>, _>>().map_err(unreadable)?;
    if found.is_empty() { Err(PemError::Empty(path.to_owned())) } else { Ok(found) }
}

/// Returns the last second in which a certificate is valid, since the Unix epoch. `None` if it cannot be parsed.
///
/// webpki parses the validity of a certificate but exposes it only in the error of a verification after it. That is checked
/// before the issuer, so no authority is needed.
pub(crate) fn not_after(certificate: &CertificateDer<'_>) -> Option<i64> {
    let certificate = ParsedCertificate::try_from(certificate).ok()?;
    let end_of_time = UnixTime::since_unix_epoch(Duration::from_secs(u64::MAX));
    let no_roots = RootCertStore::empty();
    let verified =
        verify_server_cert_signed_by_trust_anchor(&certificate, &no_roots, &[], end_of_time, &[]);
    match verified {
        Err(rustls::Error::InvalidCertificate(CertificateError::ExpiredContext {
            not_after,
            ..
        })) => i64::try_from(not_after.as_secs()).ok(),
        Ok(()) | Err(_) => None,
    }
}

/// Reads the private key of a file.
pub(crate) fn key(path: &Path) -> Result<PrivateKeyDer<'static>, PemError> {
    PrivateKeyDer::from_pem_file(path)
        .map_err(|source| PemError::Unreadable { path: path.to_owned(), source })
}

/// Reads the CA certificates of a file.
pub(crate) fn authorities(path: &Path) -> Result<RootCertStore, PemError> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates(path)? {
        roots
            .add(certificate)
            .map_err(|source| PemError::Invalid { path: path.to_owned(), source })?;
    }
    Ok(roots)
}

#[cfg(test)]
mod tests {
    use super::not_after;

    #[test]
    fn expiry_is_read_from_leaf_and_authority() {
        for is_authority in [false, true] {
            let mut parameters =
                rcgen::CertificateParams::new(vec!["a.example".to_owned()]).unwrap();
            parameters.not_after = rcgen::date_time_ymd(2031, 2, 3);
            if is_authority {
                parameters.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
            }
            let key = rcgen::KeyPair::generate().unwrap();
            let certificate = parameters.self_signed(&key).unwrap();
            assert_eq!(not_after(certificate.der()), Some(1_927_843_200), "{is_authority}");
        }
        assert_eq!(not_after(&b"no certificate"[..].into()), None);
    }
}
