//! The code generated from `proto/stafett`, client and server.
//!
//! Invariant: nothing is written here by hand but what `build.rs` takes from elsewhere; it makes the rest. The documents of the messages stand in the `.proto`
//! files.

#![allow(missing_docs, unreachable_pub, clippy::all, reason = "generated")]

/// Package `stafett.v1`.
pub mod v1 {
    pub use crate::grpc::DeliveryBatch;

    include!(concat!(env!("OUT_DIR"), "/stafett.v1.rs"));
}

/// Package `stafett.v1beta1`: what has not settled yet.
pub mod v1beta1 {
    include!(concat!(env!("OUT_DIR"), "/stafett.v1beta1.rs"));
}

/// The descriptors of every file under `proto/`, as reflection serves them.
pub const DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/stafett.bin"));

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use prost::Message;
    use prost_types::{FileDescriptorProto, FileDescriptorSet};

    /// What in the file is not documented, as `name` or `name.name`.
    fn undocumented(file: &FileDescriptorProto) -> Vec<String> {
        let locations =
            file.source_code_info.as_ref().map(|info| info.location.as_slice()).unwrap_or_default();
        let said = locations.iter().filter(|at| !at.leading_comments().trim().is_empty());
        let said = said.map(|at| at.path.as_slice()).collect::<HashSet<_>>();

        let index = |position: usize| i32::try_from(position).unwrap();
        let mut parts: Vec<(Vec<i32>, String)> = Vec::new();
        for (at, message) in file.message_type.iter().enumerate() {
            parts.push((vec![4, index(at)], message.name().to_owned()));
            for (field_at, field) in message.field.iter().enumerate() {
                let name = format!("{}.{}", message.name(), field.name());
                parts.push((vec![4, index(at), 2, index(field_at)], name));
            }
        }
        for (at, kind) in file.enum_type.iter().enumerate() {
            parts.push((vec![5, index(at)], kind.name().to_owned()));
            for (value_at, value) in kind.value.iter().enumerate() {
                parts.push((vec![5, index(at), 2, index(value_at)], value.name().to_owned()));
            }
        }
        for (at, service) in file.service.iter().enumerate() {
            parts.push((vec![6, index(at)], service.name().to_owned()));
            for (method_at, method) in service.method.iter().enumerate() {
                parts.push((vec![6, index(at), 2, index(method_at)], method.name().to_owned()));
            }
        }
        parts.into_iter().filter(|(path, _)| !said.contains(path.as_slice())).map(|(_, name)| name).collect()
    }

    #[test]
    fn the_contract_is_documented_part_by_part() {
        let files = FileDescriptorSet::decode(super::DESCRIPTORS).unwrap().file;
        let ours = files.iter().filter(|file| file.package().starts_with("stafett.")).collect::<Vec<_>>();
        assert!(ours.len() >= 3);
        for file in ours {
            assert_eq!(undocumented(file), Vec::<String>::new(), "in {}", file.name());
        }
    }
}
