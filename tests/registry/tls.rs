//! The registry with faults behind TLS, with a certificate of a made-up authority.

use std::net::SocketAddr;
use std::sync::Arc;

use axum::serve::Listener;
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use tokio_rustls::server::TlsStream;
use weightfs::testing::registry::{Fault, Habits, Registry, Rule, Source};

use super::sample::Sample;

/// A registry over TLS and who vouches for it.
pub(crate) struct Tls {
    pub(crate) registry: Registry,
    /// The authority's certificate, which is the registry's own, as PEM.
    pub(crate) certificate: String,
}

/// Serves `source` at 127.0.0.1 over TLS.
pub(crate) async fn start(source: Source, habits: Habits) -> Tls {
    let made = rcgen::generate_simple_self_signed(["127.0.0.1".to_owned(), "localhost".to_owned()]).unwrap();
    let key = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(made.signing_key.serialize_der()));
    let config = ServerConfig::builder().with_no_client_auth();
    let config = config.with_single_cert(vec![made.cert.der().clone()], key).unwrap();
    let listener = Door {
        listener: TcpListener::bind("127.0.0.1:0").await.unwrap(),
        acceptor: TlsAcceptor::from(Arc::new(config)),
    };
    let resets = |stream: &TlsStream<TcpStream>| stream.get_ref().0.set_zero_linger();
    let registry = Registry::over_tls(listener, resets, source.router(), habits).await.unwrap();
    Tls { registry, certificate: made.cert.pem() }
}

/// Takes who comes with TLS, one after the other.
struct Door {
    listener: TcpListener,
    acceptor: TlsAcceptor,
}

impl Listener for Door {
    type Io = TlsStream<TcpStream>;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Self::Io, Self::Addr) {
        loop {
            let Ok((stream, address)) = self.listener.accept().await else { continue };
            if let Ok(stream) = self.acceptor.accept(stream).await {
                return (stream, address);
            }
        }
    }

    fn local_addr(&self) -> std::io::Result<Self::Addr> {
        self.listener.local_addr()
    }
}

#[tokio::test]
async fn a_registry_behind_tls_answers_who_trusts_it_and_fails_as_any() {
    let sample = Sample::new();
    let tls = start(super::server::source(sample.folder()), Habits::default()).await;
    let trusted = reqwest::Certificate::from_pem(tls.certificate.as_bytes()).unwrap();
    let client = reqwest::Client::builder().tls_certs_only([trusted]).build().unwrap();
    let url = format!("{}/v2/test/sample/blobs/{}", tls.registry.origin(), sample.small.digest);
    assert!(url.starts_with("https://"));
    let get = async || client.get(&url).send().await;
    assert_eq!(get().await.unwrap().text().await.unwrap(), "x");
    for fault in [Fault::Reset, Fault::Close, Fault::Garbage] {
        tls.registry.rule(Rule::once("/blobs/", fault.clone()));
        assert!(get().await.is_err(), "{fault:?}");
    }
    tls.registry.rule(Rule::once("/blobs/", Fault::NoLength));
    assert_eq!(get().await.unwrap().text().await.unwrap(), "x");
    assert!(reqwest::get(&url).await.is_err(), "nobody else vouches for it");
}
