//! The versions of one stream's schema.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use arrow::datatypes::{Field, Schema, SchemaRef};
use serde::{Deserialize, Serialize};

use super::column::{Column, Source, columns_of};
use super::compare::{Change, compare};
use crate::catalog::{FieldType, StreamDef, UnknownFields};
use crate::error::{Error, Result};
use crate::layout::{RESERVED, raw_schema};
use crate::position::{NodeId, Seq};

/// Versions that a stream can have. A definition is not changed any more beyond half of them: the rest is for what events
/// bring, which is at most two versions for each column.
pub const MAX_VERSIONS: usize = 4_000;

/// Why a version came into being.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Why {
    /// A definition was put in force.
    Applied,
    /// Events brought it.
    Inferred,
}

impl Why {
    /// Its name.
    pub fn word(self) -> &'static str {
        match self {
            Self::Applied => "applied",
            Self::Inferred => "inferred",
        }
    }
}

/// Where and when a change of the schema happens.
#[derive(Debug, Clone)]
pub struct Stamp {
    /// Why.
    pub why: Why,
    /// When, microseconds since 1970: the arrival of the message that brought it, or the moment of the `apply`.
    pub at: i64,
    /// The node whose positions count.
    pub node: NodeId,
    /// The first position that it applies to.
    pub seq: Seq,
}

/// One version of a schema. It is kept as what it says anew, so that a history is as large as its changes.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Version {
    /// From 1.
    pub number: u32,
    /// When it came into being, microseconds since 1970.
    pub at: i64,
    /// Why.
    pub why: Why,
    /// The node whose positions count.
    pub node: String,
    /// The first position that it applies to.
    pub seq: Seq,
    /// What happens to fields that it does not have.
    pub unknown_fields: UnknownFields,
    /// The columns that are new or not as they were.
    pub set: Vec<Column>,
}

/// A version with all that it says.
#[derive(Debug)]
pub struct Step<'a> {
    /// The version.
    pub version: &'a Arc<Version>,
    /// All its columns.
    pub columns: Vec<Column>,
    /// What it changed from the one before.
    pub changes: Vec<Change>,
}

/// Pairs of columns, new and old: where the new one has no value, that of the old one is read.
pub type Renames = Arc<[(String, String)]>;

/// The versions of one stream's schema, oldest first.
#[derive(Debug, Clone, Default)]
pub struct History {
    versions: Vec<Arc<Version>>,
    /// The columns of the newest version, in the order in which they came.
    latest: Vec<Column>,
    renames: Renames,
}

impl History {
    /// The history of these versions. Fails unless they are numbered from 1 and in the order of their positions.
    pub fn new(versions: Vec<Version>) -> Result<Self, String> {
        let mut history = Self::default();
        for version in versions {
            if version.number as usize != history.versions.len() + 1 {
                return Err(format!("version {} is not where it should be", version.number));
            }
            if history.versions.last().is_some_and(|last| last.seq > version.seq) {
                return Err(format!("version {} begins before the one before it", version.number));
            }
            history.push(version);
        }
        Ok(history)
    }

    /// The versions, oldest first.
    pub fn versions(&self) -> &[Arc<Version>] {
        &self.versions
    }

    /// The newest version.
    pub fn newest(&self) -> Option<&Arc<Version>> {
        self.versions.last()
    }

    /// The columns that are read where others have no value.
    pub fn renames(&self) -> &Renames {
        &self.renames
    }

    /// The columns of the newest version.
    pub fn latest(&self) -> &[Column] {
        &self.latest
    }

    /// The schema of rows with the columns of the newest version.
    pub fn schema(&self) -> SchemaRef {
        let field = |column: &Column| Field::new(&column.name, column.r#type.data_type(), true);
        raw_schema(self.latest.iter().map(field))
    }

    /// The number of the version that is in force at a position; that of the first for positions before it.
    pub fn at(&self, seq: Seq) -> Option<u32> {
        let begun = self.versions.partition_point(|version| version.seq <= seq);
        self.versions.get(begun.saturating_sub(1)).map(|version| version.number)
    }

    /// The versions, oldest first, each with its columns and what it changed. Costs a copy of the columns for each.
    pub fn walk(&self) -> impl Iterator<Item = Step<'_>> {
        let mut columns: Vec<Column> = Vec::new();
        let mut unknown = self.versions.first().map(|first| first.unknown_fields).unwrap_or_default();
        self.versions.iter().map(move |version| {
            let before = columns.clone();
            merge(&mut columns, &version.set);
            let changes = compare((&before, unknown), (&columns, version.unknown_fields));
            unknown = version.unknown_fields;
            Step { version, columns: columns.clone(), changes }
        })
    }

