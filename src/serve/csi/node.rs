//! CSI's Node service: volumes are published, taken away, and asked how they are.
//!
//! A publish returns once the mount answers, which is long before the model is here. Whatever was asked for once is seen through,
//! also where who asked gives up: the next one finds it done.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tonic::metadata::MetadataMap;
use tonic::{Code, Request, Response, Status};

use super::Driver;
use super::request::{self, Asked};
use super::v1::node_server::Node;
use super::v1::node_service_capability::{Rpc, Type, rpc};
use super::v1::volume_usage::Unit;
use super::v1::{
    NodeExpandVolumeRequest, NodeExpandVolumeResponse, NodeGetCapabilitiesRequest,
    NodeGetCapabilitiesResponse, NodeGetInfoRequest, NodeGetInfoResponse, NodeGetVolumeStatsRequest,
    NodeGetVolumeStatsResponse, NodePublishVolumeRequest, NodePublishVolumeResponse, NodeServiceCapability,
    NodeStageVolumeRequest, NodeStageVolumeResponse, NodeUnpublishVolumeRequest, NodeUnpublishVolumeResponse,
    NodeUnstageVolumeRequest, NodeUnstageVolumeResponse, VolumeCondition, VolumeUsage,
};
use crate::mount::Detach;
use crate::serve::operations::Asker;
use crate::serve::plane::{Plane, blocking, seen_through};
use crate::serve::refused::Refused;
use crate::serve::volumes::INLINE;
use crate::serve::{Condition, Origin, Published, Terms};

/// How long a publish waits for a registry at most: the kubelet gives up waiting after two minutes, and asks again.
const PATIENCE: Duration = Duration::from_secs(110);

#[tonic::async_trait]
impl Node for Driver {
    async fn node_publish_volume(
        &self,
        request: Request<NodePublishVolumeRequest>,
    ) -> Result<Response<NodePublishVolumeResponse>, Status> {
        let limit = patience(request.metadata());
        let request = request.into_inner();
        let operation = named(&request.volume_id, ["publish_volume", "publish_dynamic_volume"]);
        let (plane, driver) = (self.plane.clone(), self.names.driver.clone());
        let work = seen_through(async move { publish(&plane, &driver, request, limit).await });
        self.counted(operation, work).await?;
        Ok(Response::new(NodePublishVolumeResponse {}))
    }

    async fn node_unpublish_volume(
        &self,
        request: Request<NodeUnpublishVolumeRequest>,
    ) -> Result<Response<NodeUnpublishVolumeResponse>, Status> {
        let request = request.into_inner();
        let operation = named(&request.volume_id, ["unpublish_volume", "unpublish_dynamic_volume"]);
        let plane = self.plane.clone();
        self.counted(operation, seen_through(async move { unpublish(&plane, request).await })).await?;
        Ok(Response::new(NodeUnpublishVolumeResponse {}))
    }

    async fn node_get_volume_stats(
        &self,
        request: Request<NodeGetVolumeStatsRequest>,
    ) -> Result<Response<NodeGetVolumeStatsResponse>, Status> {
        Ok(Response::new(stats(&self.plane, request.into_inner()).await?))
    }

