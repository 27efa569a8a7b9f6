//! A column of a stream, with all that is known about it.

use std::collections::HashSet;

use serde::{Deserialize, Serialize};

use crate::catalog::{FieldDef, FieldType, Format, SPARKPLUG_COLUMNS, StreamDef, UnknownFields, column_name};

/// Where a column's values come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Source {
    /// A field that the definition declares.
    Declared,
    /// A field that events brought.
    Inferred,
    /// A named level of the topic.
    Topic,
    /// A user property.
    Property,
    /// The payload format has it always.
    Format,
    /// Nowhere any more: what it holds stays, new events have null.
    Kept,
}

impl Source {
    /// Its name.
    pub fn word(self) -> &'static str {
        match self {
            Self::Declared => "declared",
            Self::Inferred => "inferred",
            Self::Topic => "topic",
            Self::Property => "property",
            Self::Format => "format",
            Self::Kept => "kept",
        }
    }
}

/// A column of a stream. The columns that all streams have (`event_time`, `_seq`, ...) are not in schemas.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Column {
    /// Its name.
    pub name: String,
    /// Its type.
    pub r#type: FieldType,
    /// What its numbers count.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unit: Option<String>,
    /// Other names of its field in payloads.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub aliases: Vec<String>,
    /// That nobody should use it any more, and what to use instead.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub deprecated: Option<String>,
    /// Where its values come from.
    pub source: Source,
    /// The columns that it was called before: their values are read where it has none.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub renamed_from: Vec<String>,
}

impl Column {
    /// The columns that its aliases would be if they were none.
    pub(super) fn alias_names(&self) -> impl Iterator<Item = String> {
        self.aliases.iter().map(|alias| column_name(alias))
    }

    fn plain(name: &str, r#type: FieldType, source: Source) -> Self {
        let (name, aliases, renamed_from) = (name.to_owned(), Vec::new(), Vec::new());
        Self { name, r#type, unit: None, aliases, deprecated: None, source, renamed_from }
    }

    fn declared(name: &str, field: &FieldDef) -> Self {
        Self {
            unit: field.unit.clone(),
            aliases: field.aliases.clone(),
            deprecated: field.deprecated.clone(),
            ..Self::plain(name, field.field_type, Source::Declared)
        }
    }
}

/// The columns of a stream that is defined so, if it has those of `known` already.
pub fn columns_of<'a>(def: &StreamDef, known: impl IntoIterator<Item = (&'a str, FieldType)>) -> Vec<Column> {
    let of_format = if def.format == Format::SparkplugB { &SPARKPLUG_COLUMNS[..] } else { &[] };
    let mut columns: Vec<Column> =
        of_format.iter().map(|(name, field_type)| Column::plain(name, *field_type, Source::Format)).collect();
    // A topic level may be called what the format calls it.
    let levels = def.topic_columns().into_iter().filter(|name| !of_format.iter().any(|(own, _)| own == name));
    columns.extend(levels.map(|name| Column::plain(name, FieldType::Text, Source::Topic)));
    columns
        .extend(def.property_columns().map(|name| Column::plain(&name, FieldType::Text, Source::Property)));
    columns.extend(def.fields.iter().map(|(name, field)| Column::declared(name, field)));
    let mut names: HashSet<String> = columns.iter().map(|column| column.name.clone()).collect();
    let aliases: HashSet<String> = columns.iter().flat_map(Column::alias_names).collect();
    for (name, field_type) in known {
        if names.insert(name.to_owned()) {
            let is_filled = def.unknown_fields == UnknownFields::Add && !aliases.contains(name);
            let source = if is_filled { Source::Inferred } else { Source::Kept };
            columns.push(Column::plain(name, field_type, source));
        }
    }
    columns
}
