//! The machine's root certificates, read when a certificate is to be held against them.
//!
//! They are a file or some two hundred (Debian: 170 in `/etc/ssl/certs`), which takes 25 to 35 ms where the disk has not been asked for
//! them before: longer than all else that a mount does before it connects. Where nobody is asked with TLS they are not read; who
//! is asked with it alone has them read while he is connected to.

use std::sync::Arc;

use parking_lot::Mutex;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, aws_lc_rs, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::{CertificateError, ClientConfig, DigitallySignedStruct, Error, OtherError, SignatureScheme};
use rustls_platform_verifier::Verifier;
use tokio::runtime::{Handle, RuntimeFlavor};

/// The protocol that is spoken within (RFC 7301): no other is offered.
const SPOKEN: &[u8] = b"http/1.1";

/// Believes whom the machine believes, and who is vouched for by `further` roots.
#[derive(Debug)]
pub(super) struct Roots {
    further: Vec<CertificateDer<'static>>,
    provider: Arc<CryptoProvider>,
    /// Held while they are read, so that they are read once.
    read: Mutex<Option<Arc<Verifier>>>,
}

/// The certificate that is shown, with those that vouch for it, and its key.
pub(super) type Shown = (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>);

/// The machine has no roots that can be used, and none were named: what was said of it.
#[derive(Debug)]
pub(super) struct NoRoots(Error);

impl Roots {
    /// Reads nothing yet.
    pub(super) fn new(further: Vec<CertificateDer<'static>>) -> Arc<Self> {
        let provider = Arc::new(aws_lc_rs::default_provider());
        Arc::new(Self { further, provider, read: Mutex::default() })
    }

    /// Begins to read them, beside the caller: whoever needs them waits for the rest of it at most. Outside of a runtime they are read by
    /// whoever needs them.
    pub(super) fn begin(self: &Arc<Self>) {
        let roots = Arc::clone(self);
        if let Ok(runtime) = Handle::try_current() {
            drop(runtime.spawn_blocking(move || roots.verifier().is_ok()));
        }
    }

    /// HTTP/1.1 over TLS 1.2 or 1.3 with whom they vouch for.
    ///
    /// # Errors
    /// Where the key is none that can be used.
    pub(super) fn config(self: &Arc<Self>, shown: Option<Shown>) -> Result<ClientConfig, Error> {
        let builder = ClientConfig::builder_with_provider(Arc::clone(&self.provider));
        let builder = builder.with_safe_default_protocol_versions()?.dangerous();
        let builder = builder.with_custom_certificate_verifier(Arc::clone(self) as _);
        let mut config = match shown {
            Some((chain, key)) => builder.with_client_auth_cert(chain, key)?,
            None => builder.with_no_client_auth(),
        };
        config.alpn_protocols = vec![SPOKEN.to_vec()];
        Ok(config)
    }

    /// Who looks at certificates. Blocks while they are read. That there are no roots is not remembered: they may be installed meanwhile.
    fn verifier(&self) -> Result<Arc<Verifier>, Error> {
        let mut read = self.read.lock();
        if let Some(verifier) = &*read {
            return Ok(Arc::clone(verifier));
        }
        let verifier =
            Verifier::new_with_extra_roots(self.further.iter().cloned(), Arc::clone(&self.provider))
                .map_err(|error| Error::Other(OtherError(Arc::new(NoRoots(error)))))?;
        Ok(Arc::clone(read.insert(Arc::new(verifier))))
    }
}

/// Does what blocks without keeping other tasks of this thread's runtime waiting, where it is one that has others to do them.
fn blocking<T>(work: impl FnOnce() -> T) -> T {
    match Handle::try_current().map(|runtime| runtime.runtime_flavor()) {
        Ok(RuntimeFlavor::MultiThread) => tokio::task::block_in_place(work),
        _ => work(),
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
        let outcome = blocking(|| self.verifier())?.verify_server_cert(shown, between, name, ocsp, now);
        if matches!(outcome, Err(Error::InvalidCertificate(CertificateError::UnknownIssuer))) {
            // They may have been read while they were written, or before the one that is missing was installed.
            *self.read.lock() = None;
        }
        outcome
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

impl std::fmt::Display for NoRoots {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &self.0 {
            Error::General(said) => f.write_str(said),
            error => error.fmt(f),
        }
    }
}

impl std::error::Error for NoRoots {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn http_1_1_is_offered_and_nothing_read_for_it() {
        let roots = Roots::new(Vec::new());
        let config = roots.config(None).unwrap();
        assert_eq!(config.alpn_protocols, [b"http/1.1"]);
        assert!(roots.read.lock().is_none());
    }

    #[tokio::test]
    async fn what_is_begun_is_read_without_anybody_asking() {
        let authority = rcgen::generate_simple_self_signed(["r.example".to_owned()]).unwrap();
        let roots = Roots::new(vec![authority.cert.der().clone()]);
        roots.begin();
        while roots.read.lock().is_none() {
            tokio::task::yield_now().await;
        }
    }
}
