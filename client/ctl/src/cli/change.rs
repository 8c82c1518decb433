//! change: the ring as it shall be, planned, committed and watched.

use clap::{Args, Subcommand};
use dynamo_core::{ring::WEIGHT_MAX, types::MemberId};

/// Change the members, weights or partitions of the ring: plan it, look at the plan, commit it, watch it
///
/// A node works out which tokens move; from a commit on the members take the steps known, synced and reading by themselves,
/// and serve all the time. Until the last of them reads from the new ring, another commit may take its place.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  dynamoctl change plan --add cart-c-1                  # what would move?
  dynamoctl change commit --add cart-c-1 --wait
  dynamoctl change status --watch")]
pub(crate) struct Change {
    #[command(subcommand)]
    pub(crate) action: ChangeAction,
}

#[derive(Debug, Subcommand)]
pub(crate) enum ChangeAction {
    Plan(ChangePlan),
    Commit(ChangeCommit),
    Status(ChangeStatus),
}

/// Show what a change would move; changes nothing
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  dynamoctl change plan --add n4 --add n5:zone-b:2      # new members have joined first
  dynamoctl change plan --remove n2
  dynamoctl change plan --replace n2=n4                 # only what n2 held moves
  dynamoctl change plan --replace n2=n4 --dead n2       # the same, and nobody waits for n2
  dynamoctl change plan --weight n1=2 --weight n2=2
  dynamoctl change plan --double-partitions
  dynamoctl change plan --members n1,n3,n4 --output json | jq .bytes")]
pub(crate) struct ChangePlan {
    #[command(flatten)]
    pub(crate) differences: Differences,
}

/// Plan a change, show the plan, ask, and propose the ring
///
/// With --epoch and --hash it commits what `change plan` showed and nothing else, and asks no question; that can be repeated.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  dynamoctl change commit --add n4
  dynamoctl change commit --remove n2 --yes --wait
  dynamoctl change commit --add n4 --epoch 3 --hash 00f1e2d3c4b5a697    # as the plan says")]
pub(crate) struct ChangeCommit {
    #[command(flatten)]
    pub(crate) differences: Differences,
    /// Commit without a question
    #[arg(long)]
    pub(crate) yes: bool,
    /// From a plan: the epoch that it begins from
    #[arg(long, value_name = "EPOCH", requires = "hash")]
    pub(crate) epoch: Option<u64>,
    /// From a plan: the hash of the ring that it ends in
    #[arg(long, value_name = "HASH", requires = "epoch", value_parser = hash)]
    pub(crate) hash: Option<u64>,
    /// Watch it until all members read from the new ring
    #[arg(long)]
    pub(crate) wait: bool,
}

/// Show where a change stands, as one node knows it
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  dynamoctl change status
  dynamoctl change status --watch                       # ends when no change is under way
  dynamoctl change status --output json | jq -r .step")]
pub(crate) struct ChangeStatus {
    /// Watch it until no change is under way
    #[arg(long)]
    pub(crate) watch: bool,
}

