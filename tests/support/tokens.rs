//! A token service that `docker-registry` believes: signed tokens (JWT, ES256) for who has the password, or an identity token.
//!
//! Speaks just enough HTTP for a `GET` with Basic credentials and a `POST` with an identity token (distribution "Token
//! Authentication Specification").

use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{SystemTime, UNIX_EPOCH};

use base64::Engine;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use rcgen::{CertificateParams, KeyPair, SigningKey};
use serde_json::json;
use tempfile::TempDir;

use super::registry::BASIC;
use super::scratch;

/// The service; ends when dropped.
pub struct Tokens {
    folder: TempDir,
    port: u16,
    shared: Arc<Shared>,
    serving: Option<JoinHandle<()>>,
}

struct Shared {
    key: KeyPair,
    certificate: Vec<u8>,
    given: AtomicUsize,
    /// The identity token that is known at the moment.
    identity: Mutex<Option<String>>,
    closing: AtomicBool,
}

impl Tokens {
    /// Gives tokens to `reader` and [`super::registry::PASSWORD`]. They are to be renewed every two seconds.
    pub fn start() -> Self {
        let folder = scratch::short();
        let key = KeyPair::generate().unwrap();
        let certificate = CertificateParams::new(Vec::new()).unwrap().self_signed(&key).unwrap();
        std::fs::write(folder.path().join("bundle.pem"), certificate.pem()).unwrap();
        let shared = Shared {
            key,
            certificate: certificate.der().to_vec(),
            given: AtomicUsize::new(0),
            identity: Mutex::default(),
            closing: AtomicBool::new(false),
        };
        let (shared, listener) = (Arc::new(shared), TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap());
        let port = listener.local_addr().unwrap().port();
        let serving = Arc::clone(&shared);
        let serving = std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                if serving.closing.load(Ordering::SeqCst) {
                    return;
                }
                // Who goes away is answered no more.
                let _gone = serving.answer(stream);
            }
        });
        Self { folder, port, shared, serving: Some(serving) }
    }

    /// `127.0.0.1:PORT`
    pub fn host(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// How many tokens were given out.
    pub fn given(&self) -> usize {
        self.shared.given.load(Ordering::SeqCst)
    }

    /// Gives tokens to who brings this identity token, and no more to who brings a former one.
    pub fn know(&self, identity: &str) {
        *self.shared.identity.lock().unwrap() = Some(identity.to_owned());
    }

    /// The lines of a registry's configuration that send everybody to `realm`, behind which this service is.
    pub fn config(&self, realm: &str) -> String {
        let bundle = self.folder.path().join("bundle.pem");
        format!(
            "auth: {{token: {{realm: \"{realm}\", service: test, issuer: tester, rootcertbundle: {}}}}}\n",
            bundle.display()
        )
    }
}

impl Drop for Tokens {
    fn drop(&mut self) {
        self.shared.closing.store(true, Ordering::SeqCst);
        let _wakes_accept = TcpStream::connect((Ipv4Addr::LOCALHOST, self.port));
        if let Some(serving) = self.serving.take() {
            serving.join().unwrap();
        }
    }
}

impl Shared {
    fn answer(&self, mut stream: TcpStream) -> std::io::Result<()> {
        let (mut head, mut byte) = (Vec::new(), [0]);
        while !head.ends_with(b"\r\n\r\n") {
            stream.read_exact(&mut byte)?;
            head.push(byte[0]);
        }
        let head = String::from_utf8_lossy(&head).into_owned();
        let length = head.lines().find_map(|line| {
            let (name, value) = line.split_once(':')?;
            name.eq_ignore_ascii_case("content-length").then(|| value.trim().parse().ok())?
        });
        let mut form = vec![0; length.unwrap_or(0)];
        stream.read_exact(&mut form)?;
        let form = String::from_utf8_lossy(&form).into_owned();
        let identity = self.identity.lock().unwrap().clone();
        let brings = |token: String| form.split('&').any(|pair| pair == format!("refresh_token={token}"));
        let known = identity.is_some_and(brings)
            || head.lines().any(|line| line.eq_ignore_ascii_case(&format!("authorization: basic {BASIC}")));
        let query =
            head.split(' ').nth(1).and_then(|target| Some(target.split_once('?')?.1)).unwrap_or(&form);
        let (status, body) = match scope(query) {
            Some((repository, actions)) if known => ("200 OK", self.token(&repository, &actions)),
            _ => ("401 Unauthorized", "{}".to_owned()),
        };
        let length = body.len();
        let head = "Content-Type: application/json\r\nConnection: close";
        write!(stream, "HTTP/1.1 {status}\r\n{head}\r\nContent-Length: {length}\r\n\r\n{body}")
    }

    fn token(&self, repository: &str, actions: &[&str]) -> String {
        let given = self.given.fetch_add(1, Ordering::SeqCst);
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
        let part = |value: serde_json::Value| URL_SAFE_NO_PAD.encode(value.to_string());
        let head = part(json!({"typ": "JWT", "alg": "ES256", "x5c": [STANDARD.encode(&self.certificate)]}));
        let claims = part(json!({
            "iss": "tester", "sub": "reader", "aud": "test", "jti": given.to_string(),
            "iat": now, "nbf": now - 5, "exp": now + 2,
            "access": [{"type": "repository", "name": repository, "actions": actions}],
        }));
        let signature = fixed(&self.key.sign(format!("{head}.{claims}").as_bytes()).unwrap());
        let token = format!("{head}.{claims}.{}", URL_SAFE_NO_PAD.encode(signature));
        json!({"token": token, "expires_in": 2}).to_string()
    }
}

/// Repository and actions of `scope=repository:NAME:ACTIONS` in a query or a form.
fn scope(query: &str) -> Option<(String, Vec<&str>)> {
    let scope = query.split('&').find_map(|pair| pair.strip_prefix("scope="))?;
    let mut parts = scope.split("%3A").skip(1);
    let repository = parts.next()?.replace("%2F", "/");
    Some((repository, parts.next()?.split("%2C").collect()))
}

/// The two numbers of a signature in DER, 32 bytes each, as a JWT has them (RFC 7518 §3.4).
fn fixed(der: &[u8]) -> Vec<u8> {
    let (mut rest, mut all) = (&der[2..], Vec::new());
    for _ in 0..2 {
        let length = usize::from(rest[1]);
        let number = &rest[2..2 + length];
        let number = &number[length.saturating_sub(32)..];
        all.extend(std::iter::repeat_n(0, 32 - number.len()).chain(number.iter().copied()));
        rest = &rest[2 + length..];
    }
    all
}
