//! The machine's root certificates, read when a certificate is to be held against them.
//!
//! They are a file or some two hundred (Debian: 170 in `/etc/ssl/certs`), which takes 25 to 35 ms where the disk has not been asked for them before: longer
//! than all else that a mount does before it connects. Who asks a registry without TLS never waits for them; who asks one with TLS has them
//! read while he connects.

use std::sync::Arc;

use parking_lot::Mutex;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, aws_lc_rs, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, Error, OtherError, SignatureScheme};
use rustls_platform_verifier::Verifier;

/// Believes whom the machine believes, and who is vouched for by `further` roots.
#[derive(Debug)]
pub(super) struct Roots {
    further: Vec<CertificateDer<'static>>,
    provider: Arc<CryptoProvider>,
    /// Held while they are read, so that they are read once.
    read: Mutex<Option<Arc<Verifier>>>,
}

/// The machine has no roots that can be used, and none were named: what was said of it.
#[derive(Debug)]
pub(super) struct NoRoots(String);

impl Roots {
    /// Reads nothing yet.
    pub(super) fn new(further: Vec<CertificateDer<'static>>) -> Arc<Self> {
        let provider = Arc::new(aws_lc_rs::default_provider());
        Arc::new(Self { further, provider, read: Mutex::default() })
    }

    /// Begins to read them, on a thread of its own: whoever needs them waits for the rest of it at most.
    pub(super) fn begin(self: &Arc<Self>) {
        let roots = Arc::clone(self);
        let reading = std::thread::Builder::new().name("roots".to_owned());
        // Without a thread they are read by whoever needs them.
        let _ = reading.spawn(move || roots.verifier().is_ok());
    }

    /// TLS 1.2 and 1.3 with whom they vouch for, showing no certificate.
    ///
    /// # Errors
    /// Where the provider has neither.
    pub(super) fn config(self: &Arc<Self>) -> Result<ClientConfig, Error> {
        let builder = ClientConfig::builder_with_provider(Arc::clone(&self.provider));
        let builder = builder.with_safe_default_protocol_versions()?.dangerous();
        Ok(builder.with_custom_certificate_verifier(Arc::clone(self) as _).with_no_client_auth())
    }

    /// Who looks at certificates. That there are no roots is not remembered: they may be installed in the meantime.
    fn verifier(&self) -> Result<Arc<Verifier>, Error> {
        let mut read = self.read.lock();
        if let Some(verifier) = &*read {
            return Ok(Arc::clone(verifier));
        }
        let verifier =
            Verifier::new_with_extra_roots(self.further.iter().cloned(), Arc::clone(&self.provider))
                .map_err(NoRoots::from)?;
        Ok(Arc::clone(read.insert(Arc::new(verifier))))
    }
}

impl ServerCertVerifier for Roots {
    fn verify_server_cert(
        &self,
        shown: &CertificateDer<'_>,
        between: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        self.verifier()?.verify_server_cert(shown, between, name, ocsp, now)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        shown: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12_signature(message, shown, signed, &self.provider.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        shown: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, shown, signed, &self.provider.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

impl From<Error> for NoRoots {
    fn from(error: Error) -> Self {
        match error {
            Error::General(said) => Self(said),
            error => Self(error.to_string()),
        }
    }
}

impl From<NoRoots> for Error {
    fn from(none: NoRoots) -> Self {
        Self::Other(OtherError(Arc::new(none)))
    }
}

impl std::fmt::Display for NoRoots {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for NoRoots {}
