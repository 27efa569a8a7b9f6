//! TLS on both sides: towards a broker elsewhere, and for the clients of ours.
//!
//! All keys and certificates come from PEM files. They are read once, so a renewed certificate needs a restart.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::crypto::{CryptoProvider, ring};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{ClientConfig, RootCertStore, ServerConfig};
use serde::Deserialize;

use iot_schemas::{Error, Result};

/// What a client of a broker needs for TLS.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ClientTls {
    /// The authorities that may have signed the broker's certificate; those of the system if absent.
    pub ca: Option<PathBuf>,
    /// Our certificate and what leads from it to an authority, for brokers that want to see one.
    pub certificate: Option<PathBuf>,
    /// The private key of our certificate.
    pub key: Option<PathBuf>,
}

impl ClientTls {
    /// Reads the files.
    pub fn load(&self) -> Result<Arc<ClientConfig>> {
        let roots = match &self.ca {
            Some(file) => authorities(file)?,
            None => system_authorities()?,
        };
        let builder = ClientConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()
            .map_err(|e| Error::invalid(format!("TLS: {e}")))?
            .with_root_certificates(roots);
        let config = match (&self.certificate, &self.key) {
            (Some(certificate), Some(key)) => builder
                .with_client_auth_cert(certificates(certificate)?, private_key(key)?)
                .map_err(|e| pair(certificate, key, &e))?,
            (None, None) => builder.with_no_client_auth(),
            _ => return Err(Error::invalid("a client certificate and its key must be given together")),
        };
        Ok(Arc::new(config))
    }

    /// Whether anything is set that makes sense over TLS only.
    pub fn is_set(&self) -> bool {
        *self != Self::default()
    }
}

/// How the embedded broker's TLS listeners show who they are, and whether clients must.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ServerTls {
    /// The broker's certificate and what leads from it to an authority.
    pub certificate: PathBuf,
    /// Its private key.
    pub key: PathBuf,
    /// The authorities that sign clients' certificates. If absent, clients show none.
    #[serde(default)]
    pub client_ca: Option<PathBuf>,
    /// Whether a client without a certificate gets in as far as the password.
    #[serde(default)]
    pub client_certificate: ClientCertificate,
}

/// Whether clients must show a certificate where there is a `client_ca`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ClientCertificate {
    /// Without one there is no connection.
    #[default]
    Required,
    /// Those without one need a password.
    Optional,
}

impl ServerTls {
    /// Reads the files.
    pub fn load(&self) -> Result<Arc<ServerConfig>> {
        let builder = ServerConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()
            .map_err(|e| Error::invalid(format!("TLS: {e}")))?;
        let builder = match &self.client_ca {
            None => builder.with_no_client_auth(),
            Some(file) => {
                let roots = Arc::new(authorities(file)?);
                let verifier = WebPkiClientVerifier::builder_with_provider(roots, provider());
                let verifier = match self.client_certificate {
                    ClientCertificate::Required => verifier,
                    ClientCertificate::Optional => verifier.allow_unauthenticated(),
                };
                let verifier = verifier.build();
                builder.with_client_cert_verifier(
                    verifier
                        .map_err(|e| Error::invalid(format!("the authorities in {}: {e}", file.display())))?,
                )
            }
        };
        let config = builder
            .with_single_cert(certificates(&self.certificate)?, private_key(&self.key)?)
            .map_err(|e| pair(&self.certificate, &self.key, &e))?;
        Ok(Arc::new(config))
    }
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(ring::default_provider())
}

fn system_authorities() -> Result<RootCertStore> {
    let found = rustls_native_certs::load_native_certs();
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(found.certs);
    if roots.is_empty() {
        return Err(Error::invalid("this system has no certificate authorities; name a file of them"));
    }
    Ok(roots)
}

fn authorities(file: &Path) -> Result<RootCertStore> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates(file)? {
        roots
            .add(certificate)
            .map_err(|e| Error::invalid(format!("the authorities in {}: {e}", file.display())))?;
    }
    Ok(roots)
}

fn certificates(file: &Path) -> Result<Vec<CertificateDer<'static>>> {
    let wrong = |why: String| Error::invalid(format!("the certificates in {}: {why}", file.display()));
    let certificates = CertificateDer::pem_file_iter(file)
        .and_then(Iterator::collect::<Result<Vec<_>, _>>)
        .map_err(|e| wrong(e.to_string()))?;
    match certificates.is_empty() {
        true => Err(wrong("there are none; it must be a PEM file".to_owned())),
        false => Ok(certificates),
    }
}

fn private_key(file: &Path) -> Result<PrivateKeyDer<'static>> {
    PrivateKeyDer::from_pem_file(file).map_err(|e| {
        Error::invalid(format!("the private key in {}: {e}; it must be a PEM file", file.display()))
    })
}

fn pair(certificate: &Path, key: &Path, why: &rustls::Error) -> Error {
    let (certificate, key) = (certificate.display(), key.display());
    Error::invalid(format!("the certificate in {certificate} and the key in {key}: {why}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wrong_file_is_named() {
        let dir = tempfile::tempdir().expect("a directory");
        let file = dir.path().join("ca.pem");
        let tls = ClientTls { ca: Some(file.clone()), ..ClientTls::default() };
        for content in [None, Some("no PEM")] {
            content.into_iter().for_each(|text| std::fs::write(&file, text).expect("written"));
            let error = tls.load().expect_err("nothing in it").to_string();
            assert!(error.contains("ca.pem"), "{error}");
        }
        let half = ClientTls { certificate: Some(file), ..ClientTls::default() };
        let error = half.load().expect_err("no key").to_string();
        assert!(error.contains("together"), "{error}");
    }
}