/// In what the ring shall differ from the newest one.
#[derive(Debug, Default, Clone, Args)]
#[group(required = true, multiple = true)]
pub(crate) struct Differences {
    /// A member that has joined and gets its share; its zone as it says itself, its weight 1; repeatable
    #[arg(long, value_name = "MEMBER[:ZONE[:WEIGHT]]", value_parser = added)]
    pub(crate) add: Vec<Added>,
    /// A member that goes once others hold its data; repeatable
    #[arg(long, value_name = "MEMBER", value_parser = member)]
    pub(crate) remove: Vec<String>,
    /// A member that goes and is gone for good: nobody waits for it, what only it held is lost; repeatable
    #[arg(long, value_name = "MEMBER", value_parser = member)]
    pub(crate) dead: Vec<String>,
    /// A member that goes and a new one that takes its tokens as they are; repeatable
    #[arg(long, value_name = "OLD=NEW", value_parser = replaced)]
    pub(crate) replace: Vec<Replaced>,
    /// A member's share of the tokens relative to the others, 1..=100; repeatable
    #[arg(long, value_name = "MEMBER=WEIGHT", value_parser = weighed)]
    pub(crate) weight: Vec<Weighed>,
    /// Another zone for a member that stays, as where its machine was moved; repeatable
    #[arg(long, value_name = "MEMBER=ZONE", value_parser = moved)]
    pub(crate) zone: Vec<Moved>,
    /// All members that the ring which serves has in a zone go; repeatable
    #[arg(long, value_name = "ZONE", conflicts_with = "members")]
    pub(crate) evacuate: Vec<String>,
    /// Twice as many partitions; a change of its own, which moves nothing
    #[arg(long, conflicts_with_all = ["add", "remove", "dead", "replace", "weight", "zone", "evacuate", "members"])]
    pub(crate) double_partitions: bool,
    /// All members that the ring shall have; those left out go
    #[arg(long, value_name = "MEMBER,...", value_delimiter = ',', value_parser = member,
        conflicts_with_all = ["add", "remove", "replace"])]
    pub(crate) members: Vec<String>,
}

/// A new member.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Added {
    pub(crate) id: String,
    /// Empty: as it says itself.
    pub(crate) zone: String,
    /// 0: left to the node.
    pub(crate) weight: u32,
}

/// Whose tokens pass to whom.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Replaced {
    pub(crate) old: String,
    pub(crate) new: String,
}

/// A member that stays, with another weight.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Weighed {
    pub(crate) id: String,
    pub(crate) weight: u32,
}

/// A member that stays, in another zone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Moved {
    pub(crate) id: String,
    pub(crate) zone: String,
}

impl Differences {
    /// The options that say the same.
    pub(crate) fn arguments(&self) -> Vec<String> {
        let mut arguments = Vec::new();
        let mut say = |option: &str, value: String| arguments.push(format!("--{option} {value}"));
        for Added { id, zone, weight } in &self.add {
            say(
                "add",
                match (zone.as_str(), *weight) {
                    ("", 0) => id.clone(),
                    (zone, 0) => format!("{id}:{zone}"),
                    (zone, weight) => format!("{id}:{zone}:{weight}"),
                },
            );
        }
        for id in &self.remove {
            say("remove", id.clone());
        }
        for id in &self.dead {
            say("dead", id.clone());
        }
        for Replaced { old, new } in &self.replace {
            say("replace", format!("{old}={new}"));
        }
        for Weighed { id, weight } in &self.weight {
            say("weight", format!("{id}={weight}"));
        }
        for Moved { id, zone } in &self.zone {
            say("zone", format!("{id}={zone}"));
        }
        for zone in &self.evacuate {
            say("evacuate", zone.clone());
        }
        if !self.members.is_empty() {
            say("members", self.members.join(","));
        }
        if self.double_partitions {
            arguments.push("--double-partitions".to_owned());
        }
        arguments
    }
}

fn member(text: &str) -> Result<String, String> {
    let id = MemberId::new(text).map_err(|error| error.to_string())?;
    Ok(id.to_string())
}

fn added(text: &str) -> Result<Added, String> {
    let mut parts = text.splitn(3, ':');
    let id = member(parts.next().unwrap_or_default())?;
    let zone = parts.next().unwrap_or_default().to_owned();
    let weight = parts.next().map_or(Ok(0), weight)?;
    Ok(Added { id, zone, weight })
}

fn replaced(text: &str) -> Result<Replaced, String> {
    let (old, new) = text
        .split_once('=')
        .ok_or("it names the member that goes and the one that comes, as in n2=n4")?;
    Ok(Replaced {
        old: member(old)?,
        new: member(new)?,
    })
}

fn weighed(text: &str) -> Result<Weighed, String> {
    let (id, share) = text
        .split_once('=')
        .ok_or("it names a member and its weight, as in n1=2")?;
    Ok(Weighed {
        id: member(id)?,
        weight: weight(share)?,
    })
}

