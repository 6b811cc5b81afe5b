//! The machine's root certificates, read when a certificate is to be held against them.
//!
//! They are a file or some two hundred (Debian: 170 in `/etc/ssl/certs`), which takes 25 to 35 ms where the disk has not been asked for
//! them before: longer than all else that a mount does before it connects. Where nobody is asked with TLS they are not read; where
//! somebody is, they are read while his certificate is under way.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, aws_lc_rs, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::{CertificateError, ClientConfig, DigitallySignedStruct, Error, OtherError, SignatureScheme};
use rustls_platform_verifier::Verifier;
use tokio::runtime::{Handle, RuntimeFlavor};

/// The protocol that is spoken within (RFC 7301): no other is offered.
const SPOKEN: &[u8] = b"http/1.1";

/// How old what was read must be to be read again for somebody whom it does not vouch for.
const AGAIN: Duration = Duration::from_secs(60);

/// Believes whom the machine believes, and who is vouched for by further roots.
#[derive(Clone, Debug)]
pub(super) struct Roots(Arc<Set>);

#[derive(Debug)]
struct Set {
    further: Vec<CertificateDer<'static>>,
    provider: Arc<CryptoProvider>,
    /// Whether somebody reads them.
    begun: AtomicBool,
    /// What was read, and when. Held while they are read, so that they are read once.
    read: Mutex<Option<(Instant, Arc<Verifier>)>>,
}

/// The certificate that is shown, with those that vouch for it, and its key.
pub(super) type Shown = (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>);

/// The machine has no roots that can be used, and none were named: what was said of it.
#[derive(Debug)]
pub(super) struct NoRoots(Error);

impl Roots {
    /// Those of the machine and `further` ones. Reads nothing yet.
    pub(super) fn new(further: Vec<CertificateDer<'static>>) -> Self {
        let provider = Arc::new(aws_lc_rs::default_provider());
        Self(Arc::new(Set { further, provider, begun: AtomicBool::new(false), read: Mutex::default() }))
    }

    /// HTTP/1.1 over TLS 1.2 or 1.3 with whom they vouch for.
    ///
    /// # Errors
    /// Where the key is none that can be used.
    pub(super) fn config(&self, shown: Option<Shown>) -> Result<ClientConfig, Error> {
        let builder = ClientConfig::builder_with_provider(Arc::clone(&self.0.provider));
        let builder = builder.with_safe_default_protocol_versions()?.dangerous();
        let builder = builder.with_custom_certificate_verifier(Arc::new(self.clone()));
        let mut config = match shown {
            Some((chain, key)) => builder.with_client_auth_cert(chain, key)?,
            None => builder.with_no_client_auth(),
        };
        config.alpn_protocols = vec![SPOKEN.to_vec()];
        Ok(config)
    }

    /// Begins to read them, beside the caller; once. The thread ends with that, and nobody's end waits for it.
    fn begin(&self) {
        if !self.0.begun.swap(true, Ordering::Relaxed) {
            let set = Arc::clone(&self.0);
            let thread = std::thread::Builder::new().name("weightfs-roots".to_owned());
            // Without it they are read by who needs them.
            drop(thread.spawn(move || set.verifier().is_ok()));
        }
    }

    /// Who looks at certificates. Other tasks of this thread are not held up while they are read.
    fn verifier(&self) -> Result<Arc<Verifier>, Error> {
        if let Some(verifier) =
            self.0.read.try_lock().and_then(|read| read.clone()).map(|(_, verifier)| verifier)
        {
            return Ok(verifier);
        }
        match Handle::try_current().map(|runtime| runtime.runtime_flavor()) {
            Ok(RuntimeFlavor::MultiThread) => tokio::task::block_in_place(|| self.0.verifier()),
            _ => self.0.verifier(),
        }
    }
}

