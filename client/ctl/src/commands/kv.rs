//! put, get, delete.

use std::fmt::Write as _;

use base64::{Engine as _, engine::general_purpose::STANDARD};
use dynamo_client::{Error, Found, Info, ReadOptions, Typed, WriteOptions, Written};
use serde_json::{Map, Value, json};

use crate::{
    cli::{Delete, Get, Global, Put, WriteQuorum},
    connect,
    failure::{EXIT_SIBLINGS, Failure},
    output::{self, Columns, Output},
    values,
};

/// Of a value in a table.
const SHOWN_CHARS_MAX: usize = 400;

pub(crate) async fn put(global: &Global, put: &Put, output: Output) -> Result<(), Failure> {
    let key = put.key.bytes()?;
    let value = match (&put.value, &put.value_file) {
        (_, Some(path)) => values::read_value(path)?,
        (Some(value), None) if value == "-" => values::read_value("-".as_ref())?,
        (value, None) => value.clone().unwrap_or_default().into(),
    };
    let context = put
        .context
        .as_deref()
        .map(values::context)
        .transpose()?
        .unwrap_or_default();
    let client = connect::single(global)?;
    let options = WriteOptions {
        ttl: put.ttl,
        ..options(&put.quorum)
    };
    let written = client.put_with(&key, value, &context, &options).await;
    let written =
        written.map_err(|error| Failure::client(format!("cannot put {:?}", values::show(&key)), &error))?;
    output.print(&written_json(&key, &written), |output| {
        written_text("stored", &written, output)
    })
}

pub(crate) async fn delete(global: &Global, delete: &Delete, output: Output) -> Result<(), Failure> {
    let key = delete.key.bytes()?;
    let context = delete.context.as_deref().map(values::context).transpose()?;
    let client = connect::single(global)?;
    let written = client
        .delete_with(&key, context.as_ref(), &options(&delete.quorum))
        .await;
    let written = written
        .map_err(|error| Failure::client(format!("cannot delete {:?}", values::show(&key)), &error))?;
    output.print(&written_json(&key, &written), |output| {
        written_text("deleted", &written, output)
    })
}

pub(crate) async fn get(global: &Global, get: &Get, output: Output) -> Result<(), Failure> {
    let key = get.key.bytes()?;
    let client = connect::single(global)?;
    let read = ReadOptions {
        r: get.r,
        pr: get.pr,
        deadline: None,
    };
    let found = match client.get_with(&key, &read).await {
        Ok(found) => found,
        Err(error) => return Err(get_failure(&key, &error)),
    };
    if !get.raw {
        return output.print(&found_json(&key, &found), |output| found_text(&found, output));
    }
    if let Some(typed) = &found.typed {
        return raw_typed(&key, typed);
    }
    match found.single() {
        Some(value) => output::write(value),
        None => Err(Failure::new(
            format!("cannot print one value of {:?}", values::show(&key)),
            format!("it has {} siblings", found.versions.len()),
        )
        .hint("`dynamoctl get` without --raw shows them; put the one that shall hold with --context")
        .with_code(EXIT_SIBLINGS)),
    }
}

fn get_failure(key: &[u8], error: &Error) -> Failure {
    let failure = Failure::client(format!("cannot get {:?}", values::show(key)), error);
    match error {
        Error::NotFound { context } if !context.is_none() => failure.hint(format!(
            "it was deleted; to put it again pass --context {}",
            values::token(context)
        )),
        _ => failure,
    }
}

/// One word or value; what has parts cannot be printed byte for byte.
fn raw_typed(key: &[u8], typed: &Typed) -> Result<(), Failure> {
    match typed {
        Typed::Counter(number) => output::write(number.to_string().as_bytes()),
        Typed::Flag(enabled) => output::write(enabled.to_string().as_bytes()),
        Typed::Register(value) => output::write(value),
        Typed::Set(_) | Typed::Map(_) => Err(Failure::new(
            format!("cannot print one value of {:?}", values::show(key)),
            format!("it is a {}", type_name(typed)),
        )
        .hint("`dynamoctl get` without --raw shows it, and --output json gives it to programs")),
    }
}

pub(super) fn options(quorum: &WriteQuorum) -> WriteOptions {
    WriteOptions {
        w: quorum.w,
        pw: quorum.pw,
        dw: quorum.dw,
        zones: quorum.zones,
        ..WriteOptions::default()
    }
}

