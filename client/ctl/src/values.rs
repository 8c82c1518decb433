//! Keys, values, contexts and other arguments as people write them.

use std::{fmt, fs::File, io::Read, path::Path, time::Duration};

use base64::{
    Engine as _,
    engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD},
};
use bytes::Bytes;
use dynamo_client::{Context, OpId};
use dynamo_core::types::ClusterId;

use crate::{cli::Key, failure::Failure};

/// A value from a file or standard input: the largest that any cluster can be configured to take.
const VALUE_BYTES_MAX: u64 = 16 << 20;
const DAY_MS: u64 = 86_400_000;
/// In milliseconds.
const UNITS: [(&str, u64); 5] = [
    ("ms", 1),
    ("s", 1000),
    ("m", 60_000),
    ("h", 3_600_000),
    ("d", DAY_MS),
];

/// A member of the first ring, as `bootstrap --member` takes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Member {
    pub(crate) id: String,
    pub(crate) zone: String,
    pub(crate) weight: u32,
    pub(crate) peer: String,
}

/// A time to live; none: values stay.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Ttl(pub(crate) Option<Duration>);

/// A cluster id, written as a UUID or as 32 hexadecimal digits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct ClusterIdArg(pub(crate) [u8; 16]);

impl Key {
    /// The bytes that the argument stands for.
    pub(crate) fn bytes(&self) -> Result<Bytes, Failure> {
        if !self.hex {
            return Ok(Bytes::copy_from_slice(self.key.as_bytes()));
        }
        let bytes = from_hex(&self.key).ok_or_else(|| {
            Failure::new(
                format!("cannot use the key {:?}", self.key),
                "with --hex it must be an even number of hexadecimal digits".to_owned(),
            )
        })?;
        Ok(bytes.into())
    }
}

/// How a key or value is shown: text as it is, anything else as `base64:...`.
pub(crate) fn show(bytes: &[u8]) -> String {
    match std::str::from_utf8(bytes) {
        Ok(text) => text.to_owned(),
        Err(_) => format!("base64:{}", STANDARD.encode(bytes)),
    }
}

/// A context as a word that can be copied.
pub(crate) fn token(context: &Context) -> String {
    URL_SAFE_NO_PAD.encode(context.as_bytes())
}

/// Reads back what [`token`] wrote.
pub(crate) fn context(token: &str) -> Result<Context, Failure> {
    let bytes = URL_SAFE_NO_PAD.decode(token.trim()).map_err(|error| {
        Failure::new("cannot read the context", format!("{error} in {token:?}"))
            .hint("copy the whole token that `dynamoctl get` printed for this key")
    })?;
    Ok(Context::from_bytes(bytes))
}

/// Reads a value from a file, or from standard input for `-`.
pub(crate) fn read_value(path: &Path) -> Result<Bytes, Failure> {
    let failed = |error: &dyn fmt::Display| {
        Failure::new(
            format!("cannot read the value from {}", path.display()),
            error.to_string(),
        )
    };
    let reader: Box<dyn Read> = if path == Path::new("-") {
        Box::new(std::io::stdin())
    } else {
        Box::new(File::open(path).map_err(|error| failed(&error))?)
    };
    let mut value = Vec::new();
    reader
        .take(VALUE_BYTES_MAX + 1)
        .read_to_end(&mut value)
        .map_err(|error| failed(&error))?;
    if value.len() as u64 > VALUE_BYTES_MAX {
        return Err(failed(&format!("it has more than {VALUE_BYTES_MAX} bytes")));
    }
    Ok(value.into())
}

/// A number with a unit: ms, s or m.
pub(crate) fn duration(text: &str) -> Result<Duration, String> {
    // A day is more than anything here should wait, and far from any overflow.
    milliseconds(text, &UNITS[..3], DAY_MS)
        .map(Duration::from_millis)
        .ok_or_else(|| format!("{text:?} is not a duration such as 500ms, 5s or 1m"))
}