impl Set {
    /// The same, once they are read. That there are none is not remembered: they may be installed meanwhile.
    fn verifier(&self) -> Result<Arc<Verifier>, Error> {
        let mut read = self.read.lock();
        if let Some((_, verifier)) = &*read {
            return Ok(Arc::clone(verifier));
        }
        let (_, verifier) = read.insert((Instant::now(), Arc::new(self.anew()?)));
        Ok(Arc::clone(verifier))
    }

    /// The same, read once more where that was done longer ago than `since`; `None` where it was not, or cannot be read now: what there
    /// was stays then.
    fn renewed(&self, since: Duration) -> Option<Arc<Verifier>> {
        let mut read = self.read.try_lock()?;
        read.as_ref().filter(|(read, _)| read.elapsed() >= since)?;
        let (_, verifier) = read.insert((Instant::now(), Arc::new(self.anew().ok()?)));
        Some(Arc::clone(verifier))
    }

    fn anew(&self) -> Result<Verifier, Error> {
        let further = self.further.iter().cloned();
        Verifier::new_with_extra_roots(further, Arc::clone(&self.provider))
            .map_err(|error| Error::Other(OtherError(Arc::new(NoRoots(error)))))
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
        let judge = |by: Arc<Verifier>| by.verify_server_cert(shown, between, name, ocsp, now);
        let judged = judge(self.verifier()?);
        let is_unknown = matches!(judged, Err(Error::InvalidCertificate(CertificateError::UnknownIssuer)));
        // It may have come to the machine since, or they were read while somebody wrote them.
        match is_unknown.then(|| self.0.renewed(AGAIN)).flatten() {
            Some(verifier) => judge(verifier),
            None => judged,
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        shown: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12_signature(message, shown, signed, &self.0.provider.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        shown: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, shown, signed, &self.0.provider.signature_verification_algorithms)
    }

    /// Asked for by a handshake that begins.
    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.begin();
        self.0.provider.signature_verification_algorithms.supported_schemes()
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
        assert!(!roots.0.begun.load(Ordering::Relaxed) && roots.0.read.lock().is_none());
    }

    #[test]
    fn they_are_read_once_a_handshake_begins() {
        let vouching = rcgen::generate_simple_self_signed(["r.example".to_owned()]).unwrap();
        let roots = Roots::new(vec![vouching.cert.der().clone()]);
        let config = Arc::new(roots.config(None).unwrap());
        drop(rustls::ClientConnection::new(config, "r.example".try_into().unwrap()).unwrap());
        let limit = Instant::now() + Duration::from_secs(60);
        while roots.0.read.lock().is_none() {
            assert!(Instant::now() < limit, "nobody reads them");
            std::thread::yield_now();
        }
    }

    #[test]
    fn they_are_read_again_for_whom_they_do_not_vouch_unless_that_was_just_done() {
        let made = |by: &str| {
            let mut params = rcgen::CertificateParams::new(vec!["r.example".to_owned()]).unwrap();
            params.distinguished_name.push(rcgen::DnType::CommonName, by);
            params.self_signed(&rcgen::KeyPair::generate().unwrap()).unwrap().der().clone()
        };
        let (roots, stranger) = (Roots::new(vec![made("somebody")]), made("somebody else"));
        let judged = || {
            let name = "r.example".try_into().unwrap();
            roots.verify_server_cert(&stranger, &[], &name, &[], UnixTime::now())
        };
        let unknown = Error::InvalidCertificate(CertificateError::UnknownIssuer);
        assert_eq!(judged().unwrap_err(), unknown);
        let first = roots.verifier().unwrap();
        assert_eq!(judged().unwrap_err(), unknown);
        assert!(Arc::ptr_eq(&first, &roots.verifier().unwrap()));
        assert!(roots.0.renewed(AGAIN).is_none());
        let second = roots.0.renewed(Duration::ZERO).unwrap();
        assert!(!Arc::ptr_eq(&first, &second) && Arc::ptr_eq(&second, &roots.verifier().unwrap()));
    }
}
