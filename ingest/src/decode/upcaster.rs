//! The fields of the row under construction that the stream's `upcast` looks at.
//!
//! They are put aside as the payload has them, whatever the types of their columns are, and come back at the end of the
//! row as the `upcast` leaves them. They then go the way of every field: a value that no step has changed fits its
//! column or makes the message a dead letter, as it would without an `upcast`.

use std::collections::HashMap;

use iot_schemas::catalog::{StreamDef, column_name};
use iot_schemas::upcast::{Upcast, Value};
use iot_schemas::{Error, Result};

use super::staging::Scalar;

/// A stream's `upcast` and what it looks at in this row.
#[derive(Debug)]
pub(crate) struct Upcaster {
    upcast: Upcast,
    numbers: HashMap<String, usize>,
    /// The values of this row by input, and those that every row of the message has.
    row: Vec<Option<Value>>,
    shared: Vec<Option<Value>>,
}

impl Upcaster {
    /// That of a stream, if it has one.
    pub(crate) fn new(def: &StreamDef) -> Result<Option<Box<Self>>> {
        if def.upcast.is_empty() {
            return Ok(None);
        }
        let upcast = Upcast::new(&def.upcast)
            .map_err(|why| Error::invalid(format!("stream `{}`: {why}", def.name)))?;
        let inputs = upcast.inputs();
        let numbers = inputs.iter().enumerate().map(|(number, name)| (name.clone(), number)).collect();
        let (row, shared) = (vec![None; inputs.len()], vec![None; inputs.len()]);
        Ok(Some(Box::new(Self { upcast, numbers, row, shared })))
    }

    /// The number of the input that the field spelled `name` is, if it is one.
    pub(crate) fn input(&self, name: &str) -> Option<usize> {
        let is_clean = name.starts_with(|c: char| c.is_ascii_alphabetic())
            && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_');
        if is_clean { self.numbers.get(name).copied() } else { self.numbers.get(&column_name(name)).copied() }
    }

    /// Forgets the last message.
    pub(crate) fn clear(&mut self) {
        self.row.fill(None);
        self.shared.fill(None);
    }

    /// Puts a value aside; `false` if the row has one for it already.
    pub(crate) fn put(&mut self, input: usize, scalar: Scalar<'_>) -> bool {
        self.row[input].replace(scalar.to_value()).is_none()
    }

    /// Makes what was put aside part of every row that does not say otherwise.
    pub(crate) fn share(&mut self) {
        self.shared = std::mem::replace(&mut self.row, vec![None; self.shared.len()]);
    }

    /// The fields of the row as the `upcast` leaves them.
    pub(crate) fn finish(&mut self) -> Result<Vec<(String, Value)>, String> {
        for (value, shared) in self.row.iter_mut().zip(&self.shared) {
            if value.is_none() {
                value.clone_from(shared);
            }
        }
        let names = self.upcast.inputs().to_vec();
        let done = self.upcast.apply(&self.row)?;
        let (set, drop) = done.map_or((Vec::new(), &[][..]), |done| (done.set, done.drop));
        let is_left = |name: &String| !drop.contains(name) && !set.iter().any(|(field, _)| field == name);
        let inputs = names.into_iter().zip(self.row.iter_mut().map(Option::take));
        let mut left: Vec<(String, Value)> = inputs
            .filter(|(name, _)| is_left(name))
            .filter_map(|(name, value)| Some((name, value?)))
            .collect();
        left.extend(set.into_iter().filter_map(|(field, value)| Some((field.to_owned(), value?))));
        Ok(left)
    }
}
