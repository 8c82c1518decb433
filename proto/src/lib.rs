//! Generated code of the three gRPC surfaces, and the one metadata key.
//!
//! [`v1`] is what clients speak, [`peer`] what nodes speak with each other, [`admin`] what administrators and the
//! operator speak with a node. The sources are `proto/dynamo/**.proto`; their comments are the reference.
#![allow(
    missing_docs,
    clippy::all,
    clippy::pedantic,
    unreachable_pub,
    unused_qualifications,
    reason = "generated code"
)]

/// The packages as their names nest, so that the generated references between them resolve.
mod dynamo {
    pub mod v1 {
        tonic::include_proto!("dynamo.v1");
    }
    pub mod peer {
        pub mod v1 {
            tonic::include_proto!("dynamo.peer.v1");
        }
    }
    pub mod admin {
        pub mod v1 {
            tonic::include_proto!("dynamo.admin.v1");
        }
    }
    pub mod fault {
        pub mod v1 {
            tonic::include_proto!("dynamo.fault.v1");
        }
    }
}

/// Administrators: package `dynamo.admin.v1`.
pub use dynamo::admin::v1 as admin;
/// Faults on demand, for tests from outside: package `dynamo.fault.v1`. Only nodes with hooks serve it.
pub use dynamo::fault::v1 as fault;
/// Nodes: package `dynamo.peer.v1`.
pub use dynamo::peer::v1 as peer;
/// Clients: package `dynamo.v1`.
pub use dynamo::v1;

/// The encoded descriptors of all packages but `dynamo.fault.v1`, for gRPC reflection.
pub const DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptors.bin"));

/// Metadata of requests of clients: the cluster that is meant, as a UUID.
pub const CLUSTER_METADATA: &str = "dynamo-cluster";
