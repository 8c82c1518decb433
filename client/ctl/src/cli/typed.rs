//! `update`: operations on values of data types.

use clap::{Args, Subcommand};
use dynamo_client::OpId;

use super::{Key, WriteQuorum};
use crate::values;

/// Update a value of a data type: counter, set, flag, register or map
///
/// The bucket says the type (`dynamoctl bucket set`). Updates of one key by many clients never conflict.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  dynamoctl bucket set likes --conflict counter
  dynamoctl update counter page:1 +2 --bucket likes
  dynamoctl update set tags --add new --remove old --bucket tags
  dynamoctl update flag dark-mode enable --bucket flags
  dynamoctl update register motto 'carpe diem' --bucket words
  dynamoctl update map user:1 visits --increment 1 --bucket users")]
pub(crate) struct Update {
    #[command(subcommand)]
    pub(crate) operation: UpdateOperation,
}

#[derive(Debug, Subcommand)]
pub(crate) enum UpdateOperation {
    Counter(UpdateCounter),
    Set(UpdateSet),
    Flag(UpdateFlag),
    Register(UpdateRegister),
    Map(UpdateMap),
}

/// What all updates have in common.
#[derive(Debug, Args)]
pub(crate) struct UpdateOptions {
    /// The context that a get or update of this key printed; removals without one read the key first
    #[arg(long, value_name = "TOKEN")]
    pub(crate) context: Option<String>,
    /// 32 hexadecimal digits: an update that is repeated with the same ones counts once
    #[arg(long, value_name = "HEX", value_parser = values::op_id)]
    pub(crate) op_id: Option<OpId>,
    #[command(flatten)]
    pub(crate) quorum: WriteQuorum,
}

/// Add to a counter
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  dynamoctl update counter page:1 --bucket likes      # adds 1
  dynamoctl update counter page:1 +2 --bucket likes
  dynamoctl update counter stock:7 -5 --bucket stock")]
pub(crate) struct UpdateCounter {
    #[command(flatten)]
    pub(crate) key: Key,
    /// What to add, such as +2 or -1
    #[arg(default_value_t = 1, allow_negative_numbers = true)]
    pub(crate) by: i64,
    #[command(flatten)]
    pub(crate) options: UpdateOptions,
}

/// Add members to a set, and remove members
///
/// An addition wins over a concurrent removal.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  dynamoctl update set page:1 --add new --add hot --bucket tags
  dynamoctl update set page:1 --add a --remove b --bucket tags
  dynamoctl update set page:1 --remove b --context TOKEN --bucket tags   # only what TOKEN covers")]
pub(crate) struct UpdateSet {
    #[command(flatten)]
    pub(crate) key: Key,
    /// A member to add; repeatable
    #[arg(long, value_name = "MEMBER", required_unless_present = "remove")]
    pub(crate) add: Vec<String>,
    /// A member to remove; repeatable
    #[arg(long, value_name = "MEMBER")]
    pub(crate) remove: Vec<String>,
    #[command(flatten)]
    pub(crate) options: UpdateOptions,
}

/// Enable or disable a flag
///
/// Enabling wins over a concurrent disabling.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  dynamoctl update flag dark-mode enable --bucket flags
  dynamoctl update flag dark-mode disable --bucket flags")]
pub(crate) struct UpdateFlag {
    #[command(flatten)]
    pub(crate) key: Key,
    /// Which
    #[arg(value_enum)]
    pub(crate) state: FlagState,
    #[command(flatten)]
    pub(crate) options: UpdateOptions,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum FlagState {
    Enable,
    Disable,
}

/// Write a register
///
/// Of concurrent writes, the last one by the nodes' clocks stays.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  dynamoctl update register motto 'carpe diem' --bucket words")]
pub(crate) struct UpdateRegister {
    #[command(flatten)]
    pub(crate) key: Key,
    /// The value as text; - reads standard input
    pub(crate) value: String,
    #[command(flatten)]
    pub(crate) options: UpdateOptions,
}

/// Update one field of a map
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  dynamoctl update map user:1 visits --increment 1 --bucket users
  dynamoctl update map user:1 tags --add new --remove old --bucket users
  dynamoctl update map user:1 newsletter --enable --bucket users
  dynamoctl update map user:1 name --register Alice --bucket users
  dynamoctl update map user:1 name --drop --bucket users       # takes the field away")]
pub(crate) struct UpdateMap {
    #[command(flatten)]
    pub(crate) key: Key,
    /// The field's name
    pub(crate) field: String,
    #[command(flatten)]
    pub(crate) operation: FieldOperation,
    #[command(flatten)]
    pub(crate) options: UpdateOptions,
}

/// One of them; --add and --remove may come together.
#[derive(Debug, Args)]
#[group(required = true, multiple = true)]
pub(crate) struct FieldOperation {
    /// Add to a counter
    #[arg(
        long,
        value_name = "BY",
        allow_negative_numbers = true,
        conflicts_with_all = ["add", "remove", "enable", "disable", "register", "drop"]
    )]
    pub(crate) increment: Option<i64>,
    /// A member to add to a set; repeatable
    #[arg(long, value_name = "MEMBER", conflicts_with_all = ["enable", "disable", "register", "drop"])]
    pub(crate) add: Vec<String>,
    /// A member to remove from a set; repeatable
    #[arg(long, value_name = "MEMBER", conflicts_with_all = ["enable", "disable", "register", "drop"])]
    pub(crate) remove: Vec<String>,
    /// Enable a flag
    #[arg(long, conflicts_with_all = ["disable", "register", "drop"])]
    pub(crate) enable: bool,
    /// Disable a flag
    #[arg(long, conflicts_with_all = ["register", "drop"])]
    pub(crate) disable: bool,
    /// Write a register
    #[arg(long, value_name = "VALUE", conflicts_with = "drop")]
    pub(crate) register: Option<String>,
    /// Take the field away
    #[arg(long)]
    pub(crate) drop: bool,
}
