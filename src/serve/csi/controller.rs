//! CSI's Controller service: volumes are made for who claims them, on no node.
//!
//! Nothing of a model has to be anywhere before a pod reads it, so that a volume is its attributes: they go along in its
//! context, and the node that a pod is on reads them. No node is asked, and none has to be reached. What was made is remembered
//! for as long as the process lives, to tell a second volume of the same name; the volume itself needs nobody's memory.
//!
//! With a `mount-id` a volume is, as at model-csi-driver, a model that is added to a dynamic volume of this node; its id then is
//! `VOLUME/MOUNT-ID`.

use std::collections::{HashMap, VecDeque};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tokio::time::timeout;
use tonic::{Code, Request, Response, Status};

use super::Driver;
use super::node::patience;
use super::request;
use super::v1::controller_server::Controller;
use super::v1::controller_service_capability::{Rpc, Type, rpc};
use super::v1::validate_volume_capabilities_response::Confirmed;
use super::v1::{
    ControllerExpandVolumeRequest, ControllerExpandVolumeResponse, ControllerGetCapabilitiesRequest,
    ControllerGetCapabilitiesResponse, ControllerGetVolumeRequest, ControllerGetVolumeResponse,
    ControllerModifyVolumeRequest, ControllerModifyVolumeResponse, ControllerPublishVolumeRequest,
    ControllerPublishVolumeResponse, ControllerServiceCapability, ControllerUnpublishVolumeRequest,
    ControllerUnpublishVolumeResponse, CreateSnapshotRequest, CreateSnapshotResponse, CreateVolumeRequest,
    CreateVolumeResponse, DeleteSnapshotRequest, DeleteSnapshotResponse, DeleteVolumeRequest,
    DeleteVolumeResponse, GetCapacityRequest, GetCapacityResponse, GetSnapshotRequest, GetSnapshotResponse,
    ListSnapshotsRequest, ListSnapshotsResponse, ListVolumesRequest, ListVolumesResponse,
    ValidateVolumeCapabilitiesRequest, ValidateVolumeCapabilitiesResponse, Volume, VolumeCapability,
};
use crate::serve::dynamic::{self, Folders};
use crate::serve::operations::Asker;
use crate::serve::refused::Refused;

/// How many volumes are remembered: the last that were made.
const REMEMBERED: usize = 10_000;

/// The volumes that were made.
#[derive(Debug, Default)]
pub(super) struct Made(Mutex<Memory>);

#[derive(Debug, Default)]
struct Memory {
    volumes: HashMap<String, Known>,
    /// Their ids, the oldest first.
    order: VecDeque<String>,
}

/// A volume as it was made.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Known {
    context: HashMap<String, String>,
    /// What it had to have room for, in bytes: the least and the most. A model has the size that it has.
    capacity: (i64, i64),
}

impl Made {
    /// Remembers a volume.
    ///
    /// # Errors
    /// `AlreadyExists` where another one has its name.
    fn remember(&self, id: &str, made: Known) -> Result<(), Refused> {
        let mut memory = self.0.lock();
        if let Some(known) = memory.volumes.get(id) {
            let other = || Refused::new(Code::AlreadyExists, format!("another volume is called {id:?}"));
            return if *known == made { Ok(()) } else { Err(other()) };
        }
        if memory.order.len() >= REMEMBERED
            && let Some(oldest) = memory.order.pop_front()
        {
            memory.volumes.remove(&oldest);
        }
        memory.order.push_back(id.to_owned());
        memory.volumes.insert(id.to_owned(), made);
        Ok(())
    }

    fn forget(&self, id: &str) {
        let mut memory = self.0.lock();
        if memory.volumes.remove(id).is_some() {
            memory.order.retain(|other| other != id);
        }
    }

    fn knows(&self, id: &str) -> bool {
        self.0.lock().volumes.contains_key(id)
    }
}

