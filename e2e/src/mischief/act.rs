//! Doing faults to the lab, and healing it.

use std::time::Duration;

use dynamo_proto::fault::{CrashRequest, PeerFault, SetRequest};

use super::Fault;
use crate::{lab::Lab, wait::seconds};

/// A script of e2e/kind or docker may take so long.
const SCRIPT: Duration = seconds(60);

impl Fault {
    /// Does it.
    ///
    /// # Errors
    /// If it cannot be done; then it may have been done in part, and should be healed.
    pub async fn begin(&self, lab: &Lab) -> anyhow::Result<()> {
        match self {
            Self::Kill(member) => lab.kill(&[member]).await,
            Self::Crash(member) => {
                let (_forward, mut faults) = lab.faults(member).await?;
                // The connection dies with the process.
                faults.crash(CrashRequest {}).await.ok();
                Ok(())
            }
            Self::Pause(member) => signal(lab, member, "STOP").await,
            Self::CutOneWay(from, to) => {
                let lost = PeerFault {
                    member_id: to.clone(),
                    drop_requests: true,
                    ..PeerFault::default()
                };
                lab.set_faults(from, of_peer(lost)).await
            }
            Self::Cut(member, other) => lab.set_faults(member, of_peer(deaf_to(other))).await,
            Self::Isolate(member) => lab.set_faults(member, of_peer(deaf_to(""))).await,
            Self::Slow(member, delay_ms) => {
                let slow = PeerFault {
                    delay_ms: *delay_ms,
                    ..PeerFault::default()
                };
                lab.set_faults(member, of_peer(slow)).await
            }
            Self::Skew(member, clock_skew_ms) => {
                let skewed = SetRequest {
                    clock_skew_ms: *clock_skew_ms,
                    ..SetRequest::default()
                };
                lab.set_faults(member, skewed).await
            }
            Self::KillZone(zone) => {
                let members = lab.members().await?;
                let of_zone = members.iter().filter(|(_, at)| *at == zone);
                let of_zone: Vec<&str> = of_zone.map(|(member, _)| member.as_str()).collect();
                lab.kill(&of_zone).await
            }
            Self::CutZone(zone) => zone_script(lab, "cut", zone).await,
        }
    }

    /// Ends it, as far as it does not end by itself.
    ///
    /// # Errors
    /// If that cannot be done.
    pub async fn heal(&self, lab: &Lab) -> anyhow::Result<()> {
        match self {
            Self::Kill(_) | Self::Crash(_) | Self::KillZone(_) => Ok(()),
            Self::Pause(member) => signal(lab, member, "CONT").await,
            Self::CutOneWay(member, _)
            | Self::Cut(member, _)
            | Self::Isolate(member)
            | Self::Slow(member, _)
            | Self::Skew(member, _) => lab.set_faults(member, SetRequest::default()).await,
            Self::CutZone(zone) => zone_script(lab, "heal", zone).await,
        }
    }
}

fn of_peer(fault: PeerFault) -> SetRequest {
    SetRequest {
        peers: vec![fault],
        ..SetRequest::default()
    }
}

/// Nothing from or to a peer; from or to all, if it is empty.
fn deaf_to(peer: &str) -> PeerFault {
    PeerFault {
        member_id: peer.into(),
        drop_requests: true,
        drop_arrivals: true,
        drop_replies: true,
        delay_ms: 0,
    }
}

/// Sends a signal to a member's process, wherever it runs: its host name is its pod's.
async fn signal(lab: &Lab, member: &str, signal: &str) -> anyhow::Result<()> {
    let kind = lab.cluster.kind()?;
    let script = format!(
        "for node in $(docker ps --filter label=io.x-k8s.kind.cluster={kind} --format '{{{{.Names}}}}'); do\n\
         docker exec \"$node\" sh -c 'for process in /proc/[0-9]*; do\n\
         grep -qzx HOSTNAME={member} \"$process/environ\" 2>/dev/null || continue\n\
         grep -qx dynamo-node \"$process/comm\" && kill -{signal} \"${{process#/proc/}}\"\n\
         done; true'\ndone"
    );
    lab.cluster.with_engine(&script, SCRIPT).await.map(drop)
}

async fn zone_script(lab: &Lab, action: &str, zone: &str) -> anyhow::Result<()> {
    let script = format!("e2e/kind/zone {action} '{}' '{zone}'", lab.cluster.kind()?);
    lab.cluster.with_engine(&script, SCRIPT).await.map(drop)
}