/// A time to live: a number with a unit up to days, at most a hundred years.
pub(crate) fn ttl(text: &str) -> Result<Duration, String> {
    milliseconds(text, &UNITS, 36_525 * DAY_MS)
        .map(Duration::from_millis)
        .ok_or_else(|| format!("{text:?} is not a time to live such as 30s, 1h or 7d"))
}

/// As [`ttl`], or `never`.
pub(crate) fn ttl_or_never(text: &str) -> Result<Ttl, String> {
    if text == "never" {
        return Ok(Ttl(None));
    }
    ttl(text).map(|ttl| Ttl(Some(ttl)))
}

/// Reads back as the same time to live; empty for none.
pub(crate) fn show_ttl(ms: u64) -> String {
    let unit = UNITS.iter().rev().find(|(_, unit)| ms.is_multiple_of(*unit));
    match unit {
        Some((name, unit)) if ms > 0 => format!("{}{name}", ms / unit),
        _ => String::new(),
    }
}

fn milliseconds(text: &str, units: &[(&str, u64)], max: u64) -> Option<u64> {
    let split = text.find(|c: char| !c.is_ascii_digit())?;
    let (number, unit) = text.split_at(split);
    let (_, unit) = units.iter().find(|(name, _)| *name == unit)?;
    let ms = number.parse::<u64>().ok()?.checked_mul(*unit)?;
    (1..=max).contains(&ms).then_some(ms)
}

/// 32 hexadecimal digits.
pub(crate) fn op_id(text: &str) -> Result<OpId, String> {
    from_hex(text)
        .and_then(|bytes| OpId::try_from(bytes).ok())
        .ok_or_else(|| format!("{text:?} is not 32 hexadecimal digits"))
}

/// Bytes for people.
pub(crate) fn size(bytes: u64) -> String {
    let units = ["B", "KiB", "MiB", "GiB", "TiB"];
    let unit = (bytes.max(1).ilog2() / 10).min(4);
    if unit == 0 {
        format!("{bytes}B")
    } else {
        format!(
            "{:.1}{}",
            bytes as f64 / 1024f64.powf(f64::from(unit)),
            units[unit as usize]
        )
    }
}

/// `ID[,zone=ZONE][,weight=W][,peer=HOST:PORT]`.
pub(crate) fn member(text: &str) -> Result<Member, String> {
    let mut parts = text.split(',');
    let id = parts.next().unwrap_or_default().to_owned();
    if id.is_empty() || id.contains('=') {
        return Err("a member begins with its id, as in n1,zone=a".to_owned());
    }
    let mut member = Member {
        id,
        zone: String::new(),
        weight: 1,
        peer: String::new(),
    };
    for part in parts {
        match part.split_once('=') {
            Some(("zone", zone)) => zone.clone_into(&mut member.zone),
            Some(("peer", peer)) => peer.clone_into(&mut member.peer),
            Some(("weight", weight)) => {
                let parsed = weight.parse().ok().filter(|weight| (1..=100).contains(weight));
                member.weight = parsed.ok_or_else(|| format!("weight {weight:?} is not in 1..=100"))?;
            }
            _ => return Err(format!("{part:?} is not zone=.., weight=.. or peer=..")),
        }
    }
    Ok(member)
}

/// A UUID or 32 hexadecimal digits.
pub(crate) fn cluster_id(text: &str) -> Result<ClusterIdArg, String> {
    let bytes = from_hex(&text.replace('-', ""));
    let id = bytes.and_then(|bytes| <[u8; 16]>::try_from(bytes).ok());
    id.map(ClusterIdArg)
        .ok_or_else(|| format!("{text:?} is not a UUID"))
}

/// A cluster id from the wire, for people; empty if there is none.
pub(crate) fn show_cluster_id(bytes: &[u8]) -> String {
    <[u8; 16]>::try_from(bytes)
        .map(|id| ClusterId(id).to_string())
        .unwrap_or_default()
}