pub(super) fn written_text(what: &str, written: &Written, output: Output) -> String {
    let by = if written.info.coordinator.is_empty() || !output.is_terminal() {
        String::new()
    } else {
        format!(
            " (coordinator {}, {} acks)",
            written.info.coordinator, written.acks
        )
    };
    let mut text = format!("{what}{by}");
    if written.info.fallbacks_counted > 0 {
        let _ = write!(
            text,
            "\n{} of {} acks are a fallback's: until its hint is delivered, a read may miss this",
            written.info.fallbacks_counted, written.acks
        );
    }
    let _ = write!(text, "\ncontext: {}", values::token(&written.context));
    text
}

fn found_text(found: &Found, output: Output) -> String {
    let mut text = match &found.typed {
        Some(typed) => output.table(&typed_table(typed)),
        None => output.table(&versions_table(found)),
    };
    if found.versions.len() > 1 {
        let _ = write!(
            text,
            "\n{} siblings: put the value that shall hold with this context",
            found.versions.len()
        );
    }
    if found.deleted_concurrently {
        text.push_str("\na delete was concurrent with a value");
    }
    let _ = write!(text, "\ncontext: {}", values::token(&found.context));
    text
}

fn versions_table(found: &Found) -> Columns {
    let expires = found
        .versions
        .iter()
        .any(|version| version.expires_at_ms.is_some());
    let mut header = vec!["VALUE", "BYTES", "WRITTEN"];
    header.extend(expires.then_some("EXPIRES"));
    let mut columns = Columns::new(&header, &[1]);
    for version in &found.versions {
        let mut row = vec![
            shorten(&values::show(&version.value)),
            version.value.len().to_string(),
            time(version.written_at_ms),
        ];
        row.extend(expires.then(|| time(version.expires_at_ms.unwrap_or(0))));
        columns.row(row);
    }
    columns
}

/// A row for each part: members of sets, fields of maps and members of sets in them.
fn typed_table(typed: &Typed) -> Columns {
    if let Typed::Map(fields) = typed {
        let mut columns = Columns::new(&["FIELD", "TYPE", "VALUE"], &[]);
        for (name, value) in fields {
            for part in parts(value) {
                columns.row([shorten(&values::show(name)), type_name(value).to_owned(), part]);
            }
        }
        return columns;
    }
    let mut columns = Columns::new(&["TYPE", "VALUE"], &[]);
    for part in parts(typed) {
        columns.row([type_name(typed).to_owned(), part]);
    }
    columns
}

/// At least one, so that an empty set is shown too.
fn parts(typed: &Typed) -> Vec<String> {
    match typed {
        Typed::Counter(number) => vec![number.to_string()],
        Typed::Flag(enabled) => vec![if *enabled { "enabled" } else { "disabled" }.to_owned()],
        Typed::Register(value) => vec![shorten(&values::show(value))],
        Typed::Set(members) if !members.is_empty() => members
            .iter()
            .map(|member| shorten(&values::show(member)))
            .collect(),
        Typed::Set(_) | Typed::Map(_) => vec![String::new()],
    }
}

fn type_name(typed: &Typed) -> &'static str {
    match typed {
        Typed::Counter(_) => "counter",
        Typed::Set(_) => "set",
        Typed::Flag(_) => "flag",
        Typed::Register(_) => "register",
        Typed::Map(_) => "map",
    }
}

/// A cell of one line: control characters escaped, the rest cut.
fn shorten(text: &str) -> String {
    let mut shown = String::new();
    for (index, c) in text.chars().enumerate() {
        if index == SHOWN_CHARS_MAX {
            shown.push('…');
            break;
        }
        if c.is_control() {
            shown.extend(c.escape_default());
        } else {
            shown.push(c);
        }
    }
    shown
}

fn time(ms: u64) -> String {
    let time = i64::try_from(ms)
        .ok()
        .and_then(|ms| jiff::Timestamp::from_millisecond(ms).ok());
    time.filter(|_| ms > 0)
        .map(|time| time.to_string())
        .unwrap_or_default()
}

