//! Traces, as a collector gets them. With the feature alone: `cargo test --features otel --test main serve::traces`.

use std::convert::Infallible;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};

use futures_util::stream;
use tonic::body::Body;
use tonic::codegen::{BoxFuture, Service, http};
use tonic::server::{Grpc, NamedService, UnaryService};
use tonic_prost::ProstCodec;

use super::{assert_right, registry};
use crate::support::csi::{Client, volume};
use crate::support::node::{Node, SOON};
use crate::support::wait;

/// What is sent, as far as it is looked at (opentelemetry.proto.collector.trace.v1.ExportTraceServiceRequest).
#[derive(Clone, PartialEq, prost::Message)]
struct Export {
    #[prost(message, repeated, tag = "1")]
    of_resources: Vec<OfResource>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct OfResource {
    #[prost(message, repeated, tag = "2")]
    of_scopes: Vec<OfScope>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct OfScope {
    #[prost(message, repeated, tag = "2")]
    spans: Vec<Span>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Span {
    #[prost(string, tag = "5")]
    name: String,
    #[prost(fixed64, tag = "7")]
    start: u64,
    #[prost(fixed64, tag = "8")]
    end: u64,
    #[prost(message, repeated, tag = "9")]
    attributes: Vec<Attribute>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Attribute {
    #[prost(string, tag = "1")]
    key: String,
    #[prost(message, optional, tag = "2")]
    value: Option<Value>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Value {
    #[prost(string, tag = "1")]
    text: String,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Taken {}

/// A collector that remembers everything.
#[derive(Clone, Default)]
struct Collector(Arc<Mutex<Vec<Span>>>);

impl Collector {
    /// Listens on the loopback; the port. It ends with the runtime.
    fn listen(&self, runtime: &tokio::runtime::Runtime) -> u16 {
        let listener = runtime.block_on(tokio::net::TcpListener::bind("127.0.0.1:0")).unwrap();
        let port = listener.local_addr().unwrap().port();
        let connections = stream::unfold(listener, |listener| async move {
            Some((listener.accept().await.map(|(connection, _)| connection), listener))
        });
        let server = tonic::transport::Server::builder().add_service(self.clone());
        runtime.spawn(server.serve_with_incoming(connections));
        port
    }

    /// Whether a span with this name has an attribute that begins so.
    fn has(&self, span: &str, key: &str, value: &str) -> bool {
        let says = |attribute: &Attribute| {
            attribute.key == key
                && attribute.value.as_ref().is_some_and(|found| found.text.starts_with(value))
        };
        let is_meant = |found: &&Span| found.name == span && found.attributes.iter().any(says);
        let spans = self.0.lock().unwrap();
        let found = spans.iter().find(is_meant);
        assert!(found.is_none_or(|found| found.start > 0 && found.start <= found.end));
        found.is_some()
    }
}

impl NamedService for Collector {
    const NAME: &'static str = "opentelemetry.proto.collector.trace.v1.TraceService";
}

impl Service<http::Request<Body>> for Collector {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<Self::Response, Self::Error>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let collector = self.clone();
        Box::pin(async move {
            Ok(Grpc::new(ProstCodec::<Taken, Export>::default()).unary(collector, request).await)
        })
    }
}

impl UnaryService<Export> for Collector {
    type Response = Taken;
    type Future = BoxFuture<tonic::Response<Taken>, tonic::Status>;

    fn call(&mut self, request: tonic::Request<Export>) -> Self::Future {
        let scopes = request.into_inner().of_resources.into_iter().flat_map(|of| of.of_scopes);
        self.0.lock().unwrap().extend(scopes.flat_map(|of| of.spans));
        Box::pin(async { Ok(tonic::Response::new(Taken {})) })
    }
}

#[test]
fn publishing_mounting_and_fetches_that_somebody_waits_for_are_traced() {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let collector = Collector::default();
    let address = format!("WEIGHTFS_TRACES=http://127.0.0.1:{}", collector.listen(&runtime));
    let registry = registry(1..=1);
    let node = Node::by(&["env", &address, "OTEL_BSP_SCHEDULE_DELAY=100"], &["--node-id", "node-1"], |_| {});
    let (target, reference) = (node.target("pod"), registry.reference("models/1:v1"));
    let mut volume = volume("csi-1", &target, &reference);
    // So that somebody waits for every byte.
    volume.volume_context.insert("weightfs.dev/warm".into(), "none".into());
    Client::connect(&node.csi()).publish(volume).unwrap();
    assert_right(&target, 1);
    for (span, key, value) in [
        ("publish", "volume", "csi-1"),
        ("publish", "reference", &*reference),
        ("mount", "reference", &*reference),
        ("fetch", "path", "weights.bin"),
    ] {
        let traced = wait::eventually(SOON, || collector.has(span, key, value));
        assert!(traced, "no {span} with {key}: {:?}", collector.0.lock().unwrap());
    }
}
