//! The fields that a stream declares: `temperature: double`, or with more about them
//! `temperature: {type: double, unit: Cel, aliases: [temp], deprecated: "use temperature_c"}`.

use std::fmt;

use arrow::datatypes::DataType;
use serde::de::value::{MapAccessDeserializer, StrDeserializer};
use serde::de::{Error as _, MapAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::{FieldType, column_name, is_column_name};

/// Names that a field may have besides its own.
const MAX_ALIASES: usize = 16;
/// The longest unit, note or other name, in bytes.
const MAX_TEXT: usize = 255;

/// A declared field.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FieldDef {
    /// The type of its column.
    pub field_type: FieldType,
    /// What a number counts: best a code of UCUM or SenML, such as `Cel`. Nothing is converted.
    pub unit: Option<String>,
    /// Other names under which payloads may have it, spelled as payloads do (after flattening).
    pub aliases: Vec<String>,
    /// That nobody should use it any more, and what to use instead.
    pub deprecated: Option<String>,
}

impl From<FieldType> for FieldDef {
    fn from(field_type: FieldType) -> Self {
        Self { field_type, unit: None, aliases: Vec::new(), deprecated: None }
    }
}

impl FieldDef {
    /// The type of its column.
    pub fn data_type(&self) -> DataType {
        self.field_type.data_type()
    }

    /// What is wrong with it by itself; `name` is its own.
    pub(super) fn check(&self, name: &str) -> Result<(), String> {
        let wrong = |what: &str| Err(format!("field `{name}`: {what}"));
        if self.aliases.len() > MAX_ALIASES {
            return wrong(&format!("there are more than {MAX_ALIASES} aliases"));
        }
        let notes = self.unit.iter().chain(&self.deprecated).chain(&self.aliases);
        if notes.clone().any(|text| text.trim().is_empty()) {
            return wrong("`unit`, `deprecated` and aliases cannot be empty; leave them out");
        }
        if notes.clone().any(|text| text.len() > MAX_TEXT) {
            return wrong(&format!("`unit`, `deprecated` and aliases have at most {MAX_TEXT} bytes"));
        }
        let is_no_name = |alias: &&String| {
            let column = column_name(alias);
            !is_column_name(&column) || column.starts_with('_')
        };
        match self.aliases.iter().find(is_no_name) {
            Some(alias) => wrong(&format!("the alias `{alias}` can be the name of no field")),
            None => Ok(()),
        }
    }
}

/// The long form.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Long {
    r#type: FieldType,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    unit: Option<String>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    aliases: Vec<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    deprecated: Option<String>,
}

impl Serialize for FieldDef {
    /// The short form where it says all.
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        if *self == Self::from(self.field_type) {
            return self.field_type.serialize(serializer);
        }
        let Self { field_type, unit, aliases, deprecated } = self.clone();
        Long { r#type: field_type, unit, aliases, deprecated }.serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for FieldDef {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(EitherForm)
    }
}

struct EitherForm;

impl<'de> Visitor<'de> for EitherForm {
    type Value = FieldDef;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a type, or a mapping with `type` and perhaps `unit`, `aliases`, `deprecated`")
    }

    fn visit_str<E: serde::de::Error>(self, word: &str) -> Result<FieldDef, E> {
        let field_type: Result<FieldType, E> = FieldType::deserialize(StrDeserializer::new(word));
        field_type.map(FieldDef::from).map_err(|e| E::custom(format!("`{word}`: {e}")))
    }

    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<FieldDef, A::Error> {
        let Long { r#type, unit, aliases, deprecated } =
            Long::deserialize(MapAccessDeserializer::new(map))
                .map_err(|e| A::Error::custom(format!("a field's declaration: {e}")))?;
        Ok(FieldDef { field_type: r#type, unit, aliases, deprecated })
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    type Fields = BTreeMap<String, FieldDef>;

    #[test]
    fn both_forms_are_read_and_come_back_as_short_as_they_can() {
        let text = "{a: double, b: {type: int}, c: {type: double, unit: Cel, aliases: [temp, t-c], deprecated: use d}}";
        let fields: Fields = serde_saphyr::from_str(text).expect("both forms");
        assert_eq!(fields["a"], FieldType::Double.into());
        assert_eq!(fields["b"], FieldType::Bigint.into());
        assert_eq!((fields["c"].unit.as_deref(), fields["c"].aliases.len()), (Some("Cel"), 2));
        let back = serde_json::to_value(&fields).expect("JSON");
        assert_eq!(
            back,
            serde_json::json!({"a": "double", "b": "bigint", "c": {
                "type": "double", "unit": "Cel", "aliases": ["temp", "t-c"], "deprecated": "use d"}})
        );
        assert_eq!(serde_json::from_value::<Fields>(back).expect("read again"), fields);
    }

    #[test]
    fn what_is_neither_says_what_would_be() {
        let check = |text: &str, words: &[&str]| {
            let error = serde_saphyr::from_str::<Fields>(text).expect_err(text).to_string();
            words.iter().for_each(|word| assert!(error.contains(word), "{text}: {error}"));
        };
        check("{a: number}", &["number", "double"]);
        check("{a: {unit: Cel}}", &["type"]);
        check("{a: {type: double, units: Cel}}", &["units"]);
        check("{a: [double]}", &["a type, or a mapping"]);
    }
}
