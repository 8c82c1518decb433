//! The command line.

pub(crate) mod admin;

pub(crate) mod change;

pub(crate) mod typed;

use std::{ffi::OsStr, path::PathBuf, time::Duration};

use clap::{Args, Command, Parser, Subcommand, ValueEnum};
use dynamo_client::Replicas;

use crate::values;

/// Reads and writes a Dynamo cluster (the key-value store of the SOSP 2007 paper), and shows what it is made of.
#[derive(Debug, Parser)]
#[command(name = "dynamoctl", version, after_help = EXAMPLES)]
pub(crate) struct Cli {
    #[command(flatten)]
    pub(crate) global: Global,
    #[command(subcommand)]
    pub(crate) command: Commands,
}

const EXAMPLES: &str = "\
Examples:
  dynamoctl put cart:alice potato            # a blind put: never overwrites what it has not seen
  dynamoctl get cart:alice                   # every sibling, and the context to pass back
  dynamoctl put cart:alice both --context TOKEN
  dynamoctl ring                             # members, tokens and partitions
  dynamoctl import words.ndjson --concurrency 16

Exit codes: 0 done, 1 failed, 2 key not found, 3 siblings where one value was asked for, 64 wrong usage";

#[derive(Debug, Args)]
pub(crate) struct Global {
    /// host:port of a node's client port, or of a Service before the nodes; repeatable
    #[arg(
        long,
        global = true,
        env = "DYNAMO_ENDPOINT",
        value_name = "HOST:PORT",
        value_delimiter = ',',
        default_value = "127.0.0.1:7700"
    )]
    pub(crate) endpoint: Vec<String>,
    /// host:port of a node's admin port; repeatable, the first that answers is used
    #[arg(
        long,
        global = true,
        env = "DYNAMO_ADMIN",
        value_name = "HOST:PORT",
        value_delimiter = ',',
        default_value = "127.0.0.1:7702"
    )]
    pub(crate) admin: Vec<String>,
    /// Bucket of the keys
    #[arg(long, short, global = true, env = "DYNAMO_BUCKET", default_value = "default")]
    pub(crate) bucket: String,
    /// Tables for people, or JSON for programs
    #[arg(long, short, global = true, value_enum, default_value = "table")]
    pub(crate) output: Format,
    /// For one operation with its retries, such as 500ms, 5s or 1m
    #[arg(long, global = true, value_name = "DURATION", value_parser = values::duration, default_value = "5s")]
    pub(crate) timeout: Duration,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    Table,
    Json,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Commands {
    Put(Put),
    Get(Get),
    Delete(Delete),
    Update(typed::Update),
    Ring(Ring),
    Members(Members),
    PreferenceList(PreferenceList),
    Status(Status),
    Inspect(Inspect),
    Locate(admin::Locate),
    Hints(admin::Hints),
    Exchanges(admin::Exchanges),
    Repair(admin::Repair),
    AcceptLoss(admin::AcceptLoss),
    Salvage(admin::Salvage),
    Tasks(admin::Tasks),
    Bucket(admin::Bucket),
    Change(change::Change),
    BenchLite(BenchLite),
    Import(Import),
    Export(Export),
    Bootstrap(Bootstrap),
    Join(Join),
    Completion(Completion),
}

#[derive(Debug, Args)]
pub(crate) struct Key {
    /// The key: text, or hexadecimal digits with --hex
    pub(crate) key: String,
    /// The key is given in hexadecimal digits
    #[arg(long)]
    pub(crate) hex: bool,
}

/// How many replicas a write waits for.
#[derive(Debug, Args)]
pub(crate) struct WriteQuorum {
    /// Replicas that must accept it: a number, one, quorum or all
    #[arg(long, short, value_name = "REPLICAS")]
    pub(crate) w: Option<Replicas>,
    /// Of these, primaries
    #[arg(long, value_name = "REPLICAS")]
    pub(crate) pw: Option<Replicas>,
    /// Of these, replicas that have synced it to disk
    #[arg(long, value_name = "REPLICAS")]
    pub(crate) dw: Option<Replicas>,
    /// Distinct zones in which replicas must accept it
    #[arg(long, value_name = "ZONES")]
    pub(crate) zones: Option<Replicas>,
}