impl Driver {
    /// Makes a volume, or adds a model to one, as long as `limit` lasts.
    async fn create(&self, request: CreateVolumeRequest, limit: Duration) -> Result<Volume, Refused> {
        let Some(addition) = request::addition(&self.names.driver, &request.parameters)? else {
            return self.make(request);
        };
        let name = request::volume_name(&request.name)?;
        let missing = || Refused::new(Code::NotFound, format!("no dynamic volume {name:?} is on this node"));
        let folders = self.dynamic(name).ok_or_else(missing)?;
        let late =
            || Refused::new(Code::DeadlineExceeded, "the model takes too long to be opened; ask again");
        timeout(limit, dynamic::add(&folders, name, &addition)).await.unwrap_or_else(|_| Err(late()))?;
        let volume_id = format!("{name}/{}", addition.mount_id);
        tracing::info!(volume = volume_id, "added");
        Ok(Volume { volume_id, ..Volume::default() })
    }

    /// The folders of the dynamic volume `id`, where this node has it.
    fn dynamic(&self, id: &str) -> Option<Folders> {
        let volumes = self.plane.volumes.lock();
        let volume = volumes.values().find(|volume| volume.id == id && volume.is_dynamic())?;
        Some(self.plane.book.dynamic(&volume.mount))
    }

    fn make(&self, request: CreateVolumeRequest) -> Result<Volume, Refused> {
        let id = request::volume_name(&request.name)?.to_owned();
        capabilities(&request.volume_capabilities)?;
        if request.volume_content_source.is_some() {
            return Err(Refused::invalid("a model is no copy of another volume"));
        }
        let context = request::context(&self.names.driver, &request.parameters)?;
        let range = request.capacity_range.unwrap_or_default();
        if range.limit_bytes > 0 && range.required_bytes > range.limit_bytes {
            return Err(Refused::new(Code::OutOfRange, "the volume has to have more room than it may"));
        }
        let capacity = (range.required_bytes, range.limit_bytes);
        self.made.remember(&id, Known { context: context.clone(), capacity })?;
        tracing::info!(volume = id, "made");
        // A size of 0: not known, and no matter of the volume's.
        Ok(Volume { volume_id: id, volume_context: context, ..Volume::default() })
    }

    fn validate(
        &self,
        request: ValidateVolumeCapabilitiesRequest,
    ) -> Result<ValidateVolumeCapabilitiesResponse, Refused> {
        let id = request::volume_id(&request.volume_id)?;
        if request.volume_capabilities.is_empty() {
            return Err(Refused::invalid("the volume's capabilities are missing"));
        }
        // One that was made by a former process says itself what it is.
        if !self.made.knows(id) && request::context(&self.names.driver, &request.volume_context).is_err() {
            return Err(Refused::new(Code::NotFound, format!("there is no volume {id:?}")));
        }
        if let Err(refused) = capabilities(&request.volume_capabilities) {
            return Ok(ValidateVolumeCapabilitiesResponse { confirmed: None, message: refused.message });
        }
        let confirmed = Confirmed {
            volume_context: request.volume_context,
            volume_capabilities: request.volume_capabilities,
            parameters: request.parameters,
            mutable_parameters: HashMap::new(),
        };
        Ok(ValidateVolumeCapabilitiesResponse { confirmed: Some(confirmed), message: String::new() })
    }

    async fn delete(&self, request: &DeleteVolumeRequest, limit: Duration) -> Result<(), Refused> {
        let id = request::volume_id(&request.volume_id)?;
        self.made.forget(id);
        if let Some((volume, model)) = id.split_once('/')
            && let Some(folders) = self.dynamic(volume)
        {
            let late = || Refused::new(Code::DeadlineExceeded, "the volume's process does not answer");
            let removing = timeout(limit, dynamic::remove(&folders, volume, model)).await;
            removing.unwrap_or_else(|_| Err(late()))?;
        }
        tracing::info!(volume = id, "unmade");
        Ok(())
    }
}

fn capabilities(asked: &[VolumeCapability]) -> Result<(), Refused> {
    if asked.is_empty() {
        return Err(Refused::invalid("the volume's capabilities are missing"));
    }
    asked.iter().try_for_each(|capability| request::capability(Some(capability)))
}

#[tonic::async_trait]
impl Controller for Driver {
    async fn create_volume(
        &self,
        request: Request<CreateVolumeRequest>,
    ) -> Result<Response<CreateVolumeResponse>, Status> {
        let (begun, limit) = (Instant::now(), patience(request.metadata()));
        let made = self.create(request.into_inner(), limit).await;
        self.plane.tally.operations.count(Asker::Controller, "create_volume", begun.elapsed(), &made);
        Ok(Response::new(CreateVolumeResponse { volume: Some(made?) }))
    }

