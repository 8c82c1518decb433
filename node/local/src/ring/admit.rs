//! Making processes members: what the operator does in Kubernetes.

use dynamo_proto::admin::{BootstrapRequest, status_response::State};

use super::LocalRing;
use crate::{
    admin,
    error::Error,
    layout::Layout,
    node::{Node, Running},
};

impl LocalRing {
    /// One look at all running nodes: tells those without an identity what they are, and returns who is not valid yet.
    pub(super) async fn admit(&mut self) -> Result<Vec<(usize, String)>, Error> {
        let mut answers = Vec::new();
        let mut waiting = Vec::new();
        for index in 0..self.nodes.len() {
            if let Some(error) = self.ended_node(index) {
                return Err(error);
            }
            if !matches!(self.nodes[index].running(), Running::Yes { .. }) {
                continue;
            }
            match admin::status(self.nodes[index].addresses.admin).await {
                // One that gets suspect partitions back coordinates meanwhile, and may need nodes that do not run.
                Ok(status) if status.state() == State::Valid && !status.confirming => {
                    answers.push((index, status));
                }
                Ok(status) => {
                    waiting.push((index, format!("{:?} {}", status.state(), status.not_ready_reason)));
                    answers.push((index, status));
                }
                Err(failure) => waiting.push((index, failure)),
            }
        }
        let rings = answers.iter().filter(|(_, status)| status.ring_epoch > 0).count();
        for (index, status) in &answers {
            if status.state() != State::Unassigned {
                continue;
            }
            // The first ring is minted only where every node has said that it knows none.
            if *index == 0 && rings == 0 {
                if answers.len() == self.nodes.len() {
                    self.bootstrap().await?;
                }
            } else {
                self.join(*index).await?;
            }
        }
        Ok(waiting)
    }

    /// The nodes that do not reach all others, or do not know them.
    pub(super) async fn strangers(&self) -> Vec<(usize, String)> {
        let mut strangers = Vec::new();
        for (index, node) in self.nodes.iter().enumerate() {
            let reason = match admin::peers(node.addresses.admin).await {
                Ok(peers) if peers.len() < self.nodes.len() => "it does not know all others".to_owned(),
                Ok(peers) => match peers.into_iter().find(|peer| !peer.reachable) {
                    Some(peer) => format!("it does not reach {}: {}", peer.member_id, peer.last_error),
                    None => continue,
                },
                Err(failure) => failure,
            };
            strangers.push((index, reason));
        }
        strangers
    }

    async fn bootstrap(&self) -> Result<(), Error> {
        let Layout {
            partitions, factor, ..
        } = self.layout();
        let request = BootstrapRequest {
            cluster_id: self.cluster_id().into(),
            member_id: self.nodes[0].member.clone(),
            members: self.nodes.iter().map(Node::to_member).collect(),
            partitions,
            factor,
        };
        (self.settings.progress)("minting the ring");
        let answer = admin::bootstrap(self.nodes[0].addresses.admin, request).await;
        answer.map_err(|reason| self.refused(0, "Bootstrap", reason))
    }

    async fn join(&self, index: usize) -> Result<(), Error> {
        let node = &self.nodes[index];
        let answer = admin::join(
            node.addresses.admin,
            &self.cluster_id(),
            &node.to_member(),
            &self.seeds(index),
        )
        .await;
        answer.map_err(|reason| self.refused(index, "Join", reason))
    }

    fn cluster_id(&self) -> Vec<u8> {
        self.description.cluster_id.as_bytes().to_vec()
    }

    fn refused(&self, index: usize, what: &'static str, reason: String) -> Error {
        Error::Refused {
            member: self.nodes[index].member.clone(),
            what,
            reason,
        }
    }
}
