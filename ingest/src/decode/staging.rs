//! The rows of one message before it is known whether all of it is good.
//!
//! A message is stored whole or not at all. Its values are checked and collected here; only when the last
//! of them is good do they reach the columns, and new or wider columns come into being.

use iot_schemas::catalog::{TimeUnitName, UnknownFields};
use iot_schemas::layout::DEVICE_ID;

use super::column::{Column, Kind, Origin, Value};
use super::fields::{Admission, Fields, Target};
pub(crate) use super::scalar::Scalar;
use super::{shorten, time};

/// What a huge message may leave behind as room for the next one.
const KEPT_CAPACITY: usize = 65_536;
/// What the rows and values of one message may take up. Far more than those of a real one: an empty object is one
/// byte in some formats, and fields that many events share are few bytes in the message and many here.
const MAX_BYTES: usize = 128 << 20;

/// Why the message cannot be stored. The reason is in [`Staging::failure`].
#[derive(Debug)]
pub(crate) struct Failed;

/// One row.
#[derive(Debug, Default, Clone, Copy)]
pub(crate) struct Row {
    /// The end of its values in [`Staging::values`].
    pub(crate) end: usize,
    pub(crate) event_time: Option<i64>,
    /// Its device in [`Staging::text`].
    pub(crate) device: Option<(usize, usize)>,
}

/// A column that the message would add.
#[derive(Debug)]
struct NewColumn {
    name: String,
    spelling: String,
    kind: Kind,
    stamp: u64,
}

/// The collected message.
#[derive(Debug, Default)]
pub(crate) struct Staging {
    /// Column and value, row after row. Column numbers beyond the known ones mean [`NewColumn`]s.
    pub(crate) values: Vec<(usize, Value)>,
    pub(crate) rows: Vec<Row>,
    pub(crate) text: String,
    pub(crate) failure: Option<String>,
    /// Bytes of [`Self::text`] that stand in more than one row, counted once for each row after the first.
    pub(crate) repeated: usize,
    row: Row,
    /// What every row has that does not say otherwise, and the values of it.
    shared: (Row, Vec<(usize, Value)>),
    /// Whether there is any such thing in this message.
    shares: bool,
    stamp: u64,
    new: Vec<NewColumn>,
    widen: Vec<usize>,
    /// The device comes from the topic: payload fields of that name are not looked at.
    pub(crate) device_known: bool,
    time_unit: TimeUnitName,
}

impl Staging {
    /// Forgets the last message. `time_unit` is the unit of event times in the next one that are numbers.
    pub(crate) fn clear(&mut self, device_known: bool, time_unit: TimeUnitName) {
        self.values.clear();
        self.values.shrink_to(KEPT_CAPACITY);
        self.rows.clear();
        self.rows.shrink_to(KEPT_CAPACITY);
        self.text.clear();
        self.text.shrink_to(KEPT_CAPACITY);
        self.new.clear();
        self.widen.clear();
        self.failure = None;
        self.repeated = 0;
        self.shares = false;
        self.device_known = device_known;
        self.time_unit = time_unit;
        self.begin_row();
    }

    /// The memory that is kept between messages.
    pub(crate) fn kept_bytes(&self) -> usize {
        let values = self.values.capacity() + self.shared.1.capacity();
        values * size_of::<(usize, Value)>()
            + self.rows.capacity() * size_of::<Row>()
            + self.text.capacity()
            + self.new.capacity() * size_of::<NewColumn>()
    }

    pub(crate) fn begin_row(&mut self) {
        self.row = Row::default();
        self.stamp += 1;
    }

    /// Gives the row that was begun another time, which wins over that of a field.
    pub(crate) fn retime(&mut self, event_time: Option<i64>) {
        self.row.event_time = event_time;
    }

    /// Gives the row that was begun its time and its device.
    pub(crate) fn place(&mut self, event_time: i64, device: (usize, usize)) {
        self.row.event_time = Some(event_time);
        self.row.device = Some(device);
    }

    #[inline]
    pub(crate) fn end_row(&mut self, fields: &mut Fields) -> Result<(), Failed> {
        if fields.upcast.is_some() {
            self.upcast_row(fields)?;
        }
        if self.shares {
            self.add_shared(fields);
        }
        self.row.end = self.values.len();
        self.rows.push(self.row);
        let bytes = self.values.len() * size_of::<(usize, Value)>()
            + self.rows.len() * size_of::<Row>()
            + self.text.len()
            + self.repeated;
        if bytes > MAX_BYTES { self.refuse_size() } else { Ok(()) }
    }