    async fn delete_volume(
        &self,
        request: Request<DeleteVolumeRequest>,
    ) -> Result<Response<DeleteVolumeResponse>, Status> {
        let (begun, limit) = (Instant::now(), patience(request.metadata()));
        let done = self.delete(request.get_ref(), limit).await;
        self.plane.tally.operations.count(Asker::Controller, "delete_volume", begun.elapsed(), &done);
        done?;
        Ok(Response::new(DeleteVolumeResponse {}))
    }

    async fn validate_volume_capabilities(
        &self,
        request: Request<ValidateVolumeCapabilitiesRequest>,
    ) -> Result<Response<ValidateVolumeCapabilitiesResponse>, Status> {
        Ok(Response::new(self.validate(request.into_inner())?))
    }

    async fn controller_get_capabilities(
        &self,
        _: Request<ControllerGetCapabilitiesRequest>,
    ) -> Result<Response<ControllerGetCapabilitiesResponse>, Status> {
        let able = Type::Rpc(Rpc { r#type: rpc::Type::CreateDeleteVolume.into() });
        let capabilities = vec![ControllerServiceCapability { r#type: Some(able) }];
        Ok(Response::new(ControllerGetCapabilitiesResponse { capabilities }))
    }

    async fn controller_publish_volume(
        &self,
        _: Request<ControllerPublishVolumeRequest>,
    ) -> Result<Response<ControllerPublishVolumeResponse>, Status> {
        Err(Status::unimplemented("a volume is attached to no node"))
    }

    async fn controller_unpublish_volume(
        &self,
        _: Request<ControllerUnpublishVolumeRequest>,
    ) -> Result<Response<ControllerUnpublishVolumeResponse>, Status> {
        Err(Status::unimplemented("a volume is attached to no node"))
    }

    async fn list_volumes(
        &self,
        _: Request<ListVolumesRequest>,
    ) -> Result<Response<ListVolumesResponse>, Status> {
        Err(Status::unimplemented("volumes are not listed: they need nobody who knows them"))
    }

    async fn get_capacity(
        &self,
        _: Request<GetCapacityRequest>,
    ) -> Result<Response<GetCapacityResponse>, Status> {
        Err(Status::unimplemented("a volume takes up no room before it is read"))
    }

    async fn create_snapshot(
        &self,
        _: Request<CreateSnapshotRequest>,
    ) -> Result<Response<CreateSnapshotResponse>, Status> {
        Err(Status::unimplemented("a model does not change"))
    }

    async fn delete_snapshot(
        &self,
        _: Request<DeleteSnapshotRequest>,
    ) -> Result<Response<DeleteSnapshotResponse>, Status> {
        Err(Status::unimplemented("a model does not change"))
    }

    async fn list_snapshots(
        &self,
        _: Request<ListSnapshotsRequest>,
    ) -> Result<Response<ListSnapshotsResponse>, Status> {
        Err(Status::unimplemented("a model does not change"))
    }

    async fn get_snapshot(
        &self,
        _: Request<GetSnapshotRequest>,
    ) -> Result<Response<GetSnapshotResponse>, Status> {
        Err(Status::unimplemented("a model does not change"))
    }

    async fn controller_expand_volume(
        &self,
        _: Request<ControllerExpandVolumeRequest>,
    ) -> Result<Response<ControllerExpandVolumeResponse>, Status> {
        Err(Status::unimplemented("a model has the size that it has"))
    }

    async fn controller_get_volume(
        &self,
        _: Request<ControllerGetVolumeRequest>,
    ) -> Result<Response<ControllerGetVolumeResponse>, Status> {
        Err(Status::unimplemented("the node says how a volume is"))
    }

    async fn controller_modify_volume(
        &self,
        _: Request<ControllerModifyVolumeRequest>,
    ) -> Result<Response<ControllerModifyVolumeResponse>, Status> {
        Err(Status::unimplemented("a volume does not change"))
    }
}
