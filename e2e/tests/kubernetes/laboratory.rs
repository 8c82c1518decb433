//! The lab is made and taken away.

use anyhow::{Context as _, ensure};
use dynamo_e2e::{
    lab::{Lab, Pace},
    wait::{self, Look},
};

use crate::{ANTI_ENTROPY_S, GRACE_S, Suite, seconds};

/// K4 and K38 on the way: two members in each zone, and a status that tells of hints and suspect partitions.
pub(crate) async fn a_lab_of_six_members_with_fault_hooks(suite: &Suite) -> anyhow::Result<()> {
    let lab = Lab::of(&suite.cluster);
    let pace = Pace {
        anti_entropy: ANTI_ENTROPY_S,
        reaping: 1,
        grace: GRACE_S,
    };
    lab.create(pace).await?;
    let members = lab.members().await?;
    for zone in members.values() {
        let count = members.values().filter(|other| *other == zone).count();
        ensure!(count == 2, "{members:?}");
    }
    wait::until(
        "the status counts no hints and no suspects",
        seconds(60),
        || async {
            let status = lab.cluster.dynamo_cluster().await?.status.context("no status")?;
            Ok(match (status.hints, status.suspect_partitions) {
                (0, 0) => Look::Done(()),
                other => Look::NotYet(format!("{other:?}")),
            })
        },
    )
    .await
}

/// `storage.whenDeleted: Delete`: its volumes go with it.
pub(crate) async fn the_lab_goes_with_its_volumes(suite: &Suite) -> anyhow::Result<()> {
    let lab = Lab::of(&suite.cluster);
    lab.delete().await?;
    wait::until("the volumes of the lab are gone", seconds(60), || async {
        let claims = lab.cluster.claims().await?.len();
        Ok(if claims == 0 {
            Look::Done(())
        } else {
            Look::NotYet(format!("{claims} claims"))
        })
    })
    .await
}