fn from_hex(text: &str) -> Option<Vec<u8>> {
    if !text.len().is_multiple_of(2) || !text.is_ascii() {
        return None;
    }
    let digit = |byte: u8| char::from(byte).to_digit(16);
    text.as_bytes()
        .chunks(2)
        .map(|pair| Some((digit(pair[0])? << 4 | digit(pair[1])?) as u8))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations() {
        assert_eq!(duration("500ms"), Ok(Duration::from_millis(500)));
        assert_eq!(duration("5s"), Ok(Duration::from_secs(5)));
        assert_eq!(duration("2m"), Ok(Duration::from_mins(2)));
        for bad in [
            "",
            "5",
            "s",
            "5h",
            "-1s",
            "1.5s",
            "0s",
            "99999999999999999999s",
            "18446744073709551615m",
        ] {
            assert!(duration(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn times_to_live() {
        for (text, ms) in [
            ("30s", 30_000),
            ("1h", 3_600_000),
            ("7d", 604_800_000),
            ("1500ms", 1500),
        ] {
            assert_eq!(ttl(text), Ok(Duration::from_millis(ms)));
            assert_eq!(show_ttl(ms), text);
        }
        assert_eq!(ttl_or_never("never"), Ok(Ttl(None)));
        assert_eq!((show_ttl(0), show_ttl(60_000)), (String::new(), "1m".to_owned()));
        for bad in ["", "0s", "1w", "never", "99999999d", "-1s"] {
            assert!(ttl(bad).is_err(), "{bad}");
        }
        assert_eq!(op_id("00112233445566778899aabbccddeeff").unwrap()[15], 0xff);
        assert!(op_id("00").is_err());
    }

    #[test]
    fn sizes() {
        let sizes = [
            (0, "0B"),
            (1023, "1023B"),
            (1024, "1.0KiB"),
            (3 << 19, "1.5MiB"),
            (u64::MAX, "16777216.0TiB"),
        ];
        for (bytes, text) in sizes {
            assert_eq!(size(bytes), text);
        }
    }

    #[test]
    fn members() {
        let full = member("n1,zone=eu-1a,weight=2,peer=n1.example:7701").unwrap();
        let expected = Member {
            id: "n1".to_owned(),
            zone: "eu-1a".to_owned(),
            weight: 2,
            peer: "n1.example:7701".to_owned(),
        };
        assert_eq!(full, expected);
        assert_eq!(member("n1").unwrap().weight, 1);
        for bad in [
            "",
            "zone=a",
            "n1,zone",
            "n1,weight=0",
            "n1,weight=101",
            "n1,color=red",
        ] {
            assert!(member(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn keys_contexts_and_cluster_ids() {
        let key = |key: &str, hex| Key {
            key: key.to_owned(),
            hex,
        };
        assert_eq!(key("00fF", true).bytes().unwrap().as_ref(), [0, 0xff]);
        assert_eq!(key("00ff", false).bytes().unwrap().as_ref(), b"00ff");
        for bad in ["0", "0g", "ää"] {
            assert!(key(bad, true).bytes().is_err());
        }
        let original = Context::from_bytes(vec![0, 0xff, 0xfe, b'-']);
        assert_eq!(context(&token(&original)).unwrap(), original);
        assert!(context("not a token!").is_err());
        let id = cluster_id("00112233-4455-6677-8899-aabbccddeeff").unwrap();
        assert_eq!(id.0[..2], [0x00, 0x11]);
        assert_eq!(show_cluster_id(&id.0), "00112233-4455-6677-8899-aabbccddeeff");
        assert_eq!(cluster_id("00112233445566778899aabbccddeeff"), Ok(id));
        assert!(cluster_id("0011").is_err());
    }

    #[test]
    fn binary_is_shown_as_base64() {
        assert_eq!(show("grün".as_bytes()), "grün");
        assert_eq!(show(&[0xff, 0x00]), "base64:/wA=");
    }
}
