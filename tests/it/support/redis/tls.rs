//! Certificates for servers and clients, made for the test: good ones, and each kind of bad one.

use std::path::{Path, PathBuf};

use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, date_time_ymd,
};
use tempfile::TempDir;

/// An authority, and a directory for what it signs. Paths are of PEM files.
#[derive(Debug)]
pub(crate) struct Authority {
    issuer: Issuer<'static, KeyPair>,
    directory: TempDir,
}

/// A certificate and its key.
#[derive(Debug, Clone)]
pub(crate) struct Identity {
    pub(crate) certificate: PathBuf,
    pub(crate) key: PathBuf,
}

/// What may be wrong with a certificate, beside that its authority is another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Flaw {
    None,
    Expired,
    /// It is for `elsewhere.test`.
    WrongName,
}

impl Authority {
    /// One that nobody knows yet.
    pub(crate) fn new() -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        let mut params = named("Cloakroom's tests");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let key = KeyPair::generate().expect("a key");
        let certificate = params.self_signed(&key).expect("a certificate");
        write(&directory.path().join("ca.pem"), &certificate.pem());
        Self { issuer: Issuer::new(params, key), directory }
    }

    /// Its own certificate.
    pub(crate) fn certificate(&self) -> PathBuf {
        self.directory.path().join("ca.pem")
    }

    /// For a server at 127.0.0.1, `::1` and `localhost`.
    pub(crate) fn server(&self, flaw: Flaw) -> Identity {
        let names = match flaw {
            Flaw::WrongName => vec!["elsewhere.test".to_owned()],
            Flaw::None | Flaw::Expired => {
                ["127.0.0.1", "::1", "localhost"].map(str::to_owned).to_vec()
            }
        };
        self.issue(&names, flaw, ExtendedKeyUsagePurpose::ServerAuth)
    }

    /// For a server of these names, where one may begin with `*.`.
    pub(crate) fn of(&self, names: &[&str]) -> Identity {
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        self.issue(&names, Flaw::None, ExtendedKeyUsagePurpose::ServerAuth)
    }

    /// For a client.
    pub(crate) fn client(&self, flaw: Flaw) -> Identity {
        self.issue(&["client.test".to_owned()], flaw, ExtendedKeyUsagePurpose::ClientAuth)
    }

    fn issue(&self, names: &[String], flaw: Flaw, usage: ExtendedKeyUsagePurpose) -> Identity {
        let name = names.first().expect("a name");
        let mut params = named(name);
        let alternatives = CertificateParams::new(names).expect("names").subject_alt_names;
        params.subject_alt_names = alternatives;
        params.use_authority_key_identifier_extension = true;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![usage];
        if flaw == Flaw::Expired {
            params.not_after = date_time_ymd(2021, 1, 1);
        }
        let key = KeyPair::generate().expect("a key");
        let certificate = params.signed_by(&key, &self.issuer).expect("a certificate");
        let stem = getrandom::u32().expect("a random number");
        let file = |ending: &str| self.directory.path().join(format!("{stem}.{ending}"));
        let identity = Identity { certificate: file("pem"), key: file("key") };
        write(&identity.certificate, &certificate.pem());
        write(&identity.key, &key.serialize_pem());
        identity
    }
}

/// Valid from 2020 on.
fn named(name: &str) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name.remove(DnType::CommonName);
    params.distinguished_name.push(DnType::CommonName, name);
    params.not_before = date_time_ymd(2020, 1, 1);
    params
}

fn write(path: &Path, text: &str) {
    std::fs::write(path, text).expect("a file");
}
