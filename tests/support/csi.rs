//! A client of the Container Storage Interface, as the kubelet is one: calls by name over a socket.

use std::collections::HashMap;
use std::path::Path;
use std::time::Duration;

use prost::Message;
use tokio::runtime::Runtime;
use tonic::client::Grpc;
use tonic::codegen::http::uri::PathAndQuery;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Request, Status};
use tonic_prost::ProstCodec;
use weightfs::serve::csi::v1::volume_capability::access_mode::Mode;
use weightfs::serve::csi::v1::volume_capability::{AccessMode, AccessType, MountVolume};
use weightfs::serve::csi::v1::{
    NodeGetVolumeStatsRequest, NodeGetVolumeStatsResponse, NodePublishVolumeRequest,
    NodePublishVolumeResponse, NodeUnpublishVolumeRequest, NodeUnpublishVolumeResponse, VolumeCapability,
};

/// The attribute that names the model.
pub const REFERENCE: &str = "model.csi.modelpack.org/reference";

/// A connection to a driver.
pub struct Client {
    runtime: Runtime,
    channel: Channel,
}

impl Client {
    /// Of the driver at `socket`, which listens already.
    pub fn connect(socket: &Path) -> Self {
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        let endpoint = Endpoint::from_shared(format!("unix://{}", socket.display())).unwrap();
        let channel = runtime.block_on(endpoint.timeout(Duration::from_secs(60)).connect()).unwrap();
        Self { runtime, channel }
    }

    /// Calls `method`, as `Node/NodeGetInfo`.
    ///
    /// # Errors
    /// What the driver answers.
    pub fn call<Q, A>(&self, method: &str, question: Q) -> Result<A, Status>
    where
        Q: Message + Send + Sync + 'static,
        A: Message + Default + Send + Sync + 'static,
    {
        self.send(&format!("/csi.v1.{method}"), Request::new(question))
    }

    /// Calls what is at `path`, of whatever service.
    ///
    /// # Errors
    /// What is answered.
    pub fn ask<Q, A>(&self, path: &str, question: Q) -> Result<A, Status>
    where
        Q: Message + Send + Sync + 'static,
        A: Message + Default + Send + Sync + 'static,
    {
        self.send(path, Request::new(question))
    }

    fn send<Q, A>(&self, path: &str, question: Request<Q>) -> Result<A, Status>
    where
        Q: Message + Send + Sync + 'static,
        A: Message + Default + Send + Sync + 'static,
    {
        let path: PathAndQuery = path.parse().unwrap();
        let mut client = Grpc::new(self.channel.clone());
        self.runtime.block_on(async {
            client.ready().await.unwrap();
            let answer = client.unary(question, path, ProstCodec::<Q, A>::default()).await?;
            Ok(answer.into_inner())
        })
    }

    /// The same, of what is answered with any number of messages.
    ///
    /// # Errors
    /// What is answered.
    pub fn all<Q, A>(&self, path: &str, question: Q) -> Result<Vec<A>, Status>
    where
        Q: Message + Send + Sync + 'static,
        A: Message + Default + Send + Sync + 'static,
    {
        let path: PathAndQuery = path.parse().unwrap();
        let mut client = Grpc::new(self.channel.clone());
        self.runtime.block_on(async {
            client.ready().await.unwrap();
            let codec = ProstCodec::<Q, A>::default();
            let mut answers =
                client.server_streaming(Request::new(question), path, codec).await?.into_inner();
            let mut all = Vec::new();
            while let Some(answer) = answers.message().await? {
                all.push(answer);
            }
            Ok(all)
        })
    }

    /// Publishes.
    ///
    /// # Errors
    /// What the driver answers.
    pub fn publish(&self, request: NodePublishVolumeRequest) -> Result<NodePublishVolumeResponse, Status> {
        self.call("Node/NodePublishVolume", request)
    }

    /// Publishes, and says how long it waits for the answer.
    ///
    /// # Errors
    /// What the driver answers.
    pub fn publish_within(
        &self,
        request: NodePublishVolumeRequest,
        limit: Duration,
    ) -> Result<NodePublishVolumeResponse, Status> {
        let mut request = Request::new(request);
        // The call itself waits longer, so that the driver's own answer is seen.
        let said = format!("{}m", limit.as_millis()).parse().unwrap();
        request.metadata_mut().insert("grpc-timeout", said);
        self.send("/csi.v1.Node/NodePublishVolume", request)
    }

    /// Takes a volume away.
    ///
    /// # Errors
    /// What the driver answers.
    pub fn unpublish(&self, id: &str, target: &Path) -> Result<NodeUnpublishVolumeResponse, Status> {
        let (volume_id, target_path) = (id.to_owned(), target.display().to_string());
        self.call("Node/NodeUnpublishVolume", NodeUnpublishVolumeRequest { volume_id, target_path })
    }

    /// Asks how a volume is.
    ///
    /// # Errors
    /// What the driver answers.
    pub fn stats(&self, id: &str, path: &str) -> Result<NodeGetVolumeStatsResponse, Status> {
        let (volume_id, volume_path) = (id.to_owned(), path.to_owned());
        let request =
            NodeGetVolumeStatsRequest { volume_id, volume_path, staging_target_path: String::new() };
        self.call("Node/NodeGetVolumeStats", request)
    }

    /// What is wrong with a volume, as its condition says; `None`: nothing.
    pub fn trouble(&self, id: &str, target: &Path) -> Option<String> {
        let stats = self.stats(id, &target.display().to_string()).unwrap();
        let condition = stats.volume_condition.expect("a condition");
        condition.abnormal.then_some(condition.message)
    }
}

/// A volume as the kubelet asks for one of a pod: mounted, by one node.
pub fn volume(id: &str, target: &Path, reference: &str) -> NodePublishVolumeRequest {
    NodePublishVolumeRequest {
        volume_id: id.to_owned(),
        target_path: target.display().to_string(),
        volume_capability: Some(capability()),
        volume_context: HashMap::from([(REFERENCE.to_owned(), reference.to_owned())]),
        ..NodePublishVolumeRequest::default()
    }
}

/// What a pod's volume has to be able to.
pub fn capability() -> VolumeCapability {
    VolumeCapability {
        access_mode: Some(AccessMode { mode: Mode::SingleNodeWriter.into() }),
        access_type: Some(AccessType::Mount(MountVolume::default())),
    }
}

/// The code of an answer.
pub fn code<T>(answer: Result<T, Status>) -> Code {
    answer.map_or_else(|status| status.code(), |_| Code::Ok)
}
