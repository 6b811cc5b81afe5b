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
    /// What was read. Held while they are read, so that they are read once.
    read: Mutex<Option<Read>>,
}

#[derive(Debug)]
struct Read {
    /// When they were read last, or could not be.
    tried: Instant,
    verifier: Arc<Verifier>,
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

    /// Who looks at certificates.
    fn verifier(&self) -> Result<Arc<Verifier>, Error> {
        let read =
            self.0.read.try_lock().and_then(|read| read.as_ref().map(|read| Arc::clone(&read.verifier)));
        read.map_or_else(|| beside(|| self.0.verifier()), Ok)
    }
}

/// Runs what may read files. Other tasks of this thread are not held up by it.
fn beside<T>(read: impl FnOnce() -> T) -> T {
    match Handle::try_current().map(|runtime| runtime.runtime_flavor()) {
        Ok(RuntimeFlavor::MultiThread) => tokio::task::block_in_place(read),
        _ => read(),
    }
}

impl Set {
    /// The same, once they are read. That there are none is not remembered: they may be installed meanwhile.
    fn verifier(&self) -> Result<Arc<Verifier>, Error> {
        let mut read = self.read.lock();
        if let Some(read) = &*read {
            return Ok(Arc::clone(&read.verifier));
        }
        let verifier = Arc::new(self.anew()?);
        Ok(Arc::clone(&read.insert(Read { tried: Instant::now(), verifier }).verifier))
    }

    /// Another one than `judged`, who does not know somebody: what was read meanwhile, else what is read now, where that was last tried longer ago
    /// than `since`. `None` where it was not, or cannot be read: what there was stays then.
    fn renewed(&self, judged: &Arc<Verifier>, since: Duration) -> Option<Arc<Verifier>> {
        let mut read = self.read.lock();
        let read = read.as_mut()?;
        if Arc::ptr_eq(&read.verifier, judged) {
            if read.tried.elapsed() < since {
                return None;
            }
            read.tried = Instant::now();
            read.verifier = Arc::new(self.anew().ok()?);
        }
        Some(Arc::clone(&read.verifier))
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
        let judge = |by: &Verifier| by.verify_server_cert(shown, between, name, ocsp, now);
        let verifier = self.verifier()?;
        let judged = judge(&verifier);
        let is_unknown = matches!(judged, Err(Error::InvalidCertificate(CertificateError::UnknownIssuer)));
        // It may have come to the machine since, or they were read while somebody wrote them.
        match is_unknown.then(|| beside(|| self.0.renewed(&verifier, AGAIN))).flatten() {
            Some(verifier) => judge(&verifier),
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
        assert!(roots.0.renewed(&first, AGAIN).is_none());
        let second = roots.0.renewed(&first, Duration::ZERO).unwrap();
        assert!(!Arc::ptr_eq(&first, &second) && Arc::ptr_eq(&second, &roots.verifier().unwrap()));
        // Who was judged by those before is judged by these, however lately they were read.
        assert!(Arc::ptr_eq(&second, &roots.0.renewed(&first, AGAIN).unwrap()));
    }
}