    /// Takes the fields that the stream's `upcast` looks at, as it leaves them.
    fn upcast_row(&mut self, fields: &mut Fields) -> Result<(), Failed> {
        let Some(outcome) = fields.upcast.as_mut().map(|upcast| upcast.finish()) else { return Ok(()) };
        let values = match outcome {
            Ok(values) => values,
            Err(reason) => return self.fail(reason),
        };
        values.iter().try_for_each(|(name, value)| {
            let target = fields.resolve(name, usize::MAX);
            self.take_as_it_is(fields, target, name, Scalar::of(value))
        })
    }

    #[cold]
    fn refuse_size(&mut self) -> Result<(), Failed> {
        self.fail(format!("the events would take up more than {MAX_BYTES} bytes; send fewer at once"))
    }

    /// Makes what was taken since [`Self::begin_row`] part of every row that does not say otherwise.
    pub(crate) fn share(&mut self, fields: &mut Fields) {
        if let Some(upcast) = &mut fields.upcast {
            upcast.share();
        }
        // Before it may be the rows of other lines.
        let begin = self.rows.last().map_or(0, |row| row.end);
        let (row, values) = &mut self.shared;
        *row = self.row;
        values.clear();
        values.shrink_to(KEPT_CAPACITY);
        values.extend(self.values.drain(begin..));
        self.shares = true;
    }

    /// Whether each row has the values between the end of the one before and its own.
    pub(crate) fn is_sound(&self) -> bool {
        let end = self.rows.last().map_or(0, |row| row.end);
        self.rows.is_sorted_by_key(|row| row.end) && end <= self.values.len()
    }

    fn add_shared(&mut self, fields: &Fields) {
        let (row, values) = &self.shared;
        self.row.event_time = self.row.event_time.or(row.event_time);
        if let (None, Some((start, end))) = (self.row.device, row.device) {
            self.row.device = row.device;
            self.repeated += end - start;
        }
        for (at, value) in values {
            let stamp = match fields.columns.get(*at) {
                Some(column) => column.stamp,
                None => self.new[*at - fields.columns.len()].stamp,
            };
            if stamp == self.stamp {
                continue;
            }
            if let Value::Text { start, end } = value {
                self.repeated += end - start;
            }
            self.values.push((*at, *value));
        }
    }

    /// The type that the field `name` has or will have; `None` if it is not known yet.
    pub(crate) fn kind_of(&self, fields: &Fields, target: Target, name: &str) -> Option<Kind> {
        if fields.upcast.as_ref().is_some_and(|upcast| upcast.input(name).is_some()) {
            return None;
        }
        match target {
            Target::Column(at) | Target::EventTimeColumn(at) => Some(fields.columns[at].kind()),
            Target::DeviceId => Some(Kind::Text),
            Target::EventTime => Some(Kind::Timestamp),
            Target::Unknown => {
                let new = self.new.iter().find(|new| new.spelling == name).map(|new| new.kind);
                new.or_else(|| fields.kind_of_spelling(name))
            }
            Target::Skip => None,
        }
    }

    /// Notes why the message is no good.
    pub(crate) fn fail<T>(&mut self, reason: String) -> Result<T, Failed> {
        self.failure = Some(reason);
        Err(Failed)
    }

    /// Takes the value of the field `name`.
    pub(crate) fn take(
        &mut self,
        fields: &mut Fields,
        target: Target,
        name: &str,
        scalar: Scalar<'_>,
    ) -> Result<(), Failed> {
        if let Some(upcast) = &mut fields.upcast
            && let Some(input) = upcast.input(name)
        {
            // It is known only at the end of the row what becomes of it.
            return match upcast.put(input, scalar) {
                true => Ok(()),
                false => self.fail(format!("field `{}` is given twice", shorten(name))),
            };
        }
        self.take_as_it_is(fields, target, name, scalar)
    }

    /// Takes a value whatever the stream's `upcast` looks at: what the format itself says has no field's name.
    pub(crate) fn take_as_it_is(
        &mut self,
        fields: &mut Fields,
        target: Target,
        name: &str,
        scalar: Scalar<'_>,
    ) -> Result<(), Failed> {
        match target {
            Target::Column(at) => self.take_column(fields, at, scalar),
            Target::EventTime => self.take_time(name, scalar).map(drop),
            Target::EventTimeColumn(at) => {
                let time = self.take_time(name, scalar)?;
                // A column of times has the event time; its unit is the stream's.
                let is_time = fields.columns[at].kind() == Kind::Timestamp;
                self.take_column(fields, at, if is_time { Scalar::Instant(time) } else { scalar })
            }
            Target::DeviceId => self.take_device(scalar),
            Target::Skip => Ok(()),
            Target::Unknown => match fields.unknown {
                UnknownFields::Ignore => Ok(()),
                UnknownFields::Reject => self.refuse_unknown(name),
                UnknownFields::Add => self.take_unknown(fields, name, scalar),
            },
        }
    }

