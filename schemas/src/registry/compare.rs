//! What is different between two schemas of a stream, in terms of the rules.

use std::collections::HashMap;

use super::column::{Column, Source};
use super::rules::RuleId;
use crate::catalog::{FieldType, UnknownFields, column_name};

/// One difference.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    /// The rule that judges it.
    pub rule: RuleId,
    /// The column; `None` if it is about the stream.
    pub column: Option<String>,
    /// In words.
    pub detail: String,
}

/// The differences from `before` to `after`, which has every column of `before`: columns never go.
pub fn compare(
    (before, unknown_before): (&[Column], UnknownFields),
    (after, unknown_after): (&[Column], UnknownFields),
) -> Vec<Change> {
    let known: HashMap<&str, &Column> = before.iter().map(|column| (column.name.as_str(), column)).collect();
    let renamed: Vec<String> = after
        .iter()
        .filter(|column| !known.contains_key(column.name.as_str()))
        .flat_map(Column::alias_names)
        .collect();
    let mut differences = Differences { known, after, renamed, changes: Vec::new() };
    after.iter().for_each(|column| differences.column(column));
    if unknown_before != unknown_after {
        let detail = format!("from `{}` to `{}`", unknown_before.word(), unknown_after.word());
        differences.changes.push(Change { rule: RuleId::UnknownFields, column: None, detail });
    }
    differences.changes
}

struct Differences<'a> {
    known: HashMap<&'a str, &'a Column>,
    after: &'a [Column],
    /// The old names of columns that are renamed.
    renamed: Vec<String>,
    changes: Vec<Change>,
}

impl Differences<'_> {
    fn add(&mut self, rule: RuleId, column: &Column, detail: String) {
        self.changes.push(Change { rule, column: Some(column.name.clone()), detail });
    }

    fn column(&mut self, after: &Column) {
        let Some(before) = self.known.get(after.name.as_str()).copied() else {
            return self.new_column(after);
        };
        self.types(before, after);
        self.sources(before, after);
        if after.source == Source::Declared {
            self.units(before, after);
            self.notes(before, after);
        }
        self.aliases(before, after);
    }

    fn new_column(&mut self, after: &Column) {
        let word = after.r#type.word();
        if let Some(other) = self.differs_only_by_case(after) {
            return self.add(RuleId::OnlyCase, after, format!("`{other}` is there"));
        }
        let old = after.alias_names().filter_map(|alias| self.known.get(alias.as_str()).copied());
        let old: Vec<&Column> = old.collect();
        if old.is_empty() {
            return self.add(RuleId::AddField, after, word.to_owned());
        }
        for old in old {
            let unit = other_unit(old, after);
            if !can_be_read_as(old.r#type, after.r#type) {
                let detail = format!("{word}, from `{}`, which is {}", old.name, old.r#type.word());
                self.add(RuleId::RenameType, after, detail);
            } else if unit.is_none() {
                self.add(RuleId::Rename, after, format!("{word}, from `{}`", old.name));
            }
            if let Some(unit) = unit {
                self.add(RuleId::ChangeUnit, after, format!("of `{}` {unit}", old.name));
            }
        }
    }

    /// The other spelling of a new column's name, known or declared before it.
    fn differs_only_by_case(&self, after: &Column) -> Option<String> {
        let declared = self.after.iter().take_while(|column| column.name != after.name);
        let mut others = self.known.values().copied().chain(declared);
        others.find(|other| other.name.eq_ignore_ascii_case(&after.name)).map(|other| other.name.clone())
    }

    fn types(&mut self, before: &Column, after: &Column) {
        let rule = match (before.r#type, after.r#type) {
            (one, other) if one == other => return,
            (FieldType::Bigint, FieldType::Double) => RuleId::Widen,
            (FieldType::Double, FieldType::Bigint) => RuleId::Narrow,
            _ => RuleId::ChangeType,
        };
        self.add(rule, after, format!("from {} to {}", before.r#type.word(), after.r#type.word()));
    }

    fn sources(&mut self, before: &Column, after: &Column) {
        let found = |source| matches!(source, Source::Inferred | Source::Kept);
        match (before.source, after.source) {
            (one, other) if one == other => {}
            (one, Source::Declared) if found(one) => {
                self.add(RuleId::Declare, after, after.r#type.word().to_owned());
            }
            // `unknown_fields` or an alias says so, and is in the list itself.
            (one, other) if found(one) && found(other) => {}
            (_, other) if found(other) => {
                if !self.renamed.contains(&after.name) {
                    self.add(RuleId::Remove, after, format!("it was {}", before.source.word()));
                }
            }
            (one, other) => {
                self.add(RuleId::ChangeSource, after, format!("from {} to {}", one.word(), other.word()));
            }
        }
    }

    fn units(&mut self, before: &Column, after: &Column) {
        match (other_unit(before, after), &before.unit, &after.unit) {
            (Some(detail), ..) => self.add(RuleId::ChangeUnit, after, detail),
            (None, None, Some(unit)) => self.add(RuleId::StateUnit, after, format!("`{unit}`")),
            _ => {}
        }
    }

    fn notes(&mut self, before: &Column, after: &Column) {
        match (&before.deprecated, &after.deprecated) {
            (one, other) if one == other => {}
            (_, Some(note)) => self.add(RuleId::Deprecate, after, note.clone()),
            (_, None) => self.add(RuleId::Undeprecate, after, String::new()),
        }
    }

    fn aliases(&mut self, before: &Column, after: &Column) {
        for alias in after.aliases.iter().filter(|alias| !before.aliases.contains(alias)) {
            let old = self.known.get(column_name(alias).as_str()).copied();
            match old.map(|old| other_unit(old, after)) {
                None => self.add(RuleId::AddAlias, after, format!("`{alias}`")),
                Some(None) => self.add(RuleId::Redirect, after, format!("`{alias}`")),
                Some(Some(unit)) => self.add(RuleId::ChangeUnit, after, format!("of `{alias}` {unit}")),
            }
        }
        for alias in before.aliases.iter().filter(|alias| !after.aliases.contains(alias)) {
            if before.renamed_from.contains(&column_name(alias)) {
                if !self.is_renamed_again(&before.name, &column_name(alias)) {
                    self.add(RuleId::UndoRename, after, format!("`{alias}`"));
                }
            } else if after.source == Source::Declared {
                self.add(RuleId::RemoveAlias, after, format!("`{alias}`"));
            }
        }
    }

    /// Whether one column has both names of a rename among its aliases: then neither gets new values of its own.
    fn is_renamed_again(&self, name: &str, older: &str) -> bool {
        self.after.iter().any(|column| {
            let lists = |name: &str| column.alias_names().any(|alias| alias == name);
            lists(name) && lists(older)
        })
    }
}

/// The change from the unit that `old` states to that of `new`, if it is another one or none.
fn other_unit(old: &Column, new: &Column) -> Option<String> {
    let unit = old.unit.as_ref().filter(|unit| new.unit.as_ref() != Some(*unit))?;
    let other = new.unit.as_ref().map_or("none".to_owned(), |unit| format!("`{unit}`"));
    Some(format!("from `{unit}` to {other}"))
}

/// Whether values of the type `old` are values of the type `new`.
fn can_be_read_as(old: FieldType, new: FieldType) -> bool {
    old == new || (old, new) == (FieldType::Bigint, FieldType::Double)
}