fn moved(text: &str) -> Result<Moved, String> {
    let (id, zone) = text
        .split_once('=')
        .filter(|(_, zone)| !zone.is_empty())
        .ok_or("it names a member and its zone, as in n1=b")?;
    Ok(Moved {
        id: member(id)?,
        zone: zone.to_owned(),
    })
}

fn weight(text: &str) -> Result<u32, String> {
    let weight = text
        .parse()
        .ok()
        .filter(|weight| (1..=WEIGHT_MAX).contains(weight));
    weight.ok_or_else(|| format!("{text:?} is no weight from 1 to {WEIGHT_MAX}"))
}

fn hash(text: &str) -> Result<u64, String> {
    let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_hexdigit());
    let hash = digits.then(|| u64::from_str_radix(text, 16).ok()).flatten();
    // Zero would let a node commit whatever the target comes to.
    hash.filter(|hash| *hash != 0).ok_or_else(|| {
        format!("{text:?} is not the hash of a ring, as a plan prints it: up to 16 hexadecimal digits")
    })
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;
    use crate::cli::{Cli, Commands};

    fn parse(arguments: &str) -> Result<Differences, clap::Error> {
        let line = format!("dynamoctl change plan {arguments}");
        match Cli::try_parse_from(line.split_whitespace())?.command {
            Commands::Change(Change {
                action: ChangeAction::Plan(plan),
            }) => Ok(plan.differences),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn new_members_with_and_without_zone_and_weight() {
        let added = |id: &str, zone: &str, weight| Added {
            id: id.to_owned(),
            zone: zone.to_owned(),
            weight,
        };
        let parsed = parse("--add n4 --add n5:b --add n6:b:2 --add n7::3").unwrap().add;
        let expected = [
            added("n4", "", 0),
            added("n5", "b", 0),
            added("n6", "b", 2),
            added("n7", "", 3),
        ];
        assert_eq!(parsed, expected);
    }

    #[test]
    fn what_is_said_can_be_said_again() {
        for line in [
            "--add n4 --add n5:b --add n6:b:2 --add n7::3 --remove n1 --dead n2 --replace n3=n8 --weight n9=100",
            "--dead n2 --weight n1=2 --zone n3=b --members n1,n3",
            "--zone n1=b --evacuate c --evacuate d",
            "--double-partitions",
        ] {
            assert_eq!(parse(line).unwrap().arguments().join(" "), line);
        }
    }

    #[test]
    fn wrong_options() {
        for bad in [
            "",
            "--add",
            "--add N4",
            "--add :a",
            "--add n4:a:0",
            "--add n4:a:101",
            "--add n4:a:1:2",
            "--replace n1",
            "--replace n1=",
            "--weight n1",
            "--weight n1=0",
            "--weight n1=x",
            "--zone n1",
            "--zone n1=",
            "--evacuate",
            "--evacuate a --members n1,n2",
            "--members n1,,n2",
            "--members n1,n2 --add n3",
            "--members n1,n2 --remove n3",
            "--members n1,n2 --replace n3=n4",
            "--double-partitions --add n4",
            "--double-partitions --dead n1",
        ] {
            assert!(parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_commit_takes_epoch_and_hash_together() {
        let parse = |rest: &str| {
            let line = format!("dynamoctl change commit --add n4 {rest}");
            Cli::try_parse_from(line.split_whitespace())
        };
        for good in ["", "--yes --wait", "--epoch 3 --hash 00000000000000ab"] {
            parse(good).unwrap();
        }
        for bad in [
            "--epoch 3",
            "--hash ab",
            "--epoch 3 --hash 0",
            "--epoch 3 --hash +ab",
            "--epoch 3 --hash 10000000000000000",
        ] {
            assert!(parse(bad).is_err(), "{bad}");
        }
        assert_eq!(hash("00000000000000ab"), Ok(0xab));
    }
}