    async fn node_get_capabilities(
        &self,
        _: Request<NodeGetCapabilitiesRequest>,
    ) -> Result<Response<NodeGetCapabilitiesResponse>, Status> {
        let able = [rpc::Type::GetVolumeStats, rpc::Type::VolumeCondition];
        let capability =
            |what: rpc::Type| NodeServiceCapability { r#type: Some(Type::Rpc(Rpc { r#type: what.into() })) };
        Ok(Response::new(NodeGetCapabilitiesResponse { capabilities: able.map(capability).to_vec() }))
    }

    async fn node_get_info(
        &self,
        _: Request<NodeGetInfoRequest>,
    ) -> Result<Response<NodeGetInfoResponse>, Status> {
        let node_id = self.names.node.clone();
        Ok(Response::new(NodeGetInfoResponse { node_id, max_volumes_per_node: 0, accessible_topology: None }))
    }

    async fn node_stage_volume(
        &self,
        _: Request<NodeStageVolumeRequest>,
    ) -> Result<Response<NodeStageVolumeResponse>, Status> {
        Err(Status::unimplemented("a volume is published without being staged"))
    }

    async fn node_unstage_volume(
        &self,
        _: Request<NodeUnstageVolumeRequest>,
    ) -> Result<Response<NodeUnstageVolumeResponse>, Status> {
        Err(Status::unimplemented("a volume is published without being staged"))
    }

    async fn node_expand_volume(
        &self,
        _: Request<NodeExpandVolumeRequest>,
    ) -> Result<Response<NodeExpandVolumeResponse>, Status> {
        Err(Status::unimplemented("a model has the size that it has"))
    }
}

/// What model-csi-driver calls it for a volume of a claim, and for one of a single pod.
fn named(volume: &str, [claimed, inline]: [&'static str; 2]) -> &'static str {
    if volume.starts_with(INLINE) { inline } else { claimed }
}

/// How long a publish may wait for a registry: less than who asks waits for the answer, and never longer than [`PATIENCE`].
pub(super) fn patience(metadata: &MetadataMap) -> Duration {
    let said = metadata.get("grpc-timeout").and_then(|value| value.to_str().ok());
    let asked = said.and_then(timeout).map_or(PATIENCE, |timeout| timeout.mul_f32(0.9));
    asked.min(PATIENCE)
}

/// What a `grpc-timeout` says: at most eight digits and a unit (gRPC over HTTP/2, "Requests").
fn timeout(text: &str) -> Option<Duration> {
    let (digits, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    let count: u64 = Some(digits).filter(|digits| digits.len() <= 8)?.parse().ok()?;
    Some(match unit {
        "H" => Duration::from_secs(count * 3600),
        "M" => Duration::from_secs(count * 60),
        "S" => Duration::from_secs(count),
        "m" => Duration::from_millis(count),
        "u" => Duration::from_micros(count),
        "n" => Duration::from_nanos(count),
        _ => return None,
    })
}

impl Driver {
    async fn counted(
        &self,
        operation: &'static str,
        work: impl Future<Output = Result<(), Refused>>,
    ) -> Result<(), Refused> {
        let begun = Instant::now();
        let done = work.await;
        let done = done.inspect_err(|refused| tracing::warn!(code = ?refused.code, "{}", refused.message));
        self.plane.tally.operations.count(Asker::Node, operation, begun.elapsed(), &done);
        done
    }
}

async fn publish(
    plane: &Arc<Plane>,
    driver: &str,
    request: NodePublishVolumeRequest,
    limit: Duration,
) -> Result<(), Refused> {
    let id = request::volume_id(&request.volume_id)?;
    let target = request::path("target_path", &request.target_path)?;
    request::capability(request.volume_capability.as_ref())?;
    let Asked { wanted, room, renewal } =
        request::asked(driver, id, &request.volume_context, &request.secrets)?;
    let terms = Terms { limit, room, renewal, ..Terms::default() };
    match plane.publish_on(id, target, Origin::Csi, wanted, terms).await? {
        Published::Ready(shown) => {
            tracing::info!(volume = id, digest = shown.digest, "published {}", shown.reference);
            Ok(())
        }
        Published::Pending => {
            Err(Refused::new(Code::Aborted, format!("something is under way for volume {id:?} already")))
        }
        Published::Foreign => {
            let message = format!("somebody else's mount stands at {}", target.display());
            Err(Refused::new(Code::FailedPrecondition, message))
        }
        Published::Full(most) => {
            let message = format!("the node has {most} mounts, as many as serve.max_mounts allows");
            Err(Refused::new(Code::ResourceExhausted, message))
        }
        Published::NoRoom { size, room } => {
            let message = format!("the model has {size} bytes, and the store may have {room}");
            Err(Refused::new(Code::ResourceExhausted, message))
        }
        Published::Taken(what) => {
            let message = format!("{} is taken by {what}", target.display());
            Err(Refused::new(Code::AlreadyExists, message))
        }
    }
}

async fn unpublish(plane: &Arc<Plane>, request: NodeUnpublishVolumeRequest) -> Result<(), Refused> {
    let id = request::volume_id(&request.volume_id)?;
    let target = request::path("target_path", &request.target_path)?;
    plane.unpublish(id, target, Detach::Lazy).await?;
    tracing::info!(volume = id, "unpublished");
    Ok(())
}

async fn stats(
    plane: &Arc<Plane>,
    request: NodeGetVolumeStatsRequest,
) -> Result<NodeGetVolumeStatsResponse, Refused> {
    let id = request::volume_id(&request.volume_id)?;
    let path = request::path("volume_path", &request.volume_path)?;
    let missing = || Refused::new(Code::NotFound, format!("no volume {id:?} is at {}", path.display()));
    let volume = plane.volume_at(path).filter(|volume| volume.id == id).ok_or_else(missing)?;
    let plane = plane.clone();
    let Condition { trouble, status } = blocking(move || Ok(plane.condition(&volume))).await?;
    // All of a model's bytes are in use, and what of them is here is no matter of the volume's.
    let total = status.map_or(0, |status| i64::try_from(status.total).unwrap_or(i64::MAX));
    let usage = VolumeUsage { available: 0, total, used: total, unit: Unit::Bytes.into() };
    let condition = VolumeCondition {
        abnormal: trouble.is_some(),
        message: trouble.unwrap_or_else(|| "the model can be read".to_owned()),
    };
    Ok(NodeGetVolumeStatsResponse { usage: vec![usage], volume_condition: Some(condition) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_publish_waits_a_little_less_than_who_asks_and_never_much_longer_than_the_kubelet() {
        let waits = |said: Option<&'static str>| {
            let mut metadata = MetadataMap::new();
            said.map(|said| metadata.insert("grpc-timeout", said.parse().unwrap()));
            patience(&metadata)
        };
        assert_eq!(waits(Some("10S")).as_secs_f32().round(), 9.0);
        assert_eq!(waits(Some("5000m")).as_secs_f32(), 4.5);
        for said in [None, Some("99999999H"), Some("123456789S"), Some("S"), Some("10x"), Some("-1S")] {
            assert_eq!(waits(said), PATIENCE, "{said:?}");
        }
    }
}
