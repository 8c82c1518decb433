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

/// An update with its choices.
struct Begun {
    key: Bytes,
    update: dynamo_client::Update,
    /// There is a context: what it covers can be removed.
    covered: bool,
}

pub(crate) async fn update(global: &Global, update: &Update, output: Output) -> Result<(), Failure> {
    let client = connect::single(global)?;
    let (key, written) = match &update.operation {
        UpdateOperation::Counter(counter) => {
            let begun = begin(&client, &counter.key, &counter.options, false).await?;
            (begun.key, begun.update.increment(counter.by).await)
        }
        UpdateOperation::Set(set) => {
            let begun = begin(&client, &set.key, &set.options, !set.remove.is_empty()).await?;
            let remove = begun.removable(&set.remove, set.add.is_empty())?;
            (begun.key, begun.update.set(&set.add, remove).await)
        }
        UpdateOperation::Flag(flag) => {
            let disables = flag.state == FlagState::Disable;
            let begun = begin(&client, &flag.key, &flag.options, disables).await?;
            begun.check(disables)?;
            let written = if disables {
                begun.update.disable().await
            } else {
                begun.update.enable().await
            };
            (begun.key, written)
        }
        UpdateOperation::Register(register) => {
            let value = if register.value == "-" {
                values::read_value("-".as_ref())?
            } else {
                Bytes::copy_from_slice(register.value.as_bytes())
            };
            let begun = begin(&client, &register.key, &register.options, false).await?;
            (begun.key, begun.update.register(value).await)
        }
        UpdateOperation::Map(map) => {
            let operation = &map.operation;
            let removes = operation.disable || operation.drop || !operation.remove.is_empty();
            let begun = begin(&client, &map.key, &map.options, removes).await?;
            let field = field(&map.field, operation, &begun)?;
            (begun.key, begun.update.map(field).await)
        }
    };
    print(&key, written, output)
}

/// Key and choices. Removals without a context take away what is there now.
async fn begin(client: &Client, key: &Key, given: &UpdateOptions, removes: bool) -> Result<Begun, Failure> {
    let key = key.bytes()?;
    let context = match &given.context {
        Some(token) => values::context(token)?,
        None if removes => current(client, &key).await?,
        None => Context::none(),
    };
    let mut options = options(&given.quorum);
    options.op_id = given.op_id;
    Ok(Begun {
        update: client
            .update(client.bucket(), &key)
            .context(&context)
            .options(options),
        covered: !context.is_none(),
        key,
    })
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

impl Begun {
    /// A removal from a key that never was is refused if it is all that was asked for.
    fn check(&self, removes: bool) -> Result<(), Failure> {
        if self.covered || !removes {
            return Ok(());
        }
        let context = Context::none();
        Err(Failure::client(
            format!("cannot remove anything from {:?}", values::show(&self.key)),
            &Error::NotFound { context },
        ))
    }

    /// The members to remove: none if there are none.
    fn removable<'a>(&self, remove: &'a [String], alone: bool) -> Result<&'a [String], Failure> {
        self.check(alone)?;
        Ok(if self.covered { remove } else { &[] })
    }
}

/// The operation on one field.
fn field(name: &str, operation: &FieldOperation, begun: &Begun) -> Result<MapUpdate, Failure> {
    let name = Bytes::copy_from_slice(name.as_bytes());
    let update = MapUpdate::new();
    begun.check(operation.disable || operation.drop)?;
    Ok(if let Some(by) = operation.increment {
        update.increment(name, by)
    } else if let Some(value) = &operation.register {
        update.register(name, value.clone())
    } else if operation.enable || operation.disable {
        update.flag(name, operation.enable)
    } else if operation.drop {
        update.remove(name)
    } else {
        let remove = begun.removable(&operation.remove, operation.add.is_empty())?;
        update.set(name, &operation.add, remove)
    })
}

fn print(key: &Bytes, written: Result<Written, Error>, output: Output) -> Result<(), Failure> {
    let written =
        written.map_err(|error| Failure::client(format!("cannot update {:?}", values::show(key)), &error))?;
    output.print(&written_json(key, &written), |output| {
        written_text("updated", &written, output)
    })
}
