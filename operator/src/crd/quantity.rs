//! Kubernetes quantities: `500m`, `1Gi`, `2`.

use std::{borrow::Cow, cmp::Ordering};

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, Serialize};

/// An amount as Kubernetes writes it; a bare integer is taken too, as kubectl does.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Quantity(pub String);

impl Quantity {
    /// Thousandths of the unit, `None` if it is no quantity.
    pub fn milli(&self) -> Option<i128> {
        milli(&self.0)
    }

    /// Compares amounts, not spellings: `1024Mi` equals `1Gi`. `None` if one of them is no quantity.
    pub fn compare(&self, other: &Self) -> Option<Ordering> {
        Some(self.milli()?.cmp(&other.milli()?))
    }
}

/// Thousandths of what `text` says, rounded up; `None` if it is no quantity.
pub fn milli(text: &str) -> Option<i128> {
    let number = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let (numerator, denominator) = factor(&text[number.len()..])?;
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    let digits = |part: &str| part.chars().all(|c| c.is_ascii_digit()) && part.len() <= 15;
    if number.is_empty() || !digits(whole) || !digits(fraction) || (whole.is_empty() && fraction.is_empty()) {
        return None;
    }
    let parsed: i128 = format!("{whole}{fraction}").parse().ok()?;
    let scale = 10_i128.checked_pow(u32::try_from(fraction.len()).ok()?)? * denominator;
    let scaled = parsed.checked_mul(numerator)?.checked_mul(1000)?;
    Some(scaled / scale + i128::from(scaled % scale != 0))
}

fn factor(suffix: &str) -> Option<(i128, i128)> {
    Some(match suffix {
        "" => (1, 1),
        "m" => (1, 1000),
        "k" => (1000, 1),
        "M" => (1_000_000, 1),
        "G" => (1_000_000_000, 1),
        "T" => (1_000_000_000_000, 1),
        "P" => (1_000_000_000_000_000, 1),
        "Ki" => (1 << 10, 1),
        "Mi" => (1 << 20, 1),
        "Gi" => (1 << 30, 1),
        "Ti" => (1 << 40, 1),
        "Pi" => (1 << 50, 1),
        _ => return None,
    })
}

impl From<&str> for Quantity {
    fn from(text: &str) -> Self {
        Self(text.into())
    }
}

impl<'de> Deserialize<'de> for Quantity {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum IntOrString {
            Int(i64),
            String(String),
        }
        Ok(match IntOrString::deserialize(deserializer)? {
            IntOrString::Int(value) => Self(value.to_string()),
            IntOrString::String(value) => Self(value),
        })
    }
}

impl JsonSchema for Quantity {
    fn schema_name() -> Cow<'static, str> {
        "Quantity".into()
    }

    fn inline_schema() -> bool {
        true
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "x-kubernetes-int-or-string": true,
            "maxLength": 24,
            "pattern": "^[0-9]{1,15}(\\.[0-9]{1,9})?(m|k|M|G|T|P|Ki|Mi|Gi|Ti|Pi)?$",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn amounts_are_compared_and_not_spellings() {
        let compare = |a: &str, b: &str| Quantity::from(a).compare(&Quantity::from(b));
        assert_eq!(compare("1024Mi", "1Gi"), Some(Ordering::Equal));
        assert_eq!(compare("1G", "1Gi"), Some(Ordering::Less));
        assert_eq!(compare("0.5", "500m"), Some(Ordering::Equal));
        assert_eq!(compare("2", "1999m"), Some(Ordering::Greater));
        assert_eq!(milli("1.5Gi"), Some(1_610_612_736_000));
        for bad in ["", "Gi", "1gb", "-1", "1e3", ".", "1 Gi", "99999999999999999999"] {
            assert_eq!(milli(bad), None, "{bad:?}");
        }
    }
}