/// Put a value
///
/// Without --context the put is blind: where values exist, the new one becomes a sibling of theirs.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  dynamoctl put greeting hello
  dynamoctl put greeting hallo --context TOKEN    # supersedes what the get that printed TOKEN has seen
  dynamoctl put photo --value-file cat.jpg
  date | dynamoctl put now -                      # the value from standard input
  dynamoctl put --hex 00ff01 binary-key -w all
  dynamoctl put session:7 token --ttl 30s --zones 2")]
pub(crate) struct Put {
    #[command(flatten)]
    pub(crate) key: Key,
    /// The value as text; - reads standard input
    #[arg(required_unless_present = "value_file", conflicts_with = "value_file")]
    pub(crate) value: Option<String>,
    /// Reads the value from a file; - is standard input
    #[arg(long, value_name = "FILE")]
    pub(crate) value_file: Option<PathBuf>,
    /// The context that a get or put of this key printed
    #[arg(long, value_name = "TOKEN")]
    pub(crate) context: Option<String>,
    /// After which the value counts as deleted, such as 30s, 1h or 7d; otherwise the bucket says
    #[arg(long, value_name = "DURATION", value_parser = values::ttl)]
    pub(crate) ttl: Option<Duration>,
    #[command(flatten)]
    pub(crate) quorum: WriteQuorum,
}

/// Get all values of a key
///
/// Values that no put has superseded are siblings: all are shown, with one context that covers them.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  dynamoctl get greeting
  dynamoctl get photo --raw > cat.jpg       # exit code 3 if there are siblings
  dynamoctl get greeting -r all
  dynamoctl get greeting --output json | jq -r .context")]
pub(crate) struct Get {
    #[command(flatten)]
    pub(crate) key: Key,
    /// Print the value alone, byte for byte; fail with code 3 if there are siblings
    #[arg(long)]
    pub(crate) raw: bool,
    /// Replicas that must answer: a number, one, quorum or all
    #[arg(long, short, value_name = "REPLICAS")]
    pub(crate) r: Option<Replicas>,
    /// Of these, primaries
    #[arg(long, value_name = "REPLICAS")]
    pub(crate) pr: Option<Replicas>,
}

/// Delete what a context covers
///
/// A put that is concurrent with the delete stays.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  dynamoctl delete greeting --context TOKEN
  dynamoctl delete greeting --force         # reads first and deletes whatever it read")]
pub(crate) struct Delete {
    #[command(flatten)]
    pub(crate) key: Key,
    /// The context that a get or put of this key printed
    #[arg(
        long,
        value_name = "TOKEN",
        required_unless_present = "force",
        conflicts_with = "force"
    )]
    pub(crate) context: Option<String>,
    /// Let the coordinator read first and delete what it read
    #[arg(long)]
    pub(crate) force: bool,
    #[command(flatten)]
    pub(crate) quorum: WriteQuorum,
}

/// Show the ring: members, zones, tokens and partitions
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  dynamoctl ring
  dynamoctl ring --partitions               # every partition with its owner
  dynamoctl ring --output json | jq '.members[].tokens'
  kubectl port-forward pod/cart-a-0 7702 & dynamoctl ring")]
pub(crate) struct Ring {
    /// List every partition with its owner
    #[arg(long)]
    pub(crate) partitions: bool,
}

/// Show the members as one node sees them
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  dynamoctl members
  dynamoctl members --admin cart-b-0.cart-nodes:7702   # another node's view")]
pub(crate) struct Members {}

/// Show which members hold a key: its primaries, then the fallbacks in order
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  dynamoctl preference-list cart:alice
  dynamoctl preference-list --hex 00ff01 --output json")]
pub(crate) struct PreferenceList {
    #[command(flatten)]
    pub(crate) key: Key,
}

/// Show what a node is and how it is
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  dynamoctl status
  dynamoctl status --all                    # every member, each asked itself
  dynamoctl status --output json | jq .nodes[0].state")]
