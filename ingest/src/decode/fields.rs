//! Which field of a payload goes where: the columns of a stream and the names that lead to them.

use ahash::HashMap;
use arrow::datatypes::Schema;

use iot_schemas::catalog::{
    Format, SPARKPLUG_COLUMNS, StreamDef, UnknownFields, column_name, is_column_name,
};
use iot_schemas::layout::{DEVICE_ID, RESERVED};
use iot_schemas::{Error, Result};

use super::column::{Column, Kind, Origin};
use super::upcaster::Upcaster;

/// A stream has no more columns of its own; a field beyond it makes its message a dead letter.
pub(crate) const MAX_COLUMNS: usize = 1_000;
/// A longer name is no column name.
const MAX_NAME: usize = 255;
/// Spellings that are remembered; beyond it they are resolved each time.
const MAX_SPELLINGS: usize = 4_096;
/// Where the event time stands when the definition does not say.
const DEFAULT_TIME_FIELD: &str = "ts";

/// Where the value of a field goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Target {
    EventTime,
    /// The event time, which is declared as a field of its own too.
    EventTimeColumn(usize),
    DeviceId,
    Column(usize),
    /// The topic or a property says it already, or the field is read at another time.
    Skip,
    Unknown,
}

/// What an unknown field becomes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Admission {
    /// A new column of this name.
    New(String),
    /// It is another spelling of a column that is there.
    Known(usize),
}

/// The columns of a stream.
#[derive(Debug)]
pub(crate) struct Fields {
    pub(crate) columns: Vec<Column>,
    pub(crate) unknown: UnknownFields,
    /// Spellings in payloads, the sanitised ones too.
    targets: HashMap<Box<str>, Target>,
    /// Lower-case names, because table formats do not tell `Temp` from `temp`.
    lower: HashMap<Box<str>, usize>,
    /// The events of the present message say everything themselves: they have no topic and no properties.
    pub(crate) is_written: bool,
    /// How events of older versions become events of today, if the stream says so.
    pub(crate) upcast: Option<Box<Upcaster>>,
    /// The columns of the last object by position: payloads of a fleet look alike.
    habit: Vec<Target>,
}

impl Fields {
    /// The columns of `def` and, after them, those that `table` has in addition.
    pub(crate) fn new(def: &StreamDef, table: &Schema) -> Result<Self> {
        let time_field = time_field(def);
        let mut fields = Self {
            columns: Vec::new(),
            unknown: def.unknown_fields,
            targets: HashMap::default(),
            lower: HashMap::default(),
            is_written: false,
            upcast: Upcaster::new(def)?,
            habit: Vec::new(),
        };
        let of_format = if def.format == Format::SparkplugB { &SPARKPLUG_COLUMNS[..] } else { &[] };
        let no_such_type = || Error::invalid(format!("stream `{}`: no such type", def.name));
        for (name, field_type) in of_format {
            let kind = Kind::of(&field_type.data_type()).ok_or_else(no_such_type)?;
            fields.declare(def, name, kind, Origin::Topic, table)?;
        }
        for name in def.topic_columns() {
            // A level may be called what the format calls it.
            if !of_format.iter().any(|(column, _)| *column == name) {
                fields.declare(def, name, Kind::Text, Origin::Topic, table)?;
            }
        }
        for name in def.property_columns() {
            fields.declare(def, &name, Kind::Text, Origin::Topic, table)?;
        }
        for (name, field) in &def.fields {
            let kind = Kind::of(&field.data_type()).ok_or_else(no_such_type)?;
            let at = fields.declare(def, name, kind, Origin::Declared, table)?;
            fields.columns[at].has_aliases = !field.aliases.is_empty();
            for alias in &field.aliases {
                fields.targets.insert(alias.as_str().into(), Target::Column(at));
                fields.targets.insert(column_name(alias).into(), Target::Column(at));
            }
        }
        let found = if def.unknown_fields == UnknownFields::Add { Origin::Found } else { Origin::Dormant };
        for field in table.fields() {
            let name = field.name().as_str();
            if RESERVED.contains(&name) || fields.lower.contains_key(name.to_lowercase().as_str()) {
                continue;
            }
            let kind = Kind::of(field.data_type()).ok_or_else(|| Error::Corrupt {
                path: format!("the raw table of `{}`", def.name),
                reason: format!("column `{name}` has the type {}, which no stream has", field.data_type()),
            })?;
            // A field of that name is another column's by now.
            let is_alias = fields.targets.contains_key(name);
            fields.add(name, kind, if is_alias { Origin::Dormant } else { found });
        }
        let time = match fields.targets.get(&*time_field) {
            Some(Target::Column(at)) if def.fields.contains_key(&time_field) => Target::EventTimeColumn(*at),
            _ => Target::EventTime,
        };
        fields.targets.insert(time_field.into(), time);
        fields.targets.insert(DEVICE_ID.into(), Target::DeviceId);
        Ok(fields)
    }