    /// A version with its columns and what it changed.
    pub fn version(&self, number: u32) -> Option<Step<'_>> {
        self.walk().nth(number.checked_sub(1)? as usize)
    }

    /// What `def` would change.
    pub fn plan(&self, def: &StreamDef) -> Result<Vec<Change>> {
        let unknown = self.newest().map_or(def.unknown_fields, |newest| newest.unknown_fields);
        let after = columns_of(def, self.latest.iter().map(|column| (column.name.as_str(), column.r#type)));
        let after: Vec<Column> = after.into_iter().map(|column| self.settle(column, false)).collect();
        let changes = compare((&self.latest, unknown), (&after, def.unknown_fields));
        if !changes.is_empty() && self.versions.len() >= MAX_VERSIONS / 2 {
            let why = format!("the schema of `{}` has changed {} times", def.name, self.versions.len());
            return Err(Error::invalid(format!("{why}; begin a stream of another name")));
        }
        Ok(changes)
    }

    /// The columns that nothing would fill any more if the stream were defined so, though something does now.
    pub fn silenced(&self, def: &StreamDef) -> Vec<String> {
        let after = columns_of(def, self.latest.iter().map(|column| (column.name.as_str(), column.r#type)));
        let kept: HashSet<&str> = after
            .iter()
            .filter(|column| column.source == Source::Kept)
            .map(|column| column.name.as_str())
            .collect();
        let is_silenced =
            |column: &&Column| column.source != Source::Kept && kept.contains(column.name.as_str());
        self.latest.iter().filter(is_silenced).map(|column| column.name.clone()).collect()
    }

    /// Takes in that the stream is defined so and has these columns. Returns whether that made a version.
    ///
    /// What the newest version has already changes nothing, however often it is seen: a column that is missing in
    /// `schema`, or narrower there, is about to be decoded again.
    pub fn observe(&mut self, def: &StreamDef, schema: &Schema, stamp: Stamp) -> bool {
        let own = schema.fields().iter().filter(|field| !RESERVED.contains(&field.name().as_str()));
        let found = own.filter_map(|field| Some((field.name().as_str(), FieldType::of(field.data_type())?)));
        let types: HashMap<&str, FieldType> = found.clone().collect();
        let widest = |column: &Column| match types.get(column.name.as_str()) {
            Some(FieldType::Double) if column.r#type == FieldType::Bigint => FieldType::Double,
            _ => column.r#type,
        };
        let known = self.latest.iter().map(|column| (column.name.as_str(), widest(column)));
        let columns = columns_of(def, known.chain(found));
        let columns: Vec<Column> = columns.into_iter().map(|column| self.settle(column, true)).collect();
        let before: HashMap<&str, &Column> =
            self.latest.iter().map(|column| (column.name.as_str(), column)).collect();
        let is_news = |column: &&Column| before.get(column.name.as_str()).is_none_or(|old| old != column);
        let set: Vec<Column> = columns.iter().filter(is_news).cloned().collect();
        let same_unknown = self.newest().is_some_and(|newest| newest.unknown_fields == def.unknown_fields);
        if (set.is_empty() && same_unknown) || self.versions.len() >= MAX_VERSIONS {
            return false;
        }
        let Stamp { why, at, node, seq } = stamp;
        let seq = seq.max(self.newest().map_or(0, |newest| newest.seq));
        let number = self.versions.len() as u32 + 1;
        let unknown_fields = def.unknown_fields;
        self.push(Version { number, at, why, node: node.to_string(), seq, unknown_fields, set });
        true
    }

    /// What is known about a column beyond what the definition says. `widest`: it is never narrower than it was.
    fn settle(&self, mut column: Column, widest: bool) -> Column {
        let known = |name: &str| self.latest.iter().find(|known| known.name == name);
        match known(&column.name) {
            Some(old) => {
                column.renamed_from = old.renamed_from.clone();
                if column.source != Source::Declared {
                    column.unit = old.unit.clone();
                }
                let is_wider = (old.r#type, column.r#type) == (FieldType::Double, FieldType::Bigint);
                if widest && is_wider {
                    column.r#type = old.r#type;
                }
            }
            None => {
                column.renamed_from = column.alias_names().filter(|alias| known(alias).is_some()).collect();
            }
        }
        column
    }

    fn push(&mut self, version: Version) {
        merge(&mut self.latest, &version.set);
        let pairs = |column: &Column| -> Vec<(String, String)> {
            column.renamed_from.iter().map(|old| (column.name.clone(), old.clone())).collect()
        };
        self.renames = self.latest.iter().flat_map(pairs).collect();
        self.versions.push(Arc::new(version));
    }
}

fn merge(columns: &mut Vec<Column>, set: &[Column]) {
    for column in set {
        match columns.iter_mut().find(|known| known.name == column.name) {
            Some(known) => *known = column.clone(),
            None => columns.push(column.clone()),
        }
    }
}
