//! Server reflection, v1 and v1alpha: clients discover the contract from the broker itself.
//!
//! Invariant: lists the services that are served and no other.

use tonic_reflection::server::{Builder, Error, v1, v1alpha};

use super::proto::DESCRIPTORS;

fn builder() -> Builder<'static> {
    let services = [
        tonic_health::pb::health_server::SERVICE_NAME,
        tonic_reflection::pb::v1::server_reflection_server::SERVICE_NAME,
        tonic_reflection::pb::v1alpha::server_reflection_server::SERVICE_NAME,
    ];
    super::SERVED.into_iter().chain(services).fold(
        Builder::configure()
            .register_encoded_file_descriptor_set(DESCRIPTORS)
            .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
            .register_encoded_file_descriptor_set(tonic_reflection::pb::v1::FILE_DESCRIPTOR_SET)
            .register_encoded_file_descriptor_set(tonic_reflection::pb::v1alpha::FILE_DESCRIPTOR_SET),
        Builder::with_service_name,
    )
}

/// Both versions of the service, over the same descriptors.
pub(super) fn services() -> Result<
    (
        v1::ServerReflectionServer<impl v1::ServerReflection>,
        v1alpha::ServerReflectionServer<impl v1alpha::ServerReflection>,
    ),
    Error,
> {
    Ok((builder().build_v1()?, builder().build_v1alpha()?))
}
