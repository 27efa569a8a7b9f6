//! The topic of a reading, with columns filled in.

use std::str::FromStr;

use super::row::Row;
use crate::exit::Failure;

/// What stands where a row has no value for the topic.
const UNKNOWN: &str = "unknown";

/// A topic with `{column}` in it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Template {
    parts: Vec<Part>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Part {
    Text(String),
    Column(String),
}

/// What is filled in for a column.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Filling {
    /// The row's value of this column.
    Column(String),
    /// Always the same.
    Constant(String),
}

impl Template {
    /// The columns that it names.
    pub(super) fn columns(&self) -> impl Iterator<Item = &str> {
        self.parts.iter().filter_map(|part| match part {
            Part::Column(name) => Some(name.as_str()),
            Part::Text(_) => None,
        })
    }

    /// The topic of a row, and whether a value was missing. `fillings` are in the order of [`Self::columns`].
    pub(super) fn fill(&self, row: &Row, fillings: &[Filling]) -> (String, bool) {
        let (mut topic, mut lacks, mut fillings) = (String::new(), false, fillings.iter());
        for part in &self.parts {
            match part {
                Part::Text(text) => topic.push_str(text),
                Part::Column(_) => {
                    let value = match fillings.next() {
                        Some(Filling::Column(name)) => row.get(name).text(),
                        Some(Filling::Constant(text)) => text,
                        None => "",
                    };
                    lacks |= value.is_empty();
                    let value = if value.is_empty() { UNKNOWN } else { value };
                    topic.extend(
                        value.chars().map(|c| if matches!(c, '/' | '+' | '#' | '\0') { '_' } else { c }),
                    );
                }
            }
        }
        (topic, lacks)
    }
}

impl FromStr for Template {
    type Err = Failure;

    fn from_str(text: &str) -> Result<Self, Failure> {
        let wrong = |why: &str| Failure::usage(format!("topic `{text}`: {why}"));
        let (mut parts, mut rest) = (Vec::new(), text);
        while let Some((before, after)) = rest.split_once('{') {
            let (column, after) = after.split_once('}').ok_or_else(|| wrong("a `{` is never closed"))?;
            if column.is_empty() {
                return Err(wrong("`{}` names no column"));
            }
            parts.extend([Part::Text(before.to_owned()), Part::Column(column.to_owned())]);
            rest = after;
        }
        parts.push(Part::Text(rest.to_owned()));
        if text.is_empty()
            || parts.iter().any(|part| matches!(part, Part::Text(t) if t.contains(['+', '#', '}', '\0'])))
        {
            return Err(wrong("a topic to publish to is not empty and has no `+`, `#` or `}`"));
        }
        Ok(Self { parts })
    }
}

#[cfg(test)]
mod tests {
    use super::super::row::{Place, Value};
    use super::*;

    #[test]
    fn columns_are_filled_in_and_cannot_add_levels() {
        let template: Template = "fleet/{fleet}/{name}/t".parse().expect("a topic");
        assert_eq!(template.columns().collect::<Vec<_>>(), ["fleet", "name"]);
        let cells = vec![("fleet".into(), Value::Text("a/b#".into())), ("name".into(), Value::Absent)];
        let row = Row { place: Place::Row(1), cells };
        let fillings = [Filling::Column("fleet".into()), Filling::Column("name".into())];
        assert_eq!(template.fill(&row, &fillings), ("fleet/a_b_/unknown/t".to_owned(), true));
        let fillings = [Filling::Column("fleet".into()), Filling::Constant("x".into())];
        assert_eq!(template.fill(&row, &fillings), ("fleet/a_b_/x/t".to_owned(), false));
    }

    #[test]
    fn what_cannot_be_published_to_is_refused() {
        for bad in ["", "a/+", "a/{b", "a/b}", "a/{}", "#"] {
            assert!(bad.parse::<Template>().is_err(), "{bad}");
        }
    }
}