pub(crate) struct Status {
    /// Every member that the node knows, each asked at its own admin address
    #[arg(long)]
    pub(crate) all: bool,
}

/// Show the versions of a key on each of its primaries
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  dynamoctl inspect cart:alice              # do the replicas agree, and which dots do they hold?
  dynamoctl inspect cart:alice --output json")]
pub(crate) struct Inspect {
    #[command(flatten)]
    pub(crate) key: Key,
}

/// Measure puts and gets for a short while
///
/// A closed loop: each task sends its next request when the last one is answered. With --rate it is an open one: requests
/// have their times, and latencies count from those, however busy the tasks are. Puts pass the context of the task's last
/// operation on the key, so that no siblings grow. The keys stay in the bucket and are used again.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  dynamoctl bench-lite
  dynamoctl bench-lite --tasks 64 --put-percent 100 --duration 30s
  dynamoctl bench-lite --operations 100000 --value-bytes 100 --output json
  dynamoctl bench-lite --rate 20000 --tasks 2000 --keys 20000 --duration 1m     # more than it can serve?
  dynamoctl bench-lite --route endpoint     # what a client without the ring would see
  dynamoctl bench-lite --coordination client --put-percent 0")]
pub(crate) struct BenchLite {
    /// Requests in flight
    #[arg(long, default_value_t = 16, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub(crate) tasks: u32,
    /// Connections to each node
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=256))]
    pub(crate) connections: u32,
    /// Requests that begin each second; without it, as many as the tasks manage
    #[arg(long, value_name = "PER_SECOND", value_parser = clap::value_parser!(u32).range(1..=10_000_000))]
    pub(crate) rate: Option<u32>,
    /// How long to measure
    #[arg(long, value_name = "DURATION", value_parser = values::duration, default_value = "10s")]
    pub(crate) duration: Duration,
    /// Measure so many operations instead
    #[arg(long, value_name = "COUNT", value_parser = clap::value_parser!(u64).range(1..))]
    pub(crate) operations: Option<u64>,
    /// Share of puts; the rest are gets
    #[arg(long, default_value_t = 50, value_name = "PERCENT", value_parser = clap::value_parser!(u32).range(0..=100))]
    pub(crate) put_percent: u32,
    /// Size of a value
    #[arg(long, default_value_t = 1024, value_name = "BYTES", value_parser = clap::value_parser!(u32).range(1..=1 << 20))]
    pub(crate) value_bytes: u32,
    /// Different keys, shared out among the tasks
    #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u32).range(1..=10_000_000))]
    pub(crate) keys: u32,
    /// Whom to send to
    #[arg(long, value_enum, default_value = "ring")]
    pub(crate) route: Route,
    /// Who merges the replicas' answers to a get
    #[arg(long, value_enum, default_value = "server")]
    pub(crate) coordination: ReadCoordination,
    /// The zone that this client runs in: replicas there are asked first
    #[arg(long, env = "DYNAMO_ZONE")]
    pub(crate) zone: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum ReadCoordination {
    /// A node
    Server,
    /// This client, which asks the replicas itself
    Client,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Route {
    /// A replica of the key, as the ring says
    Ring,
    /// The endpoints only
    Endpoint,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum RecordFormat {
    /// A JSON object a line: key or key_b64, value or value_b64
    Ndjson,
    /// A header with key or key_b64, value or value_b64, then a record a line
    Csv,
}

/// Load records from a file
///
/// Puts are blind, so nothing is overwritten: records of existing keys become siblings, unless the same record was
/// imported before. With --overwrite each key is read first and its values are superseded.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  dynamoctl import words.ndjson
  dynamoctl import prices.csv --bucket prices --concurrency 16
  zcat dump.ndjson.gz | dynamoctl import - --format ndjson
Lines:
  {\"key\":\"cart:alice\",\"value\":\"potato\"}
  {\"key_b64\":\"AP8=\",\"value_b64\":\"3q2+7w==\"}")]
pub(crate) struct Import {
    /// The file; - is standard input
    pub(crate) file: PathBuf,
    /// By default, what the file's name ends in says it
    #[arg(long, value_enum)]
    pub(crate) format: Option<RecordFormat>,
    /// Batches in flight
    #[arg(long, default_value_t = 8, value_parser = clap::value_parser!(u32).range(1..=256))]
    pub(crate) concurrency: u32,
    /// Go on after malformed lines and failed puts; the exit code is still 1
    #[arg(long)]
    pub(crate) continue_on_error: bool,
    /// Read each key first and supersede its values
    #[arg(long)]
    pub(crate) overwrite: bool,
    /// Whom to send to
    #[arg(long, value_enum, default_value = "ring")]
    pub(crate) route: Route,
}

/// Write all records of a bucket to a file
///
/// In the order of the ring; siblings are a line each. `import` reads it back.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  dynamoctl export > dump.ndjson
  dynamoctl export carts.csv --bucket carts --prefix cart:
  dynamoctl export - --format csv | head")]
pub(crate) struct Export {
    /// The file, which is replaced; - is standard output
    #[arg(default_value = "-")]
    pub(crate) file: PathBuf,
    /// By default, what the file's name ends in says it; ndjson for standard output
    #[arg(long, value_enum)]
    pub(crate) format: Option<RecordFormat>,
    /// Only keys that begin so
    #[arg(long, default_value = "")]
    pub(crate) prefix: String,
    /// Leave out keys that cannot be read; the exit code is still 1
    #[arg(long)]
    pub(crate) continue_on_error: bool,
    /// Whom to send to
    #[arg(long, value_enum, default_value = "ring")]
    pub(crate) route: Route,
}

/// Mint the first ring, once per cluster
///
/// Asks one empty node, which becomes the member --member-id; the other nodes are then asked to `join`. In Kubernetes
/// the operator does both.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  dynamoctl --admin 127.0.0.1:7702 bootstrap --member-id n1 \\
    --member n1,zone=a --member n2,zone=b,peer=127.0.0.1:7711 --member n3,zone=c,peer=127.0.0.1:7721")]
pub(crate) struct Bootstrap {
    /// Which of the members the asked node is
    #[arg(long, value_name = "ID")]
    pub(crate) member_id: String,
    /// ID[,zone=ZONE][,weight=1..100][,peer=HOST:PORT] of a member; repeat for each, at least N
    #[arg(long, value_name = "MEMBER", required = true, value_parser = values::member)]
    pub(crate) member: Vec<values::Member>,
    /// The cluster's name for ever, as a UUID; random if left out
    #[arg(long, value_name = "UUID", value_parser = values::cluster_id)]
    pub(crate) cluster_id: Option<values::ClusterIdArg>,
    /// Q: a power of two that never changes
    #[arg(long, default_value_t = 256)]
    pub(crate) partitions: u32,
    /// N: replicas of every key
    #[arg(long, default_value_t = 3)]
    pub(crate) factor: u32,
}

/// Tell an empty node which member of which cluster it is
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  dynamoctl --admin 127.0.0.1:7712 join --cluster-id UUID --member-id n2 --zone b --seed 127.0.0.1:7701")]
pub(crate) struct Join {
    /// As `bootstrap` and `status` print it
    #[arg(long, value_name = "UUID", value_parser = values::cluster_id)]
    pub(crate) cluster_id: values::ClusterIdArg,
    /// Who the node is
    #[arg(long, value_name = "ID")]
    pub(crate) member_id: String,
    /// Its failure domain; empty where there are none
    #[arg(long, default_value = "")]
    pub(crate) zone: String,
    /// Share of the tokens, 1..=100
    #[arg(long, default_value_t = 1)]
    pub(crate) weight: u32,
    /// host:port of a peer port to learn the ring from; repeatable
    #[arg(long, value_name = "HOST:PORT")]
    pub(crate) seed: Vec<String>,
}

/// Print a script that completes commands and options
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  source <(dynamoctl completion bash)
  dynamoctl completion zsh > ~/.zfunc/_dynamoctl")]
pub(crate) struct Completion {
    /// Of which shell
    #[arg(value_enum)]
    pub(crate) shell: clap_complete::Shell,
}

/// Calls the program what the user called it: `kubectl dynamo` if the file is `kubectl-dynamo`.
pub(crate) fn named(command: Command, program: &OsStr) -> Command {
    let file = std::path::Path::new(program).file_stem().unwrap_or_default();
    if file == "kubectl-dynamo" {
        command
            .name("kubectl-dynamo")
            .bin_name("kubectl dynamo")
            .display_name("kubectl-dynamo")
    } else {
        command
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn the_command_line_is_consistent_and_every_command_has_help_with_examples() {
        Cli::command().debug_assert();
        let command = Cli::command();
        let nested = command.get_subcommands().flat_map(Command::get_subcommands);
        for command in command.get_subcommands().chain(nested) {
            assert!(
                command.get_about().is_some(),
                "{} says nothing",
                command.get_name()
            );
            let help = command
                .get_after_help()
                .map(ToString::to_string)
                .unwrap_or_default();
            assert!(
                help.starts_with("Examples:"),
                "{} has no examples",
                command.get_name()
            );
            for argument in command.get_arguments() {
                assert!(
                    argument.get_help().is_some(),
                    "{} {}",
                    command.get_name(),
                    argument.get_id()
                );
            }
        }
    }

    #[test]
    fn k31_the_plugin_is_named_after_kubectl() {
        let plugin = named(Cli::command(), OsStr::new("/usr/local/bin/kubectl-dynamo"));
        assert_eq!(plugin.get_bin_name(), Some("kubectl dynamo"));
        assert_eq!(
            named(Cli::command(), OsStr::new("dynamoctl")).get_name(),
            "dynamoctl"
        );
    }

    #[test]
    fn options() {
        let parse = |line: &str| Cli::try_parse_from(line.split(' '));
        for good in [
            "dynamoctl get k",
            "dynamoctl --endpoint a:1,b:2 get k -r quorum --pr 1",
            "dynamoctl get k --endpoint a:1 --endpoint b:2 --output json --timeout 500ms",
            "dynamoctl put k v -w all --dw 2",
            "dynamoctl put k --value-file -",
            "dynamoctl put k - --context dG9rZW4",
            "dynamoctl delete k --force",
            "dynamoctl put k v --ttl 30s --zones 2 --pw 1",
            "dynamoctl update counter k",
            "dynamoctl update counter k +2",
            "dynamoctl update counter k -2 --op-id 00112233445566778899aabbccddeeff",
            "dynamoctl update set k --add a --add b --remove c -w all",
            "dynamoctl update flag k enable",
            "dynamoctl update map k f --add a --remove b",
            "dynamoctl update map k f --increment -3",
            "dynamoctl hints --all",
            "dynamoctl repair 17",
            "dynamoctl tasks",
            "dynamoctl tasks pause exchange --all",
            "dynamoctl bucket set b --conflict lww --read-repair blocking --ttl 1h -n 3 -r 2 -w 2",
            "dynamoctl bucket set b --ttl never",
            "dynamoctl locate k --ttl 3",
            "dynamoctl bootstrap --member-id a --member a,zone=x,weight=2 --member b,peer=h:1",
        ] {
            parse(good).unwrap();
        }
        for bad in [
            "dynamoctl",
            "dynamoctl put k",
            "dynamoctl put k v --value-file f",
            "dynamoctl delete k",
            "dynamoctl delete k --force --context t",
            "dynamoctl get k -r some",
            "dynamoctl get k --timeout 5",
            "dynamoctl bench-lite --put-percent 101",
            "dynamoctl import f --concurrency 0",
            "dynamoctl join --member-id a",
            "dynamoctl put k v --ttl 0s",
            "dynamoctl update counter k two",
            "dynamoctl update set k",
            "dynamoctl update flag k on",
            "dynamoctl update map k f",
            "dynamoctl update map k f --increment 1 --add a",
            "dynamoctl update map k f --enable --disable",
            "dynamoctl update counter k --op-id 0011",
            "dynamoctl tasks pause",
            "dynamoctl bucket set b --conflict newest",
            "dynamoctl locate k --ttl 17",
            "dynamoctl bootstrap --member-id a --member a,zome=x",
        ] {
            assert!(parse(bad).is_err(), "{bad}");
        }
    }
}
