//! CSI's Identity service: what the driver is called, what it can do, whether it is ready.

use std::collections::HashMap;
use std::sync::atomic::Ordering;

use tonic::{Request, Response, Status};

use super::Driver;
use super::v1::identity_server::Identity;
use super::v1::plugin_capability::{Service, Type, service};
use super::v1::{
    GetPluginCapabilitiesRequest, GetPluginCapabilitiesResponse, GetPluginInfoRequest, GetPluginInfoResponse,
    PluginCapability, ProbeRequest, ProbeResponse,
};

#[tonic::async_trait]
impl Identity for Driver {
    async fn get_plugin_info(
        &self,
        _: Request<GetPluginInfoRequest>,
    ) -> Result<Response<GetPluginInfoResponse>, Status> {
        Ok(Response::new(GetPluginInfoResponse {
            name: self.names.driver.clone(),
            vendor_version: env!("CARGO_PKG_VERSION").to_owned(),
            manifest: HashMap::new(),
        }))
    }

    /// Volumes are made by the driver too. They can be had on every node.
    async fn get_plugin_capabilities(
        &self,
        _: Request<GetPluginCapabilitiesRequest>,
    ) -> Result<Response<GetPluginCapabilitiesResponse>, Status> {
        let able = Type::Service(Service { r#type: service::Type::ControllerService.into() });
        let capabilities = vec![PluginCapability { r#type: Some(able) }];
        Ok(Response::new(GetPluginCapabilitiesResponse { capabilities }))
    }

    async fn probe(&self, _: Request<ProbeRequest>) -> Result<Response<ProbeResponse>, Status> {
        Ok(Response::new(ProbeResponse { ready: Some(self.ready.load(Ordering::Relaxed)) }))
    }
}