    /// Adds a column that `def` names; its type must fit what the table has.
    fn declare(
        &mut self,
        def: &StreamDef,
        name: &str,
        kind: Kind,
        origin: Origin,
        table: &Schema,
    ) -> Result<usize> {
        let wrong = |why: String| Error::invalid(format!("stream `{}`: {why}", def.name));
        if let Some(at) = self.lower.get(name.to_lowercase().as_str()) {
            let other = &self.columns[*at].name;
            return Err(wrong(format!("the columns `{other}` and `{name}` differ only by case")));
        }
        let there = table.fields().iter().find(|field| field.name().eq_ignore_ascii_case(name));
        if let Some(there) = there {
            if there.name() != name {
                let have = there.name();
                return Err(wrong(format!(
                    "the table has `{have}` already, which differs from `{name}` only by case"
                )));
            }
            let fits = match (Kind::of(there.data_type()), kind) {
                (Some(Kind::Bigint), Kind::Double) => true,
                (Some(have), want) => have == want,
                (None, _) => false,
            };
            if !fits {
                let have = Kind::of(there.data_type()).map_or("another type", Kind::word);
                return Err(wrong(format!(
                    "column `{name}` is {have} in the table and cannot become {}; declare it as {have}, or give the field another name",
                    kind.word()
                )));
            }
        }
        Ok(self.add(name, kind, origin))
    }

    /// Adds a column that [`Self::admit`] has let in, or that is known to be good.
    pub(crate) fn add(&mut self, name: &str, kind: Kind, origin: Origin) -> usize {
        let at = self.columns.len();
        self.columns.push(Column::new(name, kind, origin));
        self.lower.insert(name.to_lowercase().into(), at);
        match origin {
            Origin::Topic => _ = self.targets.insert(name.into(), Target::Skip),
            Origin::Declared | Origin::Found => _ = self.targets.insert(name.into(), Target::Column(at)),
            Origin::Dormant => {}
        }
        at
    }

    /// Where the field spelled `name` goes, when it is the object's field number `position`.
    pub(crate) fn resolve(&mut self, name: &str, position: usize) -> Target {
        if let Some(Target::Column(at)) = self.habit.get(position)
            && *self.columns[*at].name == *name
        {
            return Target::Column(*at);
        }
        // A payload may have millions of fields within an object that has a name of megabytes.
        if name.len() > MAX_NAME {
            return Target::Unknown;
        }
        let target = self.targets.get(name).copied().unwrap_or(Target::Unknown);
        if self.is_written
            && target == Target::Skip
            && let Some(at) = self.lower.get(name.to_lowercase().as_str())
        {
            return Target::Column(*at);
        }
        if position < MAX_COLUMNS {
            if self.habit.len() <= position {
                self.habit.resize(position + 1, Target::Unknown);
            }
            self.habit[position] = target;
        }
        target
    }

    /// The column for an unknown field, or why there cannot be one. `pending` others are about to be added.
    pub(crate) fn admit(&self, name: &str, pending: usize) -> Result<Admission, String> {
        let clean = column_name(name);
        let hint = "rename it in the payload, or set `unknown_fields: ignore`";
        if !is_column_name(&clean) || clean.starts_with('_') || clean.len() > MAX_NAME {
            return Err(format!("field `{}` cannot be a column name; {hint}", super::shorten(name)));
        }
        let lower = clean.to_lowercase();
        if RESERVED.contains(&lower.as_str()) {
            return Err(format!("field `{clean}` has a name that the system uses itself; {hint}"));
        }
        if let Some(Target::Column(at)) = self.targets.get(clean.as_str()) {
            return Ok(Admission::Known(*at));
        }
        if let Some(at) = self.lower.get(lower.as_str()) {
            let column = &self.columns[*at];
            if *column.name != *clean {
                return Err(format!(
                    "field `{clean}` differs from column `{}` only by case; {hint}",
                    column.name
                ));
            }
            if column.origin == Origin::Topic {
                return Err(format!("field `{clean}` has the name of a topic level or a property; {hint}"));
            }
            return Ok(Admission::Known(*at));
        }
        if self.columns.len() + pending >= MAX_COLUMNS {
            return Err(format!(
                "field `{clean}` would be a column beyond the {MAX_COLUMNS} that a stream can have"
            ));
        }
        Ok(Admission::New(clean))
    }

    /// The type of the column that an unknown field will turn out to be another spelling of.
    pub(crate) fn kind_of_spelling(&self, name: &str) -> Option<Kind> {
        // A payload may repeat a name of megabytes in every row.
        if self.unknown != UnknownFields::Add || name.len() > MAX_NAME {
            return None;
        }
        match self.admit(name, 0) {
            Ok(Admission::Known(at)) => Some(self.columns[at].kind()),
            _ => None,
        }
    }

    /// Remembers that `spelling` leads to a column.
    pub(crate) fn learn(&mut self, spelling: &str, at: usize) {
        if self.targets.len() < MAX_SPELLINGS {
            self.targets.insert(spelling.into(), Target::Column(at));
        }
    }
}

/// The flattened name of the field with the event time.
fn time_field(def: &StreamDef) -> String {
    let field = def.event_time.as_ref().and_then(|time| time.field.as_deref());
    field.unwrap_or(DEFAULT_TIME_FIELD).replace('.', "_")
}