    /// The refusal of a field that is not declared.
    pub(crate) fn refuse_unknown<T>(&mut self, name: &str) -> Result<T, Failed> {
        self.fail(format!("field `{}` is not declared and the stream rejects unknown fields", shorten(name)))
    }

    /// The refusal of a value whose shape no field can have.
    pub(crate) fn refuse_shape<T>(&mut self, name: &str, expected: &str, found: &str) -> Result<T, Failed> {
        self.fail(format!("field `{}`: expected {expected}, found {found}", shorten(name)))
    }

    /// The event time of the row, in microseconds since 1970.
    fn take_time(&mut self, name: &str, scalar: Scalar<'_>) -> Result<i64, Failed> {
        if self.row.event_time.is_some() {
            return self.fail(format!("field `{name}` is given twice"));
        }
        match as_time(scalar, self.time_unit) {
            Some(micros) => {
                self.row.event_time = Some(micros);
                Ok(micros)
            }
            None => {
                let expected = "a time, as RFC 3339 text or a number since 1970";
                self.refuse_shape(name, expected, &scalar.describe())
            }
        }
    }

    fn take_device(&mut self, scalar: Scalar<'_>) -> Result<(), Failed> {
        if self.device_known {
            return Ok(());
        }
        if self.row.device.is_some() {
            return self.fail(format!("field `{DEVICE_ID}` is given twice"));
        }
        let range = match scalar {
            Scalar::Text(text) => self.keep(text),
            Scalar::Integer(number) => self.keep(&number.to_string()),
            Scalar::Unsigned(number) => self.keep(&number.to_string()),
            other => return self.refuse_shape(DEVICE_ID, "text", &other.describe()),
        };
        self.row.device = Some(range);
        Ok(())
    }

    fn take_column(&mut self, fields: &mut Fields, at: usize, scalar: Scalar<'_>) -> Result<(), Failed> {
        let column = &mut fields.columns[at];
        if column.stamp == self.stamp {
            return self.take_again(fields, at, scalar);
        }
        column.stamp = self.stamp;
        let (kind, origin) = (column.kind(), column.origin);
        let value = match self.fit(kind, scalar) {
            Some(value) => value,
            None => match (kind, origin, scalar) {
                (Kind::Bigint, Origin::Found, Scalar::Float(v)) if v.is_finite() => {
                    if !self.widen.contains(&at) {
                        self.widen.push(at);
                    }
                    Value::Float(v)
                }
                _ => return self.refuse_value(&fields.columns[at].name, kind, scalar),
            },
        };
        self.values.push((at, value));
        Ok(())
    }

    /// A second value for a column of the row: good only if a field and its alias say the same.
    #[cold]
    fn take_again(&mut self, fields: &Fields, at: usize, scalar: Scalar<'_>) -> Result<(), Failed> {
        let Column { name, has_aliases, .. } = &fields.columns[at];
        if !has_aliases {
            return self.fail(format!("field `{name}` is given twice"));
        }
        let kind = fields.columns[at].kind();
        let Some(value) = self.fit(kind, scalar) else { return self.refuse_value(name, kind, scalar) };
        let begin = self.rows.last().map_or(0, |row| row.end);
        let first = self.values[begin..].iter().find(|(column, _)| *column == at).map(|(_, first)| *first);
        if first.is_some_and(|first| self.is_same(first, value)) {
            return Ok(());
        }
        let found = scalar.describe();
        self.fail(format!(
            "column `{name}` is given twice, by its own name or an alias, with different values: {found} is the second"
        ))
    }

    fn is_same(&self, one: Value, other: Value) -> bool {
        let text = |value| match value {
            Value::Text { start, end } => Some(&self.text[start..end]),
            _ => None,
        };
        match (one, other) {
            (Value::Integer(i), Value::Float(f)) | (Value::Float(f), Value::Integer(i)) => i as f64 == f,
            (Value::Text { .. }, Value::Text { .. }) => text(one) == text(other),
            (one, other) => one == other,
        }
    }

