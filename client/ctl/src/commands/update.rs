//! update: operations on values of data types.

use bytes::Bytes;
use dynamo_client::{Client, Context, Error, MapUpdate, ReadOptions, Written};

use crate::{
    cli::{
        Global, Key,
        typed::{FieldOperation, FlagState, Update, UpdateOperation, UpdateOptions},
    },
    commands::kv::{options, written_json, written_text},
    connect,
    failure::Failure,
    output::Output,
    values,
};

pub(crate) async fn update(global: &Global, update: &Update, output: Output) -> Result<(), Failure> {
    let client = connect::single(global)?;
    let (key, written) = match &update.operation {
        UpdateOperation::Counter(counter) => {
            let (key, update) = begin(&client, &counter.key, &counter.options, false).await?;
            (key, update.increment(counter.by).await)
        }
        UpdateOperation::Set(set) => {
            let removes = !set.remove.is_empty();
            let (key, update) = begin(&client, &set.key, &set.options, removes).await?;
            (key, update.set(&set.add, &set.remove).await)
        }
        UpdateOperation::Flag(flag) => {
            let disables = flag.state == FlagState::Disable;
            let (key, update) = begin(&client, &flag.key, &flag.options, disables).await?;
            let written = if disables {
                update.disable().await
            } else {
                update.enable().await
            };
            (key, written)
        }
        UpdateOperation::Register(register) => {
            let value = if register.value == "-" {
                values::read_value("-".as_ref())?
            } else {
                Bytes::copy_from_slice(register.value.as_bytes())
            };
            let (key, update) = begin(&client, &register.key, &register.options, false).await?;
            (key, update.register(value).await)
        }
        UpdateOperation::Map(map) => {
            let (fields, removes) = field(&map.field, &map.operation);
            let (key, update) = begin(&client, &map.key, &map.options, removes).await?;
            (key, update.map(fields).await)
        }
    };
    print(&key, written, output)
}

/// Key and choices. Removals without a context take away what is there now.
async fn begin(
    client: &Client,
    key: &Key,
    given: &UpdateOptions,
    removes: bool,
) -> Result<(Bytes, dynamo_client::Update), Failure> {
    let key = key.bytes()?;
    let context = match &given.context {
        Some(token) => values::context(token)?,
        None if removes => current(client, &key).await?,
        None => Context::none(),
    };
    let mut options = options(&given.quorum);
    options.op_id = given.op_id;
    let update = client
        .update(client.bucket(), &key)
        .context(&context)
        .options(options);
    Ok((key, update))
}

async fn current(client: &Client, key: &Bytes) -> Result<Context, Failure> {
    match client.get_with(key, &ReadOptions::default()).await {
        Ok(found) => Ok(found.context),
        Err(Error::NotFound { context }) => Ok(context),
        Err(error) => Err(Failure::client(
            format!("cannot read what to remove from {:?}", values::show(key)),
            &error,
        )),
    }
}

/// The operation on one field, and whether it needs a context.
fn field(name: &str, operation: &FieldOperation) -> (MapUpdate, bool) {
    let name = Bytes::copy_from_slice(name.as_bytes());
    let update = MapUpdate::new();
    if let Some(by) = operation.increment {
        (update.increment(name, by), false)
    } else if let Some(value) = &operation.register {
        (update.register(name, value.clone()), false)
    } else if operation.enable || operation.disable {
        (update.flag(name, operation.enable), operation.disable)
    } else if operation.drop {
        (update.remove(name), true)
    } else {
        let removes = !operation.remove.is_empty();
        (update.set(name, &operation.add, &operation.remove), removes)
    }
}

fn print(key: &Bytes, written: Result<Written, Error>, output: Output) -> Result<(), Failure> {
    let written =
        written.map_err(|error| Failure::client(format!("cannot update {:?}", values::show(key)), &error))?;
    output.print(&written_json(key, &written), |output| {
        written_text("updated", &written, output)
    })
}