/// `name` for text, `name_b64` for anything else, as in files of records.
fn put_bytes(object: &mut Map<String, Value>, name: &str, bytes: &[u8]) {
    match std::str::from_utf8(bytes) {
        Ok(text) => object.insert(name.to_owned(), text.into()),
        Err(_) => object.insert(format!("{name}_b64"), STANDARD.encode(bytes).into()),
    };
}

pub(super) fn written_json(key: &[u8], written: &Written) -> Value {
    let mut object = Map::new();
    put_bytes(&mut object, "key", key);
    object.insert("context".to_owned(), values::token(&written.context).into());
    object.insert("acks".to_owned(), written.acks.into());
    object.insert("primaries".to_owned(), written.primaries.into());
    object.insert("durable".to_owned(), written.durable.into());
    object.insert("zones".to_owned(), written.zones.into());
    object.insert("info".to_owned(), info_json(&written.info));
    object.into()
}

fn found_json(key: &[u8], found: &Found) -> Value {
    let versions = found.versions.iter().map(|version| {
        let mut object = Map::new();
        put_bytes(&mut object, "value", &version.value);
        object.insert("written_at_ms".to_owned(), version.written_at_ms.into());
        object.insert("expires_at_ms".to_owned(), version.expires_at_ms.into());
        Value::from(object)
    });
    let mut object = Map::new();
    put_bytes(&mut object, "key", key);
    object.insert("versions".to_owned(), versions.collect());
    if let Some(typed) = &found.typed {
        object.insert("typed".to_owned(), typed_json(typed).into());
    }
    object.insert("context".to_owned(), values::token(&found.context).into());
    object.insert(
        "deleted_concurrently".to_owned(),
        found.deleted_concurrently.into(),
    );
    object.insert("info".to_owned(), info_json(&found.info));
    object.into()
}

/// The type's name and what it holds.
fn typed_json(typed: &Typed) -> Map<String, Value> {
    let mut object = Map::new();
    object.insert("type".to_owned(), type_name(typed).into());
    match typed {
        Typed::Counter(number) => drop(object.insert("value".to_owned(), (*number).into())),
        Typed::Flag(enabled) => drop(object.insert("value".to_owned(), (*enabled).into())),
        Typed::Register(value) => put_bytes(&mut object, "value", value),
        Typed::Set(members) => {
            let members = members.iter().map(|member| {
                let mut object = Map::new();
                put_bytes(&mut object, "value", member);
                Value::from(object)
            });
            object.insert("members".to_owned(), members.collect());
        }
        Typed::Map(fields) => {
            let fields = fields.iter().map(|(name, value)| {
                let mut object = typed_json(value);
                put_bytes(&mut object, "name", name);
                Value::from(object)
            });
            object.insert("fields".to_owned(), fields.collect());
        }
    }
    object
}

fn info_json(info: &Info) -> Value {
    let [n, r, w, pr, pw, dw, zones] = info.quorum;
    json!({
        "ring_epoch": info.ring_epoch,
        "coordinator": info.coordinator,
        "hops": info.hops,
        "fastest": info.fastest,
        "acks": info.acks,
        "fallbacks_counted": info.fallbacks_counted,
        "quorum": { "replicas": n, "r": r, "w": w, "pr": pr, "pw": pw, "dw": dw, "zones": zones },
    })
}

#[cfg(test)]
mod tests {
    use dynamo_client::Context;

    use super::*;

    #[test]
    fn cells_stay_on_one_line() {
        assert_eq!(shorten("a\nb\u{1b}[31m"), "a\\nb\\u{1b}[31m");
        assert_eq!(shorten(&"ä".repeat(500)).chars().count(), SHOWN_CHARS_MAX + 1);
    }

    #[test]
    fn times_are_for_people_and_unknown_ones_are_empty() {
        assert_eq!(time(1_700_000_000_123), "2023-11-14T22:13:20.123Z");
        assert_eq!((time(0), time(u64::MAX)), (String::new(), String::new()));
    }

    #[test]
    fn an_absent_key_with_tombstones_tells_its_context() {
        let context = Context::from_bytes("seen");
        let failure = get_failure(
            b"k",
            &Error::NotFound {
                context: context.clone(),
            },
        );
        assert!(failure.to_string().contains(&values::token(&context)));
        assert_eq!(failure.code(), crate::failure::EXIT_NOT_FOUND);
    }
}