    fn take_unknown(&mut self, fields: &mut Fields, name: &str, scalar: Scalar<'_>) -> Result<(), Failed> {
        if let Some(i) = self.new.iter().position(|new| new.spelling == name) {
            return self.take_new(fields.columns.len(), i, scalar);
        }
        let clean = match fields.admit(name, self.new.len()) {
            Ok(Admission::New(clean)) => clean,
            Ok(Admission::Known(at)) => {
                fields.learn(name, at);
                return self.take_column(fields, at, scalar);
            }
            Err(reason) => return self.fail(reason),
        };
        let lower = clean.to_lowercase();
        if let Some(other) = self.new.iter().find(|new| new.name.to_lowercase() == lower) {
            let reason = format!("the fields `{}` and `{name}` would be the same column", other.spelling);
            return self.fail(reason);
        }
        let kind = match scalar {
            Scalar::Boolean(_) => Kind::Boolean,
            Scalar::Integer(_) => Kind::Bigint,
            Scalar::Float(_) => Kind::Double,
            Scalar::Text(_) => Kind::Text,
            Scalar::Instant(_) => Kind::Timestamp,
            Scalar::Unsigned(_) | Scalar::Huge(_) => return self.refuse_value(&clean, Kind::Bigint, scalar),
        };
        self.new.push(NewColumn { name: clean, spelling: name.to_owned(), kind, stamp: 0 });
        self.take_new(fields.columns.len(), self.new.len() - 1, scalar)
    }

    /// A value for a column that this message adds.
    fn take_new(&mut self, known: usize, i: usize, scalar: Scalar<'_>) -> Result<(), Failed> {
        if self.new[i].stamp == self.stamp {
            return self.fail(format!("field `{}` is given twice", self.new[i].spelling));
        }
        self.new[i].stamp = self.stamp;
        let kind = self.new[i].kind;
        let value = match (self.fit(kind, scalar), kind, scalar) {
            (Some(value), ..) => value,
            (None, Kind::Bigint, Scalar::Float(v)) if v.is_finite() => {
                self.new[i].kind = Kind::Double;
                Value::Float(v)
            }
            _ => {
                let name = self.new[i].name.clone();
                return self.refuse_value(&name, kind, scalar);
            }
        };
        self.values.push((known + i, value));
        Ok(())
    }

    fn refuse_value<T>(&mut self, name: &str, kind: Kind, scalar: Scalar<'_>) -> Result<T, Failed> {
        self.fail(format!("field `{name}`: expected {}, found {}", kind.word(), scalar.describe()))
    }

    /// The value as a column of type `kind` takes it.
    fn fit(&mut self, kind: Kind, scalar: Scalar<'_>) -> Option<Value> {
        match (kind, scalar) {
            (Kind::Double, Scalar::Float(v) | Scalar::Huge(v)) => v.is_finite().then_some(Value::Float(v)),
            (Kind::Double | Kind::Bigint, Scalar::Integer(v)) => Some(Value::Integer(v)),
            (Kind::Double, Scalar::Unsigned(v)) => Some(Value::Float(v as f64)),
            (Kind::Bigint, Scalar::Float(v)) => whole(v).map(Value::Integer),
            (Kind::Boolean, Scalar::Boolean(v)) => Some(Value::Boolean(v)),
            (Kind::Text, Scalar::Text(text)) => {
                let (start, end) = self.keep(text);
                Some(Value::Text { start, end })
            }
            (Kind::Timestamp, scalar) => as_time(scalar, TimeUnitName::Ms)
                .filter(|micros| time::is_plausible(*micros))
                .map(Value::Integer),
            _ => None,
        }
    }

    /// Puts text aside and returns where it stands in [`Self::text`].
    pub(crate) fn keep(&mut self, text: &str) -> (usize, usize) {
        let start = self.text.len();
        self.text.push_str(text);
        (start, self.text.len())
    }

    /// Lets the new and the wider columns come into being. Returns whether there were any.
    pub(crate) fn evolve(&mut self, fields: &mut Fields) -> bool {
        let evolved = !self.new.is_empty() || !self.widen.is_empty();
        for at in self.widen.drain(..) {
            fields.columns[at].widen();
        }
        for new in self.new.drain(..) {
            let at = fields.add(&new.name, new.kind, Origin::Found);
            if new.spelling != new.name {
                fields.learn(&new.spelling, at);
            }
        }
        evolved
    }
}

fn as_time(scalar: Scalar<'_>, unit: TimeUnitName) -> Option<i64> {
    match scalar {
        Scalar::Text(text) => time::from_text(text),
        Scalar::Integer(value) => time::from_integer(value, unit),
        Scalar::Float(value) => time::from_float(value, unit),
        Scalar::Instant(micros) => Some(micros),
        Scalar::Boolean(_) | Scalar::Unsigned(_) | Scalar::Huge(_) => None,
    }
}

/// Beyond this, 2^53, a double has no fraction whatever was sent, and may be another integer than that.
const MAX_EXACT: f64 = 9_007_199_254_740_992.0;

/// A number without fraction as an integer, if it certainly is the one that was sent.
fn whole(value: f64) -> Option<i64> {
    (value.fract() == 0.0 && value.abs() <= MAX_EXACT).then_some(value as i64)
}
